"""What watches a run: progress on the terminal, a log of losses, TensorBoard, pictures at the end.

Each is a plugin object that one run registers (`condense.run(..., observers=[...])`). None changes a bit of what is
computed. A loss is a tensor on the device: observers keep it there, and read what has gathered about once a second.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from . import files
from .checkpoint import PRIVATE
from .errors import BadValue
from .hookspecs import hookimpl
from .plugins import extra_hint

if TYPE_CHECKING:
    from .artifact import Artifact
    from .running import Run

LOG = "log.jsonl"


@dataclass(frozen=True)
class Line:
    """The losses of one outer step, and the run's wall time in seconds after it."""

    step: int
    seconds: float
    losses: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.losses.values())

    def json(self) -> str:
        """One line of JSON; a loss that is not finite is null there."""
        losses = {name: value if math.isfinite(value) else None for name, value in self.losses.items()}
        return json.dumps({"step": self.step, "seconds": round(self.seconds, 3), "losses": losses}) + "\n"


class Gathered:
    """Losses of steps, left on the device until they are read: all of them in one transfer."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, float, Mapping[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, step: int, seconds: float, losses: Mapping[str, Tensor]) -> None:
        self._kept.append((step, seconds, losses))

    def read(self) -> list[Line]:
        """What has gathered since the last reading."""
        tensors = [value.to(torch.float32) for _, _, losses in self._kept for value in losses.values()]
        numbers = iter(torch.stack(tensors).tolist() if tensors else [])
        lines = [Line(step, seconds, {name: next(numbers) for name in losses}) for step, seconds, losses in self._kept]
        self._kept = []
        return lines


class Reader(ABC):
    """Base of the observers that read every loss, at most once in `every` seconds: subclasses say where lines go.

    Use it as a context manager, or call `close`, so that the last second is not lost where a run is stopped.
    """

    def __init__(self, every: float = 1.0) -> None:
        self.every, self.read_at, self.gathered, self.begun = every, 0.0, Gathered(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @hookimpl
    def condense_started(self, run: Run) -> None:
        self.begun, self.read_at, self.gathered = False, time.monotonic(), Gathered()

    @hookimpl
    def condense_stepped(self, run: Run, index: int, losses: Mapping[str, Tensor]) -> None:
        if not self.begun:
            self.begin(run, index)
            self.begun = True
        self.gathered.add(index, run.seconds(), losses)
        now = time.monotonic()
        if now - self.read_at >= self.every:
            self.flush()
            self.read_at = now

    @hookimpl(tryfirst=True)
    def condense_finished(self, run: Run, artifact: Artifact) -> None:
        self.flush()

    def flush(self) -> None:
        """Read what has gathered, and pass it on."""
        if len(self.gathered):
            self.write(self.gathered.read())

    def close(self) -> None:
        self.flush()

    @abstractmethod
    def begin(self, run: Run, index: int) -> None:
        """Before the first line of this process, which is about step `index`."""

    @abstractmethod
    def write(self, lines: list[Line]) -> None:
        """Pass lines on, in the order of their steps."""


class JsonLines(Reader):
    """`DIR/.run/log.jsonl`: one line for each outer step with its losses and the run's wall time.

    A resumed run goes on where its checkpoint stands: lines of the steps that are taken again are dropped first, so no
    step stands twice. A run that was killed may lack the lines of its last second. Without a folder nothing is written.
    """

    path: Path | None = None

    def begin(self, run: Run, index: int) -> None:
        self.path = None if run.folder is None else run.folder / PRIVATE / LOG
        if self.path is not None:
            kept = [line.json() for line in read_log(run.folder) if line.step < index] if self.path.exists() else []
            files.write(self.path, "".join(kept).encode())

    def write(self, lines: list[Line]) -> None:
        if self.path is not None:
            with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.writelines(line.json() for line in lines)


def read_log(folder: Path | None) -> list[Line]:
    """The lines that `JsonLines` has written for the run in `folder`; none where there is no log.

    A line that was cut short by a kill is left out; null reads as NaN.
    """
    path = None if folder is None else folder / PRIVATE / LOG
    if path is None or not path.is_file():
        return []
    return list(_lines(path.read_text(encoding="utf-8", errors="replace")))


def _lines(text: str) -> Iterator[Line]:
    for row in text.splitlines():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            data = json.loads(row)
            losses = {str(k): math.nan if v is None else float(v) for k, v in data["losses"].items()}
            yield Line(int(data["step"]), float(data["seconds"]), losses)


class TensorBoard(Reader):
    """The losses as TensorBoard scalars in `DIR/.run/tensorboard` (or `folder`), each under `loss/<name>`.

    Raises `BadValue`, with how to install it, where the package tensorboard is missing.
    """

    def __init__(self, folder: Path | None = None, every: float = 1.0) -> None:
        super().__init__(every)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            remedy = f"Install it{extra_hint('tensorboard')}"
            raise BadValue("observer", "tensorboard", f"cannot be used: {error}", remedy) from None
        self.make, self.folder = SummaryWriter, folder
        self.writer: Any = None

    def begin(self, run: Run, index: int) -> None:
        folder = self.folder or (run.folder or Path("runs")) / PRIVATE / "tensorboard"
        self.writer = self.make(str(folder), purge_step=index)  # type: ignore[no-untyped-call]

    def write(self, lines: list[Line]) -> None:
        scalars = [(name, value, line.step) for line in lines for name, value in line.losses.items()]
        for name, value, step in scalars if self.writer is not None else ():
            self.writer.add_scalar(f"loss/{name}", value, step)

    def close(self) -> None:
        super().close()
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class Rate(ProgressColumn):
    """Steps in a second, or seconds for a step where they are slow."""

    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed), style="progress.data.speed")


def rate(speed: float | None) -> str:
    if not speed:
        return "- steps/s"
    return f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s a step"


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`, for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class RichProgress:
    """A bar with step rate, time left and loss on a terminal; elsewhere a plain line about every `plain` seconds.

    The loss is read about once in `every` seconds. Use it as a context manager: however a run ends, the bar goes.
    """

    def __init__(self, console: Console | None = None, every: float = 1.0, plain: float = 10.0) -> None:
        self.console = console or Console(stderr=True)
        self.every = every if self.console.is_terminal else plain
        self.bar: Progress | None = None
        self.first, self.began, self.shown_at = -1, 0.0, 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._down()

    @hookimpl
    def condense_started(self, run: Run) -> None:
        self.first, self.began = -1, time.monotonic()
        self.shown_at = self.began
        if self.console.is_terminal and run.recipe.outer.steps:
            columns = (TextColumn("condensing"), BarColumn(None), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
            loss = TextColumn("loss {task.fields[loss]}")
            self.bar = Progress(*columns, loss, console=self.console, refresh_per_second=4, expand=True)
            self.bar.add_task("outer", total=run.recipe.outer.steps, loss="-")
            self.bar.start()

    @hookimpl
    def condense_stepped(self, run: Run, index: int, losses: Mapping[str, Tensor]) -> None:
        now, steps = time.monotonic(), run.recipe.outer.steps
        if self.first < 0:
            self.first, self.began = index, now  # the first step pays for starting up: rates count from its end
            self._say_resumed(index, steps)
        due = now - self.shown_at >= self.every
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=index + 1)
            if due or index + 1 == steps:
                self.bar.update(self.bar.task_ids[0], loss=_total(losses))
        elif due or index + 1 == steps:
            done = index - self.first
            speed = done / (now - self.began) if done and now > self.began else None
            left = f", {duration((steps - index - 1) / speed)} left" if speed and index + 1 < steps else ""
            loss = _total(losses)
            self.console.print(f"step {index + 1} of {steps}, {rate(speed)}{left}, loss {loss}", highlight=False)
        if due:
            self.shown_at = now

    @hookimpl(tryfirst=True)
    def condense_finished(self, run: Run, artifact: Artifact) -> None:
        self._down()

    def _say_resumed(self, index: int, steps: int) -> None:
        if index:
            self.console.print(f"goes on from step {index} of {steps}", highlight=False)
            if self.bar is not None:
                self.bar.reset(self.bar.task_ids[0], total=steps, completed=index, loss="-")

    def _down(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _total(losses: Mapping[str, Tensor]) -> str:
    return f"{float(torch.stack(list(losses.values())).sum()):.4g}" if losses else "-"


class Pictures:
    """When the artifact is complete: `pictures/` of the set, and of the losses, from the log."""

    @hookimpl
    def condense_finished(self, run: Run, artifact: Any) -> None:
        from . import pictures

        artifact.update(extra=pictures.for_artifact(artifact))
