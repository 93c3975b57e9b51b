"""ChebNet (Defferrard, Bresson and Vandergheynst, NeurIPS 2016, arXiv:1606.09375)."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor, nn

from .base import Layer, NodeNet, Pass, Stack, projected, widths


@final
class ChebNet(NodeNet):
    """Chebyshev polynomials of the scaled Laplacian, sum_k T_k(L - I) h W_k + b; ReLU and dropout between.

    order: how many terms (K of PyG's ChebConv): 2 reads a node and its neighbours. The largest eigenvalue is taken to
    be 2, and edges to be undirected. features: the terms side by side in front of the last weights,
    (n, order * hidden). GCond's code judges with another layer of that name: the polynomials of A_hat, with one weight
    for all terms.
    """

    name: ClassVar[str] = "cheb-net"
    shorthand: ClassVar[str | None] = "order"
    order: int = Field(default=2, ge=1)
    depth: int = Field(default=2, ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def module(self, inputs: int, outputs: int) -> nn.Module:
        sizes = widths(inputs, self.hidden, outputs, self.depth)
        return Stack([ChebLayer(before, after, self.order) for before, after in sizes], self.dropout)


@final
class ChebLayer(Layer):
    """sum_k T_k h W_k + b; parameters named and started as in PyG's ChebConv (Glorot's range, biases of 0)."""

    def __init__(self, inputs: int, outputs: int, order: int) -> None:
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(order))
        for lin in self.lins:
            nn.init.xavier_uniform_(lin.weight)  # type: ignore[arg-type]
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, through: Pass, h: Tensor | None) -> Tensor:
        """By Clenshaw's recurrence, on projected values: order - 1 propagations of (N, outputs)."""
        first, *others = (projected(through, h, lin.weight) for lin in self.lins)  # type: ignore[arg-type]
        if not others:
            return first + self.bias
        latest, later = others[-1], torch.zeros_like(first)
        for term in reversed(others[:-1]):
            latest, later = term + 2 * through(latest, "cheb") - later, latest
        return first + through(latest, "cheb") - later + self.bias

    def gathers(self, through: Pass, h: Tensor) -> Tensor:
        terms = [h, through(h, "cheb")]
        while len(terms) < len(self.lins):
            terms.append(2 * through(terms[-1], "cheb") - terms[-2])
        return torch.cat(terms[: len(self.lins)], dim=1)
