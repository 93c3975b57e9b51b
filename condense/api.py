"""condense from Python: `plan`, `run`, `resume`, `load`."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from . import execution, files
from .artifact import Artifact, load, write_artifact
from .axes import Net
from .checkpoint import Lock, private_folder
from .component import bad_value, checked, member, named
from .engine import condense
from .errors import BadValue, InUse
from .evaluate import Protocol
from .given import as_data
from .machine import machine, peak_memory
from .memory import check_memory, cost
from .plugins import registry, run_manager, versions
from .published import Row, settings_for
from .recipe import Execution, Plan, Recipe, check_recipe, replaced
from .running import Limits, Run


def plan(
    method: str | Recipe,
    *,
    data: Any = "digits",
    per_class: int = 10,
    seed: int = 0,
    steps: int | None = None,
    device: str | None = None,
    net: Any = None,
    protocol: Any = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """The whole run as a value, validated; no data is read.

    method: a recipe's name, or a `Recipe`. data: a name (`cifar10`, `folder:PATH`), a `Data`, a torch Dataset, or tensors
    (x, y). net: a `Net`, its name, or any callable that returns a module; replaces the networks of pool and judge.
    options: arguments of the recipe's function. settings: leaves by dotted path, of the recipe, or below `protocol.` and
    `execution.`; they win over published settings. Raises `BadValue` naming the field, its value and the remedy.
    """
    whole("per_class", per_class, 1, "Try --per-class 10.")
    whole("seed", seed, 0, "Try --seed 0.")
    where = as_data(data)
    if isinstance(method, Recipe):
        name, recipe, row, judge = "custom", method, Row(), "vico"
    else:
        published = registry().recipe(method)
        row, name, judge = settings_for(published, where.label, per_class), method, published.protocol
        recipe = published(per_class=per_class, **(options or {}))
        for path, value in row.settings.items():
            recipe = recipe.set(path, value)
    judged = checked(lambda: member(Protocol, protocol or row.protocol or judge), "protocol")
    if protocol in (None, row.protocol or judge):
        judged = overridden(judged, row.judging)
    network = None if net is None else as_net(net)
    if network is not None and network.name != "custom":
        recipe, judged = with_net(recipe, judged, network)
    if steps is not None:
        whole("steps", steps, 0, "Leave it out for the published number.")
        recipe = recipe.set("outer.steps", steps)
    computing = Execution(device=default_device(device)).model_dump()
    for path, value in (settings or {}).items():
        head, _, rest = path.partition(".")
        if head == "protocol" and rest:
            judged = overridden(judged, {rest: value})
        elif head == "execution" and rest:
            computing = replaced(computing, rest, value, "execution")
        else:
            recipe = recipe.set(path.removeprefix("recipe."), value)
    if network is not None and network.name == "custom":
        recipe, judged = with_net(recipe, judged, network)  # last: a live callable does not survive JSON
    computed = checked(lambda: Execution.model_validate(computing), "execution")
    return Plan(method=name, data=where, recipe=recipe, protocol=judged, seed=seed, execution=computed)


def whole(field: str, value: Any, least: int, remedy: str) -> None:
    """Refuse what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadValue(field, value, f"must be a whole number of {least} or more", remedy)


def as_net(value: Any) -> Net:
    """A `Net` from a name, a mapping, a Net, or any callable that returns a module."""
    if isinstance(value, str | Mapping | Net):
        return checked(lambda: member(Net, value), "net")
    return named(Net, "custom", live=value)


def with_net(recipe: Recipe, judged: Protocol, network: Net) -> tuple[Recipe, Protocol]:
    """Both with `network` in place of every network they name."""
    return recipe.rewrite(Net, lambda _: network), judged.with_(nets=(network,))


def overridden(judged: Protocol, changes: Mapping[str, Any]) -> Protocol:
    """The protocol with leaves changed by dotted path."""
    tree = judged.dump()
    for path, value in changes.items():
        tree = replaced(tree, path, value, "protocol")
    return checked(lambda: member(Protocol, tree), "protocol")


