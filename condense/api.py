"""condense from Python: `run`, `resume`, `load`."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import execution, files
from .artifact import Artifact, load, write_artifact
from .axes import Net
from .checkpoint import Lock, private_folder
from .component import Component, checked, member
from .data import Data, Splits
from .engine import condense, open_set
from .errors import BadValue, Damaged, InUse
from .evaluate import Protocol
from .plugins import registry, run_manager, versions
from .published import settings_for
from .recipe import Execution, Plan, Recipe, Reads, check_recipe, replaced
from .run import Limits, Run


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
    """The whole run as a value, validated; nothing is read but the settings files.

    method: a recipe's name, or a `Recipe`. data: a name (`cifar10`, `folder:PATH`), a `Data`, a torch Dataset, or tensors
    (x, y). net: a `Net`, its name, or any callable that returns a module; replaces the networks of pool and judge.
    settings: leaves by dotted path, of the recipe, or of `protocol.` and `execution.`; they win over published settings.
    Raises `BadValue` naming the field, its value and the remedy.
    """
    opened = as_data(data)
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise BadValue("per_class", per_class, "must be a whole number of 1 or more", "Try --per-class 10.")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
        raise BadValue("steps", steps, "must be a whole number of 0 or more", "Leave it out for the published number.")
    if isinstance(method, Recipe):
        name, recipe, row = "custom", method, None
        judge: dict[str, Any] = {"name": protocol or "vico"}
    else:
        published = registry().recipe(method)
        row = settings_for(published, opened.label, per_class)
        name, recipe = method, apply(published(per_class=per_class, **(options or {})), row.settings)
        judge = {"name": protocol or row.protocol or published.protocol}
    judged = checked(lambda: member(Protocol, protocol if isinstance(protocol, Protocol) else judge), "protocol")
    if row is not None:
        judged = overridden(judged, row.judging)
    if net is not None:
        network = as_net(net)
        recipe = recipe.rewrite(Net, lambda _: network)
        judged = judged.with_(nets=(network,))
    if steps is not None:
        recipe = recipe.set("outer.steps", steps)
    computed = default_execution(device)
    for path, value in (settings or {}).items():
        head, _, rest = path.partition(".")
        if head == "protocol" and rest:
            judged = overridden(judged, {rest: value})
        elif head == "execution" and rest:
            computed = checked(lambda: Execution.model_validate({**computed.model_dump(), rest: value}), "execution")  # noqa: B023
        else:
            recipe = recipe.set(path.removeprefix("recipe."), value)
    return Plan(method=name, data=opened, recipe=recipe, protocol=judged, seed=seed, execution=computed)
