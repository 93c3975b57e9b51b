"""Edges as `Graph` wants them: both directions listed, each once, none from a node to itself.

Notation: N nodes, E directed edges.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def undirected(edges: Tensor, n: int) -> Tensor:
    """Edges (2, E) int64 and their reverses, each once and no self-loops, in the order of target, then source."""
    return undirected_weighted(edges, None, n)[0]


def undirected_weighted(edges: Tensor, weights: Tensor | None, n: int) -> tuple[Tensor, Tensor | None]:
    """`undirected`; of the weights (E,) that edges between two nodes have, in either direction, the largest."""
    proper = edges[0] != edges[1]
    (source, target), weights = edges[:, proper], None if weights is None else weights[proper]
    keys = torch.cat([source + n * target, target + n * source])
    if weights is None:
        unique = torch.unique(keys)
        return torch.stack([unique % n, unique // n]), None
    unique, place = torch.unique(keys, return_inverse=True)
    largest = weights.new_zeros(len(unique)).scatter_reduce(0, place, weights.repeat(2), "amax")
    return torch.stack([unique % n, unique // n]), largest


def cleaned(edges: Tensor, weights: Tensor | None, n: int, where: str) -> tuple[Tensor, Tensor | None]:
    """`undirected_weighted`, with one warning for each kind of edge that changes: loops, repeated, one-way, uneven."""
    loops = int((edges[0] == edges[1]).sum())
    proper = edges[:, edges[0] != edges[1]]
    found, largest = undirected_weighted(edges, weights, n)
    distinct = len(torch.unique(proper[0] + n * proper[1]))
    repeated, added = proper.shape[1] - distinct, found.shape[1] - distinct
    if loops:
        _warn(f"{where}: {loops} self-loops are left out: networks add their own.")
    if repeated:
        _warn(f"{where}: {repeated} repeated edges are merged{'' if weights is None else ', the largest weight kept'}.")
    if added:
        _warn(f"{where}: {added} edges have no reverse, which is added: networks take undirected graphs.")
    if weights is not None and largest is not None:
        place = torch.searchsorted(found[0] + n * found[1], proper[0] + n * proper[1])  # in this order they are found
        raised = int((largest[place] > weights[edges[0] != edges[1]] * (1 + 1e-5)).sum())
        if raised:
            _warn(f"{where}: {raised} edges weigh less than their reverse or repetition, whose weight they are given.")
    return found, largest


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)
