"""Distribution matching with clipped features: NDPDC ("Differentially Private Dataset Condensation",
openreview:H8XpqEkbua_).

DM whose features are clipped to length 1, on both sides, so that a record moves a class's sum by 1 at most; a Poisson
sample of 50 records of each class, expected, in every step.

The official loss compares sums over L = 50 records with L times the set's mean. Here both sides are means over the
constant L, so that the loss is L^2 times smaller; the published rate of 1 is therefore L^2 = 2,500, and a step is the
same. The official noise has deviation sigma whatever the clip, which is right at a clip of 1 only; here it is sigma
times the clip. It samples each class at L over its own size, which publishes class sizes; a private source does so only
where they are declared public, and samples all records at one rate otherwise. The length that the set's own features
are clipped by is a constant of the gradient, as in the official code.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense import execution
from condense.axes import Augment, Init, Net, Preprocess, Statistic
from condense.component import Component, named
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.distances import SquaredError
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Matching
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh
from condense.parts.rules import SGD
from condense.recipe import Group, Outer, Published, Recipe, published
from condense.task import Batch, Task


@final
class ClippedFeature(Statistic):
    """The features in front of the head, clipped to L2 length `bound`: one part, `feature`, (N, D).

    labelled: each times the one-hot vector of its class, (N, D, K), for asks of all classes together: then the length
    is that of the features, and the label is part of what is released. bound: also what a private source clips by.
    """

    vectors: ClassVar[bool] = True
    bound: float = Field(default=1.0, gt=0)
    labelled: bool = False

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        rows = clipped(execution.current().features(model, batch.x, task.form), self.bound)
        if self.labelled:
            rows = rows.unsqueeze(2) * shares(batch.y, task).to(rows.dtype).unsqueeze(1)
        return {"feature": rows}

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> dict[str, Tensor]:
        passes = execution.current()
        found: Tensor = model.features(batch.x) if live else passes.features(model, batch.x, task.form)  # type: ignore[operator]
        rows = clipped(found, self.bound)
        if self.labelled:
            return {"feature": rows.T @ shares(batch.y, task).to(rows.dtype) / len(rows)}
        return {"feature": rows.mean(dim=0)}


def clipped(rows: Tensor, bound: float) -> Tensor:
    """Each row of (N, D), shortened to length `bound` where it is longer; the factor is a constant of the gradient."""
    factor: Tensor = bound / rows.detach().norm(dim=1, keepdim=True).clamp_min(bound)
    return rows * factor


def shares(y: Tensor, task: Task) -> Tensor:
    """(N, K): classes (N,) one-hot; float targets (N, K) as they are."""
    return y if y.is_floating_point() else F.one_hot(y, len(task.classes)).to(torch.float32)


@published(
    paper="openreview:H8XpqEkbua_",
    title="DP-DM: match noised means of clipped features under random networks",
    settings="published/dp_dm.toml",
    protocol="vico-dsa",
)
def dp_dm(*, per_class: int = 10, iterations: int = 10_000, group: int = 50) -> Recipe:
    return Recipe(
        objective=Matching(statistic=ClippedFeature(), distance=SquaredError(), pairing=ClassWise(n=group)),
        pool=Fresh(net=named(Net, "conv-net")),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=named(Init, "noise"),
        labels=Hard(),
        augment=named(Augment, "dsa"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=(Group(rule=SGD(momentum=0.5), lr=float(group**2)),)),
    )


@hookimpl
def condense_components() -> list[type[Component]]:
    return [ClippedFeature]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dp-dm": dp_dm}
