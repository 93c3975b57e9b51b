"""What a run will need of memory, estimated before it starts, and what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Asset, Net, Objective, Pairing
from .data import Sampler, Source
from .errors import NoRoom
from .protocol import Protocol
from .recipe import Recipe
from .task import Task

PASSES = 3  # activations are held once forward, and up to twice more by a second-order backward


def check_memory(recipe: Recipe, source: Source, device: torch.device) -> None:
    """Refuse a recipe whose set and largest pass do not fit into the memory that is free; raises `NoRoom`."""
    needed, free = estimate(recipe, source), available(device)
    if needed > free:
        problem = f"about {needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} GiB are free on {device}"
        unrolled = any(isinstance(part, Objective) and part.held(1) for part in recipe.walk())
        fewer = "fewer steps at a time (objective.segment)" if unrolled else "smaller batches (objective.pairing.n)"
        remedy = f"Ask for a smaller set, {fewer}, or a narrower network."
        raise NoRoom("memory", f"{needed / 2**30:.1f} GiB", problem, remedy)


def estimate(recipe: Recipe, source: Source) -> int:
    """Bytes: the set with its gradient and momentum, and the activations of the largest pass of the largest network."""
    task, items = source.task, recipe.budget.items(source)
    example = 4 * sum(t.numel() for t in task.form.pack(task.form.blank(task, 1)).values())
    stored = 4 * items * example
    sizes = [
        min(size, _whole(part, "block") or size)
        for part in recipe.walk()
        for key in ("n", "batch")
        if (size := _whole(part, key))
    ]
    rows = min(max([*sizes, 1]), max(items, len(source)))
    rows = max([rows, *(part.held(items) for part in recipe.walk() if isinstance(part, Objective))])
    nets = [part for part in recipe.walk() if isinstance(part, Net)]
    return stored + max([PASSES * rows * activations(net, task) for net in nets], default=0)


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
    within = [part for asset in assets for part in asset.walk()]
    epochs = [_whole(part, "epochs") for part in recipe.walk() if not any(part is other for other in within)]
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
    examples = fit.length(data) * min(fit.batch or len(data), len(data))
    passes = protocol.repeats * (PASSES * examples + tested)
    return passes * sum(activations(net, data.task) for net in protocol.nets) / 2**30


def _whole(part: Any, key: str) -> int:
    value = getattr(part, key, None)
    return value if isinstance(value, int) and part is not None and key in type(part).model_fields else 0


def activations(net: Net, task: Task) -> int:
    """Bytes that one example's forward pass leaves behind in float32; 0 where the network needs data to be built."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor) and not list(module.children()):
            total += 4 * output.numel() // max(1, len(output))

    try:
        with torch.device("meta"):
            module = net.build(task)
            x = task.form.blank(task, 2)
    except (NotImplementedError, RuntimeError, TypeError):
        return 0
    for part in module.modules():
        part.register_forward_hook(count)
    try:
        module(x)
    except (NotImplementedError, RuntimeError, TypeError):
        return 0
    return total


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
