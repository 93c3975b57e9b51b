"""Sets of whole graphs: what x is at graph level.

Real graphs lie side by side in one sparse graph without edges between them; synthetic ones of one size are stacked,
dense and differentiable. Networks and kernels are written once, against `GraphSet`.

Notation: G graphs, n nodes of a dense one, N nodes of all, D features, E directed edges, F values of a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from condense.component import Component
from condense.errors import BadData
from condense.task import Form, Picture, Task

from .graph import Graph
from .sparse import compressed, from_rows, product

Spread = Literal["gcn", "sum", "mean"]
Pooling = Literal["mean", "sum"]
FLAT_HOPS = 2  # propagations that graphs are compared by where no network says more


class GraphSet(ABC):
    """Several graphs. Values of their nodes, h, are shaped like the features `x` but for the last size."""

    x: Tensor

    @abstractmethod
    def __len__(self) -> int:
        """G."""

    @property
    @abstractmethod
    def sizes(self) -> Tensor:
        """(G,) int64: the nodes of each graph, padding not counted."""

    @property
    @abstractmethod
    def mask(self) -> Tensor | None:
        """(G, n) bool: which rows are nodes, the others being padding; None: all rows are."""

    @abstractmethod
    def operator(self, by: Spread, transposed: bool = False) -> Callable[[Tensor], Tensor]:
        """What takes node values h one step along the edges; made once for several steps.

        gcn: D^-1/2 (A + I) D^-1/2 with the degrees of A + I (Kipf and Welling, arXiv:1609.02907). sum: A. mean: D^-1 A,
        zero where there is no neighbour. Differentiable in h, and in a dense A.
        """

    def propagate(self, h: Tensor, by: Spread = "gcn", transposed: bool = False) -> Tensor:
        """One step of `operator`."""
        return self.operator(by, transposed)(h)

    @abstractmethod
    def spread_features(self) -> Tensor:
        """The features after one step of `gcn`, kept where nothing waits for a gradient."""

    @abstractmethod
    def pool(self, h: Tensor, by: Pooling = "mean") -> Tensor:
        """(G, F): sum or mean of each graph's node values; padding does not count."""

    @abstractmethod
    def flat(self, h: Tensor) -> Tensor:
        """Node values as (N, F), graph by graph, without padding."""

    @abstractmethod
    def shaped(self, h: Tensor) -> Tensor:
        """The inverse of `flat`, zero at padding."""

    @property
    @abstractmethod
    def owner(self) -> Tensor:
        """(N,) int64: the graph of each row of `flat`."""

    @abstractmethod
    def take(self, index: Tensor | slice) -> GraphSet:
        """The graphs at `index`, in that order."""

    @abstractmethod
    def sparse(self) -> SparseGraphs:
        """The same graphs side by side: without padding, and without pairs of nodes of weight 0."""


