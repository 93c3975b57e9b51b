"""Budgets: how many items of each class may be stored."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from condense.axes import Budget
from condense.data import Source
from condense.errors import BadValue
from condense.recipe import Reads, Recipe


class PerClass(Budget):
    """`n` items of each class, class-major: 0..0 1..1 2..2."""

    n: int = Field(ge=1)

    @property
    def asked(self) -> dict[str, Any]:
        return {"per_class": self.n}

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def items(self, source: Source) -> int:
        return self.n * source.task.groups

    def allot(self, source: Source) -> Tensor:
        return torch.arange(source.task.groups).repeat_interleave(self.n)


class Total(Budget):
    """`n` items in all, class-major. proportional: by the classes' shares of the training data; equal: as many of each.

    proportional: each class gets the whole part of its share, but at least one item; what is left goes to the largest
    class (then to the next, once all of it is taken), which gives where the ones of small classes are too many (GCond,
    arXiv:2110.07580, as its code does). equal: the first classes get one more where n is no multiple. Raises `BadValue`
    below one item per class, and above what there is to learn from.
    """

    n: int = Field(ge=1)
    split: Literal["proportional", "equal"] = "proportional"

    @property
    def asked(self) -> dict[str, Any]:
        return {"total": self.n}

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(examples=self.split == "proportional")

    def items(self, source: Source) -> int:
        return self.n

    def allot(self, source: Source) -> Tensor:
        if self.split == "equal":
            return classes(divided(self.n, [1] * source.task.groups))
        return classes(shares(self.n, source.counts(), source.task.classes))


class Ratio(Budget):
    """A share `r` of the labelled training items (`of` train), or of all that there are, labelled or not (`all`).

    The literature quotes both: of 2,708 nodes of which 140 are labelled, r = 0.5 of train and r = 0.026 of
    all are the same 70. Divided among the classes as `Total` does, proportionally.
    """

    r: float = Field(gt=0, le=1)
    of: Literal["train", "all"] = "train"

    @property
    def asked(self) -> dict[str, Any]:
        return {"ratio": self.r, "of": self.of}

    def items(self, source: Source) -> int:
        return max(1, round(self.r * (len(source) if self.of == "train" else source.population)))

    def allot(self, source: Source) -> Tensor:
        return classes(shares(self.items(source), source.counts(), source.task.classes))


def shares(n: int, counts: list[int], names: tuple[str, ...]) -> list[int]:
    """n divided by `counts`: see `Total`. A class of which there are no items gets none."""
    present = [i for i, count in enumerate(counts) if count]
    if n < len(present):
        problem = f"is less than one for each of the {len(present)} classes: {', '.join(names[i] for i in present)}"
        raise BadValue("budget", n, problem, f"Ask for at least {len(present)}.")
    if n > sum(counts):
        raise BadValue("budget", n, f"is more than the {sum(counts)} there are to learn from", "Ask for fewer.")
    given = [max(n * count // sum(counts), 1) if count else 0 for count in counts]
    while (left := n - sum(given)) > 0:
        roomy = [i for i, count in enumerate(counts) if given[i] < count]
        largest = max(roomy, key=lambda i: counts[i])
        given[largest] += min(left, counts[largest] - given[largest])
    while sum(given) > n:
        given[given.index(max(given))] -= 1
    return given


def divided(n: int, weights: list[int]) -> list[int]:
    """n items in equal parts; the first ones get what is left over. Raises `BadValue` below one each."""
    if n < len(weights):
        raise BadValue("budget", n, f"is less than one for each of {len(weights)} classes", "Ask for more.")
    whole, left = divmod(n, len(weights))
    return [whole + (i < left) for i in range(len(weights))]


def classes(sizes: list[int]) -> Tensor:
    """(sum of sizes,) int64: class 0 so often, then class 1 ..."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
