"""Trajectory matching: trained on the set from where an expert was, a network should come to where the expert went."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from condense.axes import Objective, Term
from condense.errors import Diverged
from condense.fit import Fit
from condense.recipe import Reads, Recipe
from condense.running import Step
from condense.task import Task

from .experts import check_pool

NOTE, PATIENCE = "stretches passed over", 100


class Trajectory(Objective):
    """|student - end|^2 / |start - end|^2, of all parameters together.

    start, end: the first and the last snapshot of the learner's path. student: what `fit` on the set makes of the
    start; differentiated through all of its steps, in the set, its labels and its rate. The fit's augmentation is
    drawn for each image alone, not siamese. segment: how many steps are recorded at a time; memory then hardly grows
    with their number, the gradients are the same, and a step costs about half as much again. limit: a stretch whose
    loss is above, or no number, is passed over: it moves nothing, as in DATM's code. How many were is noted in the
    artifact's provenance; a run that passes over 100 in a row has diverged.
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
            pass_over(step, loss, self.limit)
            loss = loss.detach().nan_to_num(nan=self.limit, posinf=self.limit)  # nothing that it hangs on is followed
        return [Term({"trajectory": loss})]


def pass_over(step: Step, loss: Tensor, limit: float) -> None:
    """Note that this step takes no stretch; raises `Diverged` where none of the last `PATIENCE` was taken."""
    before = step.run.notes.get(NOTE, {"steps": 0, "in a row": 0, "last": -1})
    row = before["in a row"] + 1 if before["last"] == step.index - 1 else 1
    step.run.note(NOTE, {"steps": before["steps"] + 1, "in a row": row, "last": step.index})
    if row >= PATIENCE:
        problem = f"is above the limit of {limit:g} on {row} stretches in a row, up to outer step {step.index}"
        remedy = "What was saved before is kept. Lower the step size of the student (parameterization.start)."
        raise Diverged("loss", float(loss.detach()), problem, remedy)


def squared(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """The squared distance of two sets of parameters, 0-d."""
    return torch.stack([(a[name] - b[name]).square().sum() for name in b]).sum()
