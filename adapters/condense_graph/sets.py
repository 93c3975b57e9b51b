"""What all sources of whole graphs share: graphs are read, checked, divided, and taken side by side as they are drawn.

Notation: G graphs, N nodes of all, D features, K classes.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from condense.axes import Transform
from condense.data import Data, Facts, Source, Splits
from condense.errors import BadData
from condense.splits import check_classes
from condense.task import Batch, Task

from .collections import Graphs, SparseGraphs
from .graph import Graph
from .properties import set_properties
from .sources.checks import check_edges, check_features


@dataclass(frozen=True)
class Collected:
    """Graphs as they were read, on the CPU, with y (G,) int64. train, validation, test: their numbers, int64.

    `where`: how errors call it. `how`: how it was divided, for the record.
    """

    graphs: SparseGraphs
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor
    classes: tuple[str, ...]
    facts: Facts = field(default_factory=Facts)
    where: str = "graphs"
    how: str = ""


class GraphData(Data):
    """A set of whole graphs, each with a label."""

    form: ClassVar[str] = "graphs"

    @abstractmethod
    def read(self) -> Collected:
        """The graphs as they lie on disk. Raises `BadData`."""

    def open(self, device: torch.device | str = "cpu") -> Splits:
        return make_splits(self.read(), device)


class GraphSource(Source):
    """Graphs in memory, side by side. `take` is a few gathers, whatever the number of graphs.

    graphs: features as they are stored. record: facts of the division, for the artifact.
    """

    def __init__(
        self,
        task: Task,
        graphs: SparseGraphs,
        y: Tensor,
        transform: Transform | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.raw, self.y, self.transform, self.record = graphs, y, transform, record or {}
        self.graphs = graphs if transform is None else encoded(graphs, transform)
        self.task = task.model_copy(update={"shape": (task.shape[0], self.graphs.x.shape[1])})
        self._swept: tuple[int, list[Batch]] | None = None

    @property
    def groups(self) -> Tensor:
        return self.y

    @property
    def device(self) -> torch.device:
        return self.y.device

    def take(self, index: Tensor) -> Batch:
        return Batch(self.graphs.take(index), self.y[index], index)

    def sweep(self, n: int) -> Iterator[Batch]:
        """One ordered pass, n graphs at a time. The pieces of the last pass are kept: judges come often."""
        if self._swept is None or self._swept[0] != n:
            self._swept = (n, list(super().sweep(n)))
        yield from self._swept[1]

    def encoded(self, transform: Transform) -> GraphSource:
        """The same graphs, their stored features through `transform`: it replaces an earlier one."""
        return GraphSource(self.task, self.raw, self.y, transform, self.record)

    def provenance(self) -> dict[str, Any]:
        size = {"nodes": len(self.raw.graph), "edges": int(self.raw.graph.listed()[0].shape[1])}
        facts = {"fingerprint": self.fingerprint, "counts": self.counts(), "classes": list(self.task.classes)}
        return {**facts, "size": size, **self.record}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the graphs, their sizes, labels, and the class names in order."""
        h = hashlib.sha256(self.raw.graph.digest().encode())
        for tensor in (self.raw.sizes, self.y):
            h.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        h.update("\x1f".join(self.task.classes).encode())
        return h.hexdigest()


def encoded(graphs: SparseGraphs, transform: Transform) -> SparseGraphs:
    graph = graphs.graph
    return SparseGraphs(Graph(transform.encode(graph.x), graph.edges, graph.weights), graphs.sizes)


# -- from what was read to splits -----------------------------------------------------------------------------------


def make_splits(read: Collected, device: torch.device | str = "cpu") -> Splits:
    """Three sources, checked. The task's shape is (n, D), n the mean number of nodes of training graphs, rounded up.

    `facts.extra["properties"]` describes the training graphs.
    """
    check_collected(read)
    numbers = {"train": read.train, "validation": read.validation, "test": read.test}
    mean = math.ceil(float(read.graphs.sizes[read.train].double().mean()))
    task = Task(classes=read.classes, shape=(mean, read.graphs.x.shape[1]), form=Graphs())
    record = {"split": {"how": read.how, **{name: index.tolist() for name, index in numbers.items()}}}
    form = Graphs()

    def source(index: Tensor) -> GraphSource:
        graphs = form.to(read.graphs.take(index), device)
        return GraphSource(task, graphs, read.y[index].to(device), record=record)

    validation, train = source(read.validation) if len(read.validation) else None, source(read.train)
    known = set_properties(train.raw.graph, train.raw.sizes)
    facts = replace(read.facts, extra={**read.facts.extra, "properties": known})
    return Splits(train, source(read.test), validation, facts)


def check_collected(read: Collected) -> None:
    """Raises `BadData` for features, edges, labels or a division that no method can use."""
    graph, count = read.graphs.graph, len(read.graphs)
    check_features(graph.x, f"{read.where} features")
    check_edges(*graph.listed(), len(graph), f"{read.where} edges")
    read.graphs.checked(f"{read.where} graphs")
    if len(read.y) != count:
        problem = f"are not one for each of the {count} graphs"
        raise BadData(f"{read.where} labels", len(read.y), problem, "Give one label for each graph.")
    everything = torch.cat([read.train, read.validation, read.test])
    if bool((torch.bincount(everything, minlength=count) > 1).any()):
        raise BadData(read.where, "its splits", "name a graph twice", "Put each graph into one split.")
    if len(read.test) == 0:
        raise BadData(f"{read.where} test", 0, "holds no graphs", "Give some graphs for testing.")
    check_classes(read.y[read.train], read.classes, f"{read.where} train")


def tenths(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(train, validation, test) of `count` graphs: 80, 10 and 10 % of a random permutation, not stratified.

    The first ceil(count / 10) are for testing, the next as many for validation. With seed 0 this is the split of the
    code released with DosCond (arXiv:2206.07746): there, PyG shuffles with torch's generator of that seed.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    n = (count + 9) // 10
    return order[2 * n :], order[n : 2 * n], order[:n]
