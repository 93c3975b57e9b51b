"""KIP and label solve (Nguyen, Chen and Lee, ICLR 2021, arXiv:2011.00050): kernel ridge regression on the set.

Images, and labels with them, on which ridge regression predicts real images well, under the tangent kernel of a fully
connected network of infinite width with one hidden layer (`infinite-mlp`). No network is trained, neither for the set
nor by its judge, `krr`. `label-solve` keeps real images and solves for their labels, without a step.

As in the released notebook: Adam at 0.04 on images and labels alike, 5,000 real images in each step, as many of each
class, targets of one-hot - 1/K, a ridge of 1e-6 of the mean diagonal, images standardised by channel, float64. It says
that 1,000 steps and more converge. There labels stay fixed by default; here they are learned, as for the figures of the
paper (`--set labels=hard` for fixed ones). The figures were found with augmentation of the real images (shifts and
rotations) and the best of several rates; neither is here.

Of ours: a step takes the next part of a permutation of each class, where the notebook draws anew; the loss is the sum
over the classes, there the mean: Adam moves alike, but for its epsilon.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Kernel, Labels, Preprocess
from condense.component import named
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.closed_form import Solved
from condense.parts.kernels import InfiniteMLP
from condense.parts.labels import LearnedLabels
from condense.parts.parameterizations import Pixels
from condense.parts.pools import NoModel
from condense.parts.ridge import CentredError, KernelRidge
from condense.parts.rules import Adam
from condense.recipe import Group, Outer, Published, Recipe, published


def inducing_points(per_class: int, iterations: int, kernel: Kernel, preprocess: Preprocess) -> Recipe:
    """Images and labels learned for ridge regression with `kernel`: what both papers share."""
    outer = Outer(steps=iterations, groups=(Group(rule=Adam(), lr=0.04),))
    objective = KernelRidge(kernel=kernel, n=500, draw="each", target_loss=CentredError())
    return on_real(per_class, LearnedLabels(), preprocess, outer).with_(objective=objective)


def solved_labels(per_class: int, kernel: Kernel, preprocess: Preprocess) -> Recipe:
    """Real images, with the labels by which ridge regression with `kernel` is best."""
    return on_real(per_class, Solved(kernel=kernel), preprocess, Outer(steps=0))


def on_real(per_class: int, labels: Labels, preprocess: Preprocess, outer: Outer) -> Recipe:
    return Recipe(
        pool=NoModel(),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=labels,
        augment=named(Augment, "none"),
        preprocess=preprocess,
        outer=outer,
    )


@published(
    paper="arXiv:2011.00050",
    title="KIP: images and labels on which kernel ridge regression predicts well",
    settings="published/kip.toml",
    protocol="krr",
)
def kip(*, per_class: int = 10, iterations: int = 1000) -> Recipe:
    return inducing_points(per_class, iterations, InfiniteMLP(), named(Preprocess, "normalise"))


@published(
    paper="arXiv:2011.00050",
    title="Label solve: real images with the labels that kernel ridge regression wants",
    settings="published/label_solve.toml",
    protocol="krr",
)
def label_solve(*, per_class: int = 10) -> Recipe:
    return solved_labels(per_class, InfiniteMLP(), named(Preprocess, "normalise"))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"kip": kip, "label-solve": label_solve}
