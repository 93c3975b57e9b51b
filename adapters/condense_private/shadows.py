"""Shadow runs: condensing a random half of some records, so that who was in is known.

`Shadow` is a data set around another, as private data are, so that a shadow run is a run like any: planned, stored,
resumed, read back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from condense.axes import Transform
from condense.component import digest
from condense.data import Data, Source, Splits
from condense.errors import BadValue
from condense.rng import Rng
from condense.task import Batch, Task

from .lira import halves
from .private import Within


class Chosen(Source):
    """The records at `index` of another source, with labels y (M,) int64, which need not be those they have there."""

    def __init__(self, inner: Source, index: Tensor, y: Tensor) -> None:
        self.inner, self.index, self.y = inner, index, y
        self.task: Task = inner.task

    @property
    def groups(self) -> Tensor:
        return self.y

    @property
    def device(self) -> torch.device:
        return self.y.device

    def take(self, index: Tensor) -> Batch:
        return Batch(self.inner.take(self.index[index]).x, self.y[index], index)

    def encoded(self, transform: Transform) -> Chosen:
        return Chosen(self.inner.encoded(transform), self.index, self.y)

    def provenance(self) -> dict[str, Any]:
        facts = self.inner.provenance()
        chosen = digest([facts.get("fingerprint", ""), self.index.tolist(), self.y.tolist()])
        return {"fingerprint": chosen, "counts": self.counts(), "classes": list(self.task.classes)}


@dataclass(frozen=True)
class Design:
    """N records under attack, and who has them.

    index: (N,) their places in the source. y: (N,) the labels they are condensed and attacked with. canary: (N,) bool,
    those whose label was changed. member: (K, N) bool, on the CPU.
    """

    index: Tensor
    y: Tensor
    canary: Tensor
    member: Tensor

    @staticmethod
    def of(source: Source, records: int | None, shadows: int, canaries: int, seed: int) -> Design:
        """Drawn by `seed`. Raises `BadValue` for more records or canaries than there are, and classes of one record."""
        n, key = len(source) if records is None else records, Rng(seed).fold("membership")
        if n > len(source):
            remedy = f"Give at most {len(source):,}, or leave it out for all of them."
            raise BadValue("membership.records", n, f"is more than the {len(source):,} records that there are", remedy)
        if canaries > n:
            problem = f"is more than the {n:,} records under attack"
            raise BadValue("membership.canaries", canaries, problem, "Give fewer canaries.")
        index = key.fold("records").permutation(len(source))[:n].sort().values
        true = source.groups.cpu()[index]
        canary = torch.zeros(n, dtype=torch.bool)
        canary[key.fold("canaries").permutation(n)[:canaries]] = True
        classes = source.task.groups
        shift = 1 + torch.randint(classes - 1, (n,), generator=key.fold("labels").generator())
        y = torch.where(canary, (true + shift) % classes, true)
        few = (torch.bincount(y, minlength=classes) < 2).nonzero().flatten().tolist()
        if few:
            problem = f"leaves fewer than two records of class {source.task.classes[few[0]]!r}: a half may have none"
            raise BadValue("membership.records", n, problem, "Take more records.")
        return Design(index, y, canary, halves(y + classes * canary, shadows, key))


@final
class Shadow(Data):
    """Half of the records of another data set: those that shadow run `number` of `shadows` is made from.

    data: the set. records: how many of its training examples are under attack, drawn by `seed`; None: all of them.
    canaries: how many of them get another label. Which of them are in is fixed by these fields alone: `Design`.
    The test split is untouched. Raises `BadValue` for nodes of one graph, which are no records apart.
    """

    form: ClassVar[Any] = Within()

    data: Data
    shadows: int = Field(ge=2, multiple_of=2)
    number: int = Field(ge=0)
    records: int | None = Field(default=None, ge=1)
    canaries: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)

    @property
    def label(self) -> str:
        return f"{self.data.label}-shadow-{self.number}"

    @property
    def published_as(self) -> str:
        return self.data.published_as

    def open(self, device: torch.device | str = "cpu") -> Splits:
        if self.number >= self.shadows:
            raise BadValue("data.number", self.number, f"is none of {self.shadows} shadows", "Count them from 0.")
        splits = self.data.open(device)
        return replace(splits, train=chosen(splits.train, self.design(splits.train), self.number))

    def design(self, source: Source) -> Design:
        """Of the training split of `data`. Raises `BadValue`."""
        if not source.task.form.independent:
            problem = f"holds {source.task.form.noun} of one graph, which are no records apart from each other"
            raise BadValue("data", self.data.label, problem, "Attack sets of images or of whole graphs.")
        return Design.of(source, self.records, self.shadows, self.canaries, self.seed)


def chosen(source: Source, design: Design, number: int | None = None) -> Chosen:
    """The records that a shadow has; all of them, without a number."""
    which = slice(None) if number is None else design.member[number]
    return Chosen(source, design.index[which].to(source.device), design.y[which].to(source.device))


__all__ = ["Chosen", "Design", "Shadow", "chosen"]
