"""GCond-X: GCond without a structure (Jin et al., ICLR 2022, arXiv:2110.07580, section 4).

The synthetic nodes are joined by nothing, so that a network sees each alone; it is tested on the real graph with its
edges. The official repository has no code of it (its issue 15). As in GCond; every outer step moves the features.
"""

from __future__ import annotations

from condense.hookspecs import hookimpl
from condense.recipe import Published, Recipe, published

from . import sizes
from .gcond import by_gradients, condensed
from .nets.sgc import SGC


@published(
    paper="arXiv:2110.07580",
    title="GCond-X: match gradients along training, on learned nodes without edges",
    form="nodes",
    settings="published/gcond_x.toml",
    protocol="graph",
)
def gcond_x(
    *, total: int | None = None, ratio: float | None = None, of: sizes.Of = "train", epochs: int = 50
) -> Recipe:
    budget = sizes.nodes(total, ratio, of)
    return condensed(budget, by_gradients(), None, SGC(), epochs, turns=20, inner=15)


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"gcond-x": gcond_x}
