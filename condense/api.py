"""condense from Python: `plan`, `run`, `resume`, `load`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import execution, files
from .artifact import Artifact, load, read_plan, write_artifact
from .axes import Net
from .checkpoint import PRIVATE, Lock, private_folder
from .engine import check_roles, condense
from .errors import BadValue, InUse, shown
from .evaluate import held_out
from .given import as_data
from .isolation import blaming, check_net, tolerant
from .machine import fresh_peak, machine, peak_memory
from .memory import check_memory, cost
from .planning import as_net, default_device, judged_on, on_device, plan, with_net
from .plugins import run_manager, software
from .program import hint
from .recipe import Plan, Recipe, check_recipe
from .running import Limits, Run
from .sizes import Size, whole


def run(
    method: str | Recipe,
    *,
    out: str | Path | None = None,
    observers: Iterable[Any] = (),
    minutes: float | None = None,
    checkpoint_every: int | None = None,
    **planned: Any,
) -> Artifact:
    """Condense, and return the artifact written into `out` (default `runs/NAME-SET-N-SEED`). Arguments: see `plan`.

    A folder that holds the same plan is taken up where it was. The state is saved every minute, and with
    `checkpoint_every` after so many steps, too. Raises `Paused` after `minutes`, or at Ctrl-C, once it is saved;
    `InUse` where `out` holds something else; `BadValue` and `BadData` before anything is written.
    """
    limits = asked_limits(minutes, checkpoint_every)
    settled = plan(method, **planned)
    plain = not planned.get("published", True)
    folder = Path(out) if out is not None else default_folder(settled, plain=plain)
    return carry_out(settled, folder, observers=observers, limits=limits)


def resume(
    path: str | Path,
    *,
    data: Any = None,
    net: Any = None,
    device: str | torch.device | None = None,
    observers: Iterable[Any] = (),
    minutes: float | None = None,
    checkpoint_every: int | None = None,
) -> Artifact:
    """Go on with the run in the folder `path` from its last checkpoint; a finished one is just opened.

    device: where to go on, if not where the run began; the set then has not the bits of an unbroken run. data, net:
    what was given to `run` as live examples or as a callable, which no file holds. Raises `BadValue` where it is
    missing or is not what the run began with; otherwise as `run`.
    """
    folder, limits = Path(path), asked_limits(minutes, checkpoint_every)
    settled = stored_plan(folder)
    if data is not None:
        settled = settled.model_copy(update={"data": as_data(data)})
    if net is not None and settled.protocol is not None:
        network = as_net(net)
        changes = {"recipe": with_net(settled.recipe, network), "protocol": judged_on(settled.protocol, network)}
        settled = settled.model_copy(update=changes)
    return carry_out(settled, folder, observers=observers, limits=limits, device=device)


def asked_limits(minutes: float | None, checkpoint_every: int | None) -> Limits:
    """The limits that somebody asks for; raises `BadValue` for what can be none."""
    if checkpoint_every is not None:
        checkpoint_every = whole(
            "checkpoint_every", checkpoint_every, 1, "Leave out --checkpoint-every: it saves every minute anyway."
        )
    if minutes is not None and not (isinstance(minutes, int | float) and 0 < minutes < math.inf):
        raise BadValue("minutes", minutes, "must be a number above 0", "Leave out --minutes for no limit.")
    return Limits(minutes=minutes, steps=checkpoint_every)


def default_folder(settled: Plan, *, plain: bool = False) -> Path:
    """`runs/NAME-SET-N-SEED`, and `-plain` after it for a plan without the settings published for the set."""
    size = Size(**settled.recipe.budget.asked).label
    return Path("runs") / f"{settled.method}-{settled.data.label}-{size}-{settled.seed}{'-plain' if plain else ''}"


def stored_plan(folder: Path) -> Plan:
    """The plan that a run wrote before its first step."""
    path = folder / PRIVATE / "plan.json"
    if not path.is_file():
        raise BadValue("path", str(folder), "holds no run of condense", "Give the --out folder of a run.")
    return read_plan(files.read_json(path), path)


def carry_out(
    settled: Plan,
    folder: Path,
    *,
    observers: Iterable[Any] = (),
    limits: Limits | None = None,
    device: str | torch.device | None = None,
) -> Artifact:
    """Run a plan in a folder: check everything, write the plan, take the steps, write the artifact.

    device: where a run that is begun there goes on, if elsewhere; how its passes are computed is settled anew.
    """
    with blaming(folder):
        elsewhere = device is not None and str(device) != settled.execution.device
        moves = elsewhere and not (folder / "manifest.json").is_file()
        started = open_run(on_device(settled, device) if moves else settled, folder, observers, limits or Limits())
        settled = started.plan
        if moves:
            with Lock(private_folder(folder)):
                stored = stored_plan(folder).model_copy(update={"execution": settled.execution})
                files.write_json(folder / PRIVATE / "plan.json", stored.model_dump(mode="json"))
        held = holds(folder, settled)
        if held == "finished":
            started.splits.train.finish(folder / PRIVATE)
            return replace(load(folder), plan=settled)  # live data and networks are in no file
        started.splits.train.rehearse(started)
        with Lock(private_folder(folder)):
            if held == "nothing":
                files.write_json(folder / PRIVATE / "plan.json", settled.model_dump(mode="json"))
            artifact = _made(started, folder)
        started.hooks.hook.condense_finished(run=started, artifact=artifact)
    return artifact


def _made(started: Run, folder: Path) -> Artifact:
    """The steps taken, the artifact written; what killed writers left behind is removed."""
    for place in (folder, folder / PRIVATE):
        files.sweep(place)
    settled = started.plan
    started.splits.train.begin(folder / PRIVATE)
    with started.interruptible(), execution.using(execution.passes(settled.execution)):
        syn = condense(started)
    made = write_artifact(folder, settled, syn, started.transform, started.task, provenance(started))
    started.splits.train.finish(folder / PRIVATE)
    return replace(made, plan=settled)


def holds(folder: Path, settled: Plan) -> str:
    """What the output folder holds of this plan: nothing, a run that was begun, or a finished one. Else raises
    `InUse`.
    """
    remedy = "Give another folder with --out, or remove this one."
    if not folder.exists() or (folder.is_dir() and _untouched(folder)):
        return "nothing"
    if not folder.is_dir() or not (folder / PRIVATE / "plan.json").is_file():
        raise InUse("out", str(folder), "exists and is no run of condense", remedy)
    finished = (folder / "manifest.json").is_file()
    before, after = stored_plan(folder).model_dump(mode="json"), settled.model_dump(mode="json")
    if before != after:
        lines = _differing(before, after)
        if finished and all(line.startswith("protocol.") for line in lines):
            remedy = f"To judge it so as well: {hint('eval', folder)}, with these options. {remedy}"
        raise InUse("out", str(folder), f"holds a run of another plan: {', '.join(lines[:3])}", remedy)
    return "finished" if finished else "begun"


def _differing(before: Any, after: Any, path: str = "") -> list[str]:
    """Where two plans differ, in words: `seed is 0 there and 9 here`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        below = [_differing(before.get(key), after.get(key), f"{path}.{key}".lstrip(".")) for key in keys]
        return [line for lines in below for line in lines]
    return [] if before == after else [f"{path} is {shown(before, 40)} there and {shown(after, 40)} here"]


