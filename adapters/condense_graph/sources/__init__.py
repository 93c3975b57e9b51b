"""Where graphs with labelled nodes come from: generated ones, the published sets, and one's own."""

from __future__ import annotations

from condense.component import Component

from .generated import SBM
from .karate import Karate


def components() -> list[type[Component]]:
    return [Karate, SBM]
