"""Numbers that depend on progress in [0, 1), evaluated on the host."""

from __future__ import annotations

import math

from pydantic import Field

from condense.axes import Schedule


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
