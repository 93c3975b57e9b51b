"""Graphs and views of them: what x is at node level.

Notation: N nodes, D features, E directed edges (an undirected edge counts twice), n nodes that a view is about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from condense.component import Component
from condense.data import feed
from condense.task import Form, Picture, Task

from .sparse import compressed, product

Operator = Literal["gcn", "mean", "cheb", "sum"]
SPARSE_FEATURES = 0.1  # share of non-zero features up to which a product goes through them alone


@final
class Graph:
    """Nodes with features and weighted edges, without self-loops. Immutable; what follows from it is kept.

    x: (N, D) float. Edges are sparse (`edges` (2, E) int64, from row 0 to row 1, and `weights` (E,), None: all 1), or
    dense (`adj` (N, N), differentiable), or there are none. Undirected graphs list both directions.
    """

    def __init__(
        self, x: Tensor, edges: Tensor | None = None, weights: Tensor | None = None, adj: Tensor | None = None
    ) -> None:
        self.x, self.edges, self.weights, self.adj = x, edges, weights, adj
        self._kept: dict[object, Tensor] = {}
        self._encoded: tuple[object, Graph] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def settled(self) -> bool:
        """Does nothing in it wait for a gradient, so that what follows from it may be kept?"""
        return not (self.x.requires_grad or (self.adj is not None and self.adj.requires_grad))

    def propagate(self, h: Tensor, by: Operator = "gcn") -> Tensor:
        """The operator applied to node values h (N, F); differentiable in h and in a dense adjacency.

        gcn: D^-1/2 (A + I) D^-1/2 with the degrees of A + I (Kipf and Welling, arXiv:1609.02907). mean: D^-1 A, zero
        rows where there is no neighbour. cheb: L - I = -D^-1/2 A D^-1/2, the scaled Laplacian for a largest eigenvalue
        of 2. sum: A.
        """
        matrix = self.operator(by)
        if matrix is None:
            return h if by == "gcn" else torch.zeros_like(h)
        if not matrix.is_sparse:
            return matrix @ h
        rows = self._keep(("operator", by, "rows"), lambda: compressed(matrix), True)
        columns = self._keep(("operator", by, "columns"), lambda: compressed(matrix.T), True)
        return product(rows, columns, h)

    def operator(self, by: Operator) -> Tensor | None:
        """The matrix of `propagate`, (N, N), sparse COO or dense; None where there are no edges."""
        if self.adj is None and self.edges is None:
            return None
        make = self._dense if self.adj is not None else self._sparse
        return self._keep(("operator", by), lambda: make(by), self.adj is None or not self.adj.requires_grad)

    def power(self, hops: int) -> Tensor:
        """The features after `hops` propagations, (N, D)."""
        if hops == 0:
            return self.x
        return self._keep(("power", hops), lambda: self.propagate(self.power(hops - 1)), self.settled)

    def project(self, weight: Tensor) -> Tensor:
        """x @ weight.T, (N, F) for a weight (F, D): through the non-zero features alone where they are few."""
        if self.x.requires_grad or not self.few_features():
            return self.x @ weight.T
        rows = self._keep("rows", lambda: compressed(self.x), True)
        columns = self._keep("columns", lambda: compressed(self.x.T), True)
        return product(rows, columns, weight.T)

    def few_features(self) -> bool:
        """Are so few features not 0 that products go through those alone?"""
        if len(self.x) <= 256 or self.x.device.type == "meta":
            return False
        return bool(self._keep("few", lambda: (self.x != 0).float().mean() <= SPARSE_FEATURES, True))

    def listed(self) -> tuple[Tensor, Tensor]:
        """Edges (2, E) int64 and weights (E,), differentiable: of a dense adjacency those that are not 0."""
        if self.adj is not None:
            at = self.adj.detach().nonzero().T.flip(0)  # adj[i, j] is the edge from j to i
            return at, self.adj[at[1], at[0]]
        if self.edges is None:
            none = torch.zeros(2, 0, dtype=torch.int64, device=self.x.device)
            return none, self.x.new_zeros(0)
        return self.edges, self.x.new_ones(self.edges.shape[1]) if self.weights is None else self.weights

    def with_x(self, x: Tensor) -> Graph:
        """The same edges under other features."""
        other = Graph(x, self.edges, self.weights, self.adj)
        other._kept = {key: value for key, value in self._kept.items() if isinstance(key, tuple) and "operator" in key}
        return other

    def encoded(self, transform: Callable[[Tensor], Tensor]) -> Graph:
        """The same edges under transformed features; the last transform's result is shared by all who ask for it."""
        if self._encoded is None or self._encoded[0] != transform:
            self._encoded = (transform, self.with_x(transform(self.x)))
        return self._encoded[1]

    def induced(self, nodes: Tensor) -> Graph:
        """The subgraph of `nodes` (distinct), numbered in their order, with the edges between them."""
        if self.adj is not None:
            return Graph(self.x[nodes], adj=self.adj[nodes][:, nodes])
        if self.edges is None:
            return Graph(self.x[nodes])
        place = torch.full((len(self),), -1, dtype=torch.int64, device=nodes.device)
        place[nodes] = torch.arange(len(nodes), device=nodes.device)
        inside = (place[self.edges] >= 0).all(dim=0)
        weights = None if self.weights is None else self.weights[inside]
        return Graph(self.x[nodes], place[self.edges[:, inside]], weights)

    def digest(self) -> str:
        """SHA-256 over features, edges and weights, 64 hexadecimal digits."""
        h = hashlib.sha256()
        feed(h, (self.x, *self.listed()))
        return h.hexdigest()

    def _keep(self, key: object, make: Callable[[], Tensor], keep: bool) -> Tensor:
        if not keep:
            return make()
        if key not in self._kept:
            with torch.no_grad():
                self._kept[key] = make()
        return self._kept[key]

    def _dense(self, by: Operator) -> Tensor:
        assert self.adj is not None
        if by == "sum":
            return self.adj
        if by == "mean":
            return self.adj * _inverse(self.adj.sum(dim=1), 1.0)[:, None]
        matrix = self.adj + torch.eye(len(self), dtype=self.adj.dtype, device=self.adj.device)
        matrix = matrix if by == "gcn" else self.adj
        root = _inverse(matrix.sum(dim=1), 0.5)
        scaled = root[:, None] * matrix * root[None, :]
        return scaled if by == "gcn" else -scaled

    def _sparse(self, by: Operator) -> Tensor:
        (source, target), weights = self.listed()
        n = len(self)
        if by == "gcn":
            loops = torch.arange(n, device=source.device)
            source, target = torch.cat([source, loops]), torch.cat([target, loops])
            weights = torch.cat([weights, weights.new_ones(n)])
        degree = weights.new_zeros(n).index_add(0, target, weights)
        if by == "mean":
            weights = weights * _inverse(degree, 1.0)[target]
        elif by != "sum":
            root = _inverse(degree, 0.5)
            weights = root[source] * weights * root[target] * (1.0 if by == "gcn" else -1.0)
        return torch.sparse_coo_tensor(
            torch.stack([target, source]), weights, (n, n), check_invariants=False
        ).coalesce()


