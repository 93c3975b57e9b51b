"""The command `condense reproduce`: published rows, run one after the other, and the page that shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import files
from . import options as o
from .errors import CondenseError
from .terminal import Speaker, error_object

if TYPE_CHECKING:
    from .reproduced import Estimate, Finished, Line, Shelf, Target
    from .reproduction import How

Method = Annotated[str | None, typer.Option("--method", metavar="NAME", help="Only rows of this method.")]
OnData = Annotated[str | None, typer.Option("--data", metavar="SET", help="Only rows of this data set.")]
PerClass = Annotated[int | None, typer.Option("--per-class", metavar="N", help="Only rows of so many of each class.")]
Total = Annotated[int | None, typer.Option("--total", metavar="N", help="Only rows of so many in all.")]
Terms = Annotated[
    list[str] | None,
    typer.Option("--terms", metavar="PATH=VALUE", help="Only rows under these terms, as data.epsilon=1."),
]
Seeds = Annotated[
    int, typer.Option("--seeds", metavar="K", min=1, help="Each row so often, with seeds from --seed on.")
]
Networks = Annotated[int, typer.Option("--repeats", metavar="N", min=1, help="How many networks judge.")]
Budget = Annotated[float | None, typer.Option("--minutes", metavar="T", help="Pause after so many minutes in all.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the runs lie, and go on.")]
Rows = Annotated[Path, typer.Option("--rows", metavar="DIR", help="Where rows go; the page lies beside it, as DIR.md.")]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="What else has to be known of the row.")]
Listed = Annotated[bool, typer.Option("--list", help="Name the rows and where they stand; run nothing.")]
Timed = Annotated[bool, typer.Option("--estimate", help="Time a few steps of each row instead of running it.")]
TimedOn = Annotated[
    str | None,
    typer.Option("--timed-on", metavar="SET", help="As on this set of equal sizes."),
]


def command(
    method: Method = None,
    data: OnData = None,
    per_class: PerClass = None,
    total: Total = None,
    terms: Terms = None,
    seed: o.Seed = 0,
    seeds: Seeds = 1,
    steps: o.Steps = None,
    plain: o.Plain = False,
    protocol: o.ProtocolName = None,
    repeats: Networks = 20,
    minutes: Budget = None,
    device: o.Device = None,
    runs: Runs = Path("runs"),
    rows: Rows = Path("docs/reproduced"),
    note: Note = "",
    listed: Listed = False,
    estimate: Timed = False,
    timed_on: TimedOn = None,
    data_root: o.DataRoot = None,
    as_json: o.AsJson = False,
) -> None:
    """Make and judge published rows, all or those that are named, and write the page of what came of them.

    What is begun goes on where it was, and what is finished stays. A row that is named in full need not be published.
    """
    from .api import asked_limits
    from .places import data_root as reading_from
    from .reproduced import Shelf
    from .reproduction import How, chosen

    speaker, shelf = Speaker(as_json), Shelf(rows)
    how = How(seed, steps, plain, protocol, repeats, device, runs, asked_limits(minutes, None).minutes)
    hows = [replace(how, seed=seed + i) for i in range(seeds)]
    found = chosen(method, data, per_class, total, o.pairs(terms))
    if not listed:
        with reading_from(data_root):
            work = _timing(shelf, hows[0], timed_on, note) if estimate else _making(speaker, shelf, hows, note)
            _work(speaker, shelf, found, work)
    _tell(speaker, shelf, found)


Work = Callable[["Target"], "Iterable[Finished | Estimate]"]  # what is done already is left out


def _work(speaker: Speaker, shelf: Shelf, found: Sequence[Target], work: Work) -> None:
    """One row after the other, each stored at once. A row that is refused stops no other; the exit code is that of the
    first error.
    """
    from .plugins import registry
    from .reproduced import page, targets
    from .running import Paused

    def write_page() -> None:
        files.write(shelf.page, page(shelf, targets(registry())).encode())

    refused: CondenseError | None = None
    for target in found:
        try:
            for done in work(target):
                speaker.say(f"written   {shelf.add(done)}")
                write_page()
            write_page()
        except Paused:
            raise
        except CondenseError as error:
            speaker.complain(error)
            refused = refused or error
    if refused is not None:
        speaker.result(error_object(refused))
        raise typer.Exit(refused.exit_code)


def _timing(shelf: Shelf, how: How, on: str | None, note: str) -> Work:
    """Time a row's steps; what is timed already stays, and gets the note. A known time on the set `on` is taken."""
    from .reproduction import as_timed, timed

    def work(target: Target) -> Iterator[Estimate]:
        known = shelf.estimates()
        old = known.get(target.key)
        like = known.get((target.method, on, target.size.told())) if on else None
        if old is None or note:
            found = old or (as_timed(like, target, how) if like else timed(target, how, on))
            yield found.model_copy(update={"note": note})

    return work


def _making(speaker: Speaker, shelf: Shelf, hows: Sequence[How], note: str) -> Work:
    """Reproduce a row, once for each seed; what stands there, judged by as many networks, only for a note's sake."""
    from . import observers
    from .reproduction import name_of, reproduce
    from .terminal import Announcer, JudgingBar

    known = {row.name: row for row in shelf.finished()}

    def work(target: Target) -> Iterator[Finished]:
        for how in hows:
            old = known.get(name_of(target, how))
            if old is not None and old.condensed.n >= how.repeats and not note:
                continue
            said = note or (old.note if old else "")
            with ExitStack() as stack:
                bar = stack.enter_context(JudgingBar(speaker.progress))
                steps = stack.enter_context(observers.RichProgress(speaker.progress))
                watching = [Announcer(speaker), steps, stack.enter_context(observers.JsonLines())]
                done = reproduce(target, how, observers=watching, tell=bar.tell, note=said)
            yield done

    return work


def _tell(speaker: Speaker, shelf: Shelf, found: Sequence[Target]) -> None:
    """Where each row stands, and where the page lies."""
    from .reproduced import lines
    from .terminal import columns

    finished, estimates = shelf.finished(), shelf.estimates()
    told = []
    for target in found:
        stands = [_stands(line) for line in lines(row for row in finished if row.target.key == target.key)]
        if not stands and target.key in estimates:
            stands = [f"about {estimates[target.key].hours:.1f} CPU-hours"]
        figure = "" if target.accuracy is None else f"{target.accuracy:g}"
        told.append((*target.key, figure, "; ".join(stands) or "not run"))
    speaker.show(columns(("method", "data", "size", "published", "ours"), told))
    if shelf.page.is_file():
        speaker.say(f"page      {shelf.page}")
    keys = {target.key for target in found}
    named = [row.model_dump(mode="json") for row in finished if row.target.key in keys]
    timed = [estimate.model_dump(mode="json") for key, estimate in estimates.items() if key in keys]
    asked = [target.model_dump(mode="json") for target in found]
    speaker.result({"page": str(shelf.page), "targets": asked, "rows": named, "estimates": timed})


def _stands(line: Line) -> str:
    """A finished line in short: `80.1 +- 0.6 (n=5 x 10, 3,000 steps, plain)`."""
    from .reproduced import spread

    row = line.rows[0]
    return f"{spread(line.condensed)} (n={line.n}, {row.steps:,} steps{', plain' if row.plain else ''})"
