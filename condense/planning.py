"""Planning: from what somebody asks for to a whole run as a value."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from .axes import Metric, Net
from .component import checked, member, named
from .data import Data
from .errors import BadValue, listed, nearest
from .given import as_data
from .isolation import blaming
from .plugins import registry
from .protocol import Protocol
from .published import Row, settings_for, usual_size
from .recipe import Execution, Plan, Published, Recipe, replaced
from .sizes import SIZES, Size, arguments, asked_size, default_size, spelt, taken, whole

P = TypeVar("P", Recipe, Protocol)
AS = "as:"  # before a method's name: its judge


def plan(
    method: str | Recipe,
    *,
    data: Any = "digits",
    per_class: int | None = None,
    total: int | None = None,
    ratio: float | None = None,
    of: str = "train",
    seed: int = 0,
    steps: int | None = None,
    device: str | torch.device | None = None,
    net: Any = None,
    protocol: Any = None,
    settings: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    published: bool = True,
) -> Plan:
    """The whole run as a value, validated; no data is read.

    method: a recipe's name, or a `Recipe`; a name is looked up among the methods for the form of the data. data: a name
    (`cifar10`, `folder:PATH`), a `Data`, a torch Dataset, or tensors (x, y). per_class, total, ratio: the size, one of
    these, or none for the method's own; ratio: a share `of` the items to learn from ("train"), or of "all". net: a
    `Net`, its name, or any callable that returns a module; replaces the networks of pool and judge. protocol: None
    for the method's own; for a `Recipe`, that of the data's form; `as:METHOD` for that of another method. options:
    arguments of the recipe's function. settings: leaves by dotted path, of the recipe, or below `data.`, `protocol.`
    and `execution.`. What is asked for wins over published settings. published: False leaves out the settings that were
    published for this data set, so that the method's defaults for any set remain; it is judged by the same rules.
    Raises `BadValue` naming the field, its value and the remedy.
    """
    size = asked_size(per_class, total, ratio, of)
    seed = whole("seed", seed, 0, "Try --seed 0.")
    if not isinstance(method, str | Recipe):
        raise BadValue("method", method, "is neither a name nor a Recipe", "See what there is: condense list.")
    for field, given in (("settings", settings), ("options", options)):
        if given is not None and not (isinstance(given, Mapping) and all(isinstance(key, str) for key in given)):
            raise BadValue(field, given, "is no mapping of names to values", f"Give {field}={{name: value}}.")
    changes = by_part(settings or {})
    where = with_leaves(as_data(data), changes["data"])
    if isinstance(method, Recipe):
        name, recipe, row, rules = "custom", method, Row(), registry().protocol(where.form)
    else:
        name, found = method, method_for(method, where)
        size = settled_size(name, found, where.published_as, size)
        row = settings_for(found, where.published_as, size.per_class, size.total, plain=not published)
        rules = row.protocol or found.protocol
        check_options(name, found, options or {})
        recipe = published_recipe(found, row, arguments(name, found.make, size), options or {})
    network = None if net is None else as_net(net)
    live = network is not None and network.name == "custom"
    if network is not None and not live:
        recipe = with_net(recipe, network)
    if steps is not None:
        steps = whole("steps", steps, 0, "Leave it out for the published number.")
        recipe = recipe.set("outer.steps", steps)
    for path, value in changes["recipe"].items():
        recipe = recipe.set(path, value)
    judged = judge_for(protocol or rules, where, size, recipe)
    if protocol in (None, rules):
        judged = overridden(judged, row.judging)
    if network is not None and not live:
        judged = judged_on(judged, network)
    judged = overridden(judged, changes["protocol"])
    if network is not None and live:  # last: a live callable does not survive JSON
        recipe, judged = with_net(recipe, network), judged_on(judged, network)
    computing = execution_of(default_device(device), changes["execution"])
    return Plan(method=name, data=where, recipe=recipe, protocol=judged, seed=seed, execution=computing)


def by_part(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by what they are of, each by its path below that: of the recipe, where nothing else is named."""
    found: dict[str, dict[str, Any]] = {"recipe": {}, "data": {}, "protocol": {}, "execution": {}}
    for path, value in settings.items():
        head, _, rest = path.partition(".")
        part, below = (head, rest) if head in found and rest else ("recipe", path)
        found[part][below] = value
    return found


def with_leaves(where: Data, changes: Mapping[str, Any]) -> Data:
    """The data with leaves changed by dotted path."""
    for path, value in changes.items():
        tree, field = replaced(where.dump(), path, value, "data"), path.partition(".")[0]
        where = checked(partial(where.with_, **{field: tree[field]}), "data")
    return where


def execution_of(device: str, changes: Mapping[str, Any]) -> Execution:
    tree = Execution(device=device).model_dump()
    for path, value in changes.items():
        tree = replaced(tree, path, value, "execution")
    return checked(lambda: Execution.model_validate(tree), "execution")