def _inverse(degree: Tensor, power: float) -> Tensor:
    """degree ** -power, 0 where the degree is 0; with finite gradients."""
    some = degree > 0
    return torch.where(some, torch.where(some, degree, 1.0) ** -power, 0.0)


@final
@dataclass(frozen=True, eq=False)
class NodeView:
    """A graph, and the nodes (n,) int64 that a batch is about: networks say something of these, in this order."""

    graph: Graph
    nodes: Tensor

    def __len__(self) -> int:
        return len(self.nodes)

    @staticmethod
    def whole(graph: Graph) -> NodeView:
        return NodeView(graph, torch.arange(len(graph), device=graph.x.device))


@final
class Nodes(Form):
    """x is a `NodeView`: nodes within their graph, which cannot be taken without it."""

    independent: ClassVar[bool] = False
    noun: ClassVar[str] = "nodes"
    protocol: ClassVar[str] = "graph"
    arrays: ClassVar[tuple[str, ...]] = ("x", "edge_index", "edge_weight", "y", "train_mask")

    def pack(self, x: NodeView) -> dict[str, Tensor]:
        graph = x.graph
        named = {"x": graph.x, "adj": graph.adj, "edges": graph.edges, "weights": graph.weights, "nodes": x.nodes}
        return {key: value for key, value in named.items() if value is not None}

    def unpack(self, tensors: Mapping[str, Tensor]) -> NodeView:
        graph = Graph(tensors["x"], tensors.get("edges"), tensors.get("weights"), tensors.get("adj"))
        return NodeView(graph, tensors["nodes"])

    def take(self, x: NodeView, index: Tensor | slice) -> NodeView:
        return NodeView(x.graph, x.nodes[index])

    def join(self, xs: Sequence[NodeView]) -> NodeView:
        """Views of one graph: its nodes, one view after the other. Views of several: of their disjoint union."""
        if all(x.graph is xs[0].graph for x in xs):
            return NodeView(xs[0].graph, torch.cat([x.nodes for x in xs]))
        before = [sum(len(x.graph) for x in xs[:i]) for i in range(len(xs))]
        lists = [x.graph.listed() for x in xs]
        edges = torch.cat([edges + start for (edges, _), start in zip(lists, before, strict=True)], dim=1)
        weights = torch.cat([weights for _, weights in lists])
        nodes = torch.cat([x.nodes + start for x, start in zip(xs, before, strict=True)])
        return NodeView(Graph(torch.cat([x.graph.x for x in xs]), edges, weights), nodes)

    def blank(self, task: Task, n: int) -> NodeView:
        """n nodes without edges."""
        return NodeView.whole(Graph(torch.zeros(n, *task.shape)))

    def flat(self, x: NodeView) -> Tensor:
        """The features of the nodes themselves, (n, D)."""
        return x.graph.x[x.nodes]

    def example(self, x: NodeView, index: int) -> Tensor:
        """The features (D,) of one node, without its neighbours: `condense_graph.to_pyg` opens the graph."""
        return x.graph.x[x.nodes[index]]

    def pictures(self, x: NodeView, y: Tensor, classes: Sequence[str]) -> Sequence[Picture]:
        """The nodes with the edges between them; see `condense_graph.drawing`."""
        from .drawing import of_nodes

        graph = x.graph.induced(x.nodes)
        return of_nodes(graph.x, *graph.listed(), y, classes)

    def properties(self, x: NodeView, y: Tensor) -> Mapping[str, float]:
        """Those of the whole graph; of its labels, the ones of the view's nodes."""
        from .properties import properties

        labels = y.new_full((len(x.graph),), -1)
        labels[x.nodes] = y
        return properties(x.graph, labels, x.nodes)

    def to_arrays(self, x: NodeView, y: Tensor) -> dict[str, Tensor]:
        from . import arrays

        return arrays.of_nodes(x, y)

    def from_arrays(self, arrays: Mapping[str, Tensor], where: str) -> tuple[NodeView, Tensor]:
        from .arrays import to_nodes

        return to_nodes(arrays, where)


def components() -> list[type[Component]]:
    return [Nodes]
