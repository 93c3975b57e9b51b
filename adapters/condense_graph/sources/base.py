"""What all node sources share: one graph is read, checked, and looked at from three sides.

Notation: N nodes, D features, E directed edges, K classes; n nodes of a split.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from condense.axes import Statistic, Transform
from condense.data import Ask, Data, Facts, Source, Splits, feed
from condense.rng import Rng
from condense.task import Batch, Task

from ..graph import Graph, Nodes, NodeView
from ..properties import properties
from .checks import check_labelled

Setting = Literal["transductive", "inductive"]


@dataclass(frozen=True)
class Labelled:
    """A graph as it was read, on the CPU. train, validation, test: distinct node numbers, int64; y: (N,) int64.

    Labels of nodes that are in no split are never read. `where`: how errors call it. `facts.extra["features"]`: the
    scale that features are published to be used at, one of `rows`, `columns`, `none` (see `NodeFeatures`).
    """

    graph: Graph
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    classes: tuple[str, ...]
    facts: Facts = field(default_factory=Facts)
    where: str = "graph"


class NodeData(Data):
    """One graph, of which some nodes are labelled.

    setting: transductive, all splits see the whole graph and differ in the nodes that they are about; or inductive,
    each sees the subgraph that its own nodes induce, so that nothing of test is there in training.
    """

    form: ClassVar[str] = "nodes"
    setting: Setting = "transductive"

    @abstractmethod
    def read(self) -> Labelled:
        """The graph as it lies on disk. Raises `BadData`."""

    def open(self, device: torch.device | str = "cpu") -> Splits:
        return make_splits(self.read(), self.setting, device)


@dataclass(frozen=True, eq=False)
class Encoding:
    """A transform as a function that equals another where name, constants and buffers do: a deep copy is no other."""

    transform: Transform

    @cached_property
    def key(self) -> str:
        h = hashlib.sha256(repr(self.transform.describe()).encode())
        for name, tensor in self.transform.state_dict().items():
            h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}{tensor.device}".encode())
            h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return h.hexdigest()

    def __call__(self, x: Tensor) -> Tensor:
        return self.transform.encode(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Encoding) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class NodeSource(Source):
    """Some nodes of a graph, with their labels. Sources of one graph share it, and what it computes of its features.

    graph: features as they are stored; nodes: (n,) int64, distinct; y: (n,) int64, the labels of these nodes.
    population: how many nodes the data set has, labelled or not; None: those of the graph.
    """

    def __init__(
        self,
        task: Task,
        graph: Graph,
        nodes: Tensor,
        y: Tensor,
        transform: Transform | None = None,
        population: int | None = None,
    ) -> None:
        self.raw, self.nodes, self.y, self.transform = graph, nodes, y, transform
        self.graph = graph if transform is None else graph.encoded(Encoding(transform))
        self.task = task.model_copy(update={"shape": tuple(self.graph.x.shape[1:])})
        self._population = len(graph) if population is None else population

    @property
    def groups(self) -> Tensor:
        return self.y

    @property
    def device(self) -> torch.device:
        return self.y.device

    @property
    def population(self) -> int:
        return self._population

    def take(self, index: Tensor) -> Batch:
        return Batch(NodeView(self.graph, self.nodes[index]), self.y[index], index)

    def sweep(self, n: int) -> Iterator[Batch]:
        """One view of all nodes, whatever n is: a network computes the whole graph anyway."""
        yield self.take(torch.arange(len(self), device=self.device))

    def measure(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], rng: Rng
    ) -> Iterator[Mapping[str, Tensor]]:
        """All asks in one pass of the network, which computes the whole graph anyway; drawn as by `Source`."""
        batches = [self.draw(ask.n, ask.cls, rng.fold(i)) for i, ask in enumerate(asks)]
        views = [[warp(batch) for warp in ask.warps] or [batch] for ask, batch in zip(asks, batches, strict=True)]
        means = iter(statistic.means(model, [view for some in views for view in some], self.task, live=False))
        for some in views:
            own = list(itertools.islice(means, len(some)))
            yield statistic.finish({key: torch.stack([mean[key] for mean in own]).mean(dim=0) for key in own[0]})

    def encoded(self, transform: Transform) -> NodeSource:
        """The same nodes, the stored features through `transform`: it replaces an earlier one."""
        return NodeSource(self.task, self.raw, self.nodes, self.y, transform, self._population)

    def provenance(self) -> dict[str, Any]:
        size = {"nodes": len(self.raw), "edges": int(self.raw.listed()[0].shape[1])}
        return {
            "fingerprint": self.fingerprint,
            "counts": self.counts(),
            "classes": list(self.task.classes),
            "population": self.population,
            "size": size,
        }

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the graph as it is stored, the nodes, their labels, and the class names in order."""
        h = hashlib.sha256(self.raw.digest().encode())
        feed(h, (self.nodes, self.y))
        h.update("\x1f".join(self.task.classes).encode())
        return h.hexdigest()


def make_splits(read: Labelled, setting: Setting = "transductive", device: torch.device | str = "cpu") -> Splits:
    """Check a graph, move it to `device`, and look at it from its three splits. Raises `BadData`.

    `facts.extra["properties"]` describes the graph that is learned from, without the labels of test nodes.
    """
    check_labelled(read)
    whole = moved(read.graph, device)
    task = Task(classes=read.classes, shape=tuple(whole.x.shape[1:]), form=Nodes())

    def source(nodes: Tensor) -> NodeSource:
        nodes, y = nodes.to(device), read.y[nodes].to(device)
        if setting == "transductive":
            return NodeSource(task, whole, nodes, y)
        alone = torch.arange(len(nodes), device=device)
        return NodeSource(task, whole.induced(nodes), alone, y, population=len(whole))

    train, validation = source(read.train), source(read.validation) if len(read.validation) else None
    seen = (read.graph, read.y, torch.cat([read.train, read.validation]))
    if setting == "inductive":
        seen = (train.raw, train.y, train.nodes)
    facts = replace(read.facts, extra={**read.facts.extra, "properties": properties(*seen)})
    return Splits(train, source(read.test), validation, facts)


def moved(graph: Graph, device: torch.device | str) -> Graph:
    tensors = (graph.x, graph.edges, graph.weights, graph.adj)
    return Graph(*(None if t is None else t.to(device) for t in tensors))  # type: ignore[arg-type]
