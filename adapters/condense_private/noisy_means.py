"""Sets of noised means of real images: no network, no steps. The least that a private method has to beat.

Each synthetic image is the mean of a Poisson sample of its class, with noise: LDPDC ("Differentially Private Dataset
Condensation", openreview:H8XpqEkbua_), 50 records expected for each image, and `dp-random`, ours, 500, which trades
variety for less noise. One measure gives image number j of every class. An image in [-1, 1] is no longer than the
square root of its numbers, to which records are clipped: as published, and nothing is clipped in fact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

from pydantic import Field
from torch import Tensor, nn

from condense.axes import Augment, Init, Preprocess, Statistic
from condense.component import Component, named
from condense.data import Ask
from condense.errors import BadValue
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels
from condense.parts.pools import NoModel
from condense.recipe import Outer, Published, Reads, Recipe, published
from condense.running import Run
from condense.task import Batch, Task


@final
class Example(Statistic):
    """The example itself, as a network is given it: its packed tensors by name, (N, *shape). Asks no network.

    bound: the L2 length of one example, over all tensors, that a private source clips to; None: the source's own.
    """

    bound: float | None = Field(default=None, gt=0)

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in task.form.pack(batch.x).items()}

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> Mapping[str, Tensor]:
        packed = task.form.pack(batch.x)
        return {key: (value if live else value.detach()).mean(dim=0) for key, value in packed.items()}


@final
class NoisyMeans(Init):
    """Each image is the mean of `group` real ones of its class, drawn for it; of a private source, the noised one.

    Image number j of every class comes from measure number j. Raises `BadValue` for examples that are no arrays of
    numbers of one size, and where it is not known beforehand how many measures there will be.
    """

    group: int = Field(default=50, ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        measures = recipe.budget.asked.get("per_class")
        return Reads(examples=True) if measures is None else Reads(once=measures)

    def check(self, recipe: Recipe, task: Task) -> None:
        if not task.form.in_rows or not all(t.is_floating_point() for t in packed(task, 1).values()):
            problem = "is the mean of examples, and these are no arrays of one size"
            raise BadValue("init", self.name, problem, "Use it for images or vectors.")
        if "per_class" not in recipe.budget.asked:
            problem = "takes one measure for each image of a class, and this budget does not say how many"
            raise BadValue("budget", recipe.budget.name, problem, "Ask for as many of each class: --per-class.")

    def __call__(self, run: Run, groups: Tensor) -> Batch:
        task, key = run.task, run.rng.fold("init")
        statistic = Example(bound=math.sqrt(sum(t.numel() for t in packed(task, 1).values())))
        made = {name: value.to(run.device) for name, value in packed(task, len(groups)).items()}
        places = [(groups == c).nonzero().flatten().tolist() for c in range(task.groups)]
        for j in range(max(len(own) for own in places)):
            classes = [c for c, own in enumerate(places) if len(own) > j]
            asks = [Ask(c, self.group) for c in classes]
            found = run.splits.train.measure(statistic, nn.Identity(), asks, key.fold(j))
            for c, mean in zip(classes, found, strict=True):
                for name, value in mean.items():
                    made[name][places[c][j]] = value
        return Batch(task.form.unpack(made), groups.to(run.device))


def packed(task: Task, n: int) -> dict[str, Tensor]:
    return task.form.pack(task.form.blank(task, n))


def noisy_means(per_class: int, group: int) -> Recipe:
    return Recipe(
        pool=NoModel(),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=NoisyMeans(group=group),
        labels=Hard(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=0),
    )


@published(
    paper="openreview:H8XpqEkbua_",
    title="DP-random: noised means of many real images",
    settings="published/dp_random.toml",
    protocol="vico-dsa",
)
def dp_random(*, per_class: int = 10, group: int = 500) -> Recipe:
    return noisy_means(per_class, group)


@published(
    paper="openreview:H8XpqEkbua_",
    title="LDPDC: noised means of 50 real images",
    settings="published/ldpdc.toml",
    protocol="vico-dsa",
)
def ldpdc(*, per_class: int = 50, group: int = 50) -> Recipe:
    return noisy_means(per_class, group)


@hookimpl
def condense_components() -> list[type[Component]]:
    return [Example, NoisyMeans]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dp-random": dp_random, "ldpdc": ldpdc}
