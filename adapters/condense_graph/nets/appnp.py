"""APPNP (Klicpera, Bojchevski and Guennemann, ICLR 2019, arXiv:1810.05997)."""

from __future__ import annotations

from typing import ClassVar, final

from pydantic import Field
from torch import Tensor, nn

from ..graph import NodeView
from .base import NodeNet, Pass, Stack, widths
from .mlp import Own


@final
class APPNP(NodeNet):
    """A perceptron on every node, whose logits then propagate: z <- (1 - alpha) A_hat z + alpha z_0, `hops` times.

    depth: layers of the perceptron (the paper: 2; GCond's judge: 1). The paper also drops input features and edges in
    training; here, as in the code released with GCond (arXiv:2110.07580), only hidden values are dropped. features: the
    perceptron's hidden values after the same propagation, (n, hidden): the logits but for the bias, which propagates
    too.

    alpha = 0 is GCond's SGC of several layers (`--sgc=2`, with hops = 2 and dropout = 0), used for arxiv and Flickr.
    """

    name: ClassVar[str] = "appnp"
    shorthand: ClassVar[str | None] = "hops"
    hops: int = Field(default=10, ge=0)
    alpha: float = Field(default=0.1, ge=0, le=1)
    depth: int = Field(default=2, ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def module(self, inputs: int, outputs: int) -> nn.Module:
        sizes = widths(inputs, self.hidden, outputs, self.depth)
        layers = Stack([Own(before, after) for before, after in sizes], self.dropout)
        return _APPNP(layers, self.hops, self.alpha)


@final
class _APPNP(nn.Module):
    def __init__(self, layers: Stack, hops: int, alpha: float) -> None:
        super().__init__()
        self.layers, self.hops, self.alpha = layers, hops, alpha

    def spread(self, through: Pass, start: Tensor) -> Tensor:
        """Personalised PageRank by power iteration, (N, F)."""
        z = start
        for _ in range(self.hops):
            z = (1 - self.alpha) * through(z) + self.alpha * start
        return z

    def features(self, view: NodeView) -> Tensor:
        through = Pass(view.graph)
        h = self.layers.hidden(through)
        return self.spread(through, view.graph.x if h is None else h)[view.nodes]

    def forward(self, view: NodeView) -> Tensor:
        through = Pass(view.graph)
        return self.spread(through, self.layers.every(through))[view.nodes]
