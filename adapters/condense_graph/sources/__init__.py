"""Where graphs with labelled nodes come from: generated ones, the published sets, and one's own."""

from __future__ import annotations

from condense.component import Component

from .arxiv import OgbnArxiv
from .edge_free import EdgeFree
from .generated import SBM
from .karate import Karate
from .live import GivenGraph
from .own import Pyg
from .planetoid import CiteSeer, Cora, PubMed
from .through_pyg import AmazonComputers, AmazonPhoto, CoauthorCS, CoauthorPhysics, Flickr, Reddit


def components() -> list[type[Component]]:
    return [
        *(Karate, SBM, Cora, CiteSeer, PubMed),
        *(AmazonPhoto, AmazonComputers, CoauthorCS, CoauthorPhysics, Flickr, Reddit, OgbnArxiv),
        *(Pyg, GivenGraph, EdgeFree),
    ]
