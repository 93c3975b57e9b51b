"""Budgets: how many items of each class may be stored."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from condense.axes import Budget
from condense.data import Source
from condense.recipe import Reads, Recipe


class PerClass(Budget):
    """`n` items of each class, class-major: 0..0 1..1 2..2."""

    n: int = Field(ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def items(self, source: Source) -> int:
        return self.n * source.task.groups

    def allot(self, source: Source) -> Tensor:
        return torch.arange(source.task.groups).repeat_interleave(self.n)
