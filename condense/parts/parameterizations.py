"""Parameterizations that know no modality."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from condense.axes import Labels, Parameterization
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.synthetic import Synthetic
from condense.task import Batch, Task


class Pixels(Parameterization):
    """The examples themselves, one stored for each item of the budget: any form whose packed tensors are floats."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Stored(task, groups, labels)


class _Stored(Synthetic):
    def __init__(self, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        packed = task.form.pack(task.form.blank(task, len(groups)))
        self.packed = nn.ParameterDict({key: nn.Parameter(value) for key, value in packed.items()})

    def fill(self, batch: Batch) -> None:
        with torch.no_grad():
            for key, value in self.task.form.pack(batch.x).items():
                self.packed[key].copy_(value)
            self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        x = self.task.form.unpack(dict(self.packed.items()))
        if index is None:
            return Batch(x, self.y)
        return Batch(self.task.form.take(x, index), self.y[index], index)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        roles = {"images": list(self.packed.values())}
        if isinstance(self.y, nn.Parameter):
            roles["labels"] = [self.y]
        return roles
