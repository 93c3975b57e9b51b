"""What a run will need of memory, estimated before it starts, and what there is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Asset, Budget, Init, Net, Objective, Pairing
from .component import Component
from .data import Sampler, Source
from .errors import NoRoom
from .protocol import Protocol
from .recipe import Recipe
from .task import Task

PASSES = 3  # activations are held once forward, and up to twice more by a second-order backward; weights likewise
TOGETHER = 8192  # examples in one training step of networks that are trained in step


def check_memory(recipe: Recipe, source: Source, device: torch.device) -> None:
    """Refuse a recipe whose set and largest pass do not fit into the memory that is free; raises `NoRoom`."""
    remedy = f"Ask for a smaller set, {_largest(recipe, source)[1]}, or a narrower network."
    _check(estimate(recipe, source), device, remedy)


def check_judging(protocol: Protocol, data: Sampler, device: torch.device) -> None:
    """Refuse networks of a protocol of which not even one fits, training on `data`, into the memory that is free on
    `device`; raises `NoRoom`.
    """
    rows = in_a_step(protocol.fit(data).batch, data)
    for i, net in enumerate(protocol.nets):
        one = trace(net, data.task)
        needed = rows * (one.total + 2 * one.largest) + PASSES * one.weights
        _check(needed, device, f"Ask for a narrower or smaller network (protocol.nets.{i}).")


def _check(needed: int, device: torch.device, remedy: str) -> None:
    free = available(device)
    if needed > free:
        problem = f"about {needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free on {device}"
        raise NoRoom("memory", f"{needed / 2**30:.1f} GiB", problem, remedy)


def estimate(recipe: Recipe, source: Source) -> int:
    """Bytes: the set with its gradient and momentum, and the activations of the largest pass of the largest network.

    Real examples that meet the set block by block (`block`) leave nothing behind but their features.
    """
    task, items = source.task, recipe.budget.items(source)
    example = 4 * sum(t.numel() for t in task.form.pack(task.form.blank(task, 1)).values())
    rows, _ = _largest(recipe, source)
    passed = [trace(part, task) for part in recipe.walk() if isinstance(part, Net)]
    streams = [(_whole(part, "n") or len(source), part) for part in recipe.walk() if _whole(part, "block")]
    streamed = [
        2 * min(n, _whole(part, "block")) * each.largest + 8 * min(n, len(source)) * each.features
        for n, part in streams
        for each in passed
    ]
    held = [PASSES * (rows * each.total + each.weights) for each in passed]
    return 4 * items * example + max(held, default=0) + max([*streamed, 0])


def _largest(recipe: Recipe, source: Source) -> tuple[int, str]:
    """The most examples whose activations are held at a time, and what would make them fewer."""
    items, everything = recipe.budget.items(source), max(recipe.budget.items(source), len(source))
    on_real = [part for part in recipe.walk() if isinstance(part, Asset) or getattr(part, "on", None) == "real"]
    trained_on_real = within(on_real)
    found = [(1, "smaller batches (objective.pairing.n)")]
    for part in recipe.walk():
        if isinstance(part, Objective):
            unrolled = "segment" in type(part).model_fields
            fewer = "fewer steps at a time (objective.segment)" if unrolled else "fewer items at a time"
            found.append((part.held(items), fewer))
        if batch := _whole(part, "batch"):
            most = everything if id(part) in trained_on_real else items
            found.append((min(batch, most), "smaller batches (pool.inner.batch)"))
        if (n := _whole(part, "n")) and not _whole(part, "block") and not isinstance(part, Budget | Init):
            path = "objective.pairing.n" if isinstance(part, Pairing) else "objective.n"
            found.append((min(n, everything), f"smaller batches ({path})"))
    return max(found, key=lambda each: each[0])


def within(owners: Iterable[Component]) -> set[int]:
    """The parts of these parts, themselves included, by identity: equal ones may stand elsewhere, too."""
    return {id(part) for owner in owners for part in owner.walk()}


def cost(recipe: Recipe, source: Source) -> float:
    """Seconds that the network passes of the outer steps take on one core, eagerly, in order of magnitude.

    Measured: a pass leaves about a gigabyte of activations behind in a second. Counted are the forward passes of the
    pairing's real examples and of the epochs that the pool trains for on the set, and the trainings of assets on all of
    the data. 0 for examples that are no rows, whose passes are not compiled.
    """
    if not source.task.form.in_rows:
        return 0.0
    nets = [part for part in recipe.walk() if isinstance(part, Net)]
    heaviest = max([activations(net, source.task) for net in nets], default=0)
    asked = max([_whole(part, "n") for part in recipe.walk() if isinstance(part, Pairing)], default=0)
    real = min(asked * source.task.groups, len(source))
    items = recipe.budget.items(source)
    assets = [part for part in recipe.walk() if isinstance(part, Asset)]
    theirs = within(assets)
    epochs = [_whole(part, "epochs") for part in recipe.walk() if id(part) not in theirs]
    trained = PASSES * items * max(epochs, default=0)
    made = sum(PASSES * len(source) * _trained(asset) for asset in assets)
    return (recipe.outer.steps * (real + items + trained) + made) * heaviest / 2**30


def _trained(asset: Asset) -> int:
    """Epochs on all of the data that the trainings of an asset take together."""
    return max(1, _whole(asset, "count")) * max([_whole(part, "epochs") for part in asset.walk()], default=0)


def judging_cost(protocol: Protocol, data: Sampler, tested: int = 0) -> float:
    """Seconds that judging `data` takes on one core, eagerly, in order of magnitude.

    Counted are the trainings, and one pass of each network over `tested` examples.

    0 for examples that are no rows, as in `cost`.
    """
    if not data.task.form.in_rows:
        return 0.0
    fit = protocol.fit(data)
    examples = fit.length(data) * in_a_step(fit.batch, data)
    passes = protocol.repeats * (PASSES * examples + tested)
    return passes * sum(activations(net, data.task) for net in protocol.nets) / 2**30


def together(net: Net, data: Sampler, batch: int | None) -> int:
    """How many networks may be trained in step: as many as half of the free memory holds, and at most so many that a
    training step is on `TOGETHER` examples.
    """
    rows = in_a_step(batch, data)
    each = PASSES * rows * max(1, activations(net, data.task))
    return max(1, min(TOGETHER // rows, available(data.device) // 2 // each))


def in_a_step(batch: int | None, data: Sampler) -> int:
    """Examples in a training step."""
    return min(batch or len(data), len(data))


def _whole(part: Any, key: str) -> int:
    value = getattr(part, key, None)
    return value if isinstance(value, int) and part is not None and key in type(part).model_fields else 0


@dataclass(frozen=True)
class Trace:
    """Bytes that one example's forward pass leaves behind in float32, of all layers and of the largest; the number of
    its features; and the bytes of the network's weights. 0 where the network needs data to be built.
    """

    total: int = 0
    largest: int = 0
    features: int = 0
    weights: int = 0


def activations(net: Net, task: Task) -> int:
    """Bytes that one example's forward pass leaves behind in float32; 0 where the network needs data to be built."""
    return trace(net, task).total


def trace(net: Net, task: Task) -> Trace:
    """What one example's forward pass leaves behind, and what of."""
    left: list[int] = []

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not list(module.children()):
            left.append(4 * output.numel() // max(1, len(output)))

    try:
        with torch.device("meta"):
            module = net.build(task)
            x = task.form.blank(task, 2)
        features = module.features(x)[0].numel() if hasattr(module, "features") else 0  # type: ignore[operator]
        for part in module.modules():
            part.register_forward_hook(count)
        module(x)
    except (NotImplementedError, RuntimeError, TypeError):
        return Trace()
    return Trace(sum(left), max(left, default=0), features, 4 * sum(p.numel() for p in module.parameters()))


def available(device: torch.device) -> int:
    """Free bytes: of the GPU, or of the machine and the control group that this process lives in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_control_group(), _meminfo()]
    return min([limit for limit in limits if limit is not None], default=2**62)


def _meminfo() -> int | None:
    listing = Path("/proc/meminfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _control_group() -> int | None:
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if not (limit.exists() and used.exists()):
        return None
    text = limit.read_text().strip()
    return None if text == "max" else max(0, int(text) - int(used.read_text()))
