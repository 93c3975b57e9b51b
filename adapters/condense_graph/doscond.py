"""DosCond at node level: one-step gradient matching (Jin, Tang, Jiang, Li, Zhang, Tang and Yin, KDD 2022,
arXiv:2206.07746).

GCond's graph, matched by networks that are never trained: a fresh one for every outer step. The paper samples discrete
edges; its official code for nodes (ChandlerBang/GCond, KDD22_DosCond) does not, and keeps GCond's generator and the
turns of structure and features, with squared errors and a GCN in place of cosines and SGC. The code is followed;
`edges="sampled"` is the paper's form.
"""

from __future__ import annotations

from typing import Literal

from condense.errors import BadValue
from condense.hookspecs import hookimpl
from condense.parts.distances import SquaredError
from condense.parts.matching import ClassWise, Gradient, Matching
from condense.recipe import Published, Recipe, published

from . import sizes
from .gcond import condensed
from .nets.gcn import GCN
from .structures import PairMLP, SampledEdges


@published(
    paper="arXiv:2206.07746",
    title="DosCond: match gradients of untrained networks, on learned nodes and edges",
    form="nodes",
    settings="published/doscond.toml",
    protocol="graph",
)
def doscond(
    *,
    total: int | None = None,
    ratio: float | None = None,
    of: sizes.Of = "train",
    epochs: int = 500,
    edges: Literal["generated", "sampled"] = "generated",
) -> Recipe:
    if edges not in ("generated", "sampled"):
        raise BadValue("edges", edges, "is neither generated nor sampled", "Give --with edges=sampled, or none.")
    budget = sizes.nodes(total, ratio, of)
    matching = Matching(statistic=Gradient(), distance=SquaredError(), pairing=ClassWise(n=256, weight="frequency"))
    structure = PairMLP() if edges == "generated" else SampledEdges()
    return condensed(budget, matching, structure, GCN(dropout=0.0), epochs, turns=1, inner=0)


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"doscond": doscond}
