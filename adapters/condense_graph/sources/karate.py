"""Zachary's karate club, which ships with PyG: what is tried when there are no files and no network."""

from __future__ import annotations

from typing import ClassVar, final

from condense.data import Facts
from condense.rng import Rng

from ..graph import Graph
from ..needs import pyg
from .base import Labelled, NodeData

VALIDATION = 10


@final
class Karate(NodeData):
    """34 members of a club, 78 friendships, 4 communities by modularity (as in Kipf and Welling, arXiv:1609.02907).

    Features are the identity, 34 x 34. One node of each class is labelled for training; PyG names no others: the other
    30 are split by `seed` into 10 for validation and 20 for test.
    """

    embedded: ClassVar[bool] = True
    seed: int = 0

    def read(self) -> Labelled:
        data = pyg("datasets").KarateClub()[0]
        train, rest = data.train_mask.nonzero().flatten(), (~data.train_mask).nonzero().flatten()
        rest = rest[Rng(self.seed).fold("split").permutation(len(rest))]
        validation, test = rest[:VALIDATION].sort().values, rest[VALIDATION:].sort().values
        names = tuple(str(c) for c in range(4))
        return Labelled(Graph(data.x, data.edge_index), data.y, train, validation, test, names, KARATE, "karate")


KARATE = Facts(
    "Zachary's karate club",
    "none stated",
    "W. W. Zachary: An information flow model for conflict and fission in small groups. Journal of Anthropological "
    "Research 33, 1977.",
    extra={"features": "none"},
)
