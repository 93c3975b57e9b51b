"""Small random graphs with everything that is awkward: isolated nodes, rows of zeros, edges of fractional weight."""

from __future__ import annotations

import torch
from torch import Tensor

from condense.task import Task
from condense_graph.graph import Graph, Nodes

ISOLATED, EMPTY = 3, 5  # a node without edges; a node whose features are 0


def nodes_task(features: int = 6, classes: int = 4) -> Task:
    return Task(classes=tuple(map(str, range(classes))), shape=(features,), form=Nodes())


def random_adjacency(
    n: int, seed: int = 0, symmetric: bool = True, weighted: bool = True, share: float = 0.3
) -> Tensor:
    """(n, n) with a zero diagonal and node ISOLATED cut off; adj[i, j] is the edge from j to i."""
    g = torch.Generator().manual_seed(seed)
    adj = (torch.rand(n, n, generator=g) < share).float()
    adj = adj * (0.1 + torch.rand(n, n, generator=g)) if weighted else adj
    adj = torch.triu(adj, 1) + torch.triu(adj, 1).T if symmetric else adj
    adj.fill_diagonal_(0)
    adj[ISOLATED], adj[:, ISOLATED] = 0, 0
    return adj


def random_features(n: int, features: int = 6, seed: int = 1) -> Tensor:
    x = torch.randn(n, features, generator=torch.Generator().manual_seed(seed))
    x[EMPTY] = 0
    return x


def both(n: int = 12, seed: int = 0, **how: bool) -> tuple[Graph, Graph]:
    """The same graph, its edges sparse and dense."""
    x, adj = random_features(n, seed=seed + 1), random_adjacency(n, seed, **how)
    edges, weights = Graph(x, adj=adj).listed()
    return Graph(x, edges, weights), Graph(x, adj=adj)
