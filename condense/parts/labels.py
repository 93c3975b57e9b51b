"""Labels: the targets of a set."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor, nn

from condense.axes import Labels, Loss
from condense.recipe import Reads, Recipe
from condense.running import Run
from condense.task import Batch, Task

from .ridge import CentredError, coded


class Hard(Labels):
    """Each item is of the class that its place in the budget says: fixed int64 targets, class-major."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def blank(self, groups: Tensor, task: Task) -> Tensor:
        return groups.clone()


class LearnedLabels(Labels):
    """Targets of a regression, (M, K) float32, learned under the role "labels"; centred one-hot vectors at first.

    They start as one-hot - 1/K; scale="root" divides that by sqrt(K / 10), as FRePo's code does (arXiv:2206.00719).
    Networks are trained on them by `centred-error`, half the squared distance; real targets stay classes, which that
    loss codes as one-hot - 1/K.
    """

    name: ClassVar[str] = "learned"
    scale: Literal["one", "root"] = "one"

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def blank(self, groups: Tensor, task: Task) -> Tensor:
        return nn.Parameter(self._coded(groups, task))

    def start(self, batch: Batch, run: Run) -> Tensor:
        return self._coded(batch.y, run.task)

    def loss(self) -> Loss:
        return CentredError()

    def _coded(self, y: Tensor, task: Task) -> Tensor:
        wide = 1.0 if self.scale == "one" else math.sqrt(len(task.classes) / 10)
        return (coded(y, task) / wide).float()
