"""From arrays to splits: what is an example and a label, which sets no method can use, and how a set is divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data import Facts, Splits, TensorSource, check_examples
from .errors import BadData, BadValue
from .rng import Rng
from .task import Task

COLOURS = (1, 3)  # numbers of channels by which the layout of an array of images is recognised
LARGEST = 1e4  # beyond it float32 statistics of images lose their digits, and what stands there is no image


@dataclass(frozen=True)
class Part:
    """Examples x (N, *shape), uint8 or float32, and labels y (N,) int64, on the CPU. `where`: how errors call them."""

    x: Tensor
    y: Tensor
    where: str

    def subset(self, index: Tensor) -> Part:
        return replace(self, x=self.x[index], y=self.y[index])


@dataclass(frozen=True)
class Parts:
    """A set as it was read. Where `test` is None, it is split off train."""

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    facts: Facts = field(default_factory=Facts)
    validation: Part | None = None


def as_part(x: Any, y: Any, where: str) -> Part:
    """Arrays or tensors as a part; raises `BadData` for what can be neither examples nor labels."""
    return Part(as_examples(x, f"{where} images"), as_labels(y, f"{where} labels"), where)


def as_examples(x: Any, where: str) -> Tensor:
    """Images (N, C, H, W), or vectors (N, D), contiguous: uint8 (0..255), or float32.

    (N, H, W) gains a channel. (N, H, W, C) is recognised by its last size, 1 or 3, where the second is neither.
    Integers must lie in 0..255; floats that hold exactly such integers, and more than 1 among them, become uint8 too.
    Other floats are kept: [0, 1] is what pictures show, any other scale is normalised like it. Beyond 1e4 is refused.
    """
    examples = as_tensor(x, where)
    if examples.dim() < 2 or 0 in examples.shape[1:]:
        remedy = "Give (N, C, H, W) or (N, H, W) images, or (N, D) vectors."
        raise BadData(where, tuple(examples.shape), "is no array of examples", remedy)
    return _values(_channels_first(examples, where), where).contiguous()


def as_tensor(value: Any, where: str) -> Tensor:
    """Numbers of any kind and byte order as a tensor on the CPU. Raises `BadData`."""
    if isinstance(value, Tensor):
        if value.is_meta or value.is_quantized or value.layout != torch.strided:
            kind = f"{value.layout} {value.dtype} on {value.device}"
            raise BadData(where, kind, "is no dense tensor of numbers", "Give one, by to_dense() or dequantize().")
        return value.detach().cpu()
    try:
        array = np.asarray(value)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError) as error:
        raise BadData(where, type(value).__name__, f"cannot become a tensor: {error}", "Give numbers.") from None


def _channels_first(x: Tensor, where: str) -> Tensor:
    if x.dim() == 3:
        return x.unsqueeze(1)
    if x.dim() != 4 or x.shape[1] in COLOURS:
        return x
    if x.shape[3] in COLOURS:
        return x.permute(0, 3, 1, 2)
    if x.shape[1] < min(x.shape[2:]):
        return x
    problem = "does not say which of its sizes is the number of channels"
    raise BadData(
        where, tuple(x.shape), problem, "Give (N, C, H, W), with 1 or 3 channels, or fewer than pixels a side."
    )


def _values(x: Tensor, where: str) -> Tensor:
    if x.dtype == torch.uint8 or x.numel() == 0:
        return x.to(torch.uint8) if x.dtype == torch.uint8 else x.float()
    if x.is_complex():
        raise BadData(where, str(x.dtype), "holds complex numbers", "Give uint8, or floats in [0, 1].")
    x = x if x.is_floating_point() else x.to(torch.int64)  # torch knows no minimum of wide unsigned integers
    low, high = float(x.min()), float(x.max())
    if not x.is_floating_point():
        if low < 0 or high > 255:
            raise BadData(where, (low, high), "holds integers outside 0..255", "Scale them to floats in [0, 1].")
        return x.to(torch.uint8)
    if LARGEST < max(-low, high) < float("inf"):  # `check_examples` refuses the rest, and names the row
        raise BadData(where, (low, high), "holds values of no image", "Scale them to [0, 1].")
    if low >= 0 and 1 < high <= 255 and bool((x == x.round()).all()):
        return x.to(torch.uint8)
    return x.float()


def as_labels(y: Any, where: str) -> Tensor:
    """Whole numbers of any width as int64; what is no whole number is left for `check_examples` to refuse."""
    labels = as_tensor(y, where)
    if labels.dim() == 0:
        raise BadData(where, labels.item(), "is one number for all examples", "Give one label for each example.")
    return labels if labels.is_floating_point() or labels.is_complex() else labels.to(torch.int64)


def numbered(*parts: Part | None) -> tuple[str, ...]:
    """Names for classes that have none: "0", "1", ... up to the largest label of any part.

    Not more names than labels, however large one is: `check_examples` then refuses it.
    """
    labels = [part.y for part in parts if part is not None and part.y.numel() and part.y.dtype == torch.int64]
    highest = max((int(y.max()) + 1 for y in labels), default=0)
    return tuple(str(c) for c in range(min(highest, sum(y.numel() for y in labels))))


def check_part(part: Part, classes: Sequence[str], like: Part | None = None) -> None:
    """`check_examples`, and the same size as `like`'s examples. Raises `BadData`."""
    check_examples(part.x, part.y, classes, part.where)
    if like is not None and (part.x.shape[1:], part.x.dtype) != (like.x.shape[1:], like.x.dtype):
        ours, theirs = ((tuple(p.x.shape[1:]), str(p.x.dtype)) for p in (part, like))
        problem = f"has examples unlike those of {like.where}, which are {theirs}"
        raise BadData(part.where, ours, problem, "Bring all of them to one size, one number of channels and one type.")


