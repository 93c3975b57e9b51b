"""Judging a set beside what it is compared with, and storing what was found in its artifact."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import execution, files, html, pictures
from .api import open_run
from .artifact import Artifact
from .baselines import full_data, full_data_is_made, random_images
from .checkpoint import PRIVATE, Lock, private_folder
from .data import Sampler, Splits
from .errors import BadValue
from .evaluate import Candidate, Progress, Protocol, evaluate, held_out
from .foreign import open_foreign
from .isolation import blaming
from .memory import check_judging, judging_cost
from .places import writable_cache
from .planning import on_device
from .program import hint
from .recipe import Execution, Plan
from .report import Report
from .running import Limits, Run

REPORT = "report.json"
Tell = Callable[[Progress, str], None]  # where the judge is, and what it judges


def judge(
    artifact: Artifact,
    *,
    protocol: Protocol | None = None,
    random: bool = True,
    full: bool | None = None,
    device: str | torch.device | None = None,
    observers: Iterable[Any] = (),
    tell: Tell | None = None,
    publish: bool = False,
) -> Artifact:
    """Judge the set, random real examples in the same number, and networks trained on all of the data.

    protocol: None for the plan's. random: with the baseline (a random set has none). full: None for yes on
    embedded data, and where these networks are cached. device: None for the plan's. What is found is merged with what
    the artifact's report holds, and stored in it with `report.html` and pictures; returns the artifact as it is now.
    Networks that are judged are kept in the folder one by one, so that the same call goes on after an interrupt.
    Of confidential data nothing but the set is judged, and what is found goes to `.run/report.json` and `report.html`
    beside it; publish: into the artifact after all, which then says that no guarantee covers these numbers.
    Raises `BadValue` where the artifact was judged by another protocol, `InUse` where another process judges it.
    """
    with blaming(artifact.path):
        return _judged(artifact, protocol, random, full, device, observers, tell, publish)


def _judged(
    artifact: Artifact,
    protocol: Protocol | None,
    random: bool,
    full: bool | None,
    device: str | torch.device | None,
    observers: Iterable[Any],
    tell: Tell | None,
    publish: bool,
) -> Artifact:
    settled = on_device(artifact.plan, device)
    rules = protocol or judged_by(settled)
    opened = open_run(settled, None, observers, Limits())
    passes = judging_passes(Execution(device=settled.execution.device), rules, artifact.sampler(), opened.splits)
    confidential = settled.data.confidential
    if confidential:
        random, full = False, False  # both would show networks what the set was to keep
    with Lock(private_folder(artifact.path)), execution.using(passes):
        artifact = with_private_report(artifact) if confidential else artifact
        report = Report.model_validate(artifact.report or {})
        _check_alike(report, rules)
        for found in _reports(artifact, opened, rules, random, full, tell):
            report = report.merge(found)
        if confidential and publish:
            report = report.model_copy(update={"uncovered": True})
        done = _stored(artifact, report, private=confidential and not publish)
    opened.hooks.hook.condense_evaluated(artifact=done, report=report)
    return done


def _stored(artifact: Artifact, report: Report, *, private: bool) -> Artifact:
    """The report and its page written into the artifact, or into its private folder; the artifact as it is now."""
    drawings = pictures.drawn(artifact)
    page = html.report_page(artifact, report, drawings).encode()
    if private:
        folder = private_folder(artifact.path)
        files.write(folder / "report.html", page)
        files.write_json(folder / REPORT, report.dump())
        return replace(artifact, report=report.dump())
    extra = {"report.html": page, **pictures.for_artifact(artifact, drawings)}
    return artifact.update(report=report.dump(), extra=extra)


def with_private_report(artifact: Artifact) -> Artifact:
    """The artifact with the report that is kept beside it, if there is one."""
    path = artifact.path / PRIVATE / REPORT
    return replace(artifact, report=files.read_json(path)) if path.is_file() else artifact


def judging_passes(how: Execution, rules: Protocol, data: Sampler, splits: Splits) -> execution.Passes:
    """How the networks that judge `data` are computed: judging may be worth compiling where the run itself was not.

    Networks that do not fit the examples, or into memory, are refused.
    """
    rules.admit(data.task)
    check_judging(rules, data, torch.device(how.device))
    seconds = judging_cost(rules, data, len(held_out(splits, rules)))
    return execution.passes(execution.settled(how, seconds))


def _check_alike(report: Report, rules: Protocol) -> None:
    """Refuse, before anything is trained, numbers that may not stand in one table with those that are there."""
    others = sorted({row.protocol for row in report.rows if row.kind != "full" and row.rules != rules.rules_digest()})
    if others:
        problem = f"has other rules than those that this set was judged by ({', '.join(others)})"
        remedy = f"Judge by these, or export the set and judge it as one of others: {hint('eval', 'PATH --data SET.')}"
        raise BadValue("protocol", rules.name, problem, remedy)


def _reports(
    artifact: Artifact, opened: Run, rules: Protocol, random: bool, full: bool | None, tell: Tell | None
) -> Iterable[Report]:
    """One report after the other, each judged when it is asked for."""
    how: dict[str, Any] = {"seed": artifact.plan.seed, "device": opened.device, "folder": artifact.path}
    baseline = artifact.plan.method == "random"
    own, noun = Candidate.of(artifact), opened.task.form.noun
    yield evaluate(own, opened.splits, rules, progress=about(tell, f"condensed {noun}"), **how)
    if random and not baseline:
        yield evaluate(random_images(opened), opened.splits, rules, progress=about(tell, f"random {noun}"), **how)
    if full or (full is None and (artifact.plan.data.embedded or full_data_is_made(opened, rules))):
        yield full_data(opened, rules, about(tell, "full data"))


def judged_by(settled: Plan) -> Protocol:
    if settled.protocol is None:
        raise BadValue("protocol", None, "is not said by the plan", "Name one: --protocol vico.")
    return settled.protocol


def about(tell: Tell | None, what: str) -> Callable[[Progress], None] | None:
    return None if tell is None else lambda progress: tell(progress, what)


def judge_foreign(path: str | Path, settled: Plan, *, normalised: bool = False, tell: Tell | None = None) -> Report:
    """Judge a set that somebody else made, an image folder or an `.npz`, by the protocol of `settled` on its data.

    settled: a plan, of which data, preprocessing, protocol, seed and execution count. Networks that are judged are kept
    in the cache folder. Raises what `open_foreign` raises.
    """
    with blaming():
        return _judged_foreign(Path(path), settled, normalised, tell)


def _judged_foreign(path: Path, settled: Plan, normalised: bool, tell: Tell | None) -> Report:
    device = torch.device(settled.execution.device)
    splits = settled.data.open(device)
    transform = settled.recipe.preprocess.fit(splits.train, splits.facts).to(device)
    data = open_foreign(path, splits.task, transform, normalised=normalised, device=device)
    candidate = Candidate(data, transform, path.name)
    rules = judged_by(settled)
    with execution.using(judging_passes(settled.execution, rules, candidate.data, splits)):
        return evaluate(
            candidate,
            splits,
            rules,
            seed=settled.seed,
            device=device,
            folder=writable_cache("judged"),
            progress=about(tell, candidate.method),
        )


__all__ = ["judge", "judge_foreign"]
