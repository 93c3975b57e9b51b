"""Sizes: how large a set is asked to be, whatever its examples are, and how that is said."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from .errors import BadValue
from .program import option

SIZES = ("per_class", "total", "ratio")
USUAL = 10  # per class, for a method that must be told and is not
LARGEST = 2**63 - 1  # what a tensor of int64 holds


@dataclass(frozen=True)
class Size:
    """So many of each class, so many in all, or a share of what there is: one of these, or none.

    of: what `ratio` is a share of: the items to learn from ("train"), or "all", labelled or not.
    """

    per_class: int | None = None
    total: int | None = None
    ratio: float | None = None
    of: str = "train"

    @property
    def given(self) -> dict[str, Any]:
        """What is said, by the names of the arguments of `condense.plan`."""
        said = {name: value for name in SIZES if (value := getattr(self, name)) is not None}
        return {**said, "of": self.of} if self.ratio is not None else said

    @property
    def label(self) -> str:
        """In names of folders: `10`, `70`, `0.5`, `0.026-all`."""
        if self.ratio is not None:
            return f"{self.ratio:g}" + ("" if self.of == "train" else f"-{self.of}")
        return next((str(value) for value in (self.per_class, self.total) if value is not None), "set")

    def told(self, noun: str = "") -> str:
        """In tables and sentences: `10 per class`, `70 in all`, `2.6 % of all items`; `10 images per class`."""
        items = f" {noun}" if noun else ""
        if self.per_class is not None:
            return f"{self.per_class}{items} per class"
        if self.total is not None:
            return f"{self.total}{items} in all"
        if self.ratio is None:
            return "any"
        return f"{share(self.ratio)} of {'all' if self.of == 'all' else 'the training'}{items or ' items'}"


def asked_size(per_class: int | None, total: int | None, ratio: float | None, of: str) -> Size:
    """The size that somebody asks for; raises `BadValue` for what can be none, and for two at once."""
    size = Size(per_class, total, ratio, of)
    said = [name for name in SIZES if name in size.given]
    if len(said) > 1:
        raise BadValue(" and ".join(said), size.given, "are several sizes for one set", f"Give {spelt(said)}.")
    if per_class is not None:
        size = replace(size, per_class=whole("per_class", per_class, 1, "Try --per-class 10."))
    if total is not None:
        size = replace(size, total=whole("total", total, 1, "Give one for each class at least."))
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio <= 1):
        raise BadValue("ratio", ratio, "must be a share above 0, and 1 at most", "Try --ratio 0.01.")
    if of not in ("train", "all"):
        raise BadValue("of", of, "is nothing that a ratio can be a share of", "Use train or all.")
    if of != "train" and ratio is None:
        raise BadValue("of", of, "says of what a ratio is a share, and none is given", f"Give {option('ratio')}, too.")
    return size


def taken(make: Callable[..., Any]) -> list[str]:
    """The sizes that a method's function takes."""
    known = inspect.signature(make).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
    return [name for name in SIZES if anything or name in known]


def default_size(make: Callable[..., Any]) -> Size | None:
    """The size in a function's signature; None where it takes sizes, and says none of them."""
    found = {name: p.default for name, p in inspect.signature(make).parameters.items() if name in SIZES}
    if found.get("per_class") is inspect.Parameter.empty:
        return Size(per_class=USUAL)
    size = Size(**{name: value for name, value in found.items() if value is not inspect.Parameter.empty})
    return size if size.given or not found else None


def arguments(name: str, make: Callable[..., Any], size: Size) -> dict[str, Any]:
    """`size` as arguments of the method's function. Raises `BadValue` where it takes another kind of size."""
    known, kinds = inspect.signature(make).parameters, taken(make)
    for kind in (kind for kind in SIZES if kind in size.given):
        if kind not in kinds:
            problem = f"is no size that {name} takes: it takes {' or '.join(kinds) or 'none'}"
            remedy = f"Use {spelt(kinds)}." if kinds else "Leave it out."
            raise BadValue(kind, size.given[kind], problem, remedy)
    return {key: value for key, value in size.given.items() if key != "of" or "of" in known}


def spelt(kinds: Iterable[str]) -> str:
    """Arguments of `condense.plan` as the command line spells them: `--total or --ratio`."""
    return " or ".join(map(option, kinds))


def size_words(n: int, train: int, population: int, noun: str) -> str:
    """How many there are, and of what that is a share: `70 nodes (2.6 % of all 2,708, 50 % of the 140 to learn from)`.

    Arguments: see `shares`.
    """
    told = ", ".join(shares(n, train, population))
    return f"{n:,} {noun}" + (f" ({told})" if told else "")


def shares(n: int, train: int, population: int) -> list[str]:
    """What n items are a share of.

    train: real items to learn from, 0 where that is not known. population: all real ones, those without a label
    included.
    """
    of_all = [f"{share(n / population)} of all {population:,}"] if population > train else []
    return of_all + ([f"{share(n / train)} of the {train:,} to learn from"] if train else [])


def share(part: float) -> str:
    """`2.6 %`: two digits that count, and all of those before the point."""
    return f"{float(f'{100 * part:.2g}') if part < 1 else 100 * part:g} %"


def whole(field: str, value: Any, least: int, remedy: str) -> int:
    """The whole number, numpy's too. Raises `BadValue` for what is none, or not within `least`..2^63 - 1."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise BadValue(field, value, f"must be a whole number of {least} or more", remedy)
    if number > LARGEST:
        raise BadValue(field, value, f"is larger than anything that is counted here ({LARGEST})", remedy)
    return number
