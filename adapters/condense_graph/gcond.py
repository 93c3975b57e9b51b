"""GCond: gradient matching for graphs (Jin, Zhao, Zhang, Liu, Tang and Shah, ICLR 2022, arXiv:2110.07580).

The objective is DC's, with the classes weighted by their share of the synthetic nodes. What differs is what is stored:
free features, and a network that says from the features of two nodes how strongly they are joined. Both are learned in
turns: of every 50 networks, the structure moves with the first 10 and the features with the other 40. An *epoch* is one
network: it is matched `turns` times, and trained for `inner` steps on the graph as it is after all but the last.

Where paper and official code differ, the code is followed: biases are not matched, the network is not trained after its
last turn, and the threshold cuts edges without shifting the others. Where we differ from the code: initial features,
labels and classes belong together (there, classes are in the order of their sizes and features in that of their
numbers); a real batch sees its whole neighbourhood and not a sample of 10 and 5 neighbours; the rates of features are
in units of the features' own size (`parameterization.relative`), so that one setting serves any data; nodes begin
almost without edges (`structure.start`); 50 epochs do, and the set that validation nodes like best along them is
released. The code's absolute rates, 600 to 1,000 epochs and last set stand in published/gcond.toml, for the data sets
that it has scripts for.
"""

from __future__ import annotations

from condense.axes import Augment, Budget, Init, Net, Objective, Preprocess, Selection
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.distances import RowCosine
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Gradient, Matching
from condense.parts.pools import Fresh
from condense.parts.rules import Adam
from condense.parts.selections import OnValidation
from condense.recipe import Group, Outer, Published, Recipe, published

from . import sizes
from .nets.gcn import GCN
from .nets.sgc import SGC
from .parameterizations import FreeNodes
from .structures import PairMLP, SampledEdges, Structure

FEATURES, STRUCTURE = 0.016, 1e-4  # rates; of features in units of their root mean square at the start
DRAWN = 0.3  # of the logits of drawn edges, which start at +-5: a tenth of it turns no edge in a run


def by_gradients() -> Objective:
    """DC's matching, each class weighted by n'_c / max n'."""
    return Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise(n=256, weight="frequency"))


def condensed(
    budget: Budget, objective: Objective, structure: Structure | None, net: Net, epochs: int, turns: int, inner: int
) -> Recipe:
    """What the methods that learn a graph share. inner: steps of training a network between two of its turns."""
    training = Fit(rule=Adam(), lr=0.01, steps=inner, batch=None) if inner else None
    return Recipe(
        objective=objective,
        pool=Fresh(net=net, turns=turns, inner=training),
        parameterization=FreeNodes(structure=structure),
        budget=budget,
        init=named(Init, "real"),
        labels=Hard(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "node-features"),
        outer=Outer(steps=epochs * turns, groups=groups(structure, turns)),
        selection=chosen(),
    )


def chosen() -> Selection:
    """The best of six sets along the run, by two short trainings of the judge's network on each."""
    return OnValidation(net=GCN(), fit=Fit(rule=Adam(weight_decay=5e-4), lr=0.01, steps=300, batch=None), times=5)


def groups(structure: Structure | None, turns: int) -> tuple[Group, ...]:
    """How features move, and the structure where there is one: in turns, 10 and 40 of every 50 epochs."""
    if structure is None:
        return (Group(role="features", rule=Adam(), lr=FEATURES),)
    every, span = 50 * turns, 10 * turns
    rate = DRAWN if isinstance(structure, SampledEdges) else STRUCTURE
    return (
        Group(role="features", rule=Adam(), lr=FEATURES, every=every, phase=span, span=every - span),
        Group(role="structure", rule=Adam(), lr=rate, every=every, span=span),
    )


@published(
    paper="arXiv:2110.07580",
    title="GCond: match gradients along training, on learned nodes joined by a learned generator",
    form="nodes",
    settings="published/gcond.toml",
    protocol="graph",
)
def gcond(*, total: int | None = None, ratio: float | None = None, of: sizes.Of = "train", epochs: int = 50) -> Recipe:
    budget = sizes.nodes(total, ratio, of)
    return condensed(budget, by_gradients(), PairMLP(), SGC(), epochs, turns=20, inner=15)


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"gcond": gcond}
