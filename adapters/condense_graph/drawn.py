"""Edges that are drawn: Bernoulli variables relaxed by the binary concrete distribution.

Sources: Maddison et al., arXiv:1611.00712; Jang et al., arXiv:1611.01144; used for graphs in DosCond (arXiv:2206.07746,
section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from condense.rng import Rng

CLOSE = 1e-7  # uniform draws stay so far from 0 and 1: their logits are finite


def concrete(logits: Tensor, u: Tensor, heat: Tensor | float) -> Tensor:
    """sigmoid((log u - log(1 - u) + logits) / heat): relaxed Bernoulli variables; a step function of u as heat -> 0."""
    return ((torch.logit(u) + logits) / heat).sigmoid()


def symmetric_uniform(count: int, n: int, rng: Rng, device: torch.device) -> Tensor:
    """(count, n, n) in (0, 1): one number for each unordered pair of nodes."""
    u = torch.rand(count, n, n, generator=rng.generator(device), device=device).clamp(CLOSE, 1 - CLOSE)
    upper = torch.ones(n, n, dtype=torch.bool, device=device).triu()
    return torch.where(upper, u, u.mT)


def without_loops(matrix: Tensor) -> Tensor:
    """(..., n, n) with a diagonal of 0."""
    return matrix * (1 - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))


def temperature(hot: float, cold: float, over: int, index: int) -> float:
    """Of outer step `index`: falls geometrically from `hot` to `cold` over the first `over` steps, then stays."""
    return float(hot * (cold / hot) ** min(1.0, index / over))
