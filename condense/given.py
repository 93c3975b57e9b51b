"""Live data: tensors, arrays or any torch Dataset, handed over from Python. A plan knows it by its fingerprint."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, final

import numpy as np
import torch
from pydantic import Field, TypeAdapter, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from .component import checked
from .data import Data, Facts, Splits, feed
from .errors import BadData, BadValue
from .plugins import registry
from .splits import Part, Parts, as_part, make_splits, numbered

ACCEPTED = "Give a Data, its name, a torch Dataset, (x, y), or a pair of these: (train, test)."
RETRIED = 4  # examples read twice, to find out random transforms


@dataclass(frozen=True)
class Live:
    """A live set, read once and held on the CPU. `origin`: the import path of a Dataset's class, else "arrays"."""

    train: Part
    test: Part | None
    classes: tuple[str, ...]
    origin: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, dtype and bytes of the examples and labels of both parts, and the classes."""
        h = hashlib.sha256("\x1f".join(self.classes).encode())
        for part in (self.train, self.test):
            feed(h, () if part is None else (part.x, part.y))
        return h.hexdigest()


@final
class Given(Data):
    """Data handed over from Python, read when it is handed over: `as_data(...)` makes one.

    It stands in a plan by its fingerprint; a plan that was read back needs the data once more (`attach`).
    test: the share held out by `seed`, stratified, where no test part is given. classes: names in the order of the
    labels; None: those of the Dataset, else the labels. mirror: do mirrored images keep their meaning?
    """

    fingerprint: str
    origin: str = ""
    classes: tuple[str, ...] | None = None
    test: float = Field(default=0.2, gt=0, lt=1)
    validation: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0
    mirror: bool = True
    live: SkipJsonSchema[Live | None] = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _same(self) -> Self:
        if self.live is not None and self.live.fingerprint != self.fingerprint:
            remedy = "Pass the data that the plan was made with, or start a new run."
            message = "the data given has the fingerprint {found}, not the one that is recorded"
            raise PydanticCustomError("component", message, {"found": self.live.fingerprint, "remedy": remedy})
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Given) and self.dump() == other.dump()

    def __hash__(self) -> int:
        return hash(self.digest())

    @property
    def label(self) -> str:
        return f"{self.name}-{self.fingerprint[:8]}"

    def attach(self, value: Any) -> Given:
        """This value, read back from a plan, with its data. Raises `BadValue` where `value` is other data."""
        live = value.live if isinstance(value, Given) else read(value)
        return checked(lambda: self.with_(live=live), "data")

    def open(self, device: torch.device | str = "cpu") -> Splits:
        if self.live is None:
            problem = "was handed over from Python, and only its fingerprint is recorded"
            remedy = f"Pass it again: data=... ({self.origin}), in Python, as condense.resume(DIR, data=...) takes it."
            remedy += " What that returns can be judged."
            raise BadValue("data", self.label, problem, remedy)
        classes = self.classes or self.live.classes
        facts = Facts(title=self.origin, extra={"mirror": self.mirror})
        parts = Parts(self.live.train, self.live.test, classes, facts)
        return make_splits(parts, test=self.test, validation=self.validation, seed=self.seed, device=device)


def as_data(value: Any) -> Data:
    """A `Data` from a Data, its name (`digits`, `folder:PATH`), a mapping with a name, or from live objects.

    Live: a map-style torch Dataset of (image, label), (x, y) tensors or arrays, or a pair (train, test) of either; and
    what a Data of any package accepts (`Data.accept`). Raises `BadValue` for anything else and for unknown names,
    `BadData` for what cannot be examples or labels.
    """
    if isinstance(value, Data | str | Mapping):
        return checked(lambda: TypeAdapter(Data).validate_python(value), "data")
    known = (kind.accept(value) for kind in registry().members(Data).values())
    if (found := next((data for data in known if data is not None), None)) is not None:
        return found
    live = read(value)
    return Given(fingerprint=live.fingerprint, origin=live.origin, live=live)


def read(value: Any) -> Live:
    """A live set as parts; see `as_data`."""
    train, test = value if _is_pair(value) and all(_is_set(part) for part in value) else (value, None)
    if not _is_set(train):
        raise BadValue("data", value, "is no data", ACCEPTED)
    parts = [_part(train, "train" if test is not None else "data"), None if test is None else _part(test, "test")]
    named = [_classes(part) for part in (train, test)]
    if test is not None and None not in named and named[0] != named[1]:
        problem = "train and test name their classes differently"
        raise BadData("data", named, problem, "Give both the same classes, in the same order.")
    classes = named[0] or numbered(*parts)
    kind = type(train)
    origin = f"{kind.__module__}.{kind.__qualname__}" if isinstance(train, Dataset) else "arrays"
    return Live(parts[0], parts[1], classes, origin)  # type: ignore[arg-type]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _is_set(value: Any) -> bool:
    return isinstance(value, Dataset) or (_is_pair(value) and all(isinstance(v, Tensor | np.ndarray) for v in value))


def _part(value: Any, where: str) -> Part:
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        value = value.tensors
    x, y = _items(value, where) if isinstance(value, Dataset) else value
    return as_part(x, y, where)


def _classes(value: Any) -> tuple[str, ...] | None:
    """The names that a Dataset, or the one that it is a subset of, gives its classes."""
    while isinstance(value, Dataset):
        names = getattr(value, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names)
        value = getattr(value, "dataset", None)
    return None


def _items(dataset: Any, where: str) -> tuple[Tensor, Tensor]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        problem = "has no length"
        raise BadData(where, type(dataset).__name__, problem, "Give a map-style Dataset, or (x, y) tensors.")
    items = [_item(dataset, i, where) for i in range(len(dataset))]
    for i, (image, _) in enumerate(items[:RETRIED]):
        if not torch.equal(image, _item(dataset, i, where)[0]):
            remedy = "Leave random transforms out of the Dataset: a recipe brings its own augmentation."
            raise BadData(where, f"example {i}", "differs from one reading to the next", remedy)
    for i, (image, _) in enumerate(items):
        if image.shape != items[0][0].shape:
            problem = f"is not of the size of example 0, which is {tuple(items[0][0].shape)}"
            raise BadData(where, f"example {i}: {tuple(image.shape)}", problem, "Resize all of them to one size.")
    if not items:
        raise BadData(where, 0, "holds no examples", "Give at least one example of each class.")
    return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])


def _item(dataset: Any, i: int, where: str) -> tuple[Tensor, int]:
    try:
        item = dataset[i]
    except Exception as error:  # a Dataset may raise anything
        problem = f"cannot be read: {type(error).__name__}: {error}"
        raise BadData(where, f"example {i}", problem, "Repair the Dataset, or leave this example out.") from error
    if not _is_pair(item):
        raise BadData(where, f"example {i}: {type(item).__name__}", "is no (image, label)", "Return such pairs.")
    image, label = item
    if getattr(image, "mode", None) == "P":  # a PIL image of indices into a palette
        image = image.convert("RGB")
    try:
        return torch.as_tensor(image if isinstance(image, Tensor) else np.array(image)).cpu(), _whole(label)
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"is no (image, label): {error}"
        raise BadData(where, f"example {i}", problem, "Return a tensor, an array or a PIL image, and an int.") from None


def _whole(label: Any) -> int:
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.dtype in FLOATS:
        raise TypeError(f"the label {label!r} is no whole number")
    return int(label.item()) if isinstance(label, Tensor | np.ndarray) else operator.index(label)


FLOATS = (torch.float16, torch.float32, torch.float64, np.float16, np.float32, np.float64)
