"""The command `condense-private`: condense on private data. What it does, `condense` does too.

`--data SET --epsilon 8` is `--data private:SET --set data.epsilon=8`; `audit`, `calibrate`, `dp-sgd`, `membership` and
`privacy` are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from condense.faces import Face

from .commands import (
    EPSILON,
    Accounts,
    Clip,
    Delta,
    Epsilon,
    Multiplier,
    audit,
    calibrate,
    dp_sgd,
    membership,
    noised,
    privacy,
)


def settled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `condense run` or `show` that those of this program come to."""
    names = ("epsilon", "noise_multiplier", "delta", "clip", "accountant")
    given = {name: arguments.pop(name) for name in names}
    if given["epsilon"] is None and given["noise_multiplier"] is None:
        given["epsilon"] = EPSILON
    return noised(arguments, given)


FACE = Face(
    program="condense-private",
    help="Learn a small set from private data, such that it may be published: with differential privacy, and a ledger.",
    forms=("tensors", "graphs"),
    own={"epsilon": Epsilon, "noise_multiplier": Multiplier, "delta": Delta, "clip": Clip, "accountant": Accounts},
    settle=settled,
)


def app() -> typer.Typer:
    """The program with all of its commands."""
    made = FACE.app()
    for command in (audit, calibrate, privacy, membership):
        made.command()(command)
    made.command("dp-sgd")(dp_sgd)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `condense-private`: never returns."""
    app()(args=arguments, prog_name=FACE.program)
