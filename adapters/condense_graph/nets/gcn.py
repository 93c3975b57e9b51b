"""GCN (Kipf and Welling, ICLR 2017, arXiv:1609.02907)."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from .base import Layer, Layered, Pass


@final
class GCN(Layered):
    """Graph convolutions, relu(A_hat h W + b) each, dropout between them; the last gives the logits.

    depth: convolutions. hidden: values of a node between them. features: A_hat h in front of the last weights,
    (n, hidden); (n, D) where depth = 1.
    Weights and biases start uniform in +-1 / sqrt(inputs), as in the code released with GCond (arXiv:2110.07580),
    which judges with this network; the paper and PyG start from Glorot's range and biases of 0.
    """

    name: ClassVar[str] = "gcn"

    def layer(self, inputs: int, outputs: int) -> Layer:
        return GCNLayer(inputs, outputs)


@final
class GCNLayer(Layer):
    """A_hat h W + b; parameters named as in PyG's GCNConv."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.empty(outputs))
        nn.init.uniform_(self.bias, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))

    def forward(self, through: Pass, h: Tensor | None) -> Tensor:
        weight = self.lin.weight
        return (through.project(weight, hops=1) if h is None else through(h @ weight.T)) + self.bias

    def gathers(self, through: Pass, h: Tensor) -> Tensor:
        return through(h)