def check_classes(y: Tensor, classes: Sequence[str], where: str) -> None:
    """Refuse a training part with an empty class, or with one class only. Raises `BadData`.

    One example of a class is enough here: what needs more of them refuses it by itself.
    """
    if len(classes) < 2:
        raise BadData(where, tuple(classes), "has one class only", "Give examples of at least two classes.")
    counts = torch.bincount(y, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if count == 0]
    if empty:
        problem = f"holds no example of {len(empty)} of its {len(classes)} classes"
        remedy = "Add examples of them, or leave these classes out and number the others from 0 without gaps."
        raise BadData(where, empty[:10], problem, remedy)


def stratified(groups: Tensor, fraction: float, rng: Rng) -> tuple[Tensor, Tensor]:
    """(kept, taken): ascending positions, the second holding about `fraction` of every class of `groups` (N,) int64.

    Of n examples floor(fraction * n + 1/2) are taken, but at least 1 and at most n - 1, and none of a single one.
    Which ones depends on the key of `rng`, the class and n alone.
    """
    groups = groups.cpu()
    taken = torch.zeros(len(groups), dtype=torch.bool)
    for cls in sorted(set(groups.tolist())):
        ids = (groups == cls).nonzero().flatten()
        n = min(max(int(fraction * len(ids) + 0.5), 1), len(ids) - 1) if fraction > 0 else 0
        taken[ids[rng.fold(cls).permutation(len(ids))[:n]]] = True
    return (~taken).nonzero().flatten(), taken.nonzero().flatten()


def make_splits(
    parts: Parts, *, test: float, validation: float, seed: int, device: torch.device | str = "cpu"
) -> Splits:
    """Check a set, divide it by `seed` where it is not divided yet, and move it to `device`.

    test: the share of train that becomes the test part where there is none. validation: the share of what then is
    train that becomes the validation part; 0: there is none. Raises `BadData`; `BadValue` where a validation part is
    asked of a set that has one.
    """
    train, held_out, chosen = parts.train, parts.test, parts.validation
    check_part(train, parts.classes)
    check_classes(train.y, parts.classes, train.where)
    if held_out is None:
        train, held_out = _divide(train, test, Rng(seed).fold("split", "test"), "test")
    if validation:
        if chosen is not None:
            problem = f"{chosen.where} is a validation part already"
            raise BadValue("data.validation", validation, problem, "Leave `validation` at 0.")
        train, chosen = _divide(train, validation, Rng(seed).fold("split", "validation"), "validation")
    for part in (held_out, chosen):
        if part is not None:
            check_part(part, parts.classes, like=train)
    task = Task(classes=parts.classes, shape=tuple(train.x.shape[1:]))
    sources = [
        None if p is None else TensorSource(task, p.x.to(device), p.y.to(device)) for p in (train, held_out, chosen)
    ]
    return Splits(sources[0], sources[1], sources[2], parts.facts)  # type: ignore[arg-type]


def _divide(part: Part, fraction: float, rng: Rng, name: str) -> tuple[Part, Part]:
    kept, taken = stratified(part.y, fraction, rng)
    if len(taken) == 0:
        problem = f"has too few examples of every class to split off a {name} part"
        remedy = f"Give a {name} part, or at least two examples of a class."
        raise BadData(part.where, len(part.y), problem, remedy)
    return part.subset(kept), replace(part.subset(taken), where=f"{part.where} ({name})")
