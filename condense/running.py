"""A run in progress: what the parts of a recipe are handed, and the loop that checkpoints, stops and resumes."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pluggy
import torch
from torch import Tensor, nn

from .assets import Assets
from .axes import Learner, Transform, Warp
from .checkpoint import PRIVATE, Checkpoints
from .component import Component
from .data import Source, Splits, TensorSampler
from .errors import BadData, CondenseError, Damaged, Diverged
from .program import hint
from .recipe import Plan, Recipe
from .rng import Rng
from .task import Task


class Stateful(Protocol):
    """What a loop stores: nested dicts and lists of tensors and plain values."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class Paused(CondenseError):
    """The run ended at a checkpoint, as it was asked to, and can be resumed."""

    exit_code = 75


class Interrupted(Paused):
    """Paused by Ctrl-C."""

    exit_code = 130


@dataclass
class Limits:
    """When to save and when to pause: seconds between checkpoints (or every so many steps), minutes in all."""

    seconds: float = 60.0
    steps: int | None = None
    minutes: float | None = None


class Watch:
    """The loss that went bad first, kept on the device: looked at only when a checkpoint is due."""

    def __init__(self, device: torch.device) -> None:
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.causes: list[Callable[[], str | None]] = []  # what parts know of it, asked once it has gone bad

    def see(self, index: int, total: Tensor) -> None:
        bad = (self.first < 0) & ~torch.isfinite(total.detach())
        self.first = torch.where(bad, index, self.first)

    def check(self) -> None:
        step = int(self.first)
        if step >= 0:
            remedy = "What was saved before is kept. Lower `outer.groups.0.lr`, or look at the data."
            known = [found for cause in self.causes if (found := cause()) is not None]
            problem = ": ".join([f"is not finite since outer step {step}", *known])
            raise Diverged("loss", "NaN or infinity", problem, remedy)


