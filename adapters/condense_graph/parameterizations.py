"""What is stored of a condensed graph: free features with edges of some structure, or a piece of the real graph.

Notation: n synthetic nodes, D features, E directed edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from condense.axes import Labels, Parameterization
from condense.component import Component
from condense.data import TensorSampler
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.synthetic import Synthetic
from condense.task import Batch, Task

from . import structures
from .graph import Graph, NodeView
from .structures import Structure

# -- learned --------------------------------------------------------------------------------------------------------


@final
class FreeNodes(Parameterization):
    """Nodes whose features are free, with edges of a `structure`; without one there are none.

    relative: features are kept in units of their root mean square at the start, so that one rate of learning means the
    same for any data; a structure that is generated from features sees them in these units too.
    """

    structure: Structure | None = None
    relative: bool = True

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Free(self, task, groups, labels)


class _Free(Synthetic):
    """The graph is decoded once for each state of the parameters: what is kept is differentiable, and shared by the
    training between two outer steps (`freeze`) and by the next step's matching."""

    scale: Tensor

    def __init__(self, how: FreeNodes, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        self.relative = how.relative
        self.features = nn.Parameter(torch.zeros(len(groups), *task.shape))
        self.register_buffer("scale", torch.ones(()))
        self.edges = how.structure.build(len(groups), task.shape[0]) if how.structure else None
        self._kept: tuple[object, Graph] | None = None

    def start(self, rng: Rng) -> None:
        if self.edges is not None:
            self.edges.start(rng)

    @torch.no_grad()
    def fill(self, batch: Batch) -> None:
        view: NodeView = batch.x
        x = view.graph.x[view.nodes]
        size = x.square().mean().sqrt()
        self.scale.copy_(torch.where(size > 0, size, 1.0) if self.relative else torch.ones(()))
        self.features.copy_(x / self.scale)
        self.y.copy_(batch.y)
        if self.edges is not None:
            self.edges.fill(view)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        graph = self._graph(rng)
        if index is None:
            return Batch(NodeView.whole(graph), self.y)
        return Batch(NodeView(graph, index), self.y[index], index)

    def freeze(self, rng: Rng | None = None) -> TensorSampler:
        batch = self.decode(None, rng)
        return self.sampler(Batch(self.task.form.detach(batch.x), batch.y.detach()), live=False)

    def project(self, index: int) -> None:
        if self.edges is not None:
            self.edges.project(index)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        structure = {"structure": list(self.edges.parameters())} if self.edges is not None else {}
        labels = {"labels": [self.y]} if isinstance(self.y, nn.Parameter) else {}
        return {"features": [self.features], **structure, **labels}

    def stored(self) -> dict[str, int]:
        """Bytes by kind, as released: features, edges (two int64 ends and a weight each, both directions), labels; and
        the generator, from which the edges follow."""
        released = self.freeze().x.graph
        generator = sum(p.numel() * p.element_size() for p in self.edges.parameters()) if self.edges is not None else 0
        return {**bytes_of(released, self.y), **({"generator": generator} if generator else {})}

    def _graph(self, rng: Rng | None) -> Graph:
        """The graph as it is now; kept unless it was drawn."""
        drawn = self.edges is not None and self.edges.draws and rng is not None
        state = (rng is None, *((p.data_ptr(), p._version) for p in (*self.parameters(), *self.buffers())))
        if drawn or self._kept is None or self._kept[0] != state:
            self._kept = None  # two decodings at a time are one too many
            self._kept = (state, self._made(rng))
        graph = self._kept[1]
        if drawn:
            self._kept = None
        return graph

    def _made(self, rng: Rng | None) -> Graph:
        with torch.enable_grad():
            x = self.features * self.scale if self.relative else self.features
            return Graph(x, adj=None if self.edges is None else self.edges.weights(self.features, rng))


# -- chosen ---------------------------------------------------------------------------------------------------------


@final
class StoredGraph(Parameterization):
    """The chosen nodes as they are, with the edges among them: what coresets store. Nothing is learned.

    around: with all of the graph that they lie in, of which only the chosen nodes are labelled.
    """

    around: bool = False

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Chosen(self, task, groups, labels)


class _Chosen(Synthetic):
    """How many nodes and edges there are, only what is stored knows."""

    free: ClassVar[frozenset[str]] = frozenset({"x", "edges", "weights"})
    x: Tensor
    edges: Tensor
    weights: Tensor
    nodes: Tensor

    def __init__(self, how: StoredGraph, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        self.around = how.around
        self.register_buffer("x", torch.zeros(0, *task.shape))
        self.register_buffer("edges", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("weights", torch.zeros(0))
        self.register_buffer("nodes", torch.zeros_like(groups))

    @torch.no_grad()
    def fill(self, batch: Batch) -> None:
        view: NodeView = batch.x
        graph = view.graph if self.around else view.graph.induced(view.nodes)
        self.x = graph.x.detach().clone()
        self.edges, self.weights = (tensor.detach().clone() for tensor in graph.listed())
        self.nodes.copy_(view.nodes if self.around else torch.arange(len(view), device=self.device))
        self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        graph = Graph(self.x, self.edges, self.weights)
        if index is None:
            return Batch(NodeView(graph, self.nodes), self.y)
        return Batch(NodeView(graph, self.nodes[index]), self.y[index], index)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {"labels": [self.y]} if isinstance(self.y, nn.Parameter) else {}

    def stored(self) -> dict[str, int]:
        return bytes_of(Graph(self.x, self.edges, self.weights), self.y)

    def problem(self) -> str | None:
        if tuple(self.x.shape[1:]) != self.task.shape:
            return f"nodes have features of the shape {tuple(self.x.shape[1:])}, not {self.task.shape}"
        if tuple(self.edges.shape) != (2, *self.weights.shape):
            return f"{tuple(self.edges.shape)} ends belong to {tuple(self.weights.shape)} weights"
        ends = torch.cat([self.edges.flatten(), self.nodes])
        outside = bool(((ends < 0) | (ends >= len(self.x))).any())
        return f"a node is named that is not among the {len(self.x)} there are" if outside else None


def bytes_of(graph: Graph, y: Tensor) -> dict[str, int]:
    """Bytes of features, edges and labels."""
    edges, weights = graph.listed()
    tensors = {"features": (graph.x,), "edges": (edges, weights), "labels": (y,)}
    return {kind: sum(t.numel() * t.element_size() for t in parts) for kind, parts in tensors.items()}


def components() -> list[type[Component]]:
    return [FreeNodes, StoredGraph, *structures.components()]
