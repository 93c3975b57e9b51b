"""Dataset condensation by gradient matching (DC; Zhao, Mopuri and Bilen, ICLR 2021, arXiv:2006.05929).

Synthetic images whose gradient agrees, layer by layer, with that of real images of the same class, along the training
of freshly initialised networks on the synthetic set.

Where paper and official code differ, the code is followed: one-dimensional parameters contribute nothing to the
distance, and the network is not trained after its last matching step. Official code draws its seeds from the clock;
here every draw is keyed by the seed of the run. `outer.steps` counts updates of the images: iterations times the outer
loop.

The loops are published for 1, 10, 20, 30, 40 and 50 images per class. For any other number, our rule: as many matching
steps as images per class, and epochs that keep the product at 500, at most 50; above 50, the loops of 50. The rate of
the images is 0.1; for MLPs the authors took 0.01, which is not set by itself: `--set outer.groups.0.lr=0.01`.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Net, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.distances import RowCosine
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Gradient, Matching
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh
from condense.parts.rules import SGD
from condense.recipe import Group, Outer, Published, Recipe, published

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


def loops(per_class: int) -> tuple[int, int]:
    """(matching steps per network, training epochs between two of them) for a budget.

    Published for 1, 10, 20, 30, 40 and 50 images per class. In between, our rule: as many steps as images per class,
    and epochs that keep the product at 500 (at most 50 epochs); above 50, the loops of 50.
    """
    if per_class in LOOPS:
        return LOOPS[per_class]
    outer = min(per_class, 50)
    return outer, min(50, round(500 / outer))


def gradient_matching(per_class: int, iterations: int, init: Init, augment: Augment) -> Recipe:
    """What DC and DSA share: DSA adds its augmentation to both sides, and to the training between the steps."""
    outer, inner = loops(per_class)
    return Recipe(
        objective=Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise(n=256)),
        pool=Fresh(
            net=named(Net, "conv-net"), turns=outer, inner=Fit(rule=SGD(), lr=0.01, epochs=inner, augment=augment)
        ),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=init,
        labels=Hard(),
        augment=augment,
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations * outer, groups=(Group(rule=SGD(momentum=0.5), lr=0.1),)),
    )


@published(
    paper="arXiv:2006.05929",
    title="DC: match the gradients of real and synthetic images, layer by layer",
    settings="published/dc.toml",
    protocol="vico",
)
def dc(*, per_class: int = 10, iterations: int = 1000) -> Recipe:
    return gradient_matching(per_class, iterations, named(Init, "noise"), named(Augment, "none"))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dc": dc}
