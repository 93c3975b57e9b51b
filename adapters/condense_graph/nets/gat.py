"""GAT (Velickovic et al., ICLR 2018, arXiv:1710.10903)."""

from __future__ import annotations

import math
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from .base import Layer, NodeNet, Pass, Stack, projected

SLOPE = 0.2  # of the leaky ReLU on scores
FARTHEST = 60.0  # exp of it is finite in float32


@final
class GAT(NodeNet):
    """Attention over each node's neighbours and itself; ELU between layers, whose heads stand side by side.

    hidden: values of a node in each head; the last layer has one head. The paper takes 8 heads of 8 and drops input
    features, too; GCond's code judges with 16 heads of 16. dropout: of hidden values and of attention. features: the
    last layer's input, (n, heads * hidden); what its attention makes of it is not linear.

    Edge weights w are attention's prior: a_ij = w_ij exp(e_ij) / sum_k w_ik exp(e_ik), and 1 for a node itself. An edge
    of weight 1 is PyG's, one of weight 0 none. GCond's code multiplies messages by w after the softmax instead.
    """

    name: ClassVar[str] = "gat"
    shorthand: ClassVar[str | None] = "depth"
    depth: int = Field(default=2, ge=1)
    hidden: int = Field(default=16, ge=1)
    heads: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    def module(self, inputs: int, outputs: int) -> nn.Module:
        wide = self.heads * self.hidden
        layers = [GATLayer(wide if i else inputs, self.hidden, self.heads, self.dropout) for i in range(self.depth - 1)]
        layers.append(GATLayer(wide if layers else inputs, outputs, 1, self.dropout))
        return Stack(layers, self.dropout, F.elu)


@final
class GATLayer(Layer):
    """Attention in H heads of F values, side by side: (N, H * F). Parameters named and started as in PyG's GATConv."""

    def __init__(self, inputs: int, outputs: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, heads * outputs, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, outputs))
        self.att_dst = nn.Parameter(torch.empty(1, heads, outputs))
        self.bias = nn.Parameter(torch.zeros(heads * outputs))
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.lin.weight)
        for attention in (self.att_src, self.att_dst):
            nn.init.uniform_(attention, -math.sqrt(6 / (heads + outputs)), math.sqrt(6 / (heads + outputs)))

    def forward(self, through: Pass, h: Tensor | None) -> Tensor:
        values = projected(through, h, self.lin.weight).reshape(-1, *self.att_src.shape[1:])  # (N, H, F)
        sent, heard = (values * self.att_src).sum(dim=2), (values * self.att_dst).sum(dim=2)  # (N, H)
        attend = self.densely if through.graph.adj is not None else self.sparsely
        return attend(through, values, sent, heard).flatten(1) + self.bias

    def gathers(self, through: Pass, h: Tensor) -> Tensor:
        return h

    def densely(self, through: Pass, values: Tensor, sent: Tensor, heard: Tensor) -> Tensor:
        """(N, H, F), from scores of all pairs."""
        adj = through.graph.adj
        assert adj is not None
        weights = (adj + torch.eye(len(adj), dtype=adj.dtype, device=adj.device))[:, :, None]
        scores = F.leaky_relu(heard[:, None] + sent[None, :], SLOPE)  # (N, N, H)
        top = torch.where(weights > 0, scores, -torch.inf).amax(dim=1, keepdim=True).detach()
        raw = weights * (scores - top).clamp(max=FARTHEST).exp()
        attention = self.dropout(raw / raw.sum(dim=1, keepdim=True))
        return torch.einsum("ijh,jhf->ihf", attention, values)

    def sparsely(self, through: Pass, values: Tensor, sent: Tensor, heard: Tensor) -> Tensor:
        """(N, H, F), from scores of the edges alone."""
        (source, target), weights = through.graph.listed()
        own = torch.arange(len(values), device=values.device)
        source, target = torch.cat([source, own]), torch.cat([target, own])
        weights = torch.cat([weights.to(values.dtype), values.new_ones(len(own))])[:, None]
        scores = F.leaky_relu(heard[target] + sent[source], SLOPE)  # (E + N, H)
        where = target[:, None].expand_as(scores)
        lowest = torch.full_like(sent, -torch.inf)
        counted = torch.where(weights > 0, scores, -torch.inf).detach()
        top = lowest.scatter_reduce(0, where, counted, "amax")
        raw = weights * (scores - top[target]).clamp(max=FARTHEST).exp()
        total = torch.zeros_like(sent).index_add(0, target, raw)
        attention = self.dropout(raw / total[target])
        return torch.zeros_like(values).index_add(0, target, attention[:, :, None] * values[source])
