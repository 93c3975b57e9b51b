"""FRePo: dataset distillation by regression on neural features (Zhou, Nezhadarya and Ba, NeurIPS 2022,
arXiv:2206.00719).

A set from which ridge regression, on the features of networks that are trained on the set, predicts real images well.
The networks come from a pool of 10 of several ages; each outer step takes one of them, moves images and labels, and
then trains that network for one step on the set.

The official code is followed (yongchao97/FRePo, JAX): labels are centred and scaled by sqrt(10 / K) at first, learned,
and kept apart by a margin that the paper does not name; LAMB moves images and labels at one rate; the regression sees
each image and its mirror image, the training of the pool only the images; networks are asked in evaluation mode.

Where it differs: its shuffle buffer repeats real images within an epoch at random, here batches are the chunks of a
permutation. It keeps the best set by test accuracy; here the last one is released. Batch norm of its distilling
networks has the biased variance in its running statistics. Its colour images are whitened, which rows beside the recipe
say for CIFAR and SVHN; other data are standardised: `--set preprocess=zca-frepo` whitens them.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Net, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.features import FeatureKernel, LabelMargin
from condense.parts.labels import LearnedLabels
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Online
from condense.parts.ridge import CentredError, KernelRidge
from condense.parts.rules import LAMB, Adam
from condense.parts.schedules import Cosine
from condense.parts.sums import Sum
from condense.recipe import Group, Outer, Published, Recipe, published

from .augment import mirrored


@published(
    paper="arXiv:2206.00719",
    title="FRePo: ridge regression on the features of a pool of networks trained on the set",
    settings="published/frepo.toml",
    protocol="frepo",
)
def frepo(*, per_class: int = 10, iterations: int = 500_000) -> Recipe:
    ridge = KernelRidge(kernel=FeatureKernel(), ridge=1e-6, n=1024, target_loss=CentredError(), support=mirrored())
    net = named(Net, "kernel-conv-net", norm="before")
    inner = Fit(rule=Adam(), lr=3e-4, steps=1, batch=1000)
    return Recipe(
        objective=Sum(objectives=(ridge, LabelMargin(limit=1.0))),
        pool=Online(net=net, inner=inner, size=10, max_age=100),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=LearnedLabels(scale="root"),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=(Group(rule=LAMB(), lr=Cosine(start=3e-4, to=3e-5)),)),
    )


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"frepo": frepo}
