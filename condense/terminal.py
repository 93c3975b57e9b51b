"""What the command line prints: sentences and tables for people, or one JSON object."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from .hookspecs import hookimpl
from .sizes import Size, size_words

if TYPE_CHECKING:
    from .artifact import Artifact
    from .axes import Budget
    from .data import Source
    from .errors import CondenseError
    from .evaluate import Progress as Judged
    from .plugins import Plugin
    from .published import Row as Figure
    from .report import Report, Row
    from .running import Run

PAUSES = (75, 130)  # exit codes of what can be gone on with
SECONDS = 10.0  # between two lines about an asset that is being made
NAMELESS = ("recipe", "outer", "group")  # axes with one member
KINDS = ("full", "random", "condensed")  # of rows, in the order of tables


class Patient(Console):
    """A console whose reader may leave: what is going on goes on, unheard (`condense run dm 2>&1 | head`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)


class Speaker:
    """Where words go: results to stdout, progress and errors to stderr. With `--json`, one object is all of stdout."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.progress = Patient(stderr=True, width=_width(sys.stderr))
        self.console = Patient(quiet=as_json, width=_width(sys.stdout))

    def say(self, text: str, style: str = "") -> None:
        """A line, never wrapped, so that a path in it can be copied."""
        self.console.print(Text(text, style), soft_wrap=True, highlight=False)

    def warn(self, text: str) -> None:
        """A line on stderr, with `--json` too."""
        self.progress.print(Text(text, "yellow"), soft_wrap=True, highlight=False)

    def show(self, table: Table) -> None:
        self.console.print(table)

    def complain(self, error: CondenseError) -> None:
        """The error in one sentence, on stderr; a pause is no error."""
        prefix = ("paused: ", "bold yellow") if error.exit_code in PAUSES else ("error: ", "bold red")
        self.progress.print(Text.assemble(prefix, str(error)), soft_wrap=True, highlight=False)

    def result(self, data: Mapping[str, Any]) -> None:
        """The one JSON object, where it was asked for."""
        if self.as_json:
            print(json.dumps(data, sort_keys=True))


def _width(stream: TextIO) -> int | None:
    """None: as wide as the terminal. Where there is none, wide enough that lines need not be broken."""
    return None if stream.isatty() or "COLUMNS" in os.environ else 160


class Announcer:
    """An observer that says, before the first step, what runs where; and before that, how far its assets are."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker, self.started, self.told_at = speaker, False, -math.inf

    @hookimpl
    def condense_made(self, run: Run, text: str) -> None:
        if time.monotonic() - self.told_at >= SECONDS:
            self.speaker.progress.print(Text(text), soft_wrap=True)
            self.told_at = time.monotonic()

    @hookimpl(tryfirst=True)
    def condense_started(self, run: Run) -> None:
        self.started = True
        self.speaker.say(first_line(run))


