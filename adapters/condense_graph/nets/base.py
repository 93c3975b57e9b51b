"""What the networks for nodes share: one pass over a graph, layers in a row, and what is refused.

Notation: N nodes, n of them in the view, D features, F values of a node, K classes.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Net
from condense.errors import BadValue
from condense.task import Task

from ..graph import Graph, Nodes, NodeView, Operator

Activation = Callable[[Tensor], Tensor]


class NodeNet(Net):
    """Abstract: a network for nodes of one graph. Members make the module once the task is known to fit."""

    def build(self, task: Task) -> nn.Module:
        """Raises `BadValue` for a task whose examples are not nodes with one row of features each."""
        if not isinstance(task.form, Nodes):
            problem = f"{self.name} is a network for nodes of a graph, and these are {task.form.noun}"
            raise BadValue("task.form", task.form.name, problem, "Use data of nodes, or a network for what there is.")
        if len(task.shape) != 1:
            raise BadValue("task.shape", task.shape, f"{self.name} takes one row of features a node", "Flatten them.")
        return self.module(task.shape[0], task.outputs)

    @abstractmethod
    def module(self, inputs: int, outputs: int) -> nn.Module:
        """Freshly initialised, for D = `inputs` features and K = `outputs` classes."""


class Pass:
    """One forward pass over a graph: `Graph.propagate` with every matrix made once, also where nothing is kept."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._matrices: dict[Operator, Tensor | None] = {}

    def __call__(self, h: Tensor, by: Operator = "gcn", hops: int = 1) -> Tensor:
        """The operator applied `hops` times to values h (N, F)."""
        if by not in self._matrices:
            self._matrices[by] = self.graph.operator(by)
        matrix = self._matrices[by]
        if matrix is None:
            return h if by == "gcn" or hops == 0 else torch.zeros_like(h)
        for _ in range(hops):
            h = self.graph.propagate(h, by) if matrix.is_sparse else matrix @ h
        return h

    def power(self, hops: int) -> Tensor:
        """The features after `hops` propagations, (N, D); kept with the graph where nothing waits for a gradient."""
        return self.graph.power(hops) if self.graph.settled else self(self.graph.x, hops=hops)

    def project(self, weight: Tensor, hops: int = 0) -> Tensor:
        """power(hops) @ weight.T, (N, F) for a weight (F, D): of the kept power, else F values travel in place of D."""
        if hops and self.graph.settled and not self.graph.few_features():
            return self.graph.power(hops) @ weight.T
        return self(self.graph.project(weight), hops=hops)


class Layer(nn.Module, ABC):
    """Abstract: values of nodes to values of nodes, linear in what it `gathers`. h = None: the graph's own features."""

    @abstractmethod
    def forward(self, through: Pass, h: Tensor | None) -> Tensor:
        """(N, inputs) -> (N, outputs)."""

    @abstractmethod
    def gathers(self, through: Pass, h: Tensor) -> Tensor:
        """What the layer's weights are applied to, (N, *): h of each node with what its neighbours send."""


class Stack(nn.Module):
    """Layers with an activation and dropout after each but the last.

    forward: (n, K) for a view of n nodes. features: what the last layer gathers for these nodes, (n, *).
    """

    def __init__(
        self, layers: Sequence[Layer], dropout: float, activation: Callable[[Tensor], Tensor] = F.relu
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(layers)
        self.dropout = nn.Dropout(dropout)
        self.activation = activation

    def hidden(self, through: Pass) -> Tensor | None:
        """The last layer's input, (N, F); None: the graph's own features."""
        h = None
        for layer in list(self.convs)[:-1]:
            h = self.dropout(self.activation(layer(through, h)))
        return h

    def features(self, view: NodeView) -> Tensor:
        through, last = Pass(view.graph), self.convs[-1]
        h = self.hidden(through)
        assert isinstance(last, Layer)
        return last.gathers(through, view.graph.x if h is None else h)[view.nodes]

    def every(self, through: Pass) -> Tensor:
        """Logits of all nodes, (N, K)."""
        return self.convs[-1](through, self.hidden(through))  # type: ignore[no-any-return]

    def forward(self, view: NodeView) -> Tensor:
        return self.every(Pass(view.graph))[view.nodes]


def widths(inputs: int, hidden: int, outputs: int, depth: int) -> list[tuple[int, int]]:
    """(inputs, outputs) of each of `depth` layers."""
    sizes = [inputs, *[hidden] * (depth - 1), outputs]
    return list(itertools.pairwise(sizes))


class Layered(NodeNet):
    """Abstract: `depth` layers of one kind in a row, `hidden` values of a node between them, ReLU and dropout."""

    shorthand: ClassVar[str | None] = "depth"
    depth: int = Field(default=2, ge=1)
    hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)

    @abstractmethod
    def layer(self, inputs: int, outputs: int) -> Layer:
        """One of them, freshly initialised."""

    def module(self, inputs: int, outputs: int) -> nn.Module:
        sizes = widths(inputs, self.hidden, outputs, self.depth)
        return Stack([self.layer(before, after) for before, after in sizes], self.dropout)


def projected(through: Pass, h: Tensor | None, weight: Tensor) -> Tensor:
    """h @ weight.T, (N, F), where h may stand for the graph's own features."""
    return through.project(weight) if h is None else h @ weight.T