def _untouched(folder: Path) -> bool:
    """Is it empty, or left by a run that was killed before its plan was written?"""
    inside = [path for path in (folder / PRIVATE).glob("*") if path.name != "lock" and path.suffix != ".tmp"]
    return not inside and all(path.name == PRIVATE for path in folder.iterdir())


def open_run(
    settled: Plan, folder: Path | None, observers: Iterable[Any], limits: Limits, *, steps: bool = True
) -> Run:
    """Open the data and let every part refuse what it cannot do. Nothing is written, nothing is computed.

    steps: are outer steps to be taken, whose memory must be there, or assets made alone?
    """
    recipe, device = settled.recipe, torch.device(default_device(settled.execution.device))
    fresh_peak(device)
    splits = settled.data.open(device)
    splits.train.admit(recipe)
    transform = recipe.preprocess.fit(splits.train, splits.facts).to(device)
    splits = splits.map(lambda source: source.encoded(transform))
    started = Run(settled, splits, transform, tolerant(run_manager(observers)), folder, limits)
    check_recipe(recipe, started.task)
    recipe.pool.admit(started)
    if recipe.selection is not None:
        recipe.selection.admit(splits)
    for net in networks(settled):
        check_net(net, started.task)
    if settled.protocol is not None:
        settled.protocol.admit(started.task)
        held_out(splits, settled.protocol)
    check_roles(recipe, started.task)
    if steps:
        check_memory(recipe, splits.train, device)
    recipe.init.admit(splits.train, recipe.budget.allot(splits.train))
    computing = execution.settled(settled.execution, cost(recipe, splits.train))
    return replace(started, plan=settled.model_copy(update={"execution": computing}))


def networks(settled: Plan) -> list[Net]:
    """Every network that the recipe and the judge name."""
    parts = [*settled.recipe.walk(), *(settled.protocol.walk() if settled.protocol else ())]
    return [part for part in parts if isinstance(part, Net)]


def provenance(done: Run) -> dict[str, Any]:
    """Facts of a finished run, as plain JSON: source, versions, machine, cost."""
    facts = done.splits.facts
    device = done.device
    return {
        "source": {
            **done.splits.train.provenance(),
            "data": done.plan.data.dump(),
            "title": facts.title,
            "licence": facts.licence,
            "citation": facts.citation,
            **({"properties": facts.extra["properties"]} if "properties" in facts.extra else {}),
        },
        "versions": software(),
        "machine": machine(device),
        "seconds": round(done.seconds(), 3),
        "peak_memory_bytes": peak_memory(device),
        "assets": done.assets.used,
        **done.splits.train.account_for(),
        "notes": {key: value for key, value in done.notes.items() if key != "seconds"},
    }


__all__ = ["carry_out", "load", "plan", "resume", "run"]