class JudgingBar:
    """How far the judge is: a bar on a terminal, elsewhere a line for each network that is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("judging {task.description}"), BarColumn(None), TextColumn("{task.fields[told]}"))
        self.bar = Progress(*columns, console=console, refresh_per_second=4, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tell(self, at: Judged, what: str) -> None:
        """For `judge(tell=...)`: one bar for each set and architecture."""
        name = f"{what}, {at.net}"
        told = f"network {min(at.of, int(at.done) + 1)} of {at.of}, {100 * at.accuracy:.1f} %"
        if self.console.is_terminal:
            known = {task.description: task.id for task in self.bar.tasks}
            task = known[name] if name in known else self.bar.add_task(name, total=at.of, told="")
            self.bar.update(task, completed=at.done, told=told)
        elif at.done == int(at.done):
            told = f"network {int(at.done)} of {at.of}, {100 * at.accuracy:.1f} %"
            self.console.print(Text(f"judging {name}: {told}"), soft_wrap=True)


def first_line(run: Run) -> str:
    """What runs where."""
    from torch import device

    from .machine import machine

    settled, computing = run.plan, run.plan.execution
    words = [
        f"{settled.method} on {settled.data.label}",
        budget_words(settled.recipe.budget, run.splits.train),
        f"{settled.recipe.outer.steps:,} steps",
        f"seed {settled.seed}",
        f"{computing.device} ({machine(device(computing.device))['device']})",
        computing.precision,
    ]
    return ", ".join(words)


def budget_words(budget: Budget, source: Source) -> str:
    """How large the set is: so many of each class, or how many they are and of what that is a share."""
    noun = source.task.form.noun
    if "per_class" in budget.asked:
        return Size(**budget.asked).told(noun)
    return size_words(budget.items(source), len(source), source.population, noun)


def accuracy_table(report: Report) -> Table:
    """Every row of the report: what networks were trained on, and how often they are right on the test examples."""
    rows = sorted(report.rows, key=lambda row: KINDS.index(row.kind))
    judged = sorted({row.protocol for row in rows if row.kind != "full"})
    noun = rows[0].noun if rows else "images"
    title = f"Accuracy on the {rows[0].split} {noun}, protocol {', '.join(judged)}" if rows else "Nothing judged"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("trained on", "network"):
        table.add_column(name, no_wrap=name == "trained on")
    chosen = any(row.last is not None for row in rows)
    for name in (noun, "accuracy, %", *(["last, %"] if chosen else []), "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        last = ["" if row.last is None else f"{100 * row.last:.1f}"] if chosen else []
        table.add_row(*map(Text, (called(row), row.net, f"{row.images:,}", percent(row), *last, str(row.n))))
    return table


def called(row: Row) -> str:
    """What networks were trained on: `condensed images`; a set of random ones is called what it is."""
    if row.kind == "full":
        return "full data"
    return f"{'random' if row.method == 'random' else row.kind} {row.noun}"


def percent(row: Row) -> str:
    """`91.3 +- 0.5`, in per cent."""
    return f"{100 * row.mean:.1f} +- {100 * row.std:.1f}"


def doubts(report: Report) -> list[str]:
    return report.caveats() + [
        f"Doubtful: {called(row)}, {row.net}: {text}" for row in report.rows for text in row.warnings.values()
    ]


def artifact_object(artifact: Artifact) -> dict[str, Any]:
    """What `--json` prints of an artifact: where it lies, what it is, what it gives."""
    settled, facts = artifact.plan, artifact.provenance
    stopped = facts.get("notes", {}).get("stopped")
    return {
        "artifact": str(artifact.path),
        "report": page_of(artifact.path),
        "method": settled.method,
        "data": settled.data.label,
        "images": len(artifact.sampler()),
        "noun": artifact.task.form.noun,
        "steps": settled.recipe.outer.steps,
        "seed": settled.seed,
        "plan": settled.digest(),
        "seconds": facts.get("seconds"),
        "stored": artifact.stored,
        **({"stopped": stopped} if stopped else {}),
        **({"privacy": facts["privacy"]} if "privacy" in facts else {}),
        "rows": rows_object((artifact.report or {}).get("rows", [])),
    }


def page_of(folder: Path) -> str | None:
    pages = [page for page in (folder / "report.html", folder / ".run" / "report.html") if page.is_file()]
    return str(pages[0]) if pages else None


def rows_object(rows: Any) -> list[dict[str, Any]]:
    """The rows of a report in short; all of it stands in report.json."""
    keys = ("kind", "method", "images", "protocol", "net", "mean", "std", "n", "best", "seconds", "seed", "warnings")
    return [{key: row[key] for key in keys} for row in rows]


def error_object(error: CondenseError) -> dict[str, Any]:
    """What `--json` prints of an error."""
    told = {key: str(getattr(error, key)) for key in ("field", "value", "problem", "remedy")}
    return {"error": {"type": type(error).__name__, "exit_code": error.exit_code, "message": str(error), **told}}


def figure(row: Figure) -> str:
    """A published figure, in one line."""
    from .published import told

    spread = "" if row.std is None else f" +- {row.std:g}"
    about = ", ".join([row.data or "any data", *told(row.terms), row.size.told()])
    return f"published: {about}: {row.accuracy:g}{spread} % ({row.source})"


def plugin_object(plugin: Plugin) -> dict[str, Any]:
    """What `--json` prints of a plugin."""
    facts = {key: getattr(plugin, key) for key in ("name", "module", "distribution", "version", "error")}
    return {**facts, "parts": by_axis(plugin), "recipes": sorted(plugin.recipes)}


def by_axis(plugin: Plugin) -> dict[str, list[str]]:
    """The names of a plugin's parts, by axis."""
    axes = sorted({part.axis for part in plugin.parts})
    return {axis: sorted(part.name for part in plugin.parts if part.axis == axis) for axis in axes}


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts; markup in them is shown as it is."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def settings_of(data: Any, path: str = "") -> list[str]:
    """JSON data line by line: `path=value` for a leaf, as --set takes it; `path: name` for a part, above its leaves."""
    if isinstance(data, Mapping) and data:
        here = [f"{path}: {data['name']}"] if path and data.get("name", NAMELESS[0]) not in NAMELESS else []
        inside = {key: value for key, value in data.items() if key != "name"}
        return here + [
            line for key, value in inside.items() for line in settings_of(value, f"{path}.{key}".lstrip("."))
        ]
    if isinstance(data, list) and any(isinstance(item, Mapping | list) for item in data):
        return [line for i, value in enumerate(data) for line in settings_of(value, f"{path}.{i}")]
    return [f"{path}={data if isinstance(data, str) else json.dumps(data)}"]
