"""Kernel ridge regression on the set, in closed form: what it says of real examples should be right.

pred = K_ts (K_ss + ridge * tr(K_ss) / M * I)^-1 Y_s for M items of the set and N real examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Augment, Kernel, Loss, Objective, TaskLoss, Term
from condense.data import Sampler
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Run, Step
from condense.task import Batch, Task


def solve(gram: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """(gram + ridge * mean(diagonal of gram) * I)^-1 targets, (M, K), by Cholesky; differentiable in both.

    gram: (M, M), symmetric. targets: (M, K). All in float64, whatever comes in: with a ridge of 1e-6, float32 has no
    digits left. NaN throughout where the sum is not positive definite, to rounding.
    """
    matrix = gram.double()
    matrix = (matrix + matrix.T) / 2
    factor, failed = torch.linalg.cholesky_ex(matrix + ridge * matrix.diagonal().mean() * identity(matrix))
    least = len(matrix) * torch.finfo(matrix.dtype).eps * matrix.diagonal().max()
    bad = (failed > 0) | ~(factor.diagonal().square().min() > least)
    return torch.cholesky_solve(targets.double(), factor) + torch.where(bad, torch.nan, 0.0)


def most_alike(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The positions (2,) of the two items whose vectors have the largest cosine, the lower one first, and that, 0-d."""
    root = gram.diagonal().clamp_min(0).sqrt()
    cosines = (gram / (root[:, None] * root[None, :])).nan_to_num(nan=0.0)
    cosines = cosines.masked_fill(torch.ones_like(cosines, dtype=torch.bool).tril(), -torch.inf)
    flat = cosines.flatten().argmax()
    return torch.stack([flat // len(gram), flat % len(gram)]), cosines.flatten()[flat]


def alike(i: int, j: int, cosine: float) -> str:
    """Items i and j in a sentence, counted from 0."""
    how = "are equal" if cosine > 1 - 1e-9 else f"are the most alike (cosine {cosine:.6g})"
    which = f"items {i} and {j} of the set" if i != j else f"item {i} of the set and its augmented copy"
    return f"{which} {how} under the kernel"


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
    kernel: Kernel,
    model: nn.Module | None,
    support: Batch,
    ridge: float,
    task: Task,
    *,
    block: int | None = None,
    see: Callable[[Tensor, Tensor], None] | None = None,
) -> Callable[[Batch], Tensor]:
    """Ridge regression on `support`: a function of a batch of N examples that gives (N, K).

    block: so many examples at a time, where a batch can be cut. see: is shown the kernel matrix and the solution.
    """
    against = kernel.against(model, support)
    gram = against(support)
    solution = solve(gram, coded(support.y, task), ridge)
    if see is not None:
        see(gram.detach(), solution.detach())

    def say(batch: Batch) -> Tensor:
        return torch.cat([predict(against(part), solution) for part in pieces(batch, block, task)])

    return say


def pieces(batch: Batch, block: int | None, task: Task) -> list[Batch]:
    """The batch in parts of `block` examples, the last one shorter; as it is where it cannot be cut."""
    if block is None or len(batch) <= block or not task.form.in_rows:
        return [batch]
    parts = [slice(at, at + block) for at in range(0, len(batch), block)]
    index = batch.index
    return [
        Batch(task.form.take(batch.x, part), batch.y[part], None if index is None else index[part]) for part in parts
    ]


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
    K_ss's diagonal, as in the code of KIP, FRePo and KIDD. support: what is done to the synthetic items alone, after
    the recipe's augmentation of both sides (FRePo and RCIG add their mirror images). scaled: predictions are multiplied
    by exp(t) before the loss, with a number t that is 0 at first and learned under the role "aux" (Platt scaling, as in
    RFAD). block: so many real examples at a time meet the set: of the others only what the kernel makes of them is
    kept (the features of a network, in float64); it changes no value.

    A system that cannot be solved makes the loss NaN; the error of the run names the two items that are most alike.
    Source: KIP (Nguyen et al., ICLR 2021, arXiv:2011.00050), eq. 7.
    """

    kernel: Kernel
    ridge: float = Field(default=1e-6, ge=0)
    n: int | None = Field(default=128, ge=1)
    draw: Literal["together", "each"] = "together"
    m: int | None = Field(default=None, ge=1)
    target_loss: Loss = TaskLoss()
    support: Augment | None = None
    scaled: bool = False
    block: int = Field(default=256, ge=1)

    def held(self, items: int) -> int:
        return min(self.m or items, items) * (1 if self.support is None else 2)

    def state(self, run: Run) -> nn.Module:
        return Memory(run, self.scaled)

    def __call__(self, step: Step) -> list[Term]:
        task, recipe, warps = step.syn.task, step.run.recipe, step.warps("ridge")
        cls: Literal["each"] | None = "each" if self.draw == "each" else None
        real = step.real.draw(self.n, cls, step.run.rng.fold("ridge"), at=step.index)
        support = drawn(step, self.m)
        real = Batch(real.x, recipe.labels.encode(real.y, task), real.index)
        for warp in warps:
            real, support = warp(real), warp(support)
        items = len(support)
        if self.support is not None:
            support = self.support.sample(step.rng.fold("support"), None, step.progress)(support)
        memory = step.run.states.get(self.digest())
        see = functools.partial(memory.see, step.index, items) if isinstance(memory, Memory) else None
        model = step.learner.module
        say = predictor(self.kernel, model, support, self.ridge, task, block=self.block, see=see)
        scale = memory.temperature.exp() if self.scaled and isinstance(memory, Memory) else 1.0
        losses = self.target_loss(lambda x: scale * say(real.with_x(x)), real, task, step.rng.fold("loss"))
        return [Term({"ridge": losses.mean()})]


class Memory(nn.Module):
    """What regression remembers of a run: the learned temperature, and the first system that could not be solved.

    That is kept on the device, and told once the run is found to have diverged.
    """

    step: Tensor
    pair: Tensor
    cosine: Tensor

    def __init__(self, run: Run, scaled: bool = False) -> None:
        super().__init__()
        if scaled:
            self.temperature = nn.Parameter(torch.zeros((), device=run.device))
        found = {
            "step": torch.tensor(-1),
            "pair": torch.zeros(2, dtype=torch.int64),
            "cosine": torch.zeros(()).double(),
        }
        for name, value in found.items():
            self.register_buffer(name, value.to(run.device), persistent=False)
        run.watch.causes.append(self.cause)

    def see(self, index: int, items: int, gram: Tensor, solution: Tensor) -> None:
        """A kernel matrix whose rows stand for `items` items, in turns, and its solution."""
        first = (self.step < 0) & solution.isnan().any() & gram.isfinite().all()
        pair, cosine = most_alike(gram.double())
        self.step = torch.where(first, index, self.step)
        self.pair = torch.where(first, pair % items, self.pair)
        self.cosine = torch.where(first, cosine, self.cosine)

    def cause(self) -> str | None:
        if int(self.step) < 0:
            return None
        i, j = (int(place) for place in self.pair)
        return f"the ridge system of outer step {int(self.step)} is singular: {alike(i, j, float(self.cosine))}"


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
