"""Pieces of the real graph: random, herding and k-center nodes with the edges among them, and the whole graph.

As in the coreset baselines of GCond (arXiv:2110.07580, section 4, train_coreset.py): herding and k-center choose within
each class, and the chosen nodes keep the edges between them. They choose by what a GCN, trained on all labelled nodes,
gathers of a node in front of its last layer; GCond's code chooses by the output of that layer, the logits.
"""

from __future__ import annotations

from condense.axes import Asset, Augment, Budget, Init, Parameterization, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.assets import Trained
from condense.parts.budgets import Ratio
from condense.parts.inits import Herding, KCenter
from condense.parts.labels import Hard
from condense.parts.pools import NoModel
from condense.parts.rules import Adam
from condense.recipe import Outer, Published, Recipe, published

from . import sizes
from .nets.gcn import GCN
from .parameterizations import StoredGraph


def coreset(storage: Parameterization, budget: Budget, init: Init) -> Recipe:
    """No objective, no network, no steps: what Init chooses is the set. For nodes and for whole graphs alike."""
    return Recipe(
        pool=NoModel(),
        parameterization=storage,
        budget=budget,
        init=init,
        labels=Hard(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "node-features"),
        outer=Outer(steps=0),
    )


def scorer() -> Asset:
    return Trained(net=GCN(), fit=Fit(rule=Adam(weight_decay=5e-4), lr=0.01, steps=600, batch=None))


@published(
    paper="arXiv:2110.07580",
    title="Random real nodes of each class, with the edges among them",
    form="nodes",
    settings="published/random.toml",
    protocol="graph",
)
def random(*, total: int | None = None, ratio: float | None = None, of: sizes.Of = "train") -> Recipe:
    return coreset(StoredGraph(), sizes.nodes(total, ratio, of), named(Init, "real"))


@published(
    paper="doi:10.1145/1553374.1553517",
    title="Herding: real nodes whose running mean feature follows the class mean",
    form="nodes",
    settings="published/herding.toml",
    protocol="graph",
)
def herding(*, total: int | None = None, ratio: float | None = None, of: sizes.Of = "train") -> Recipe:
    return coreset(StoredGraph(), sizes.nodes(total, ratio, of), Herding(scorer=scorer()))


@published(
    paper="arXiv:1708.00489",
    title="k-center: real nodes whose features cover their class",
    form="nodes",
    settings="published/k_center.toml",
    protocol="graph",
)
def k_center(*, total: int | None = None, ratio: float | None = None, of: sizes.Of = "train") -> Recipe:
    return coreset(StoredGraph(), sizes.nodes(total, ratio, of), KCenter(scorer=scorer()))


@published(
    paper="arXiv:2110.07580",
    title="The whole graph, with all of its labelled nodes",
    form="nodes",
    settings="published/whole.toml",
    protocol="graph",
)
def whole() -> Recipe:
    return coreset(StoredGraph(around=True), Ratio(r=1.0, of="train"), named(Init, "real"))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"random": random, "herding": herding, "k-center": k_center, "whole": whole}
