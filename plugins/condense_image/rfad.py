"""RFAD: dataset distillation using random feature approximation (Loo, Hasani, Amini and Rus, NeurIPS 2022,
arXiv:2210.12067).

A set from which ridge regression predicts real images well, with the NNGP kernel of a convolutional network, which is
estimated from the features of 8 networks that are drawn anew for each step and never trained. The loss is the
cross-entropy of predictions times exp(t), with t learned (Platt scaling).

The official code is followed (yolky/RFAD): labels are centred and learned, images are multiplied by a learned matrix
that is the identity at first, all by AdaBelief, at 1e-3 (images, labels), 5e-5 (matrix) and 1e-2 (t); 4 times 1,280
real images a step, which are here the chunks of one permutation.

Where it differs: the code stops once the loss on 5,000 images of the training split has not fallen for 1,000 steps, and
releases the best set by it, within 100,000 steps at most. Here the number of steps is fixed, and the last set is
released; 10,000 is our choice. Its option without Platt scaling is `objective.scaled=false` with the target loss
`centred-error`. Colour images are whitened, as rows beside the recipe say for CIFAR and SVHN; SVHN's are centred and
scaled one by one before that in the code, and not here.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Net, Preprocess
from condense.component import named
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.features import Ensemble, FeatureKernel
from condense.parts.labels import LearnedLabels
from condense.parts.parameterizations import Preconditioned
from condense.parts.pools import Fresh
from condense.parts.ridge import KernelRidge
from condense.parts.rules import AdaBelief
from condense.recipe import Group, Outer, Published, Recipe, published


@published(
    paper="arXiv:2210.12067",
    title="RFAD: ridge regression with the kernel of random networks, and a learned temperature",
    settings="published/rfad.toml",
    protocol="krr",
)
def rfad(*, per_class: int = 10, iterations: int = 10_000) -> Recipe:
    kernel = FeatureKernel(scale=2.0, shift=0.01, mean=True)
    net = named(Net, "kernel-conv-net", width=256, growth=1, init="gaussian", pad=1)
    groups = (
        Group(role="[il]*", rule=AdaBelief(), lr=1e-3),  # images and labels
        Group(role="decoder", rule=AdaBelief(), lr=5e-5),
        Group(role="aux", rule=AdaBelief(), lr=1e-2),
    )
    return Recipe(
        objective=KernelRidge(kernel=kernel, ridge=5e-3, n=5120, scaled=True),
        pool=Fresh(net=Ensemble(net=net, n=8)),
        parameterization=Preconditioned(),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=LearnedLabels(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=groups),
    )


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"rfad": rfad}
