"""Reproducing published rows: the set is made and judged beside a random one; or only its steps are timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import api, execution, files
from .artifact import Artifact, load, write_artifact
from .axes import Asset
from .baselines import random_images
from .checkpoint import private_folder
from .component import checked
from .data import Data
from .engine import condense
from .errors import BadValue
from .evaluate import Progress, network_key
from .given import as_data
from .hookspecs import hookimpl
from .judging import Tell, judge, judged_by, judging_passes
from .machine import machine
from .manifest import read as read_manifest
from .planning import method_for
from .plugins import registry
from .recipe import Execution, Plan
from .report import Report
from .reproduced import Estimate, Finished, Making, Target, run_name, targets
from .running import Limits, Paused, Run

WARM, TIMED = 2, 3  # outer steps: the first compile, then as many are timed


@dataclass(frozen=True)
class How:
    """How rows are reproduced. steps: fewer than published; None: as published. runs: where runs lie.

    plain: with the method's defaults for any data, without the settings that were published for the set. protocol: the
    judge, by name; None: the method's own. minutes: of wall time for all rows together, counted from `started`.
    """

    seed: int = 0
    steps: int | None = None
    plain: bool = False
    protocol: str | None = None
    repeats: int = 20
    device: str | None = None
    runs: Path = Path("runs")
    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float | None:
        """Minutes that are left; None: no end."""
        return None if self.minutes is None else self.minutes - (time.monotonic() - self.started) / 60


def chosen(
    method: str | None,
    data: str | None,
    per_class: int | None = None,
    total: int | None = None,
    terms: Mapping[str, Any] | None = None,
) -> list[Target]:
    """The rows with a published figure that match; where method, data and a size are given, that row, published or not.

    terms: leaves of the plan that a row's own include; of a row that is not published, these.

    Raises `BadValue` where there is none.
    """
    asked = {"method": method, "data": data, "per_class": per_class, "total": total}
    named = {key: value for key, value in asked.items() if value is not None}
    terms = terms or {}
    known = [t for t in targets(registry()) if named.items() <= t.model_dump().items()]
    found = [target for target in known if terms.items() <= target.terms.items()]
    if found:
        return found
    if method is None or data is None or len(named) != 3:
        remedy = "See `condense reproduce --list`, or name a row in full: --method, --data, and --per-class or --total."
        raise BadValue("row", tuple(named.values()), "matches no row with a published figure", remedy)
    checked(lambda: registry().lookup(Data, data), "data")  # by name only: a path makes no name for a row
    method_for(method, as_data(data))
    return [Target.model_validate({**named, "terms": dict(terms)})]


def planned(target: Target, how: How, steps: int | None = None) -> Plan:
    asked: dict[str, Any] = {"seed": how.seed, "steps": steps, "device": how.device, "published": not how.plain}
    asked |= {"protocol": how.protocol or target.protocol, "settings": target.terms}
    return api.plan(target.method, data=target.data, **target.size.given, **asked)


def name_of(target: Target, how: How) -> str:
    """The name of the row's run folder, and of its file."""
    published = planned(target, how).recipe.outer.steps
    steps = published if how.steps is None else how.steps
    return run_name(target, how.seed, steps, published, plain=how.plain, protocol=how.protocol)


def reproduce(
    target: Target, how: How, *, observers: Iterable[Any] = (), tell: Tell | None = None, note: str = ""
) -> Finished:
    """Make the row's set, or go on with it, and judge it with `how.repeats` networks.

    Raises `Paused` when the time is used up, once the state is saved; else as `condense.run` and `condense.judge`.
    """
    gc.collect()  # a run lies in cycles: what an earlier row held is not to be counted as memory of this one
    artifact = _made(target, how, observers)
    rules = judged_by(artifact.plan).with_(repeats=how.repeats)
    artifact = judge(artifact, protocol=rules, full=False, device=how.device, tell=_within(how, artifact.path, tell))
    first = rules.nets[0].dump()  # others, if `condense eval` judged by them too, stand in the report beside it
    report = {str(row.kind): row for row in Report.model_validate(artifact.report).rows if row.network == first}
    own = "random" if target.method == "random" else "condensed"
    return Finished(
        target=target,
        seed=how.seed,
        steps=artifact.plan.recipe.outer.steps,
        published_steps=planned(target, how).recipe.outer.steps,
        condensed=report[own],
        random=None if own == "random" else report.get("random"),
        making=_facts(artifact),
        plain=how.plain,
        protocol=how.protocol,
        note=note,
    )


def _made(target: Target, how: How, observers: Iterable[Any]) -> Artifact:
    """The row's set. One that another judge than the method's own is to see is made as if for that one, and copied:
    it is made once for all judges, and what they say by different rules may not stand in one report.
    """
    terms = {path: value for path, value in target.terms.items() if not path.startswith("protocol.")}
    own, own_how = target.model_copy(update={"terms": terms}), replace(how, protocol=None)
    folder, beside = (how.runs / name_of(*row) for row in ((own, own_how), (target, how)))
    settled = planned(own, own_how, how.steps)
    artifact = api.carry_out(settled, folder, observers=observers, limits=Limits(minutes=how.left()))
    if folder == beside:
        return artifact
    judged = artifact.plan.model_copy(update={"protocol": planned(target, how).protocol})
    if api.holds(beside, judged) == "finished":
        return load(beside)
    files.write_json(private_folder(beside) / "plan.json", judged.model_dump(mode="json"))
    seen = (artifact.synthetic, artifact.transform, artifact.task, artifact.provenance)
    return write_artifact(beside, judged, *seen)


