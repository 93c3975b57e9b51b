"""DC-Graph: dataset condensation on nodes as if they had no edges (a baseline of GCond, arXiv:2110.07580, section 4).

GCond-X whose real side is seen without edges, too. Edges come back in the judge, which tests on the real graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import final

from torch import Tensor, nn

from condense.axes import Statistic
from condense.component import Component
from condense.hookspecs import hookimpl
from condense.recipe import Published, Recipe, published
from condense.task import Batch, Task

from . import sizes
from .gcond_x import gcond_x
from .graph import Graph, NodeView


@final
class EdgeFree(Statistic):
    """A statistic of nodes that are seen alone, without their edges and neighbours."""

    statistic: Statistic

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> Mapping[str, Tensor]:
        return self.statistic.rows(model, alone(batch), task)

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> Mapping[str, Tensor]:
        return self.statistic.mean(model, alone(batch), task, live=live)

    def means(
        self, model: nn.Module, batches: Sequence[Batch], task: Task, *, live: bool
    ) -> Sequence[Mapping[str, Tensor]]:
        return self.statistic.means(model, [alone(batch) for batch in batches], task, live=live)

    def finish(self, mean: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.statistic.finish(mean)


def alone(batch: Batch) -> Batch:
    """The nodes of a batch without any edges, differentiable in their features."""
    view: NodeView = batch.x
    return batch.with_x(NodeView.whole(Graph(view.graph.x[view.nodes])))


@published(
    paper="arXiv:2110.07580",
    title="DC-Graph: match gradients along training, on nodes seen without edges on both sides",
    form="nodes",
    settings="published/dc_graph.toml",
    protocol="graph",
)
def dc_graph(
    *, total: int | None = None, ratio: float | None = None, of: sizes.Of = "train", epochs: int = 50
) -> Recipe:
    recipe = gcond_x.make(total=total, ratio=ratio, of=of, epochs=epochs)
    return recipe.rewrite(Statistic, lambda statistic: EdgeFree(statistic=statistic))


@hookimpl
def condense_components() -> list[type[Component]]:
    return [EdgeFree]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dc-graph": dc_graph}
