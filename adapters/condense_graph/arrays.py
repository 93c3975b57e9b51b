"""Graphs as named arrays, called as PyG calls them: what is written for other programs, and read from them.

Notation: N nodes, D features, E directed edges (an undirected edge counts twice), G graphs, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from condense.errors import BadData

from .collections import GraphSet, SparseGraphs
from .graph import Graph, NodeView


def of_nodes(view: NodeView, y: Tensor) -> dict[str, Tensor]:
    """x (N, D), edge_index (2, E), edge_weight (E,), y for all N nodes, train_mask (N,): those that y is given for.

    y of other nodes is -1, or 0 in each column where labels are soft.
    """
    nodes, n = view.nodes, len(view.graph)
    labels = torch.full((n, *y.shape[1:]), 0 if y.is_floating_point() else -1, dtype=y.dtype, device=y.device)
    labels[nodes] = y
    mask = torch.zeros(n, dtype=torch.bool, device=y.device)
    mask[nodes] = True
    edges, weights = view.graph.listed()
    return {"x": view.graph.x, "edge_index": edges, "edge_weight": weights, "y": labels, "train_mask": mask}


def to_nodes(arrays: Mapping[str, Tensor], where: str) -> tuple[NodeView, Tensor]:
    """The nodes of train_mask (all, where there is none) within their graph, and their labels.

    Self-loops are left out (networks add their own), repeated edges merged and reverses added, with a warning each.
    Raises `BadData` where something is missing or cannot be.
    """
    graph = _graph(arrays, where)
    y, mask = _needed(arrays, "y", where), arrays.get("train_mask")
    if len(y) != len(graph):
        raise BadData(where, (len(graph), len(y)), "has not one label for each node", "Give y for all nodes.")
    if mask is not None and (mask.shape != (len(graph),) or mask.dtype != torch.bool):
        problem = "train_mask must be one truth value for each node"
        raise BadData(
            where, (tuple(mask.shape), str(mask.dtype)), problem, f"Give ({len(graph)},) bool, or leave it out."
        )
    nodes = torch.arange(len(graph), device=y.device) if mask is None else mask.nonzero().flatten()
    return NodeView(graph, nodes), y[nodes]


def of_graphs(graphs: GraphSet, y: Tensor) -> dict[str, Tensor]:
    """Graphs side by side: x (N, D), edge_index (2, E), edge_weight (E,), graph (N,): whose each node is, y (G,)."""
    flat = graphs.sparse()
    edges, weights = flat.graph.listed()
    return {"x": flat.graph.x, "edge_index": edges, "edge_weight": weights, "graph": flat.owner, "y": y}


def to_graphs(arrays: Mapping[str, Tensor], where: str) -> tuple[GraphSet, Tensor]:
    """The inverse of `of_graphs`; edges as in `to_nodes`. Raises `BadData` where something is missing or cannot be."""
    graph, y = _graph(arrays, where), _needed(arrays, "y", where)
    owner = _needed(arrays, "graph", where)
    owner = owner if owner.is_floating_point() else owner.long()
    counted = owner.dtype == torch.int64 and owner.shape == (len(graph),) and bool((owner[1:] >= owner[:-1]).all())
    if not counted or int(owner[0]) < 0 or int(owner[-1]) >= len(y):
        problem = f"graph must be the number, ascending in 0..{len(y) - 1}, of each node's graph"
        raise BadData(where, (tuple(owner.shape), str(owner.dtype)), problem, "Sort the nodes by their graphs.")
    return SparseGraphs(graph, torch.bincount(owner, minlength=len(y))).checked(where), y


def _graph(arrays: Mapping[str, Tensor], where: str) -> Graph:
    """Edges are made as they are in data of one's own: undirected, each once, with a warning for what is changed."""
    from .sources.checks import check_edges, check_features
    from .sources.cleaning import cleaned

    x, weights = _needed(arrays, "x", where), arrays.get("edge_weight")
    check_features(x, f"{where} x")
    edges = arrays.get("edge_index", torch.zeros(2, 0))
    edges = edges if edges.is_floating_point() and edges.numel() else edges.long()
    check_edges(edges, weights, len(x), f"{where} edge_index")
    if edges.numel() == 0:
        return Graph(x.float())
    return Graph(x.float(), *cleaned(edges, None if weights is None else weights.float(), len(x), where))


def _needed(arrays: Mapping[str, Tensor], name: str, where: str) -> Tensor:
    if name not in arrays or arrays[name].dim() == 0 or len(arrays[name]) == 0:
        raise BadData(where, sorted(arrays), f"holds no array {name}", "Call the arrays as PyG does: x, edge_index, y.")
    return arrays[name]
