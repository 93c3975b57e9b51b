"""Small sets of whole graphs to test on, and slow versions of what is computed with them."""

from __future__ import annotations

import torch

from condense.data import Splits
from condense.rng import Rng
from condense_graph.collections import SparseGraphs
from condense_graph.graph import Graph
from condense_graph.sets import Collected, make_splits, tenths
from condense_graph.sources.cleaning import undirected


def random_graph(n: int, features: int, chance: float, g: torch.Generator) -> Graph:
    """n nodes, each pair joined with this chance."""
    pairs = (torch.rand(n, n, generator=g) < chance).triu(1).nonzero().T
    return Graph(torch.randn(n, features, generator=g), undirected(pairs, n))


def graphs_of(single: list[Graph]) -> SparseGraphs:
    """Side by side, by a loop."""
    edges, before = [], 0
    for graph in single:
        edges.append(graph.edges + before)
        before += len(graph)
    return SparseGraphs(
        Graph(torch.cat([g.x for g in single]), torch.cat(edges, dim=1)), torch.tensor([len(g) for g in single])
    )


def some(count: int = 5, features: int = 4, seed: int = 0, sizes: tuple[int, ...] = ()) -> list[Graph]:
    """Graphs of 1 to 9 nodes; the first has a single one."""
    g = torch.Generator().manual_seed(seed)
    sizes = sizes or (1, *(2 + i % 8 for i in range(count - 1)))
    return [random_graph(n, features, 0.5, g) for n in sizes]


def two_kinds(per_class: int = 40, seed: int = 0) -> Splits:
    """Dense graphs against sparse ones, 5 to 12 nodes with features of two kinds that say a little: 2 classes."""
    g = Rng(seed).fold("two kinds").generator()
    y = torch.arange(2).repeat(per_class)
    single = []
    for label in y.tolist():
        graph = random_graph(int(torch.randint(5, 13, (), generator=g)), 3, 0.2 + 0.5 * label, g)
        single.append(Graph(graph.x * 0.5 + torch.eye(3)[label], graph.edges))
    return make_splits(Collected(graphs_of(single), y, *tenths(len(y), 0), ("sparse", "dense")))
