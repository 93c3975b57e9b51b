"""Recipes and plans: a published method as a value, and a run as a value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .axes import (
    Augment,
    Budget,
    Init,
    Labels,
    Objective,
    Parameterization,
    Pool,
    Preprocess,
    Rule,
    Schedule,
    Selection,
)
from .component import Component, bad_value, checked, digest, no_field
from .data import Data
from .errors import BadValue
from .protocol import Protocol
from .task import Task


@dataclass(frozen=True)
class Reads:
    """What a part reads of the real data: raw examples, or only measures (`once`, and `per_step` of them)."""

    examples: bool = False
    once: int = 0
    per_step: int = 0

    def __add__(self, other: Reads) -> Reads:
        return Reads(self.examples or other.examples, self.once + other.once, self.per_step + other.per_step)


Rate = Annotated[float, Field(ge=0)]


class Group(Component):
    """How the parameters of the roles that match `role` (a glob) are updated.

    They move in the outer steps i with (i - phase) % every < span: `span` steps out of `every`, in turns with others.
    """

    role: str = "*"
    rule: Rule
    lr: Rate | Schedule = 0.1
    bounds: tuple[float | None, float | None] = (None, None)
    every: int = Field(default=1, ge=1)  # counted in outer steps
    phase: int = Field(default=0, ge=0)
    span: int = Field(default=1, ge=1)

    def moves(self, index: int) -> bool:
        """Is it the turn of these parameters in outer step `index`?"""
        return (index - self.phase) % self.every < self.span


class Outer(Component):
    """The outer loop: how often, and how each role's parameters move.

    `commit`: update once after all terms of a step, or after each term. These differ where there is momentum.
    """

    steps: int = Field(ge=0)
    groups: tuple[Group, ...] = ()
    commit: Literal["step", "term"] = "step"

    def group(self, role: str) -> Group:
        matching = [group for group in self.groups if fnmatchcase(role, group.role)]
        if len(matching) != 1:
            names = [group.role for group in self.groups]
            problem = f"the role {role!r} is matched by {len(matching)} groups, not by one"
            raise BadValue("outer.groups", names, problem, f"Give exactly one group whose `role` matches {role!r}.")
        return matching[0]


class Recipe(Component):
    """A published method: the parts along every axis. Prints, diffs, serialises, compares with ==."""

    objective: Objective | None = None
    pool: Pool
    parameterization: Parameterization
    budget: Budget
    init: Init
    labels: Labels
    augment: Augment
    preprocess: Preprocess
    outer: Outer
    selection: Selection | None = None

    def total_reads(self) -> Reads:
        return functools.reduce(lambda a, b: a + b, (part.reads(self) for part in self.walk() if part is not self))

    def set(self, path: str, value: Any) -> Recipe:
        """A copy with the leaf at the dotted `path` changed (`outer.steps`, `pool.net.depth`), validated again."""
        return checked(lambda: Recipe.model_validate(replaced(self.dump(), path, value, "recipe")), "recipe")


def replaced(tree: Any, path: str, value: Any, where: str) -> Any:
    """A copy of JSON data with the leaf at the dotted path replaced; raises `BadValue` where the path leads nowhere."""
    head, _, rest = path.partition(".")
    here = f"{where}.{head}"
    if isinstance(tree, list):
        if not head.isdigit() or int(head) >= len(tree):
            raise BadValue(here, path, f"is no position in {where}", f"It has {len(tree)}, counted from 0.")
        i = int(head)
        return [*tree[:i], replaced(tree[i], rest, value, here) if rest else value, *tree[i + 1 :]]
    if not isinstance(tree, Mapping):
        raise BadValue(here, path, f"{where} has no fields", f"Set {where} itself.")
    if head not in tree:
        problem, remedy = no_field(tree.get("name", where), head, [key for key in tree if key != "name"])
        raise BadValue(where, head, problem, remedy or "Give the path of one of these, with dots.")
    if rest and isinstance(tree[head], str | int | float | bool | None):
        raise BadValue(here, path, "has no fields below it", f"Set {here} itself.")
    return {**tree, head: replaced(tree[head], rest, value, here) if rest else value}


class Execution(BaseModel):
    """Where and how a run computes. What is left open (None, "auto") is settled and written down before the first step,
    so that a resume computes alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: str = "cpu"
    compile: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class Plan(BaseModel):
    """A run as a value: what `plan.json` holds. Its digest is the key of caches, and all that a resume needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    method: str
    data: Data
    recipe: Recipe
    protocol: Protocol | None = None
    seed: int = Field(default=0, ge=0)
    execution: Execution = Execution()

    def digest(self, *, execution: bool = True) -> str:
        """Of what is computed; execution: of where and how, too, which may change as a run goes on."""
        return digest(self.model_dump(mode="json", exclude=None if execution else {"execution"}))


@dataclass(frozen=True)
class Published:
    """A named method: the function that builds its recipe, what it is, and where its settings and figures stand."""

    make: Callable[..., Recipe]
    paper: str
    title: str
    form: str = "tensors"
    settings: str | None = None  # a TOML file beside the module: rows of data set x budget -> overrides and figures
    protocol: str = "vico"

    def __call__(self, **settings: Any) -> Recipe:
        from pydantic import ValidationError

        try:
            return self.make(**settings)
        except ValidationError as error:
            raise bad_value(error, "recipe") from None


def published(
    *, paper: str, title: str, form: str = "tensors", settings: str | None = None, protocol: str = "vico"
) -> Callable[[Callable[..., Recipe]], Published]:
    """Mark a recipe function with its paper (arXiv, DOI or OpenReview id), settings file and protocol."""
    return lambda make: Published(make, paper, title, form, settings, protocol)


def check_recipe(recipe: Recipe, task: Task) -> None:
    """Let every part refuse what it cannot do, before anything is computed."""
    if recipe.outer.steps and recipe.objective is None and not recipe.outer.groups:
        problem = "has nothing to follow: the method takes no steps, it has no objective"
        raise BadValue("outer.steps", recipe.outer.steps, problem, "Leave out --steps.")
    for part in recipe.walk():
        if part is not recipe:
            part.check(recipe, task)
