"""A graph that was handed over from Python: PyG's `Data`. A plan knows it by its fingerprint."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, final

import torch
from pydantic import Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor

from condense.errors import BadValue

from .base import Labelled, NodeData
from .own_arrays import NAMES, Features, labelled


@dataclass(frozen=True)
class LiveGraph:
    """The tensors of a `Data` object that are looked at, on the CPU, by their names there."""

    arrays: Mapping[str, Tensor]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over name, shape, dtype and bytes of each."""
        h = hashlib.sha256()
        for name, tensor in sorted(self.arrays.items()):
            h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            h.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        return h.hexdigest()


@final
class GivenGraph(NodeData):
    """A graph handed over from Python: `condense.run("gcond", data=graph)` makes one of PyG's `Data`.

    It stands in a plan by its fingerprint; a plan that was read back needs the graph once more. `classes` and
    `features` as in `Pyg`.
    """

    fingerprint: str
    classes: tuple[str, ...] | None = None
    features: Features = "auto"
    live: SkipJsonSchema[LiveGraph | None] = Field(default=None, exclude=True, repr=False)

    @classmethod
    def accept(cls, value: Any) -> GivenGraph | None:
        module = sys.modules.get("torch_geometric.data")  # whoever hands over such an object has imported it
        if module is None or not isinstance(value, module.Data):
            return None
        held = {name: value[name] for name in NAMES if isinstance(value.get(name), Tensor)}
        live = LiveGraph({name: _copied(tensor) for name, tensor in held.items()})
        return cls(fingerprint=live.fingerprint, live=live)

    @model_validator(mode="after")
    def _same(self) -> Self:
        if self.live is not None and self.live.fingerprint != self.fingerprint:
            raise PydanticCustomError("component", "the graph given is not the one that is recorded")
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GivenGraph) and self.dump() == other.dump()

    def __hash__(self) -> int:
        return hash(self.digest())

    @property
    def label(self) -> str:
        return f"{self.name}-{self.fingerprint[:8]}"

    def read(self) -> Labelled:
        if self.live is None:
            problem = "was handed over from Python, and only its fingerprint is recorded"
            raise BadValue("data", self.label, problem, "Pass it again: data=...")
        return labelled(self.live.arrays, "graph", self.classes, self.features)


def _copied(tensor: Tensor) -> Tensor:
    """A copy, so that what is done to the object later changes no run."""
    tensor = tensor.detach().cpu()
    return tensor.to_dense() if tensor.layout != torch.strided else tensor.clone()
