"""A multilayer perceptron on the features of the nodes alone: what there is to gain from edges, it does not gain."""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field
from torch import Tensor, nn

from .base import Layer, NodeNet, Pass, Stack, projected, widths


@final
class NodeMLP(NodeNet):
    """Linear layers on each node's own features, ReLU and dropout between. features: (n, hidden)."""

    name: ClassVar[str] = "node-mlp"
    shorthand: ClassVar[str | None] = "depth"
    depth: int = Field(default=2, ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def module(self, inputs: int, outputs: int) -> nn.Module:
        sizes = widths(inputs, self.hidden, outputs, self.depth)
        return Stack([Own(before, after) for before, after in sizes], self.dropout)


@final
class Own(Layer):
    """h W + b of each node by itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, outputs)

    def forward(self, through: Pass, h: Tensor | None) -> Tensor:
        return projected(through, h, self.lin.weight) + self.lin.bias

    def gathers(self, through: Pass, h: Tensor) -> Tensor:
        return h