def _within(how: How, folder: Path, tell: Tell | None) -> Tell:
    """`tell`, which raises `Paused` once the time is used up and a network is judged, which is kept by then."""

    def told(at: Progress, what: str) -> None:
        if tell is not None:
            tell(at, what)
        left = how.left()
        if left is not None and left <= 0 and at.done == int(at.done):
            problem = f"has used the {how.minutes:g} minutes it was given; the networks that are judged are kept"
            raise Paused("judging", str(folder), problem, "Call it again: it goes on with the next network.")

    return told


def _facts(artifact: Artifact) -> Making:
    facts = artifact.provenance
    return Making(
        seconds=facts["seconds"],
        peak_memory_bytes=facts["peak_memory_bytes"],
        passes=execution.passes(artifact.plan.execution).kind,
        machine=facts["machine"],
        versions=facts["versions"],
        plan=artifact.plan.digest(),
        artifact=read_manifest(artifact.path)["files"]["tensors.safetensors"]["sha256"],
    )


# -- estimates ------------------------------------------------------------------------------------------------------


class Stopwatch:
    """An observer that ends a run after WARM + TIMED steps, and knows how long the last TIMED of them took."""

    def __init__(self) -> None:
        self.at: list[tuple[float, float]] = []

    @hookimpl
    def condense_stepped(self, run: Any) -> None:
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)
        self.at.append((time.process_time(), time.monotonic()))

    @hookimpl
    def condense_stop(self) -> str | None:
        return "timed" if len(self.at) == WARM + TIMED else None

    def each(self) -> tuple[float, float, int]:
        """(processor seconds, wall seconds) of a step, and how many were timed."""
        first, last, timed = self.at[WARM - 1], self.at[-1], len(self.at) - WARM
        return (last[0] - first[0]) / timed, (last[1] - first[1]) / timed, timed


def as_timed(known: Estimate, target: Target, how: How) -> Estimate:
    """The time of a step of the same row on another set, one of equal sizes, as that of `target`."""
    return known.model_copy(update={"target": target, "steps": planned(target, how).recipe.outer.steps})


@dataclass(frozen=True)
class Work:
    """What takes a row's time besides outer steps: so many like pieces, and a function that does so many of them.

    warm: pieces after which those of all sizes have been seen, and compiled.
    """

    pieces: int
    do: Callable[[int], object]
    passes: execution.Passes
    warm: int = 0


def timed(target: Target, how: How, on: str | None = None) -> Estimate:
    """The time of an outer step of the row at its published settings; nothing is stored. on: another set of its sizes.

    Of a row with assets (experts), steps of their making are timed instead: hours, where an outer step is seconds. Of
    one without outer steps (a baseline), training steps of the `how.repeats` networks that judge it.
    Raises `BadValue` for a method that takes too few steps to be timed.
    """
    settled = planned(target, how)
    steps = settled.recipe.outer.steps
    if on is not None:
        settled = settled.model_copy(update={"data": as_data(on)})
    watch = Stopwatch()
    run = api.open_run(settled, None, [watch], Limits())
    assets = _assets(run)
    judging = None if steps or assets else _judging(run, how.repeats)
    work = assets or judging
    if (work.pieces if work else steps) < WARM + TIMED:
        problem = f"takes {steps} steps, too few to be timed"
        raise BadValue("steps", steps, problem, "Run the row: condense reproduce without --estimate.")
    passes = work.passes if work else execution.passes(run.plan.execution)
    with execution.using(passes):
        if work is None:
            condense(run)
        else:
            work.do(work.warm)
            for _ in range(WARM + TIMED):
                work.do(1)
                watch.condense_stepped(run)
    cpu, wall, count = watch.each()
    return Estimate(
        target=target,
        steps=steps,
        seconds=wall if run.device.type == "cuda" else cpu,
        wall=wall,
        timed=count,
        assets=assets.pieces if assets else None,
        judging=judging.pieces if judging else None,
        data=on or target.data,
        passes=passes.kind,
        machine=machine(run.device),
    )


def _assets(run: Run) -> Work | None:
    """The longest of what has to be made before the first step."""
    found = [part.work(run) for part in run.recipe.walk() if isinstance(part, Asset)]
    longest = max(filter(None, found), key=lambda pieces: pieces[0], default=None)
    return Work(*longest, execution.passes(run.plan.execution)) if longest else None


def _judging(run: Run, repeats: int) -> Work | None:
    """The training of the networks that judge, on random examples in the number of the row's set, if it is steps."""
    rules = judged_by(run.plan).with_(repeats=repeats)
    data, net = random_images(run).data, rules.nets[0]
    fit = rules.fit(data)
    total, key = fit.length(data), network_key(run.plan.seed, net, 0)
    warm = data.chunks(fit.batch)
    if total < warm + WARM + TIMED:
        return None
    loop = fit.begin(net.make(run.task, key.fold("make"), run.device), key.fold("train"))
    passes = judging_passes(Execution(device=run.plan.execution.device), rules, data, run.splits)
    return Work(repeats * len(rules.nets) * total, lambda n: loop.advance(data, n, total), passes, warm)
