"""A multilayer perceptron on the features of the nodes alone: what there is to gain from edges, it does not gain."""

from __future__ import annotations

from typing import ClassVar, final

from torch import Tensor, nn

from .base import Layer, Layered, Pass, projected


@final
class NodeMLP(Layered):
    """Linear layers on each node's own features, ReLU and dropout between. features: (n, hidden)."""

    name: ClassVar[str] = "node-mlp"

    def layer(self, inputs: int, outputs: int) -> Layer:
        return Own(inputs, outputs)


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
