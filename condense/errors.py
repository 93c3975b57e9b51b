"""What condense raises.

Every error names the *field* at fault, the *value* it had, what the *problem* is and the *remedy*, in that order, and
carries the four as attributes. The exit code of the command line is the class's `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class CondenseError(Exception):
    """The root: anything that condense refuses or cannot go on with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, field: str, value: Any, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        super().__init__(f"{field}: {problem} (got {shown(value)}). {remedy}")


class BadValue(CondenseError, ValueError):
    """A setting that cannot work: out of range, unknown, or in conflict with another."""

    exit_code = 2


class Exhausted(BadValue):
    """A source that answers no more. A run that meets it after its first step ends there, with the set that it has."""

    exit_code = 10


class BadData(CondenseError, ValueError):
    """Data that is missing, malformed, or too small for what was asked."""

    exit_code = 3


class Damaged(CondenseError):
    """A stored file that is truncated, tampered with, hostile, or of a format newer than this reader."""

    exit_code = 4


class Diverged(CondenseError):
    """A loss or a parameter that is not finite; the last good checkpoint is kept."""

    exit_code = 5


class NoRoom(CondenseError):
    """Memory or disk that does not suffice."""

    exit_code = 6


class BrokenPlugin(CondenseError):
    """A plugin that did not load, or that broke its contract while running."""

    exit_code = 7


class InUse(CondenseError):
    """A folder that holds something else, or that another run is writing."""

    exit_code = 8


class NotBuilt(CondenseError, NotImplementedError):
    """A seam of the design that is open, but that nothing fills yet."""

    exit_code = 9


def shown(value: Any, limit: int = 120) -> str:
    """The value as it stands in a message: its repr, cut at `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean ...?` and the list of what is known, computed from `known`."""
    names = sorted(known)
    return f"{meant(name, names)} Known: {listed(names)}.".lstrip()


def meant(name: str, known: Iterable[str]) -> str:
    """`Did you mean ...?`, or nothing where no known name is near."""
    plain = {_plain(other): other for other in sorted(known)}
    close = [plain[found] for found in difflib.get_close_matches(_plain(name), list(plain), n=3, cutoff=0.6)]
    return f"Did you mean {' or '.join(close)}?" if close else ""


def _plain(name: str) -> str:
    """A name without its case and marks: `FashionMNIST` is `fashion-mnist`."""
    return "".join(c for c in name.lower() if c.isalnum()) or name


def listed(names: Iterable[str]) -> str:
    """Names in order, with commas; `none` where there are none."""
    return ", ".join(sorted(names)) or "none"
