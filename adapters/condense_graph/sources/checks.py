"""Which graphs no method can use: a sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from condense.errors import BadData
from condense.splits import check_classes

if TYPE_CHECKING:
    from .base import Labelled


def check_labelled(read: Labelled) -> None:
    """Raises `BadData` for the first thing at fault: features, edges, the splits, then the labels in them."""
    check_features(read.graph.x, f"{read.where} features")
    if read.graph.edges is not None:
        check_edges(read.graph.edges, read.graph.weights, len(read.graph), f"{read.where} edges")
    splits = {"train": read.train, "validation": read.validation, "test": read.test}
    check_nodes(splits, len(read.graph), read.where)
    check_labels(read.y, splits, read.classes, read.where)


def check_features(x: Tensor, where: str) -> None:
    """(N, D) floating numbers, all of them finite."""
    if x.dim() != 2 or 0 in x.shape:
        raise BadData(where, tuple(x.shape), "are no (N, D) matrix", "Give one row of features for each node.")
    if not x.is_floating_point():
        raise BadData(where, str(x.dtype), "are no floating numbers", "Convert them to float32.")
    finite = torch.isfinite(x).all(dim=1)
    if not bool(finite.all()):
        node = int((~finite).nonzero()[0])
        raise BadData(where, f"node {node}", "hold NaN or infinity", "Repair or remove the nodes that do.")


def check_edges(edges: Tensor, weights: Tensor | None, n: int, where: str) -> None:
    """(2, E) node numbers below n, and (where they are weighted) one finite weight above 0 for each."""
    if edges.dim() != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        shape = (tuple(edges.shape), str(edges.dtype))
        raise BadData(where, shape, "are no (2, E) whole numbers", "Give pairs of node numbers, (2, E) int64.")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < n:
        found = (int(edges.min()), int(edges.max()))
        raise BadData(where, found, f"name nodes outside 0..{n - 1}", "Number the nodes from 0, as their features are.")
    if weights is None:
        return
    if weights.dim() != 1 or len(weights) != edges.shape[1]:
        problem = f"do not have one weight for each of their {edges.shape[1]}"
        raise BadData(where, tuple(weights.shape), problem, "Give weights (E,), or none.")
    bad = ~(torch.isfinite(weights) & (weights > 0))
    if bool(bad.any()):
        edge = int(bad.nonzero()[0])
        problem = f"have a weight that is not finite and above 0, edge {edge}"
        raise BadData(where, float(weights[edge]), problem, "Remove edges of weight 0; make the others positive.")


def check_nodes(splits: dict[str, Tensor], n: int, where: str) -> None:
    """Distinct node numbers below n, in one split each; train and test are not empty."""
    for name, nodes in splits.items():
        if len(nodes) == 0 and name != "validation":
            raise BadData(f"{where} {name}", 0, "holds no nodes", f"Mark the nodes of the {name} split.")
        if len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < n:
            found = (int(nodes.min()), int(nodes.max()))
            raise BadData(f"{where} {name}", found, f"names nodes outside 0..{n - 1}", "Number the nodes from 0.")
    for number in torch.cat(list(splits.values())).bincount(minlength=n).gt(1).nonzero().flatten().tolist()[:1]:
        names = [name for name, nodes in splits.items() if bool((nodes == number).any())]
        problem = f"stands in a split twice, or in two of them: {' and '.join(names)}"
        raise BadData(where, f"node {number}", problem, "Put each node into one split, or into none.")


def check_labels(y: Tensor, splits: dict[str, Tensor], classes: tuple[str, ...], where: str) -> None:
    """One int64 for each node, in 0..K-1 for all nodes of a split, and every class somewhere in train."""
    n = len(y)
    if y.dim() != 1 or y.dtype != torch.int64:
        problem = "labels must be one whole number for each node, (N,) int64"
        remedy = "Squeeze (N, 1) labels; turn floats into integers; several labels a node are not supported."
        raise BadData(f"{where} labels", (tuple(y.shape), str(y.dtype)), problem, remedy)
    known = y[splits["train"]]
    if bool((known < 0).all()):
        problem = f"label none of the {len(known)} training nodes: all of theirs are below 0"
        raise BadData(f"{where} labels", int(known.max()), problem, "Give each node its class, numbered from 0.")
    for name, nodes in splits.items():
        if len(nodes) and not 0 <= int(y[nodes].min()) <= int(y[nodes].max()) < len(classes):
            bad = nodes[(y[nodes] < 0) | (y[nodes] >= len(classes))][0]
            problem = f"labels of the {name} split must lie in 0..{len(classes) - 1}"
            remedy = "Leave unlabelled nodes out of all splits, or name all classes."
            raise BadData(f"{where} labels", f"node {int(bad)} of {n}: {int(y[bad])}", problem, remedy)
    check_classes(y[splits["train"]], classes, f"{where} train")
