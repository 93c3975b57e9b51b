"""All parts of a statistic as one vector, and a distance in units of the real one's length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from condense.axes import Distance, Statistic
from condense.task import Batch, Task


@final
class Joined(Statistic):
    """The parts of `statistic`, flattened and one after the other: one part, `joined`, for distances that are not sums
    over parts."""

    vectors: ClassVar[bool] = True
    statistic: Statistic

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> Mapping[str, Tensor]:
        return self.statistic.rows(model, batch, task)

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> Mapping[str, Tensor]:
        return self.statistic.mean(model, batch, task, live=live)

    def finish(self, mean: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"joined": torch.cat([part.flatten() for part in self.statistic.finish(mean).values()])}


@final
class RelativeError(Distance):
    """|real - synthetic|^2 / |real|^2; `eps` keeps it finite where the real one is 0.

    `mse` in the code released with DosCond (arXiv:2206.07746; amazon-science/doscond), of the joined gradient.
    """

    over: ClassVar = "mean"
    eps: float = 1e-30

    def __call__(self, real: Tensor, synthetic: Tensor) -> Tensor:
        error: Tensor = (real - synthetic).square().sum() / (real.square().sum() + self.eps)
        return error
