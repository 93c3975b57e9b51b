"""One's own graph, as named arrays that are called as PyG calls them, checked and brought into shape.

Notation: N nodes, D features, E directed edges, K classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from condense.data import Facts
from condense.errors import BadData
from condense.splits import as_labels, as_tensor

from ..graph import Graph
from .base import Labelled
from .checks import check_edges, check_features
from .cleaning import cleaned

NAMES = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask", "edge_weight", "edge_attr", "classes")
NEEDED = {
    "x": "Store the features as x, (N, D).",
    "edge_index": "Store the edges as edge_index, (2, E).",
    "y": "Store one label for each node as y, (N,).",
    "train_mask": "Store which nodes are for training as train_mask, (N,) bool.",
    "test_mask": "Store which nodes are for testing as test_mask, (N,) bool.",
}
SPARSE = 0.5  # share of zeros from which non-negative features pass for counts

Features = Literal["auto", "rows", "columns", "none"]


def labelled(
    arrays: Mapping[str, Any], where: str, classes: Sequence[str] | None = None, features: Features = "auto"
) -> Labelled:
    """x (N, D), edge_index (2, E), y (N,), train_mask, test_mask and perhaps val_mask (N,), edge_weight (E,).

    Self-loops are left out, repeated edges merged and reverses added, with a warning each. Labels of nodes in no mask
    may be anything. classes: names in the order of the labels; None: the array `classes`, else the numbers. features:
    how they are scaled by default, see `NodeFeatures`; auto: by rows where they look like counts (none below zero, half
    of them zero), else by columns. Raises `BadData`.
    """
    missing = [name for name in NEEDED if arrays.get(name) is None]
    if missing:
        raise BadData(where, sorted(arrays), f"has no {missing[0]}", NEEDED[missing[0]])
    x = _features(arrays["x"], f"{where} x")
    check_features(x, f"{where} x")
    y = as_labels(arrays["y"], f"{where} y")
    y = y[:, 0] if y.dim() == 2 and y.shape[1] == 1 else y
    if len(y) != len(x):
        raise BadData(f"{where} y", len(y), f"does not have one label for each of {len(x)} nodes", NEEDED["y"])
    edges, weights = _edges(arrays, len(x), where)
    masks = ("train_mask", "val_mask", "test_mask")
    train, validation, test = (_nodes(arrays.get(name), len(x), f"{where} {name}") for name in masks)
    names = classes or _names(arrays.get("classes")) or numbered(y, torch.cat([train, validation, test]))
    facts = Facts(title=where, extra={"features": _scale(x) if features == "auto" else features})
    return Labelled(Graph(x, edges, weights), y, train, validation, test, tuple(names), facts, where)


def numbered(y: Tensor, nodes: Tensor) -> tuple[str, ...]:
    """Names "0", "1", ... up to the largest label of the nodes; never more names than nodes."""
    if y.dim() != 1 or y.is_floating_point() or len(nodes) == 0:
        return ()
    return tuple(str(c) for c in range(min(int(y[nodes].max()) + 1, len(nodes))))


def _features(value: Any, where: str) -> Tensor:
    tensor = as_tensor(value, where)
    tensor = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return tensor if tensor.is_complex() else tensor.float().contiguous()


def _edges(arrays: Mapping[str, Any], n: int, where: str) -> tuple[Tensor, Tensor | None]:
    edges, weights = as_labels(arrays["edge_index"], f"{where} edge_index"), arrays.get("edge_weight")
    if weights is None and arrays.get("edge_attr") is not None:
        weights = as_tensor(arrays["edge_attr"], f"{where} edge_attr")
        if weights.dim() == 2 and weights.shape[1] > 1:
            text = f"{where}: edge_attr has {weights.shape[1]} numbers an edge and is left out: networks take one."
            warnings.warn(text, RuntimeWarning, stacklevel=2)
            weights = None
    if weights is not None:
        weights = as_tensor(weights, f"{where} edge_weight").float()
        weights = weights[:, 0] if weights.dim() == 2 and weights.shape[1] == 1 else weights
    check_edges(edges, weights, n, f"{where} edge_index")
    if weights is not None and bool((weights == 1).all()):
        weights = None
    return cleaned(edges, weights, n, where)


def _nodes(mask: Any, n: int, where: str) -> Tensor:
    """Node numbers of a mask, (N,) of truth values or of 0 and 1; none where there is no mask."""
    if mask is None:
        return torch.zeros(0, dtype=torch.int64)
    marks = as_labels(mask, where)
    if marks.shape != (n,):
        remedy = f"Store ({n},) truth values; of several splits, one."
        raise BadData(where, tuple(marks.shape), f"is not one mark for each of {n} nodes", remedy)
    if marks.is_floating_point() or (n and not 0 <= int(marks.min()) <= int(marks.max()) <= 1):
        raise BadData(where, str(marks.dtype), "holds other values than true and false", f"Store ({n},) bool.")
    return marks.nonzero().flatten()


def _names(value: Any) -> tuple[str, ...]:
    if value is None or isinstance(value, Tensor):
        return ()
    return tuple(str(name) for name in np.asarray(value).reshape(-1))


def _scale(x: Tensor) -> str:
    counts = bool((x >= 0).all()) and float((x == 0).float().mean()) >= SPARSE
    return "rows" if counts else "columns"
