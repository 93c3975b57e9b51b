"""Edges as `Graph` wants them: both directions listed, each once, none from a node to itself."""

from __future__ import annotations

import torch
from torch import Tensor


def undirected(edges: Tensor, n: int) -> Tensor:
    """Edges (2, E) int64 and their reverses, each once and no self-loops, in the order of target, then source."""
    keys = torch.cat([edges[0] + n * edges[1], edges[1] + n * edges[0]])[torch.cat([edges[0] != edges[1]] * 2)]
    unique = torch.unique(keys)
    return torch.stack([unique % n, unique // n])
