"""SGC (Wu et al., ICML 2019, arXiv:1902.07153)."""

from __future__ import annotations

from typing import ClassVar, final

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ..graph import NodeView
from .base import NodeNet, Pass, widths


@final
class SGC(NodeNet):
    """Features after `hops` propagations, then linear layers with ReLU and dropout between them.

    layers: 1 is the paper's, a linear model, for which `hidden` and `dropout` mean nothing. features: the last layer's
    input, (n, hidden); where layers = 1 the propagated features themselves, (n, D), in which there is no parameter.

    GCond's code (arXiv:2110.07580) agrees where layers = 1. Its variant of two layers (`--sgc=2`) transforms first and
    then propagates the logits, which is `appnp` with alpha = 0; here propagation comes first, so that the propagated
    features are computed once and a batch costs what its own nodes cost.
    """

    name: ClassVar[str] = "sgc"
    shorthand: ClassVar[str | None] = "hops"
    hops: int = Field(default=2, ge=0)
    layers: int = Field(default=1, ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def module(self, inputs: int, outputs: int) -> nn.Module:
        return _SGC(self.hops, widths(inputs, self.hidden, outputs, self.layers), self.dropout)


@final
class _SGC(nn.Module):
    def __init__(self, hops: int, sizes: list[tuple[int, int]], dropout: float) -> None:
        super().__init__()
        self.hops = hops
        self.lins = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        self.dropout = nn.Dropout(dropout)

    def first(self, view: NodeView) -> Tensor:
        """The first layer of the propagated features, (n, F): weights before propagation, where it is not kept."""
        layer, graph = self.lins[0], view.graph
        assert isinstance(layer, nn.Linear)
        if graph.settled:
            return F.linear(graph.power(self.hops)[view.nodes], layer.weight, layer.bias)
        return Pass(graph).project(layer.weight, self.hops)[view.nodes] + layer.bias

    def hidden(self, view: NodeView) -> Tensor:
        """The last layer's input, where it is not the first, (n, hidden)."""
        h = self.first(view)
        for layer in list(self.lins)[1:-1]:
            h = layer(self.dropout(F.relu(h)))
        return self.dropout(F.relu(h))  # type: ignore[no-any-return]

    def features(self, view: NodeView) -> Tensor:
        if len(self.lins) == 1:
            return Pass(view.graph).power(self.hops)[view.nodes]
        return self.hidden(view)

    def forward(self, view: NodeView) -> Tensor:
        if len(self.lins) == 1:
            return self.first(view)
        logits: Tensor = self.lins[-1](self.hidden(view))
        return logits
