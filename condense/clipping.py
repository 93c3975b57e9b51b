"""Per-example clipping: each example's statistic is cut to a length, and the examples of a group are added up.

What private sources rest on (Abadi et al., arXiv:1607.00133, algorithm 1): however far an example lies from all others,
with it and without it the sum of its group differs by `bound` at most.

Lengths are of all parts of an example together, not of each part. Rows are float32; their lengths and their sums are
float64, so that the order in which many examples are added up does not show: in float32 the sum of 60,000 rows errs by
a tenth of `bound` and more, and errs otherwise without one of them. A row whose length is not a finite number (NaN, or
beyond float32) counts as zero: nothing of such an example is released, and no error tells that there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .errors import BadValue

Tensors = Mapping[str, Tensor]
LONGEST = 8192  # numbers whose squares are added up in float32: more would lose a digit


def lengths(rows: Tensors) -> Tensor:
    """The L2 length of each row over all parts together, (N,) float64; parts are (N, *shape)."""
    squares = [_short(row.detach()).double().square().sum(dim=1) for row in rows.values()]
    return torch.stack(squares).sum(dim=0).sqrt()


def _short(row: Tensor) -> Tensor:
    """(N, n) with the lengths of (N, *shape), in less memory: of weights the length of each output's own weights."""
    size = row[0].numel() // max(1, row.shape[1]) if row.dim() > 2 else LONGEST + 1
    if row.dtype != torch.float32 or not 1 < size <= LONGEST:
        return row.flatten(1) if row.dim() > 1 else row.unsqueeze(1)
    short: Tensor = torch.linalg.vector_norm(row, dim=tuple(range(2, row.dim())))
    return short


def clipped_sum(rows: Tensors, member: Tensor, bound: Tensor) -> dict[str, Tensor]:
    """Rows (N, *shape), clipped to `bound` (0-d) and added up: (G, *shape) for each part, float64, detached.

    member: (G, N) float64, 1 where a row belongs to a group and 0 elsewhere. A pure function of tensors.
    """
    length = lengths(rows)
    finite = torch.isfinite(length)
    weight = member * torch.where(finite, bound / length, 0.0).clamp(max=1.0)
    return {part: _weighted(weight, row.detach(), finite) for part, row in rows.items()}


def _weighted(weight: Tensor, row: Tensor, finite: Tensor) -> Tensor:
    row = torch.where(_beside(finite, row), row, 0.0)  # 0 times NaN would still be NaN
    if len(weight) > 1:
        return torch.tensordot(weight, row.double(), dims=1)  # type: ignore[no-any-return]
    order = [0, *sorted(range(1, row.dim()), key=row.stride, reverse=True)]
    laid = row.permute(order)  # as it lies in memory: compiled, a sum in another order gathers number by number
    total = (_beside(weight[0], laid) * laid).sum(dim=0, keepdim=True)
    return total.permute([order.index(d) for d in range(row.dim())])


def _beside(value: Tensor, row: Tensor) -> Tensor:
    """(N,) as (N, 1, ...), to be multiplied with rows."""
    return value.view(-1, *[1] * (row.dim() - 1))


def memberships(groups: Tensor, count: int) -> Tensor:
    """(count, N) float64: 1 where example n is of group g."""
    return (groups == torch.arange(count, device=groups.device).unsqueeze(1)).double()


def summed(rows: Callable[[slice], Tensors], groups: Tensor, count: int, bound: float, chunk: int) -> dict[str, Tensor]:
    """`clipped_sum` of all examples, whose rows are asked for `chunk` at a time: (count, *shape) by part, float64."""
    member = memberships(groups, count)
    limit = torch.tensor(bound, dtype=torch.float64, device=groups.device)
    total: dict[str, Tensor] = {}
    for part in slices(len(groups), chunk):
        add(total, clipped_sum(rows(part), member[:, part], limit))
    return total


def add(total: dict[str, Tensor], more: Tensors) -> None:
    """Add `more` to `total` in place; an empty one takes its parts."""
    for part, value in more.items():
        if part in total:
            total[part] += value
        else:
            total[part] = value.clone()


def slices(n: int, size: int) -> Iterator[slice]:
    """0..n in slices of `size`; the last may be shorter."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def averaged(views: Sequence[Tensors]) -> Tensors:
    """The mean over views of their rows, by part."""
    if len(views) == 1:
        return views[0]
    return {part: torch.stack([view[part] for view in views]).mean(dim=0) for part in views[0]}


def check_asked(sizes: Sequence[int], groups: Tensor, count: int, bound: float, chunk: int) -> None:
    """Raise `BadValue` for what no sum can be made of; sizes: of the views."""
    if math.isnan(bound) or bound <= 0:
        raise BadValue("bound", bound, "is a length above 0 (infinity does not clip)", "Use 0.1, say.")
    if chunk < 1 or count < 1:
        raise BadValue("chunk, count", (chunk, count), "must be 1 or more", "Leave chunk at 32.")
    if not sizes or set(sizes) != {len(groups)}:
        problem = "every view has one example for each entry of `groups`"
        raise BadValue("groups", (*sizes, len(groups)), problem, "Give the same examples under each warp.")
    if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < count:
        raise BadValue("groups", count, f"must lie in 0..{count - 1}", "Number the groups from 0.")


__all__ = ["add", "averaged", "check_asked", "clipped_sum", "lengths", "memberships", "slices", "summed"]
