"""GraphSAGE (Hamilton, Ying and Leskovec, NeurIPS 2017, arXiv:1706.02216), with its mean aggregator."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from .base import Layer, Layered, Pass, projected


@final
class GraphSAGE(Layered):
    """A node's own values and the mean of its neighbours', each with weights of its own; ReLU and dropout between.

    Edge weights are weights of the mean; PyG's layer, to which this is equal where they are 1, takes none. A node
    without neighbours has a mean of 0. features: mean and own values side by side in front of the last weights,
    (n, 2 * hidden). All neighbours are read, none is sampled, and rows are not normalised (PyG's defaults).
    """

    name: ClassVar[str] = "graphsage"

    def layer(self, inputs: int, outputs: int) -> Layer:
        return SAGELayer(inputs, outputs)


@final
class SAGELayer(Layer):
    """mean(h) W_l + b + h W_r; parameters named and started as in PyG's SAGEConv."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin_l = nn.Linear(inputs, outputs)
        self.lin_r = nn.Linear(inputs, outputs, bias=False)

    def forward(self, through: Pass, h: Tensor | None) -> Tensor:
        sent, own = projected(through, h, self.lin_l.weight), projected(through, h, self.lin_r.weight)
        return through(sent, "mean") + self.lin_l.bias + own

    def gathers(self, through: Pass, h: Tensor) -> Tensor:
        return torch.cat([through(h, "mean"), h], dim=1)
