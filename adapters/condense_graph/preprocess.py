"""The scale of node features: rows to length 1, columns to mean 0 and deviation 1, or as they are stored.

Notation: N nodes, D features.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from condense.axes import Preprocess, Transform
from condense.component import Component, digest
from condense.data import Source
from condense.recipe import Reads, Recipe
from condense.task import Task

from .collections import GraphSet
from .graph import NodeView

Scale = Literal["auto", "rows", "columns", "none"]
BLOCK = 4096  # examples that one reading of the source is asked for
COLUMNS = 64  # features whose moments are computed at once, in float64


# -- pure functions of tensors --------------------------------------------------------------------------------------


def row_normalised(x: Tensor) -> Tensor:
    """Rows divided by the sum of their absolute values; zero rows stay zero. (N, D) to (N, D)."""
    length = x.abs().sum(dim=1, keepdim=True)
    return x / torch.where(length > 0, length, 1.0)


def column_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (over N, not N - 1) of each column of (N, D), in float64: (D,) each.

    A column that does not vary has deviation 1: it becomes 0 and stays finite.
    """
    pairs = [torch.var_mean(block.double(), dim=0, correction=0) for block in x.split(COLUMNS, dim=1)]  # type: ignore[no-untyped-call]
    variance, mean = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    flat = variance <= 1e-12 * mean.square().clamp_min(1e-12)
    return mean, torch.where(flat, 1.0, variance).sqrt()


def node_rows(x: NodeView | GraphSet) -> Tensor:
    """The features of the nodes that examples are about: (n, D). Of sets of graphs, of all their nodes."""
    return x.graph.x[x.nodes] if isinstance(x, NodeView) else x.flat(x.x)


# -- the component --------------------------------------------------------------------------------------------------


@final
class Scaling(Transform):
    """Features (N, D) by rows, by columns or unchanged: which of them is a buffer, so that an artifact keeps it.

    `decode` undoes columns. The length that a row had is not kept: decoded rows are those of sum 1.
    """

    mean: Tensor
    std: Tensor
    way: Tensor

    WAYS: ClassVar[tuple[str, ...]] = ("none", "rows", "columns")

    def __init__(self, scale: str, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())
        self.register_buffer("way", torch.tensor(self.WAYS.index(scale), device=mean.device))

    @property
    def scale(self) -> str:
        return self.WAYS[int(self.way)]

    @property
    def origin(self) -> Literal["public", "data"]:  # type: ignore[override]  # follows the buffer, also once loaded
        return "data" if self.scale == "columns" else "public"

    def encode(self, raw: Tensor) -> Tensor:
        x = raw.float()
        if self.scale == "rows":
            return row_normalised(x)
        return (x - self.mean) / self.std if self.scale == "columns" else x

    def decode(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean if self.scale == "columns" else x

    def describe(self) -> dict[str, Any]:
        """Columns have too many constants to print: they are named by a digest of 16 digits."""
        facts = {"name": NodeFeatures.name, "scale": self.scale, "origin": self.origin}
        if self.scale != "columns":
            return facts
        return {**facts, "constants": digest([self.mean.tolist(), self.std.tolist()])}


@final
class NodeFeatures(Preprocess):
    """The scale of node features, of one graph or of sets of graphs. All splits of one graph share the encoded matrix.

    scale: rows, each node's features divided by the sum of their absolute values (Cora, CiteSeer, PubMed: GCond and
    most others); columns, each feature to mean 0 and deviation 1 over the training nodes (ogbn-arxiv, Flickr, Reddit:
    GCond); none; or auto, as the data set says (`facts.extra["features"]`), none where it says nothing.
    """

    scale: Scale = "auto"

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(examples=self.scale in ("auto", "columns"))

    def fit(self, train: Source, facts: Any) -> Transform:
        scale = facts.extra.get("features", "none") if self.scale == "auto" else self.scale
        if scale != "columns":
            return unfitted(train.task, scale).to(train.device)
        return Scaling(scale, *column_moments(torch.cat([node_rows(batch.x) for batch in train.sweep(BLOCK)])))

    def blank(self, task: Task) -> Transform:
        return unfitted(task, "none")


def unfitted(task: Task, scale: str) -> Scaling:
    """Constants that change nothing: features are the last size of an example."""
    return Scaling(scale, torch.zeros(task.shape[-1]), torch.ones(task.shape[-1]))


def components() -> list[type[Component]]:
    return [NodeFeatures]
