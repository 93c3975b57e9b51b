"""Sets of real graphs, of any size: random, herding and k-center, through the same door as the methods.

Herding and k-center choose within each class by the pooled features of a GCN trained on all training graphs, as in the
coreset baselines of DosCond (arXiv:2206.07746, section 4.1); how long it trains is ours.
"""

from __future__ import annotations

from condense.axes import Asset, Init
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.assets import Trained
from condense.parts.budgets import PerClass
from condense.parts.inits import Herding, KCenter
from condense.parts.rules import Adam
from condense.recipe import Published, Recipe, published

from .baselines import coreset
from .concrete import StoredGraphs
from .nets.whole import GraphGCN


def scorer() -> Asset:
    return Trained(net=GraphGCN(), fit=Fit(rule=Adam(), lr=0.005, steps=600, batch=128))


@published(
    paper="arXiv:2206.07746",
    title="Random real graphs of each class",
    form="graphs",
    settings="published/graphs_baselines.toml",
    protocol="graphs",
)
def random(*, per_class: int = 10) -> Recipe:
    return coreset(StoredGraphs(), PerClass(n=per_class), named(Init, "real"))


@published(
    paper="doi:10.1145/1553374.1553517",
    title="Herding: real graphs whose running mean feature follows the class mean",
    form="graphs",
    settings="published/graphs_baselines.toml",
    protocol="graphs",
)
def herding(*, per_class: int = 10) -> Recipe:
    return coreset(StoredGraphs(), PerClass(n=per_class), Herding(scorer=scorer()))


@published(
    paper="arXiv:1708.00489",
    title="k-center: real graphs whose features cover their class",
    form="graphs",
    settings="published/graphs_baselines.toml",
    protocol="graphs",
)
def k_center(*, per_class: int = 10) -> Recipe:
    return coreset(StoredGraphs(), PerClass(n=per_class), KCenter(scorer=scorer()))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"random": random, "herding": herding, "k-center": k_center}
