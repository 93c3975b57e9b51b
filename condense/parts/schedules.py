"""Numbers that depend on progress in [0, 1), evaluated on the host."""

from __future__ import annotations

import math

from pydantic import Field
from torch import Tensor

from condense.axes import Schedule
from condense.data import Sampler
from condense.errors import BadValue
from condense.fit import schedule


class Drops(Schedule):
    """`start`, multiplied by `factor` once for each point of `at` that progress has reached.

    `restart`: the rule's state starts afresh at each drop (vico re-creates its optimiser, which loses the momentum).
    """

    start: float = Field(ge=0)
    at: tuple[float, ...]
    factor: float = Field(default=0.1, ge=0)
    restart: bool = False

    def value(self, progress: float) -> float:
        return self.start * self.factor ** sum(progress >= point for point in self.at)

    def restarts(self, before: float, now: float) -> bool:
        return self.restart and any(before < point <= now for point in self.at)


class Cosine(Schedule):
    """Half a cosine from `start` down to `to`."""

    start: float = Field(ge=0)
    to: float = Field(default=0.0, ge=0)

    def value(self, progress: float) -> float:
        return self.to + (self.start - self.to) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmCosine(Schedule):
    """A straight line from 0 up to `start` for the share `warm` of the way, then half a cosine down to `to`."""

    start: float = Field(ge=0)
    warm: float = Field(ge=0, le=1)
    to: float = Field(default=0.0, ge=0)

    def value(self, progress: float) -> float:
        if progress < self.warm:
            return self.start * progress / self.warm
        left = (progress - self.warm) / (1 - self.warm) if self.warm < 1 else 0.0
        return Cosine(start=self.start, to=self.to).value(left)


class Linear(Schedule):
    """A straight line from `start` to `to`, which is reached at `until`, and `to` from there on."""

    start: float
    to: float
    until: float = Field(default=1.0, gt=0, le=1)

    def value(self, progress: float) -> float:
        return self.start + (self.to - self.start) * min(1.0, progress / self.until)


class Learned(Schedule):
    """The step size that the set itself brings for each training step (`Sampler.rate`), times a schedule.

    otherwise: for sets that bring none (random real images beside a learned set); None refuses them. Only trainings
    take it, since nothing else knows on what is trained.
    """

    times: float | Schedule = 1.0
    otherwise: float | None = Field(default=None, ge=0)

    def value(self, progress: float) -> float:
        remedy = "Give a number, or another schedule."
        raise BadValue("lr", self.name, "is the step size of a training on a set that brings one", remedy)

    def rate(self, progress: float, data: Sampler, at: int) -> float | Tensor:
        """Raises `BadValue` where the set brings none and `otherwise` says none."""
        found = data.rate(at)
        brought = self.otherwise if found is None else found
        if brought is None:
            remedy = "Store the set by `with-rate`, or give `lr` a number."
            raise BadValue("lr", self.name, "asks for the step size of a set that brings none", remedy)
        return brought * schedule(self.times).value(progress)

    def restarts(self, before: float, now: float) -> bool:
        return schedule(self.times).restarts(before, now)