@dataclass
class Run:
    """One plan on opened data. `folder` None: nothing is stored (tests, embedding)."""

    plan: Plan
    splits: Splits
    transform: Transform
    hooks: pluggy.PluginManager
    folder: Path | None = None
    limits: Limits = field(default_factory=Limits)
    notes: dict[str, Any] = field(default_factory=dict)
    states: dict[str, nn.Module] = field(default_factory=dict)
    interrupted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.rng = Rng(self.plan.seed)
        self.device = torch.device(self.plan.execution.device)
        self.assets = Assets(self)
        self.started = time.monotonic()
        self.earlier = 0.0
        self.watch = Watch(self.device)

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    @property
    def task(self) -> Task:
        return self.splits.train.task

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the training data; empty where its source gives none."""
        return str(self.splits.train.provenance().get("fingerprint", ""))

    @functools.cached_property
    def asked(self) -> str:
        """Digest of the plan, without where and how it computes: of that, a resumed run may change its mind."""
        return self.plan.digest(execution=False)

    def seconds(self) -> float:
        """Wall time of this run so far, the parts before a resume included."""
        return self.earlier + time.monotonic() - self.started

    def note(self, name: str, value: Any) -> None:
        """A fact for the artifact's provenance (plain JSON)."""
        self.notes[name] = value

    def loop(self, name: str, steps: int, **state: Stateful) -> Iterator[int]:
        """Count to `steps`, from the last checkpoint of this loop if there is one.

        Between two steps: a stop reason ends the loop, a due checkpoint is written, an interrupt or the end of the time
        given raises `Paused` after one. A bad loss raises `Diverged` and spares the checkpoint before it.
        """
        kept = None if self.folder is None else Checkpoints(self.folder / PRIVATE)
        start = self._restore(kept, name, steps, state)
        saved_at, saved = start, time.monotonic()
        for index in range(start, steps):
            yield index
            done = index + 1
            reason = self.hooks.hook.condense_stop(run=self, index=index)
            if reason:
                self.note("stopped", {"reason": str(reason), "after": done})
            pause = self._pause()
            due = done - saved_at >= self.limits.steps if self.limits.steps else False
            if kept and (reason or pause or due or done == steps or time.monotonic() - saved > self.limits.seconds):
                self._save(kept, name, done, saved_at, state)
                saved_at, saved = done, time.monotonic()
            if reason:
                return
            if pause and done < steps:
                remedy = f"Resume with: {hint('resume', self.folder)}" if self.folder else "Nothing was stored."
                kind = Interrupted if self.interrupted.is_set() else Paused
                raise kind("run", f"{done} of {steps} steps", pause, remedy)
        self.watch.check()

    def _save(self, kept: Checkpoints, name: str, done: int, before: int, state: Mapping[str, Stateful]) -> None:
        """Write a checkpoint after `done` steps, unless something has diverged; the last one is that after `before`."""
        try:
            self.watch.check()
            self.note("seconds", self.seconds())
            facts = {"loop": name, "notes": self.notes, "data": self.fingerprint, "plan": self.asked}
            kept.save(done, {**facts, **{k: v.state_dict() for k, v in state.items()}})
        except Diverged as error:
            last = (
                f"The last good checkpoint is that after {before} steps." if before else "There is no checkpoint yet."
            )
            raise Diverged(error.field, error.value, error.problem, f"{error.remedy} {last}") from None

    def _restore(self, kept: Checkpoints | None, name: str, steps: int, state: Mapping[str, Stateful]) -> int:
        found = kept.latest() if kept else None
        if found is None or found[1]["loop"] != name:
            return 0
        index, tree = found
        if tree.get("data", self.fingerprint) != self.fingerprint:
            problem, remedy = "is not the data that the run began with", "Restore that, or start a new run with --out."
            raise BadData("data", self.plan.data.label, problem, remedy)
        if tree.get("plan", self.asked) != self.asked:
            remedy = f"Restore {PRIVATE}/plan.json from a copy, or start a new run with --out."
            raise Damaged("plan", self.asked, "is not the plan that the run began with", remedy)
        if lacking := [key for key in ("notes", *state) if key not in tree]:
            remedy = "Start a new run with --out, or go on with the version of condense that wrote it."
            raise Damaged(f"checkpoint {index}", sorted(tree), f"lacks {', '.join(lacking)}", remedy)
        self.notes.update(tree["notes"])
        self.earlier = float(self.notes.get("seconds", 0.0))
        for key, part in state.items():
            part.load_state_dict(tree[key])
        return steps if "stopped" in self.notes else index

    def pause_between(self, what: str, again: str) -> None:
        """Between two parts of something that is kept part by part: raises `Paused` where a pause is due.

        what: how far it is, in words. again: how to go on, in a sentence.
        """
        if pause := self._pause():
            kind = Interrupted if self.interrupted.is_set() else Paused
            raise kind("run", what, pause, again)

    def _pause(self) -> str | None:
        if self.interrupted.is_set():
            return "was interrupted and has saved its state"
        minutes = self.limits.minutes
        if minutes is not None and time.monotonic() - self.started > 60 * minutes:
            return f"has used the {minutes:g} minutes it was given and has saved its state"
        return None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C asks for a checkpoint and a pause; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            if self.interrupted.is_set():
                raise KeyboardInterrupt
            self.interrupted.set()

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@dataclass
class Step:
    """One outer step, as objectives see it: a function of (state, index).

    `syn` is the set decoded once for this step; its floating tensors are leaves. `real` is the source of real examples.
    """

    run: Run
    index: int
    learner: Learner
    syn: TensorSampler

    @property
    def rng(self) -> Rng:
        return self.run.rng.fold("step", self.index)

    @property
    def real(self) -> Source:
        return self.run.splits.train

    @property
    def progress(self) -> float:
        return self.index / max(1, self.run.recipe.outer.steps)

    @property
    def model(self) -> nn.Module:
        if self.learner.module is None:
            raise TypeError(f"{type(self.run.recipe.pool).__name__} lends no network, but the objective asks for one")
        return self.learner.module

    def warps(self, *key: str | int) -> tuple[Warp, ...]:
        """The recipe's augmentation as one warp shared by all examples, drawn for this step and key."""
        return (self.run.recipe.augment.sample(self.rng.fold("warp", *key), None, self.progress),)

    def state(self, component: Component) -> nn.Module:
        """The module that `component.state(run)` made at the start of the run."""
        return self.run.states[component.digest()]


Progress = Callable[[str], None]
