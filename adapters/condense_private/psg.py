"""Private set generation by gradient matching (PSG; Chen, Kerkouche and Fritz, NeurIPS 2022, arXiv:2211.04446).

DC with one noised gradient of a Poisson sample of all classes together in place of a real gradient for each class: it
is all that is taken of the data, so that images, networks and what is trained on them afterwards follow from it.
Several gradients at the same weights, 10 published, each move the images once, before the network is trained on.

As in the official code: clip 0.1 (the private source's own for statistics without a bound), expected batch 256,
distances row by row, vectors left out, a network that is not trained after its last turn. It takes one iteration more
than it accounts for, and divides by the batch it happened to draw; here `outer.steps` noised gradients are taken, each
billed, and divided by 256. Its input scale is that of the data; a private source gives a public one.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Net, Parameterization, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.distances import RowCosine
from condense.parts.labels import Hard
from condense.parts.matching import Gradient, Joint, Matching
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh
from condense.parts.rules import SGD
from condense.recipe import Group, Outer, Published, Recipe, published

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10), 100: (50, 10)}
REPEATS = 10  # noised gradients, and steps of the images, at the same weights


def loops(per_class: int) -> tuple[int, int]:
    """(turns of the inner loop per network, training epochs between two of them) for a budget.

    Published for 1, 10, 20, 30, 40, 50 and 100 images per class. In between, our rule, as for DC: as many turns as
    images per class, and epochs that keep the product at 500 (at most 50 epochs); above 50, the loops of 50.
    """
    if per_class in LOOPS:
        return LOOPS[per_class]
    outer = min(per_class, 50)
    return outer, min(50, round(500 / outer))


def generation(
    per_class: int, iterations: int, looped: tuple[int, int], storage: Parameterization, moves: Group
) -> Recipe:
    """What PSG and its variant with a generator share."""
    outer, inner = looped
    turns = REPEATS * outer
    return Recipe(
        objective=Matching(statistic=Gradient(), distance=RowCosine(), pairing=Joint(n=256)),
        pool=Fresh(
            net=named(Net, "conv-net"), turns=turns, every=REPEATS, inner=Fit(rule=SGD(), lr=0.01, epochs=inner)
        ),
        parameterization=storage,
        budget=PerClass(n=per_class),
        init=named(Init, "noise"),
        labels=Hard(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations * turns, groups=(moves,)),
    )


@published(
    paper="arXiv:2211.04446",
    title="PSG: match the noised gradient of a private sample",
    settings="published/psg.toml",
    protocol="vico",
)
def psg(*, per_class: int = 10, iterations: int = 1000) -> Recipe:
    moves = Group(rule=SGD(momentum=0.5), lr=0.1)
    return generation(per_class, iterations, loops(per_class), Pixels(), moves)


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"psg": psg}
