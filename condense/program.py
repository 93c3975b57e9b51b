"""The program that was called, so that a hint says what can be typed: `condense resume DIR` or another face's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

CONDENSE = "condense"
_called: ContextVar[str] = ContextVar("condense_program", default=CONDENSE)


def hint(*words: object) -> str:
    """A command of this program, as it is typed: `condense resume runs/mine`."""
    return " ".join([_called.get(), *map(str, words)])


@contextmanager
def called(program: str) -> Iterator[None]:
    """Hints name `program` for a while."""
    token = _called.set(program)
    try:
        yield
    finally:
        _called.reset(token)
