"""Rehearsals: the first step of a run up to its first measure, so that it can be refused before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pluggy
from torch import Tensor, nn

from condense import hookspecs
from condense.axes import Statistic
from condense.data import Ask
from condense.engine import condense
from condense.rng import Rng
from condense.running import Run

from .private import PrivateSource


def first_question(run: Run, source: PrivateSource) -> Question | None:
    """What the run will measure first; None where it measures nothing. Nothing is stored, and no hook hears of it."""
    stage = Rehearsal(run.plan, replace(run.splits, train=_Asked(source)), run.transform, silent())
    try:
        condense(stage)
    except Question as question:
        return question
    return None


class Question(Exception):
    """The first measure of a run."""

    def __init__(self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask]) -> None:
        super().__init__("the first measure")
        self.statistic, self.model, self.asks = statistic, model, tuple(asks)


class _Asked(PrivateSource):
    """A private source that is only asked: the first measure ends the rehearsal."""

    def __init__(self, real: PrivateSource) -> None:
        super().__init__(real.inner, real.account)

    def measure(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], rng: Rng
    ) -> Iterator[Mapping[str, Tensor]]:
        raise Question(statistic, model, asks)


class Rehearsal(Run):
    """A run of one step that stores nothing, and that no hook hears of."""

    def loop(self, name: str, steps: int, **state: Any) -> Iterator[int]:
        yield from range(min(steps, 1))


def silent() -> pluggy.PluginManager:
    """Hooks that nobody has taken."""
    hooks = pluggy.PluginManager("condense")
    hooks.add_hookspecs(hookspecs)
    return hooks


__all__ = ["Question", "first_question"]
