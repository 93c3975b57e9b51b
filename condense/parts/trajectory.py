"""Trajectory matching: trained on the set from where an expert was, a network should come to where the expert went."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from condense.axes import Objective, Term
from condense.fit import Fit
from condense.recipe import Reads, Recipe
from condense.running import Step
from condense.task import Task

from .experts import check_pool


class Trajectory(Objective):
    """|student - end|^2 / |start - end|^2, of all parameters together.

    start, end: the first and the last snapshot of the learner's path. student: what `fit` on the set makes of the
    start; differentiated through all of its steps, in the set, its labels and its rate. The fit's augmentation is
    drawn for each image alone, not siamese. segment: how many steps are recorded at a time; memory then hardly grows
    with their number, the gradients are the same, and a step costs about half as much again. limit: on a stretch whose
    loss is above, or no number, no step is taken, as in DATM's code.
    Source: MTT (Cazenavette et al., CVPR 2022, arXiv:2203.11932), eq. 2.
    """

    fit: Fit
    segment: int | None = Field(default=None, ge=1)
    limit: float | None = Field(default=None, gt=0)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        check_pool(self, recipe)

    def held(self, items: int) -> int:
        return self.fit.unrolled(items, self.segment)

    def __call__(self, step: Step) -> list[Term]:
        start, end = step.learner.path[0], step.learner.path[-1]
        rng = step.rng.fold("student")
        steps = self.fit.length(step.syn)
        student = self.fit.unroll(step.model, start, step.syn, rng, steps, segment=self.segment)
        loss = squared(student, end) / squared(start, end)
        if self.limit is not None and not bool(loss <= self.limit):
            loss = loss.detach().nan_to_num(nan=self.limit, posinf=self.limit)  # nothing that it hangs on is followed
        return [Term({"trajectory": loss})]


def squared(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The squared distance of two sets of parameters, 0-d."""
    return torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum()
