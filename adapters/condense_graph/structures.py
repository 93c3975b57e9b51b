"""The edges of a synthetic graph: generated from its features by a small network, or sampled one by one.

Notation: n synthetic nodes, D features, H hidden units.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense.component import Component
from condense.rng import Rng

from . import drawn
from .graph import NodeView


class Structure(Component):
    """Where the edges of a synthetic graph come from."""

    axis: ClassVar[str] = "structure"

    @abstractmethod
    def build(self, n: int, features: int) -> Edges:
        """Storage for the edges of n nodes with so many features, not filled."""


class Edges(nn.Module, ABC):
    """The live side of a structure. All of its parameters have the role `structure`."""

    draws: ClassVar[bool] = False  # does what networks are matched and trained on depend on the rng?

    def start(self, rng: Rng) -> None:
        """Draw what starts at random; by default nothing does."""

    def fill(self, x: NodeView) -> None:
        """Take up the chosen nodes x, in their graph; by default nothing of their edges is kept."""

    @abstractmethod
    def weights(self, x: Tensor, rng: Rng | None) -> Tensor:
        """(n, n) symmetric, in [0, 1], zero diagonal, for node features x (n, D); rng None: the released form.

        Differentiable in x and in the parameters, but for what the released form cuts.
        """

    def project(self, index: int) -> None:
        """After the update of outer step `index`."""


# -- generated from the features ------------------------------------------------------------------------------------


@final
class PairMLP(Structure):
    """An edge's weight is what a network says of its two ends: sigmoid of the mean of MLP([x_i; x_j]) and
    MLP([x_j; x_i]) (GCond; Jin et al., arXiv:2110.07580, eq. 7).

    2 D -> hidden -> hidden -> 1; batch norm and ReLU after the first two. Batch norm takes the statistics of all n^2
    ordered pairs, always, also in the released form: the official code never switches it to running statistics, and the
    set is complete whenever it is asked. Linear biases in front of it cancel, and are left out.
    threshold: edges below it are cut in the released form, those above keep their weight (as the code has it; the paper
    subtracts the threshold).
    start: added to the last bias at the start, in log-odds. At -4 nodes begin joined to each other by weights of about
    0.02. At 0, as published, by about one half: two propagations leave little of what tells so joined nodes apart.
    """

    hidden: int = Field(default=128, ge=1)
    threshold: float = Field(default=0.05, ge=0.0, le=1.0)
    start: float = -4.0

    def build(self, n: int, features: int) -> Edges:
        return _Generated(self, features)


class _Generated(Edges):
    def __init__(self, structure: PairMLP, features: int) -> None:
        super().__init__()
        h, self.how = structure.hidden, structure
        self.first = nn.Parameter(torch.zeros(2 * h, features))  # rows 0..H: of an edge's start; H..2H: of its end
        self.second = nn.Parameter(torch.zeros(h, h))
        self.third = nn.Parameter(torch.zeros(h))
        self.bias = nn.Parameter(torch.zeros(()))
        self.norms = nn.ParameterList([nn.Parameter(torch.zeros(h)) for _ in range(4)])  # scale, shift; scale, shift

    @torch.no_grad()
    def start(self, rng: Rng) -> None:
        """As torch starts linear layers and batch norms."""
        g = rng.generator()
        widths = {self.first: 2 * self.first.shape[1], **dict.fromkeys((self.second, self.third), len(self.second))}
        for parameter, width in {**widths, self.bias: len(self.second)}.items():
            start = torch.rand(parameter.shape, generator=g) * 2 - 1
            parameter.copy_(start / math.sqrt(width))
        self.bias.add_(self.how.start)
        for i, parameter in enumerate(self.norms):
            parameter.fill_(1.0 - i % 2)

    def weights(self, x: Tensor, rng: Rng | None) -> Tensor:
        scores = pair_scores(x, self.first, self.second, self.third, tuple(self.norms)) + self.bias
        dense = drawn.without_loops(torch.sigmoid((scores + scores.T) / 2))
        return dense if rng is not None else torch.where(dense < self.how.threshold, 0.0, dense)


def pair_scores(
    x: Tensor, first: Tensor, second: Tensor, third: Tensor, norms: tuple[Tensor, ...], eps: float = 1e-5
) -> Tensor:
    """What the network says of every ordered pair of nodes, (n, n), before its last bias; differentiable.

    x: (n, D); first: (2 H, D), its halves for the two ends; second: (H, H); third: (H,); norms: scale, shift of the
    first and of the second batch norm, each (H,).

    The first layer is linear in the two ends apart, W [x_i; x_j] = W1 x_i + W2 x_j, and over a full grid of sums the
    mean and the variance are the sums of the means and of the variances: so layer and batch norm are computed on n rows
    and not on n^2, exactly.
    """
    n, h = len(x), len(second)
    ends = F.linear(x, first)
    centred = ends - ends.mean(dim=0)
    spread = centred.square().mean(dim=0).view(2, h).sum(dim=0)
    scaled = centred.view(n, 2, h) * (norms[0] / (spread + eps).sqrt())
    start, end = scaled.unbind(dim=1)
    hidden = ((start + norms[1])[:, None, :] + end[None, :, :]).relu_()
    second_out = F.linear(hidden.view(n * n, h), second)
    normed = F.batch_norm(second_out, None, None, norms[2], norms[3], training=True, eps=eps)
    return torch.mv(normed.relu_(), third).view(n, n)


# -- sampled --------------------------------------------------------------------------------------------------------


@final
class SampledEdges(Structure):
    """Every edge is there or not, with a learned chance; networks are matched and trained on samples (DosCond; Jin et
    al., arXiv:2206.07746, section 3.2).

    A sample is relaxed (binary concrete), at a temperature that falls geometrically from `hot` to `cold` over the first
    `over` outer steps, then stays. The released form has the edges of a chance above one half, with weight 1. Starts
    from the edges between the chosen real nodes: logits of `sure`, and of -`sure` where there is none.
    """

    hot: float = Field(default=1.0, gt=0.0)
    cold: float = Field(default=0.01, gt=0.0)
    over: int = Field(default=200, ge=1)
    sure: float = Field(default=5.0, ge=0.0)

    def build(self, n: int, features: int) -> Edges:
        return _Sampled(self, n)


class _Sampled(Edges):
    draws: ClassVar[bool] = True
    heat: Tensor

    def __init__(self, how: SampledEdges, n: int) -> None:
        super().__init__()
        self.how = how
        self.logits = nn.Parameter(torch.zeros(n, n))
        self.register_buffer("heat", torch.full((), how.hot))

    @torch.no_grad()
    def fill(self, x: NodeView) -> None:
        self.logits.copy_((2 * (adjacency(x) > 0).float() - 1) * self.how.sure)

    def weights(self, x: Tensor, rng: Rng | None) -> Tensor:
        logits = (self.logits + self.logits.T) / 2
        if rng is None:
            return drawn.without_loops((logits > 0).to(logits.dtype))
        u = drawn.symmetric_uniform(1, len(logits), rng, logits.device)[0]
        return drawn.without_loops(drawn.concrete(logits, u, self.heat))

    def project(self, index: int) -> None:
        self.heat.fill_(drawn.temperature(self.how.hot, self.how.cold, self.how.over, index + 1))


def adjacency(x: NodeView) -> Tensor:
    """The edges among the nodes of a view, dense: (n, n), [i, j] the weight of the edge from j to i."""
    part = x.graph.induced(x.nodes)
    (source, target), weights = part.listed()
    dense = torch.zeros(len(x), len(x), dtype=part.x.dtype, device=part.x.device)
    return dense.index_put((target, source), weights.to(dense.dtype), accumulate=True)


def components() -> list[type[Component]]:
    return [PairMLP, SampledEdges]
