"""Experts by themselves: trained before the runs that use them, as `condense experts train` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import execution
from .api import open_run
from .axes import Asset
from .errors import BadValue
from .isolation import blaming
from .recipe import Plan
from .running import Limits

ASSET = "trajectories"  # the asset, by its name: condense.parts is not imported here


@dataclass(frozen=True)
class Made:
    """Where experts lie; of those asked for how many there are, how many epochs of each, and their size in bytes."""

    folder: Path
    count: int
    epochs: int
    size: int


def train(
    settled: Plan, *, out: Path | None = None, observers: Iterable[Any] = (), limits: Limits | None = None
) -> Made:
    """Train the experts that this plan's recipe asks for, where they are missing; nothing else of the plan is run.

    out: a folder instead of the cache; runs are told by `pool.folder`. An interrupted training goes on by the same
    call. Raises `BadValue` for a recipe without experts, and what `open_run` raises; `Paused` between two epochs.
    """
    asset: Any = asked(settled)
    with blaming():
        run = open_run(settled, None, observers, limits or Limits(), steps=False)
        folder = out or run.assets.folder(asset)
        with run.interruptible(), execution.using(execution.passes(run.plan.execution)):
            if out is None:
                run.assets.get(asset)
            else:
                asset.make(run, out)
        experts = asset.load(folder, run)
    return Made(folder, len(experts), asset.epochs, sum(expert.path.stat().st_size for expert in experts))


def asked(settled: Plan) -> Asset:
    """The experts of the plan's recipe. Raises `BadValue` where it has none."""
    found = {part.digest(): part for part in settled.recipe.walk() if isinstance(part, Asset) and part.name == ASSET}
    if not found:
        remedy = "Name a method that matches trajectories, as mtt does."
        raise BadValue("recipe", settled.method, "has no experts", remedy)
    return next(iter(found.values()))


__all__ = ["Made", "train"]
