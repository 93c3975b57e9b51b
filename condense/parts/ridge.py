"""Kernel ridge regression on the set, in closed form: what it says of real examples should be right.

pred = K_ts (K_ss + ridge * tr(K_ss) / M * I)^-1 Y_s for M items of the set and N real examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Kernel, Loss, Objective, TaskLoss, Term
from condense.data import Sampler
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch, Task


def solve(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(gram + ridge * mean(diagonal of gram) * I)^-1 targets, (M, K), by Cholesky; differentiable in both.

    gram: (M, M), symmetric. targets: (M, K). All in float64, whatever comes in: with a ridge of 1e-6, float32 has no
    digits left. NaN throughout where the sum is not positive definite.
    """
    matrix = gram.double()
    matrix = (matrix + matrix.T) / 2
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge * matrix.diagonal().mean() * identity(matrix))
    return torch.cholesky_solve(targets.double(), factor) + torch.where(failed > 0, torch.nan, 0.0)


def predict(cross: Tensor, solution: Tensor) -> Tensor:
    """cross @ solution, (N, K), in cross's dtype. cross: (N, M), kernel values of N examples with the set."""
    return (cross.double() @ solution).to(cross.dtype)


def coded(y: Tensor, task: Task) -> Tensor:
    """Targets of a regression, (N, K): classes (N,) int64 as one-hot - 1/K; float targets (N, K) as they are.

    Centring changes no softmax of a prediction: it subtracts the same number from all classes of an example.
    """
    if y.is_floating_point():
        return y
    return F.one_hot(y, len(task.classes)).double() - 1 / len(task.classes)


def predictor(
    kernel: Kernel, model: nn.Module | None, support: Batch, ridge: float, task: Task
) -> Callable[[Batch], Tensor]:
    """Ridge regression on `support`: a function of a batch of N examples that gives (N, K)."""
    solution = solve(kernel(model, support, support), coded(support.y, task), ridge)
    return lambda batch: predict(kernel(model, batch, support), solution)


@final
class CentredError(Loss):
    """|f(x) - (one-hot - 1/K)|^2 / 2, (N,): the loss of KIP (arXiv:2011.00050) and FRePo (arXiv:2206.00719)."""

    deterministic = True

    def __call__(self, model: Callable[[Any], Tensor], batch: Batch, task: Task, rng: Rng) -> Tensor:
        logits = model(batch.x)
        return (logits - coded(batch.y, task).to(logits.dtype)).square().sum(dim=-1) / 2


@final
class KernelRidge(Objective):
    """The loss on real examples of kernel ridge regression on the set: the inner problem in closed form.

    n: real examples drawn in each step, all together or n of each class (`draw`), as the chunks of one permutation per
    epoch (None: all). m: synthetic items drawn in each step (None: all of them); fewer than the set may miss a class,
    which is then predicted by the others' absence. target_loss: of the predictions; cross-entropy of their softmax
    (KIDD), or `centred-error` (KIP). A kernel that wants a network gets the step's. `ridge` is relative to the mean of
    K_ss's diagonal, as in the code of KIP, FRePo and KIDD.
    Source: KIP (Nguyen et al., ICLR 2021, arXiv:2011.00050), eq. 7.
    """

    kernel: Kernel
    ridge: float = Field(default=1e-6, ge=0)
    n: int | None = Field(default=128, ge=1)
    draw: Literal["together", "each"] = "together"
    m: int | None = Field(default=None, ge=1)
    target_loss: Loss = TaskLoss()

    def __call__(self, step: Step) -> list[Term]:
        task, recipe, warps = step.syn.task, step.run.recipe, step.warps("ridge")
        cls: Literal["each"] | None = "each" if self.draw == "each" else None
        real = step.real.draw(self.n, cls, step.run.rng.fold("ridge"), at=step.index)
        support = drawn(step, self.m)
        real = Batch(real.x, recipe.labels.encode(real.y, task), real.index)
        for warp in warps:
            real, support = warp(real), warp(support)
        say = predictor(self.kernel, step.learner.module, support, self.ridge, task)
        losses = self.target_loss(lambda x: say(real.with_x(x)), real, task, step.rng.fold("loss"))
        return [Term({"ridge": losses.mean()})]


@final
class KernelOrthogonal(Objective):
    """weight * |K - I| (Frobenius) of the set's kernel matrix scaled to a diagonal of 1: its items should differ.

    m: as of `KernelRidge`; the same items are drawn.
    Source: KIDD (Xu et al., KDD 2023, doi:10.1145/3580305.3599398).
    """

    kernel: Kernel
    weight: float = Field(default=1e-3, ge=0)
    m: int | None = Field(default=None, ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def __call__(self, step: Step) -> list[Term]:
        support = drawn(step, self.m)
        for warp in step.warps("ridge"):
            support = warp(support)
        gram = self.kernel(step.learner.module, support, support)
        return [Term({"orthogonal": self.weight * away_from_orthogonal(gram)})]


def away_from_orthogonal(gram: Tensor) -> Tensor:
    """|D^-1/2 gram D^-1/2 - I| (Frobenius), 0-d, with D the diagonal of gram (M, M)."""
    root = gram.diagonal().sqrt()
    away: Tensor = torch.linalg.matrix_norm(gram / (root[:, None] * root[None, :]) - identity(gram))
    return away


def identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)


def drawn(step: Step, m: int | None) -> Batch:
    """m items of the step's set (None: all), the same for all who ask in this step."""
    data: Sampler = step.syn
    return data.draw(m, None, step.rng.fold("synthetic"))
