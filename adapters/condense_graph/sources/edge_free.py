"""Real data without its edges, on the side that methods learn from."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from pydantic import field_validator
from pydantic_core import PydanticCustomError

from condense.data import Data, Source, Splits

from ..graph import Graph
from .base import NodeSource


@final
class EdgeFree(Data):
    """Another data set whose training nodes have no edges; validation and test keep theirs.

    So DC-Graph (a baseline of GCond, arXiv:2110.07580) compares gradients that know no neighbours, on either side, and
    is judged on the real graph all the same.
    """

    shorthand: ClassVar[str | None] = "data"
    form: ClassVar[str] = "nodes"
    data: Data

    @field_validator("data")
    @classmethod
    def _of_nodes(cls, data: Data) -> Data:
        if data.form != cls.form:
            raise PydanticCustomError("component", "{name} is no data of nodes", {"name": data.name})
        return data

    @property
    def label(self) -> str:
        return f"{self.name}-{self.data.label}"

    @property
    def metric(self) -> str | None:
        return self.data.metric

    def open(self, device: torch.device | str = "cpu") -> Splits:
        splits = self.data.open(device)
        return Splits(without_edges(splits.train), splits.test, splits.validation, splits.facts)


def without_edges(source: Source) -> NodeSource:
    assert isinstance(source, NodeSource)
    bare = Graph(source.raw.x)
    return NodeSource(source.task, bare, source.nodes, source.y, source.transform, source.population)
