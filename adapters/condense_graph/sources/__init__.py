"""Where graphs with labelled nodes come from: generated ones, the published sets, and one's own."""

from __future__ import annotations

from condense.component import Component

from .edge_free import EdgeFree
from .generated import SBM
from .karate import Karate
from .planetoid import CiteSeer, Cora, PubMed


def components() -> list[type[Component]]:
    return [Karate, SBM, Cora, CiteSeer, PubMed, EdgeFree]
