"""Sets that are trained on in a given order, step by step, each step at its own learned rate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Labels, Net, Parameterization
from condense.data import Initial
from condense.errors import BadValue
from condense.recipe import Reads, Recipe
from condense.rng import Rng, seeded
from condense.synthetic import Synthetic
from condense.task import Task

from .bilevel import Bilevel
from .parameterizations import Paced, Pixels


class Sequence(Parameterization):
    """Another parameterization whose items are used in turn, with a learned step size for every training step.

    Of n items of each class, turn i holds the i-th of every class: n turns. A training on the set takes one turn a
    step, in this order, round after round (`Sampler.turns`). Each step of `repeats` rounds has a step size of its own,
    `start` at first, in the role "rate"; what is learned of it is the inverse of softplus, so that it stays above 0.
    Later rounds take these again. Step sizes are no part of an example. A run in which one reaches 0, or rises above
    `explodes` times its start, has diverged.

    network: the set is made for one network with these weights: drawn when it is filled, by the seed of the run, and
    stored with it. Networks of this architecture then start from them, in pools and under the judge.
    Raises `BadValue` where classes have unequal numbers of items, or trainings on the set other rounds than it has.
    Source: Wang et al. (arXiv:1811.10959), and its official code.
    """

    inner: Parameterization = Pixels()
    repeats: int = Field(default=3, ge=1)
    start: float = Field(default=0.02, gt=0)
    explodes: float = Field(default=1000.0, gt=1)
    network: Net | None = None

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        trained = getattr(recipe.pool, "net", None)
        if self.network is not None and trained is not None and trained.digest() != self.network.digest():
            problem = f"is not the network of the pool, {trained.name}, which would not start from its weights"
            remedy = "Set pool.net and parameterization.network alike, or both by --net."
            raise BadValue("parameterization.network", self.network.name, problem, remedy)
        for part in recipe.walk():
            if isinstance(part, Bilevel) and part.fit.epochs not in (None, self.repeats):
                problem = f"has step sizes for {self.repeats} rounds, and a set is made by {part.fit.epochs}"
                remedy = (
                    "Set parameterization.repeats and objective.fit.epochs alike; of dd, both are --with repeats=N."
                )
                raise BadValue("parameterization.repeats", self.repeats, problem, remedy)

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _InTurn(self, self.inner.empty(task, groups, labels), groups)


class _InTurn(Paced):
    order: Tensor

    def __init__(self, how: Sequence, inner: Synthetic, groups: Tensor) -> None:
        order = in_turn(groups)
        raw = torch.full((len(order) * how.repeats,), how.start).double().expm1().log().float()
        super().__init__(inner, raw, how.start * how.explodes)
        self.register_buffer("order", order, persistent=False)
        self.how = how
        self.weights = nn.Module()
        if how.network is not None:
            with seeded(Rng(0)):
                state = how.network.build(self.task).state_dict()
            for name, value in state.items():
                self.weights.register_buffer(slashed(name), torch.zeros_like(value))

    @property
    def rates(self) -> Tensor:
        return F.softplus(self.pace)

    def rate(self, at: int) -> Tensor:
        return F.softplus(self.pace[at % len(self.pace)])

    @property
    def turns(self) -> Tensor:
        return self.order

    @property
    def initial(self) -> Initial | None:
        if self.how.network is None:
            return None
        weights = {name.replace("/", "."): value for name, value in self.weights.named_buffers()}
        return Initial(self.how.network.digest(), weights)

    def start(self, rng: Rng) -> None:
        super().start(rng)
        if self.how.network is not None:
            drawn = self.how.network.make(self.task, rng.fold("network")).state_dict()
            self.weights.load_state_dict({slashed(name): value for name, value in drawn.items()})

    def stored(self) -> dict[str, int]:
        weights = sum(value.numel() * value.element_size() for value in self.weights.buffers())
        return {**super().stored(), **({"network": weights} if weights else {})}


def slashed(name: str) -> str:
    """The name of a weight as that of a buffer, which must have no dots."""
    return name.replace(".", "/")


def in_turn(groups: Tensor) -> Tensor:
    """(n, K) positions: row i holds the i-th item of each class that there is, in class order. groups: (n * K,)."""
    counts = torch.bincount(groups)
    counts = counts[counts > 0]
    n = int(counts.max())
    if bool((counts != n).any()):
        problem = "items that are used in turn must be as many of each class"
        raise BadValue("budget", f"{len(groups)} items", problem, "Ask for so many of each class: --per-class 10.")
    return torch.argsort(groups, stable=True).view(-1, n).T.contiguous()
