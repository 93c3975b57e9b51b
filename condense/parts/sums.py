"""Several objectives at once: a matching and a sparsity term, a regression and its regulariser."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import final

from pydantic import Field, model_validator
from torch import Tensor

from condense.axes import Objective, Term
from condense.errors import NotBuilt
from condense.recipe import Reads, Recipe
from condense.running import Step
from condense.task import Task


@final
class Sum(Objective):
    """sum over `objectives` of weight * objective; without `weights` each counts 1.

    The parts go in step: each round takes one term of every part, and terms alike in role and class become one, so a
    term about a class is pushed back together with what else is said of that class. Reported losses are the weighted
    ones. Refused with `outer.commit="term"`: all terms of a round are made from the same set.
    """

    objectives: tuple[Objective, ...] = Field(min_length=1)
    weights: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_weight_each(self) -> Sum:
        if self.weights and len(self.weights) != len(self.objectives):
            raise ValueError(f"there are {len(self.objectives)} objectives and {len(self.weights)} weights")
        return self

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()  # each part says for itself what it reads

    def check(self, recipe: Recipe, task: Task) -> None:
        if recipe.outer.commit == "term":
            problem = "cannot update the set after each term of a sum: its terms are made together"
            raise NotBuilt("outer.commit", "term", problem, "Use commit=step.")

    def __call__(self, step: Step) -> Iterable[Term]:
        weights = self.weights or (1.0,) * len(self.objectives)
        parts = [(iter(part(step)), weight) for part, weight in zip(self.objectives, weights, strict=True)]
        while parts:
            heads = [(part, next(part[0], None)) for part in parts]
            parts = [part for part, term in heads if term is not None]
            yield from merged([scaled(term, weight) for (_, weight), term in heads if term is not None])


def scaled(term: Term, weight: float) -> Term:
    """The term times `weight`, with all weights inside its losses and cotangents."""
    w = term.weight * weight
    losses = {name: value * w for name, value in term.losses.items()}
    return Term(losses, term.role, term.cls, cotangents=[(drawn, g * w) for drawn, g in term.cotangents])


def merged(terms: Sequence[Term]) -> list[Term]:
    """Terms (of weight 1) alike in role and class as one, in the order of the first; losses of one name add up.

    Terms that bring cotangents are kept apart from those that do not: cotangents replace the backward pass of losses.
    """
    groups: dict[object, list[Term]] = {}
    for term in terms:
        groups.setdefault((term.role, term.cls, bool(term.cotangents)), []).append(term)
    return [_one(group) for group in groups.values()]


def _one(terms: Sequence[Term]) -> Term:
    losses: dict[str, Tensor] = {}
    for term in terms:
        for name, value in term.losses.items():
            losses[name] = losses[name] + value if name in losses else value
    cotangents = [pair for term in terms for pair in term.cotangents]
    return Term(losses, terms[0].role, terms[0].cls, cotangents=cotangents)
