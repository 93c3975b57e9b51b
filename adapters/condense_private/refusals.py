"""What a private source refuses, by the part at fault: the leak, and what to use in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from condense import execution
from condense.axes import Net, Statistic, Warp
from condense.component import Component
from condense.errors import BadValue, NotBuilt
from condense.recipe import Recipe
from condense.task import Batch, Task

TRIED = 4  # public random records on which a statistic is tried

# axis -> (what reading examples there would publish, what to use instead)
LEAKS = {
    "init": ("starts from real examples, which would stand in the released set", "Start from noise: --set init=noise."),
    "labels": ("labels the set by what a network learned from private examples", "Use --set labels=hard."),
    "selection": ("chooses a set by its score on private examples", "Release the last set: --set selection=null."),
    "pool": ("trains networks on private examples", "Train them on the set: pool.on=synthetic, or use fresh ones."),
    "asset": ("makes something of private examples (experts, teachers, statistics)", "Make it of public data."),
    "objective": ("reads private examples itself", "Use one that only measures: `matching`."),
    "pairing": ("reads private examples itself", "Use class-wise or joint."),
    "parameterization": ("is shaped by private examples", "Use pixels, or a generator with public weights."),
    "budget": ("divides the set by the sizes of the private classes", "Ask for as many of each class: --per-class."),
    "preprocess": (
        "is fitted on private examples",
        "Use constants: --set preprocess=normalise for images, --set preprocess.scale=none for graphs.",
    ),
}
UNKNOWN = ("does not say what it reads of the data", "Let it define `reads`.")


def leaks(recipe: Recipe) -> list[Component]:
    """The parts of a recipe that read private examples, or do not say what they read."""
    return [part for part in recipe.walk() if part is not recipe and part.reads(recipe).examples]


def refuse_reads(recipe: Recipe) -> None:
    """Refuse a recipe of which a part reads more than measures. Raises `BadValue` naming every leak and its remedy."""
    found = [(part, *LEAKS.get(part.axis, UNKNOWN)) for part in leaks(recipe)]
    if found:
        (part, why, remedy), *others = found
        more = [f"Nor can {other.axis}={other.name}: it {its}. {use}" for other, its, use in others]
        raise BadValue(part.axis, part.name, f"cannot be used on private data: it {why}", " ".join([remedy, *more]))
    if not measures(recipe):
        problem = "takes no measure of the private data, and reads none of it: nothing would be learned"
        raise BadValue("recipe", "no measure", problem, "Use a method that measures; docs/privacy.md lists them.")


def measures(recipe: Recipe) -> int:
    """How many measures a run of the recipe takes."""
    reads = recipe.total_reads()
    return reads.once + reads.per_step * recipe.outer.steps


def refuse_batch_norm(net: Net, task: Task) -> None:
    """Refuse a network that normalises over the batch: one record then changes the rows of all others.

    Measured, a replaced record moves such a sum by 9 times the bound; of instance or group norm, never beyond it.
    """
    with torch.device("meta"):
        module = net.build(task)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            problem = "normalises over the batch, so that one record changes what is said of all others"
            raise BadValue("net", net.name, problem, "Use instance or group norm (conv-net, norm=instance).")


def check_rows(statistic: Statistic, model: nn.Module, task: Task, device: torch.device) -> None:
    """Try a statistic on random public records: is each row that of its record alone, and the mean theirs?

    In float32, as records are clipped: the rounding of a run's compiled passes is no neighbour. Raises `BadValue` where
    it is not: batch norm, and whatever looks at its neighbours, in strangers' parts too; and where the network itself
    changes by being asked.
    """
    batch = public_records(task, device)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with execution.using(execution.EAGER):
        rows = rows_of(statistic, model, batch, task)
        for i in range(TRIED):
            one = Batch(task.form.take(batch.x, slice(i, i + 1)), batch.y[i : i + 1])
            alone = rows_of(statistic, model, one, task)
            _same(statistic, {key: value[i : i + 1] for key, value in rows.items()}, alone)
        mean = statistic.mean(model, batch, task, live=False)
        _same(statistic, {key: value.mean(0) for key, value in rows.items()}, mean)
    kept = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    if kept:
        problem = f"is asked of a network that keeps statistics of the records it sees ({kept[0]}), without noise"
        raise BadValue("objective.statistic", statistic.name, problem, "Use norms without running statistics.")


def check_warps(warps: Sequence[Warp], task: Task) -> None:
    """Try augmentations on random public records: does each record become one, and by itself? Raises `BadValue`.

    On the CPU, where they are drawn: each measure asks, and should not wait for a GPU.
    Of one that becomes two, each would be clipped, and the sum would move by twice the bound.
    """
    batch = public_records(task, torch.device("cpu"))
    first = Batch(task.form.take(batch.x, slice(0, 1)), batch.y[:1])
    for warp in warps:
        together, alone = warp(batch), warp(first)
        problem = "mixes records with each other" if warp.mixes else ""
        if (len(together), len(alone)) != (TRIED, 1):
            problem = f"makes {len(together)} examples of {TRIED} records: each would count more than once"
        elif not _alike(_packed(task, together, slice(0, 1)), _packed(task, alone, slice(0, 1))):
            problem = "makes of a record what depends on the other records of its batch"
        if problem:
            raise BadValue("augment", type(warp).__name__, problem, "Use --set augment=none or dsa.")


def _packed(task: Task, batch: Batch, part: slice) -> dict[str, Tensor]:
    return {**task.form.pack(task.form.take(batch.x, part)), "its label": batch.y[part]}


def rows_of(statistic: Statistic, model: nn.Module, batch: Batch, task: Task) -> Mapping[str, Tensor]:
    """The rows of a statistic; raises `NotBuilt` where it has none."""
    try:
        return statistic.rows(model, batch, task)
    except NotBuilt:
        raise
    except NotImplementedError as error:
        problem = "says nothing of each example alone (it has no `rows`), so that no example can be clipped"
        raise NotBuilt("objective.statistic", statistic.name, problem, "Use gradient or mean-feature.") from error


def public_records(task: Task, device: torch.device) -> Batch:
    """Random examples in a network's input scale, which nobody's data went into."""
    generator = torch.Generator().manual_seed(0)
    blank = task.form.pack(task.form.blank(task, TRIED))
    drawn = {k: torch.randn(t.shape, generator=generator) if t.is_floating_point() else t for k, t in blank.items()}
    y = torch.arange(TRIED) % task.groups
    return Batch(task.form.to(task.form.unpack(drawn), device), y.to(device))


def _same(statistic: Statistic, together: Mapping[str, Tensor], alone: Mapping[str, Tensor]) -> None:
    for key in together:
        if not _alike(together, alone, key):
            problem = f"says of a record ({key}) what depends on the other records of its batch"
            remedy = "Clipping such rows bounds nothing. Use networks without batch norm, and statistics by record."
            raise BadValue("objective.statistic", statistic.name, problem, remedy)


def _alike(together: Mapping[str, Tensor], alone: Mapping[str, Tensor], *keys: str) -> bool:
    """Are these entries (none named: all) the same up to rounding? Entries of true length 0 are rounding."""
    scale = max(float(value.abs().max()) for value in together.values()) or 1.0
    return all(
        together[key].shape == alone[key].shape
        and torch.allclose(together[key].double(), alone[key].double(), rtol=1e-3, atol=1e-4 * scale)
        for key in keys or together
    )


__all__ = ["check_rows", "check_warps", "leaks", "measures", "refuse_batch_norm", "refuse_reads"]
