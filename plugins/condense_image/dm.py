"""Distribution matching (DM; Zhao and Bilen, WACV 2023, arXiv:2110.04181): equal class means in random feature spaces.

Official code, followed here: a new randomly initialised network for every step, no training of it, all classes in one
update, the sum of the classes' squared distances. Networks with batch norm: the official code sends all classes through
together in training mode; here their statistics are fixed beforehand from 16 real images of each class, as DC does.

For any number of images per class: the rate is 1, and 10 from 100 images of each class on, as the README of the
official code has it for its budgets.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Net, Preprocess
from condense.component import named
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.distances import SquaredError
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Matching, MeanFeature
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh
from condense.parts.rules import SGD
from condense.recipe import Group, Outer, Published, Recipe, published


@published(
    paper="arXiv:2110.04181",
    title="DM: match the mean features of real and synthetic images under random networks",
    settings="published/dm.toml",
    protocol="vico-dsa",
)
def dm(*, per_class: int = 10, iterations: int = 20_000) -> Recipe:
    lr = 10.0 if per_class >= 100 else 1.0  # README of the official code
    return Recipe(
        objective=Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=256)),
        pool=Fresh(net=named(Net, "conv-net")),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=Hard(),
        augment=named(Augment, "dsa"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=(Group(rule=SGD(momentum=0.5), lr=lr),)),
    )


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dm": dm}