def default_device(asked: str | None) -> str:
    """The device that was asked for, if it can be used; else cuda where there is one, else cpu."""
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(asked).type
    except RuntimeError:
        raise BadValue("device", asked, "is no device of torch", "Use cpu, cuda or cuda:0.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise BadValue("device", asked, "cannot be used: torch sees no CUDA device here", "Use --device cpu.")
    return asked


def run(
    method: str | Recipe,
    *,
    out: str | Path | None = None,
    observers: Iterable[Any] = (),
    minutes: float | None = None,
    **planned: Any,
) -> Artifact:
    """Condense, and return the artifact written into `out` (default `runs/NAME-SET-N-SEED`). Arguments: see `plan`.

    A folder that holds the same plan is taken up where it was. Raises `Paused` after `minutes`, or at Ctrl-C, once the
    state is saved; `InUse` where `out` holds something else; `BadValue` and `BadData` before anything is written.
    """
    settled = plan(method, **planned)
    folder = Path(out) if out is not None else default_folder(settled)
    return carry_out(settled, folder, observers=observers, limits=Limits(minutes=minutes))


def resume(
    path: str | Path,
    *,
    data: Any = None,
    net: Any = None,
    observers: Iterable[Any] = (),
    minutes: float | None = None,
) -> Artifact:
    """Go on with the run in the folder `path` from its last checkpoint; a finished one is just opened.

    data, net: what was given to `run` as live examples or as a callable, which no file holds. Raises `BadValue` where it
    is missing or is not what the run began with; otherwise as `run`.
    """
    folder = Path(path)
    settled = stored_plan(folder)
    if data is not None:
        settled = settled.model_copy(update={"data": as_data(data)})
    if net is not None and settled.protocol is not None:
        recipe, judged = with_net(settled.recipe, settled.protocol, as_net(net))
        settled = settled.model_copy(update={"recipe": recipe, "protocol": judged})
    return carry_out(settled, folder, observers=observers, limits=Limits(minutes=minutes))


def default_folder(settled: Plan) -> Path:
    size = settled.recipe.budget.dump().get("n", "set")
    return Path("runs") / f"{settled.method}-{settled.data.label}-{size}-{settled.seed}"


def stored_plan(folder: Path) -> Plan:
    """The plan that a run wrote before its first step."""
    path = folder / ".run" / "plan.json"
    if not path.is_file():
        raise BadValue("path", str(folder), "holds no run of condense", "Give the --out folder of a run.")
    try:
        return Plan.model_validate(files.read_json(path))
    except ValidationError as error:
        raise bad_value(error, str(path)) from None


def carry_out(settled: Plan, folder: Path, *, observers: Iterable[Any] = (), limits: Limits | None = None) -> Artifact:
    """Run a plan in a folder: check everything, write the plan, take the steps, write the artifact."""
    started = open_run(settled, folder, observers, limits or Limits())
    settled = started.plan
    if holds(folder, settled) == "finished":
        return load(folder)
    with Lock(private_folder(folder)):
        files.write_json(folder / ".run" / "plan.json", settled.model_dump(mode="json"))
        with started.interruptible(), execution.using(execution.passes(settled.execution)):
            syn = condense(started)
        artifact = write_artifact(folder, settled, syn, started.transform, started.task, provenance(started))
    started.hooks.hook.condense_finished(run=started, artifact=artifact)
    return artifact


def holds(folder: Path, settled: Plan) -> str:
    """What the output folder holds of this plan: nothing, a run that was begun, or a finished one. Else raises `InUse`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return "nothing"
    remedy = "Give another folder with --out, or remove this one."
    if not folder.is_dir() or not (folder / ".run" / "plan.json").is_file():
        raise InUse("out", str(folder), "exists and is no run of condense", remedy)
    if files.read_json(folder / ".run" / "plan.json") != settled.model_dump(mode="json"):
        raise InUse("out", str(folder), "holds a run of another plan", remedy)
    return "finished" if (folder / "manifest.json").is_file() else "begun"


def open_run(settled: Plan, folder: Path | None, observers: Iterable[Any], limits: Limits) -> Run:
    """Open the data and let every part refuse what it cannot do. Nothing is written, nothing is computed."""
    recipe, device = settled.recipe, torch.device(settled.execution.device)
    splits = settled.data.open(device)
    splits.train.admit(recipe)
    transform = recipe.preprocess.fit(splits.train, splits.facts).to(device)
    splits = splits.map(lambda source: source.encoded(transform))
    started = Run(settled, splits, transform, run_manager(observers), folder, limits)
    check_recipe(recipe, started.task)
    check_memory(recipe, splits.train, device)
    recipe.init.admit(splits.train, recipe.budget.allot(splits.train))
    computing = execution.settled(settled.execution, cost(recipe, splits.train))
    return replace(started, plan=settled.model_copy(update={"execution": computing}))


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
        },
        "versions": {**versions(), "torch": torch.__version__, "python": platform.python_version()},
        "machine": machine(device),
        "seconds": round(done.seconds(), 1),
        "peak_memory_bytes": peak_memory(device),
        "assets": done.assets.used,
        "notes": {key: value for key, value in done.notes.items() if key != "seconds"},
    }


__all__ = ["carry_out", "load", "plan", "resume", "run"]
