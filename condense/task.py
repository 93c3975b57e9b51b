"""The task: what there is to predict, what an example is, and what the numbers that a network gives mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, field_validator
from torch import Tensor

from .component import Component
from .errors import NotBuilt


@dataclass(frozen=True)
class Batch:
    """Examples. `x` is opaque (only a `Form` opens it); `y` is (N,) int64, or (N, K) float weights over the classes.

    `index` holds the positions in the sampler that gave the batch, or None.
    """

    x: Any
    y: Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    def with_x(self, x: Any) -> Batch:
        return replace(self, x=x)


@dataclass(frozen=True)
class Picture:
    """A drawing of a set: PNG bytes, and sentences that say what is seen. name: letters, digits and `-`."""

    name: str
    png: bytes
    caption: str


class Form(Component):
    """What `x` is: the one seam that opens it. Everything else hands it on."""

    axis: ClassVar[str] = "form"
    content: ClassVar[str] = "x"  # the packed tensor that an input gradient or an attack may touch
    independent: ClassVar[bool] = True  # may one example be taken without its neighbours?
    stacked: ClassVar[bool] = True  # is each packed tensor (N, ...), a row for every example? (not where sizes differ)
    noun: ClassVar[str] = "examples"  # what several of them are called in tables and sentences
    protocol: ClassVar[str] = "vico"  # the protocol, by name, of sets for which neither a method nor anybody names one
    arrays: ClassVar[tuple[str, ...]] = ()  # names in a file of such a set; (): one array, as condense.export says

    @property
    def in_rows(self) -> bool:
        """Is a batch a pile of rows of one size, to be cut anywhere? What is compiled or mapped relies on it."""
        return self.independent and self.stacked

    @abstractmethod
    def pack(self, x: Any) -> dict[str, Tensor]:
        """`x` as named tensors: how it is stored, detached, moved and differentiated."""

    @abstractmethod
    def unpack(self, tensors: Mapping[str, Tensor]) -> Any:
        """The inverse of `pack`."""

    @abstractmethod
    def take(self, x: Any, index: Tensor | slice) -> Any:
        """The examples at `index`."""

    @abstractmethod
    def join(self, xs: Sequence[Any]) -> Any:
        """Several x, one after the other."""

    @abstractmethod
    def blank(self, task: Task, n: int) -> Any:
        """n examples of zeros: what storage is shaped by, and what a network is tried on."""

    def flat(self, x: Any) -> Tensor:
        """Each example as one vector, (N, D): what examples are compared by where no network says more."""
        return torch.cat([tensor.flatten(1) for tensor in self.pack(x).values()], dim=1)

    def example(self, x: Any, index: int) -> Any:
        """One example, as a torch Dataset gives it."""
        return self.pack(x)[self.content][index]

    def pictures(self, x: Any, y: Tensor, classes: Sequence[str]) -> Sequence[Picture]:
        """Drawings of a set with classes y (N,) int64; none for tensors, which condense.pictures shows as images."""
        return ()

    def properties(self, x: Any, y: Tensor) -> Mapping[str, float]:
        """Numbers that say what a set with classes y (N,) int64 is like: shown beside those of the real data."""
        return {}

    def to_arrays(self, x: Any, y: Tensor) -> dict[str, Tensor]:
        """The set as other programs of its domain read it: the names of `arrays`, where these are not ()."""
        raise NotBuilt("form", self.name, "names no arrays of its own", "See condense.export.")

    def from_arrays(self, arrays: Mapping[str, Tensor], where: str) -> tuple[Any, Tensor]:
        """x and y from such arrays, which anybody may have made. Raises `BadData` naming `where` and what is wrong."""
        raise NotBuilt("form", self.name, "names no arrays of its own", "See condense.foreign.")

    def leaf(self, x: Any) -> Any:
        """A detached copy of `x` whose floating tensors require gradients."""
        tensors = {key: value.detach() for key, value in self.pack(x).items()}
        return self.unpack({k: v.requires_grad_(v.is_floating_point()) for k, v in tensors.items()})

    def detach(self, x: Any) -> Any:
        return self.unpack({key: value.detach() for key, value in self.pack(x).items()})

    def to(self, x: Any, device: torch.device | str) -> Any:
        return self.unpack({key: value.to(device) for key, value in self.pack(x).items()})


class Tensors(Form):
    """x is one tensor, (N, *shape): images, vectors, sequences."""

    noun: ClassVar[str] = "images"

    def pack(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x}

    def unpack(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["x"]

    def take(self, x: Tensor, index: Tensor | slice) -> Tensor:
        return x[index]

    def join(self, xs: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(xs))

    def blank(self, task: Task, n: int) -> Tensor:
        return torch.zeros(n, *task.shape)


class Task(BaseModel):
    """Classes in their order, the shape of one encoded example, the kind of target, and the form of x.

    `outputs` is the width of a network's head; `groups` is what a class-restricted draw ranges over.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    kind: Literal["multiclass", "multilabel", "ordinal"] = "multiclass"
    form: Form = Tensors()

    @field_validator("kind")
    @classmethod
    def _built(cls, kind: str) -> str:
        if kind != "multiclass":
            raise NotBuilt("task.kind", kind, "is a seam that nothing fills yet", "Use multiclass.")
        return kind

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def groups(self) -> int:
        return len(self.classes)

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of each example, (N,). The only place that knows the kind of target.

        `y` is (N,) int64 classes, or (N, K) float weights over the classes (soft labels, which need not sum to 1).
        """
        return F.cross_entropy(logits, y, reduction="none")

    def scores(self, logits: Tensor) -> Tensor:
        """Probabilities, (N, K): all that a metric ever sees."""
        return logits.softmax(dim=-1)

    def hard(self, y: Tensor) -> Tensor:
        """The class of each target, (N,) int64."""
        return y if y.dim() == 1 else y.argmax(dim=-1)
