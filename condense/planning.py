"""Planning: from what somebody asks for to a whole run as a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .axes import Net
from .component import checked, member, named
from .errors import BadValue
from .given import as_data
from .isolation import blaming
from .plugins import registry
from .protocol import Protocol
from .published import Row, settings_for
from .recipe import Execution, Plan, Published, Recipe, replaced


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

    method: a recipe's name, or a `Recipe`. data: a name (`cifar10`, `folder:PATH`), a `Data`, a torch Dataset, or
    tensors (x, y). net: a `Net`, its name, or any callable that returns a module; replaces the networks of pool and
    judge. options: arguments of the recipe's function. settings: leaves by dotted path, of the recipe, or below
    `protocol.` and `execution.`. What is asked for wins over published settings. Raises `BadValue` naming the field,
    its value and the remedy.
    """
    whole("per_class", per_class, 1, "Try --per-class 10.")
    whole("seed", seed, 0, "Try --seed 0.")
    if not isinstance(method, str | Recipe):
        raise BadValue("method", method, "is neither a name nor a Recipe", "See what there is: condense list.")
    where = as_data(data)
    if isinstance(method, Recipe):
        name, recipe, row, rules = "custom", method, Row(), "vico"
    else:
        published = registry().recipe(method)
        row = settings_for(published, where.name, per_class)
        name, rules = method, row.protocol or published.protocol
        recipe = published_recipe(published, row, per_class, options or {})
    judged = checked(lambda: member(Protocol, protocol or rules), "protocol")
    if protocol in (None, rules):
        judged = overridden(judged, row.judging)
    network = None if net is None else as_net(net)
    if network is not None and network.name != "custom":
        recipe, judged = with_net(recipe, judged, network)
    if steps is not None:
        whole("steps", steps, 0, "Leave it out for the published number.")
        recipe = recipe.set("outer.steps", steps)
    computing = Execution(device=default_device(device)).model_dump()
    for path, value in (settings or {}).items():
        match path.partition("."):
            case ("protocol", _, rest) if rest:
                judged = overridden(judged, {rest: value})
            case ("execution", _, rest) if rest:
                computing = replaced(computing, rest, value, "execution")
            case _:
                recipe = recipe.set(path.removeprefix("recipe."), value)
    if network is not None and network.name == "custom":
        recipe, judged = with_net(recipe, judged, network)  # last: a live callable does not survive JSON
    computed = checked(lambda: Execution.model_validate(computing), "execution")
    return Plan(method=name, data=where, recipe=recipe, protocol=judged, seed=seed, execution=computed)


def published_recipe(published: Published, row: Row, per_class: int, options: Mapping[str, Any]) -> Recipe:
    """The recipe with its options and the published settings, but for settings that an option changes."""
    with blaming():
        plain, recipe = published(per_class=per_class), published(per_class=per_class, **options)
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
        device = torch.device(asked)
    except RuntimeError:
        raise BadValue("device", asked, "is no device of torch", "Use cpu, cuda or cuda:0.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        problem = f"cannot be used: torch sees {torch.cuda.device_count()} CUDA devices here"
        raise BadValue("device", asked, problem, "Use --device cpu.")
    if device.type == "meta":
        raise BadValue("device", asked, "computes nothing", "Use cpu, cuda or cuda:0.")
    return asked
