"""Graphs made on the spot: stochastic block models with Gaussian features, of any size, balance and homophily."""

from __future__ import annotations

from typing import Annotated, final

import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from condense.data import Facts
from condense.rng import Rng
from condense.splits import stratified

from ..graph import Graph
from .base import Labelled, NodeData
from .cleaning import undirected

Size = Annotated[int, Field(ge=4)]


@final
class SBM(NodeData):
    """A stochastic block model: `sizes` nodes of each class, whose numbers say nothing of their class.

    degree: mean number of neighbours. homophily: share of the edges that join nodes of one class. Both are met up to
    chance, and up to the self-loops and double edges that are drawn and dropped. features: D; each class has a centre
    of length 1 in a random direction, and nodes lie about it with deviation `noise` in each feature.
    train, validation: shares of every class that become these splits, by `seed`, which decides all the rest too; test
    is what remains.
    """

    sizes: tuple[Size, ...] = Field(default=(60, 60, 60), min_length=2)
    homophily: float = Field(default=0.8, ge=0, le=1)
    degree: float = Field(default=5.0, ge=0)
    features: int = Field(default=16, ge=1)
    noise: float = Field(default=0.5, ge=0)
    train: float = Field(default=0.3, gt=0, lt=1)
    validation: float = Field(default=0.3, ge=0, lt=1)
    seed: int = 0

    @field_validator("validation")
    @classmethod
    def _leaves_a_test_part(cls, validation: float, info: object) -> float:
        train = getattr(info, "data", {}).get("train", 0.0)
        if train + validation >= 1:
            raise PydanticCustomError("component", "train and validation must leave a part of 1 for test")
        return validation

    @property
    def label(self) -> str:
        return f"{self.name}-{self.digest()[:6]}"

    def read(self) -> Labelled:
        rng = Rng(self.seed).fold("sbm")
        sizes = torch.tensor(self.sizes)
        y = torch.arange(len(sizes)).repeat_interleave(sizes)[rng.fold("order").permutation(int(sizes.sum()))]
        g = rng.fold("features").generator()
        centres = torch.nn.functional.normalize(torch.randn(len(sizes), self.features, generator=g), dim=1)
        x = centres[y] + self.noise * torch.randn(len(y), self.features, generator=g)
        pairs = round(len(y) * self.degree / 2)
        edges = undirected(block_edges(y, pairs, self.homophily, rng.fold("edges")), len(y))
        rest, train = stratified(y, self.train, rng.fold("train"))
        kept, chosen = stratified(y[rest], self.validation / (1 - self.train), rng.fold("validation"))
        names = tuple(str(c) for c in range(len(sizes)))
        facts = Facts(title="stochastic block model", licence="none needed: generated", extra={"features": "none"})
        return Labelled(Graph(x, edges), y, train, rest[chosen], rest[kept], names, facts, self.label)


def block_edges(y: Tensor, pairs: int, homophily: float, rng: Rng) -> Tensor:
    """(2, pairs) int64: the first node of each is any; the second is of its class with chance `homophily`, else not.

    Work and memory are proportional to the number of pairs.
    """
    g = rng.generator()
    order = torch.argsort(y, stable=True)
    counts = torch.bincount(y)
    starts = counts.cumsum(0) - counts
    first = torch.randint(len(y), (pairs,), generator=g)
    same = torch.rand(pairs, generator=g) < homophily
    size, start = counts[y[first]], starts[y[first]]
    spot = torch.rand(pairs, generator=g, dtype=torch.float64)
    inside = start + (spot * size).long()
    outside = start + size + (spot * (len(y) - size)).long()
    return torch.stack([first, order[torch.where(same, inside, outside) % len(y)]])
