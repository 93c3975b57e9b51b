"""Parameterizations that know no modality."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Labels, Parameterization
from condense.errors import Diverged
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.synthetic import Synthetic, Wrapped
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


class WithRate(Parameterization):
    """Another parameterization with a learned step size: how fast networks are to be trained on the set.

    One number for all steps, `start` at first, in the role "rate": stored in the artifact, and read by trainings whose
    `lr` is "learned". It is no part of an example. A run in which it falls to 0 or below, or rises above `explodes`
    times its start, has diverged.
    Source: MTT (Cazenavette et al., CVPR 2022, arXiv:2203.11932).
    """

    inner: Parameterization = Pixels()
    start: float = Field(default=0.01, gt=0)
    explodes: float = Field(default=1000.0, gt=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Rated(self, self.inner.empty(task, groups, labels))


class Paced(Wrapped):
    """A set with learned step sizes, which are watched: `pace` is what is learned of them, in the role "rate".

    limit: the run has diverged where a step size is above it, or not above 0.
    """

    bad: Tensor

    def __init__(self, inner: Synthetic, pace: Tensor, limit: float) -> None:
        super().__init__(inner)
        self.pace, self.limit = nn.Parameter(pace), limit
        self.register_buffer("bad", torch.tensor(-1), persistent=False)

    @property
    @abstractmethod
    def rates(self) -> Tensor:
        """All step sizes: 0-d, or one for each step."""

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {**self.inner.roles(), "rate": [self.pace]}

    @torch.no_grad()
    def project(self, index: int) -> None:
        """The first step after which the rate makes no sense is remembered on the device, as bad losses are."""
        super().project(index)
        sane = ((self.rates > 0) & (self.rates <= self.limit)).all()
        self.bad = torch.where((self.bad < 0) & ~sane, index, self.bad)

    def check(self) -> None:
        super().check()
        step = int(self.bad)
        if step >= 0:
            low, high = (float(value) for value in self.rates.detach().aminmax())
            value, how = (high, f"is above {self.limit:g}") if high > self.limit else (low, "is not above 0")
            remedy = "What was saved before is kept. Lower the `lr` of the group whose role is rate."
            raise Diverged("rate", value, f"the learned step size {how} since outer step {step}", remedy)

    def stored(self) -> dict[str, int]:
        return {**super().stored(), "rate": self.pace.numel() * self.pace.element_size()}


class _Rated(Paced):
    def __init__(self, how: WithRate, inner: Synthetic) -> None:
        super().__init__(inner, torch.tensor(how.start), how.start * how.explodes)

    @property
    def rates(self) -> Tensor:
        return self.pace

    def rate(self, at: int) -> Tensor:
        return self.pace