@final
class SparseGraphs(GraphSet):
    """Graphs of any size, side by side in one sparse `graph`, whose nodes are in the order of the graphs.

    sizes: (G,) int64, the nodes of each; each has at least one. Edges stay within a graph. Raises `BadData` otherwise
    (`checked`; taking and joining keep it so). origin: the set that these graphs were taken from, and where: what
    follows from edges is cut out of what follows from its. Differentiable in values of nodes, not in weights.
    """

    def __init__(self, graph: Graph, sizes: Tensor, origin: tuple[SparseGraphs, Tensor] | None = None) -> None:
        self.graph, self._sizes, self._origin = graph, sizes, origin
        self._matrices: dict[Spread, tuple[Tensor, Tensor]] = {}

    def checked(self, where: str) -> SparseGraphs:
        """Itself, once it is known to be what it says; `where`: how errors call it."""
        sizes, n = self._sizes, len(self.graph)
        if len(sizes) == 0 or int(sizes.min()) < 1 or int(sizes.sum()) != n:
            problem = f"sizes of {len(sizes)} graphs do not add up to {n} nodes, at least one each"
            raise BadData(where, len(sizes), problem, "Leave out graphs without nodes.")
        edges, _ = self.graph.listed()
        if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < n:
            problem = f"edges name nodes outside 0..{n - 1}"
            raise BadData(where, (int(edges.min()), int(edges.max())), problem, "Number the nodes from 0.")
        if bool((self.owner[edges[0]] != self.owner[edges[1]]).any()):
            raise BadData(where, "an edge", "joins two graphs", "Give edges within a graph only.")
        return self

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def x(self) -> Tensor:  # type: ignore[override]
        return self.graph.x

    @property
    def sizes(self) -> Tensor:
        return self._sizes

    @property
    def mask(self) -> None:
        return None

    @cached_property
    def owner(self) -> Tensor:
        return torch.arange(len(self), device=self._sizes.device).repeat_interleave(self._sizes)

    def operator(self, by: Spread, transposed: bool = False) -> Callable[[Tensor], Tensor]:
        rows, columns = reversed(self.matrices(by)) if transposed else self.matrices(by)
        return lambda h: product(rows, columns, h)

    def matrices(self, by: Spread) -> tuple[Tensor, Tensor]:
        """The matrix of `operator` and its transpose, (N, N), compressed by rows; one and the same where symmetric."""
        if by not in self._matrices:
            self._matrices[by] = self._made(by) if self._origin is None else self._cut(by)
        return self._matrices[by]

    def _made(self, by: Spread) -> tuple[Tensor, Tensor]:
        matrix = Graph(self.x, *self.graph.listed()).operator(by)
        assert matrix is not None
        rows, columns = compressed(matrix), compressed(matrix.T)
        alike = torch.equal(rows.col_indices(), columns.col_indices()) and torch.equal(rows.values(), columns.values())
        return rows, rows if alike and torch.equal(rows.crow_indices(), columns.crow_indices()) else columns

    def _cut(self, by: Spread) -> tuple[Tensor, Tensor]:
        assert self._origin is not None
        whole, index = self._origin
        (rows, columns), first = whole.matrices(by), starts(whole.sizes)[index]
        mine = blocks(rows, first, self._sizes)
        return mine, mine if columns is rows else blocks(columns, first, self._sizes)

    @cached_property
    def _spread(self) -> Tensor:
        with torch.no_grad():
            return self.propagate(self.x)

    def spread_features(self) -> Tensor:
        if self.x.requires_grad:
            return self.propagate(self.x)
        if self._origin is None:
            return self._spread
        whole, index = self._origin
        return whole.spread_features()[ranges(starts(whole.sizes)[index], self._sizes)]

    def pool(self, h: Tensor, by: Pooling = "mean") -> Tensor:
        total = h.new_zeros(len(self), h.shape[1]).index_add(0, self.owner, h)
        return total if by == "sum" else total / self._sizes[:, None]

    def flat(self, h: Tensor) -> Tensor:
        return h

    def shaped(self, h: Tensor) -> Tensor:
        return h

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Edges (2, E) and weights (E,) graph by graph; the first node, the first edge and the edges of each graph."""
        edges, weights = self.graph.listed()
        of = self.owner[edges[0]]
        if bool((of[1:] < of[:-1]).any()):
            order = torch.argsort(of, stable=True)
            edges, weights = edges[:, order], weights[order]
        counts = torch.bincount(of, minlength=len(self))
        return edges, weights, starts(self._sizes), starts(counts), counts

    def take(self, index: Tensor | slice) -> SparseGraphs:
        if isinstance(index, slice):
            index = torch.arange(len(self), device=self._sizes.device)[index]
        edges, weights, first_node, first_edge, counts = self._table
        sizes, many = self._sizes[index], counts[index]
        nodes, at = ranges(first_node[index], sizes), ranges(first_edge[index], many)
        shift = (starts(sizes) - first_node[index]).repeat_interleave(many)
        own = None if self.graph.weights is None else weights[at]
        return SparseGraphs(Graph(self.x[nodes], edges[:, at] + shift, own), sizes, (self, index))

    def sparse(self) -> SparseGraphs:
        return self

    def dense(self, n: int | None = None) -> DenseGraphs:
        """Padded to n nodes (None: those of the largest); of larger graphs the first n nodes, with their edges."""
        n = int(self._sizes.max()) if n is None else n
        place = torch.arange(len(self.graph), device=self._sizes.device) - starts(self._sizes)[self.owner]
        kept = place < n
        x = self.x.new_zeros(len(self), n, self.x.shape[1])
        x[self.owner[kept], place[kept]] = self.x[kept]
        (source, target), weights = self.graph.listed()
        inside = kept[source] & kept[target]
        source, target, weights = source[inside], target[inside], weights[inside]
        adj = x.new_zeros(len(self), n, n)
        adj.index_put_((self.owner[source], place[target], place[source]), weights.to(adj.dtype), accumulate=True)
        mask = torch.arange(n, device=x.device) < self._sizes[:, None]
        return DenseGraphs(x, adj, mask)


@final
class DenseGraphs(GraphSet):
    """Graphs stacked as x (G, n, D) and adj (G, n, n); adj[g, i, j] is the weight of the edge from j to i.

    mask: (G, n) bool, where rows are nodes; None: everywhere. At padding, features and edges are 0. chance: (G, n, n),
    the probability of each edge where edges were drawn; networks do not look at it.
    """

    def __init__(self, x: Tensor, adj: Tensor, mask: Tensor | None = None, chance: Tensor | None = None) -> None:
        self.x, self.adj, self._mask, self.chance = x, adj, mask, chance
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def sizes(self) -> Tensor:
        if self._mask is None:
            return torch.full((len(self.x),), self.x.shape[1], device=self.x.device)
        return self._mask.sum(dim=1)

    @property
    def mask(self) -> Tensor | None:
        return self._mask

    @property
    def owner(self) -> Tensor:
        return torch.arange(len(self), device=self.x.device).repeat_interleave(self.sizes)

    def operator(self, by: Spread, transposed: bool = False) -> Callable[[Tensor], Tensor]:
        matrix = dense_operator(self.adj, by)
        turned = matrix.mT if transposed else matrix
        return lambda h: turned @ h

    def spread_features(self) -> Tensor:
        if self.x.requires_grad or self.adj.requires_grad:
            return self.propagate(self.x)
        if self._kept is None:
            self._kept = self.propagate(self.x)
        return self._kept

    def pool(self, h: Tensor, by: Pooling = "mean") -> Tensor:
        if self._mask is None:
            return h.sum(dim=1) if by == "sum" else h.mean(dim=1)
        total = (h * self._mask.unsqueeze(-1)).sum(dim=1)
        return total if by == "sum" else total / self._mask.sum(dim=1, keepdim=True).clamp_min(1)

    def flat(self, h: Tensor) -> Tensor:
        return h.flatten(0, 1) if self._mask is None else h[self._mask]

    def shaped(self, h: Tensor) -> Tensor:
        shape = (*self.x.shape[:2], h.shape[-1])
        if self._mask is None:
            return h.view(shape)
        return h.new_zeros(shape).index_put((self._mask,), h)

    def take(self, index: Tensor | slice) -> DenseGraphs:
        mask = None if self._mask is None else self._mask[index]
        chance = None if self.chance is None else self.chance[index]
        return DenseGraphs(self.x[index], self.adj[index], mask, chance)

    def sparse(self) -> SparseGraphs:
        n = self.x.shape[1]
        graph, target, source = self.adj.nonzero(as_tuple=True)
        weights = self.adj[graph, target, source]
        number = torch.arange(len(self) * n, device=self.x.device).view(-1, n)
        if self._mask is not None:
            number = self._mask.flatten().cumsum(0).view(-1, n) - 1
        edges = torch.stack([number[graph, source], number[graph, target]])
        plain = not weights.requires_grad and bool((weights == 1).all())
        return SparseGraphs(Graph(self.flat(self.x), edges, None if plain else weights), self.sizes)


def dense_operator(adj: Tensor, by: Spread) -> Tensor:
    """The matrices of `GraphSet.operator` for adjacencies (G, n, n); differentiable, with finite gradients."""
    if by == "sum":
        return adj
    matrix = adj + torch.eye(adj.shape[-1], dtype=adj.dtype, device=adj.device) if by == "gcn" else adj
    degree = matrix.sum(dim=-1)
    some = degree > 0
    power = torch.where(some, degree, 1.0) ** (-0.5 if by == "gcn" else -1.0)
    scale = torch.where(some, power, 0.0)
    scaled = scale.unsqueeze(-1) * matrix
    return scaled * scale.unsqueeze(-2) if by == "gcn" else scaled


def starts(sizes: Tensor) -> Tensor:
    """Where each of consecutive ranges of these sizes begins, (G,)."""
    return sizes.cumsum(0) - sizes


def ranges(first: Tensor, sizes: Tensor) -> Tensor:
    """first[0], first[0] + 1, ... (sizes[0] numbers), first[1], ...: (sum of sizes,) int64."""
    shift = (first - starts(sizes)).repeat_interleave(sizes)
    return torch.arange(len(shift), device=first.device) + shift


def blocks(matrix: Tensor, first: Tensor, sizes: Tensor) -> Tensor:
    """Diagonal blocks of a compressed matrix, side by side: they begin at `first` and have these `sizes`, (k,) each."""
    begin = matrix.crow_indices()
    rows, count = ranges(first, sizes), begin[first + sizes] - begin[first]
    at = ranges(begin[first], count)
    columns = matrix.col_indices()[at] + (starts(sizes) - first).repeat_interleave(count)
    ends = (begin[rows + 1] - begin[rows]).cumsum(0)
    return from_rows(torch.cat([ends.new_zeros(1), ends]), columns, matrix.values()[at])


@final
class Graphs(Form):
    """x is a `GraphSet`: each example is a whole graph, which needs no other."""

    noun: ClassVar[str] = "graphs"
    protocol: ClassVar[str] = "graphs"
    arrays: ClassVar[tuple[str, ...]] = ("x", "edge_index", "edge_weight", "graph", "y")
    stacked: ClassVar[bool] = False

    def pack(self, x: GraphSet) -> dict[str, Tensor]:
        if isinstance(x, DenseGraphs):
            named = {"x": x.x, "adj": x.adj, "mask": x.mask, "chance": x.chance}
        else:
            graph = x.sparse().graph
            named = {"x": graph.x, "edges": graph.listed()[0], "weights": graph.weights, "sizes": x.sizes}
        return {key: value for key, value in named.items() if value is not None}

    def unpack(self, tensors: Mapping[str, Tensor]) -> GraphSet:
        if "adj" in tensors:
            return DenseGraphs(tensors["x"], tensors["adj"], tensors.get("mask"), tensors.get("chance"))
        return SparseGraphs(Graph(tensors["x"], tensors["edges"], tensors.get("weights")), tensors["sizes"])

    def take(self, x: GraphSet, index: Tensor | slice) -> GraphSet:
        return x.take(index)

    def join(self, xs: Sequence[GraphSet]) -> GraphSet:
        """Dense where all are, of one size; else side by side."""
        dense = [x for x in xs if isinstance(x, DenseGraphs)]
        if len(dense) < len(xs) or len({x.x.shape[1] for x in dense}) > 1:
            return side_by_side([x.sparse() for x in xs])
        masked = any(x.mask is not None for x in dense)
        masks = [torch.ones_like(x.x[..., 0], dtype=torch.bool) if x.mask is None else x.mask for x in dense]
        drawn = [x.chance for x in dense if x.chance is not None]
        return DenseGraphs(
            torch.cat([x.x for x in dense]),
            torch.cat([x.adj for x in dense]),
            torch.cat(masks) if masked else None,
            torch.cat(drawn) if len(drawn) == len(dense) else None,
        )

    def blank(self, task: Task, n: int) -> GraphSet:
        """n graphs of as many nodes as the task says (the mean of the data), without edges."""
        nodes, features = task.shape
        return DenseGraphs(torch.zeros(n, nodes, features), torch.zeros(n, nodes, nodes))

    def flat(self, x: GraphSet) -> Tensor:
        """The mean features of each graph, as they are and after one and two propagations: (G, 3 D)."""
        spread, hops = x.operator("gcn"), [x.x]
        for _ in range(FLAT_HOPS):
            hops.append(spread(hops[-1]))
        return torch.cat([x.pool(h) for h in hops], dim=1)

    def example(self, x: GraphSet, index: int) -> dict[str, Tensor]:
        """One graph as arrays: x (n, D), edge_index (2, E), edge_weight (E,)."""
        one = x.take(torch.tensor([index], device=x.x.device)).sparse().graph
        edges, weights = one.listed()
        return {"x": one.x, "edge_index": edges, "edge_weight": weights}

    def pictures(self, x: GraphSet, y: Tensor, classes: Sequence[str]) -> Sequence[Picture]:
        """Some graphs of each class; see `condense_graph.drawing`."""
        from .drawing import of_graphs

        flat = x.sparse()
        return of_graphs(flat.x, *flat.graph.listed(), flat.sizes, y, classes)

    def properties(self, x: GraphSet, y: Tensor) -> Mapping[str, float]:
        from .properties import set_properties

        flat = x.sparse()
        return set_properties(flat.graph, flat.sizes)

    def to_arrays(self, x: GraphSet, y: Tensor) -> dict[str, Tensor]:
        from . import arrays

        return arrays.of_graphs(x, y)

    def from_arrays(self, arrays: Mapping[str, Tensor], where: str) -> tuple[GraphSet, Tensor]:
        from .arrays import to_graphs

        return to_graphs(arrays, where)


def side_by_side(xs: Sequence[SparseGraphs]) -> SparseGraphs:
    """All graphs of several sets, one set after the other."""
    shifts = [sum(len(x.graph) for x in xs[:i]) for i in range(len(xs))]
    lists = [x.graph.listed() for x in xs]
    edges = torch.cat([edges + shift for (edges, _), shift in zip(lists, shifts, strict=True)], dim=1)
    weighted = any(x.graph.weights is not None for x in xs)
    weights = torch.cat([weights for _, weights in lists]) if weighted else None
    return SparseGraphs(Graph(torch.cat([x.x for x in xs]), edges, weights), torch.cat([x.sizes for x in xs]))


def components() -> list[type[Component]]:
    return [Graphs]
