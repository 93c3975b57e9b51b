"""What a graph is like, in a few numbers: shown of a condensed graph beside the one that it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

from .graph import Graph


def properties(graph: Graph, y: Tensor, known: Tensor | None = None) -> dict[str, float]:
    """Name -> number, of a graph with labels y (N,) int64, of which those at `known` (m,) are looked at (None: all).

    edges: pairs of joined nodes, both directions one edge. density: edges among all pairs. mean degree: neighbours.
    homophily: the weight of edges within a class, among those whose two ends are known; left out where there is none.
    isolated nodes: those without an edge.
    """
    edges, weights = graph.listed()
    n, joined = len(graph), edges.shape[1] / 2
    alone = int((torch.bincount(edges.flatten(), minlength=n) == 0).sum())
    found = {"nodes": n, "edges": round(joined), "density": joined / max(1, n * (n - 1) / 2)}
    found |= {"mean degree": 2 * joined / n, **homophily(edges, weights, y, known)}
    return found | {"isolated nodes": alone}


def homophily(edges: Tensor, weights: Tensor, y: Tensor, known: Tensor | None) -> dict[str, float]:
    looked = torch.ones_like(y, dtype=torch.bool) if known is None else torch.zeros_like(y, dtype=torch.bool)
    if known is not None:
        looked[known] = True
    inside = looked[edges].all(dim=0)
    total = float(weights[inside].double().sum())
    alike = y[edges[0]] == y[edges[1]]
    return {"homophily": float(weights[inside & alike].double().sum()) / total} if total > 0 else {}


def set_properties(graph: Graph, sizes: Tensor) -> dict[str, float]:
    """The same of several graphs side by side, sizes (G,) int64 nodes each: means over the graphs."""
    edges, _ = graph.listed()
    owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    joined = torch.bincount(owner[edges[0]], minlength=len(sizes)) / 2
    pairs = (sizes * (sizes - 1) / 2).clamp_min(1)
    alone = int((torch.bincount(edges.flatten(), minlength=len(graph)) == 0).sum())
    return {
        "graphs": len(sizes),
        "nodes of a graph": float(sizes.double().mean()),
        "edges of a graph": float(joined.mean()),
        "density": float((joined / pairs).mean()),
        "mean degree": float((2 * joined / sizes).mean()),
        "isolated nodes": alone,
    }
