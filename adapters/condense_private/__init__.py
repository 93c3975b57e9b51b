"""Privacy for condense: sets whose making is differentially private, with the ledger that says by how much.

A private source refuses to give examples; it answers `measure` with clipped, noised sums, and bills each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from condense.hookspecs import hookimpl

if TYPE_CHECKING:
    from condense.component import Component


@hookimpl
def condense_components() -> list[type[Component]]:
    from .membership import Membership
    from .private import Private
    from .shadows import Shadow

    return [Private, Shadow, Membership]


@hookimpl
def condense_pages() -> Mapping[str, Callable[[], str]]:
    from .page import page_of_privacy

    return {"privacy.md": page_of_privacy}


__all__ = ["condense_components", "condense_pages"]