def method_for(name: str, where: Data) -> Published:
    """The method called `name` for data of this form; raises `BadValue` where there is none."""
    found = registry()
    others = found.forms(name) if name not in found.recipes(where.form) else []
    if others:
        holds, condensed = found.noun(where.form), " or ".join(map(found.noun, others))
        problem = f"condenses {condensed}, and {where.label} holds {holds}"
        fitting = listed(name for name, data in found.members(Data).items() if data.form in others)
        remedy = f"Methods for {holds}: {listed(found.recipes(where.form))}. Data sets of {condensed}: {fitting}."
        raise BadValue("recipe", name, problem, remedy)
    return found.recipe(name, where.form)


def check_options(name: str, method: Published, options: Mapping[str, Any], field: str = "options") -> None:
    """Refuse what is no argument of the method's function. field: how whoever gave them calls them."""
    known = [key for key in inspect.signature(method.make).parameters if key not in (*SIZES, "of")]
    for key in options:
        if key not in known:
            raise BadValue(field, key, f"is no argument of {name}", nearest(key, known))


def settled_size(name: str, method: Published, data: str, size: Size) -> Size:
    """The size that is asked for, else the method's default, else the usual one for this data set."""
    found = size if size.given else default_size(method.make)
    if found is None:
        found = usual_size(method, data)
        if not found.given:
            problem = f"has no usual size for {data}, and none is given"
            raise BadValue("recipe", name, problem, f"Give {spelt(taken(method.make))}.")
    return found


def published_recipe(method: Published, row: Row, sizes: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
    """The recipe with its options and the published settings, but for settings that an option changes."""
    with blaming():
        plain, recipe = method(**sizes), method(**sizes, **options)
    for path, value in row.settings.items():
        if leaf(plain.dump(), path) == leaf(recipe.dump(), path):
            recipe = recipe.set(path, value)
    return recipe


def leaf(tree: Any, path: str) -> Any:
    """What stands at a dotted path of JSON data; None where it leads nowhere."""
    for key in path.split("."):
        if isinstance(tree, list) and key.isdigit() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def judge_for(value: Any, where: Data, size: Size | None = None, recipe: Recipe | None = None) -> Protocol:
    """The protocol, from its name or settings too; where it names no metrics, it scores by that of the data.

    A name: with what follows from how sets of `recipe` are made. A text `as:METHOD`: as sets of that method are judged
    on this data at this size, with its published settings.
    """
    if isinstance(value, str) and value.startswith(AS):
        name = value.removeprefix(AS)
        found = method_for(name, where)
        size = settled_size(name, found, where.published_as, size or Size())
        row = settings_for(found, where.published_as, size.per_class, size.total)
        made = published_recipe(found, row, arguments(name, found.make, size), {})
        return overridden(judge_for(row.protocol or found.protocol, where, recipe=made), row.judging)
    judged = checked(lambda: member(Protocol, value), "protocol")
    if where.metric is not None and "metrics" not in judged.model_fields_set:
        judged = judged.with_(metrics=(named(Metric, where.metric),))
    return judged.following(recipe) if recipe is not None and isinstance(value, str) else judged


def as_net(value: Any) -> Net:
    """A `Net` from a name, a mapping, a Net, or any callable that returns a module."""
    if isinstance(value, str | Mapping | Net):
        return checked(lambda: member(Net, value), "net")
    return named(Net, "custom", live=value)


def with_net(part: P, network: Net) -> P:
    """A recipe or a protocol with `network` in place of every network it names; what is around one, stays around it.

    Raises `BadValue` where there is no place for one.
    """

    def put(net: Net) -> Net:
        around = any(isinstance(below, Net) for below in net.walk()[1:])
        return net.rewrite(Net, put) if around else network

    return checked(lambda: part.rewrite(Net, put), "net")


def judged_on(judged: Protocol, network: Net) -> Protocol:
    """The protocol that judges by this network alone."""
    return with_net(judged.with_(nets=judged.nets[:1]), network)


def overridden(judged: Protocol, changes: Mapping[str, Any]) -> Protocol:
    """The protocol with leaves changed by dotted path; itself where none are: a live network survives no JSON."""
    if not changes:
        return judged
    tree = judged.dump()
    for path, value in changes.items():
        tree = replaced(tree, path, value, "protocol")
    return checked(lambda: member(Protocol, tree), "protocol")


def default_device(asked: str | torch.device | None) -> str:
    """The device that was asked for, if it can be used; else cuda where there is one, else cpu."""
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError):
        raise BadValue("device", asked, "is no device of torch", "Use cpu, cuda or cuda:0.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        problem = f"cannot be used: torch sees {torch.cuda.device_count()} CUDA devices here"
        raise BadValue("device", asked, problem, "Use --device cpu.")
    if device.type == "meta":
        raise BadValue("device", asked, "computes nothing", "Use cpu, cuda or cuda:0.")
    return str(device)


def on_device(settled: Plan, device: str | torch.device | None) -> Plan:
    """The plan, computed on `device`; None: where it says, or on the CPU if this machine has no such device."""
    there = settled.execution.device
    if device is None and (torch.device(there).type != "cuda" or torch.cuda.is_available()):
        return settled
    return settled.model_copy(update={"execution": Execution(device=default_device(device))})
