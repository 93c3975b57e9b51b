"""The program that was called, so that a hint says what can be typed: `condense resume DIR` or another face's."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

CONDENSE = "condense"
_called: ContextVar[str] = ContextVar("condense_program", default=CONDENSE)
_spelt: ContextVar[Mapping[str, str]] = ContextVar("condense_options", default={})  # noqa: B039 never written to


def hint(*words: object) -> str:
    """A command of this program, as it is typed: `condense resume runs/mine`."""
    return " ".join([_called.get(), *(shlex.quote(str(w)) if isinstance(w, Path) else str(w) for w in words)])


def option(argument: str) -> str:
    """The option of this program that stands for an argument: `--total`, or what a face calls it."""
    return _spelt.get().get(argument, f"--{argument.replace('_', '-')}")


@contextmanager
def called(program: str, spelt: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hints name `program` for a while, and its options where they are spelt otherwise."""
    tokens = _called.set(program), _spelt.set(spelt or {})
    try:
        yield
    finally:
        _called.reset(tokens[0])
        _spelt.reset(tokens[1])
