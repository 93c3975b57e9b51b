"""The subspace of experts: a gradient of the set should lie where experts went, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from condense.axes import Augment, Loss, Objective, OwnLoss, TaskLoss, Term
from condense.recipe import Reads, Recipe
from condense.running import Step
from condense.task import Task

from .experts import check_pool


class Subspace(Objective):
    """|g - Q Q' g|^2 / |g|^2: the share of the set's gradient g that leaves the span of the expert's steps.

    Q is an orthonormal basis of the differences between the snapshots of the learner's path and its first; g is the
    gradient of the mean loss of the whole set at a random snapshot but the last. Nothing is unrolled: one gradient, and
    its derivative in the images. augment: drawn for each image alone. Our own reading of the abstract of ESP (Ma et
    al., Sensors 23(19) 8148, 2023), which gives no formula.
    """

    loss: Loss = OwnLoss()
    augment: Augment | None = None

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        check_pool(self, recipe)

    def held(self, items: int) -> int:
        return items

    def __call__(self, step: Step) -> list[Term]:
        path = [dict(step.learner.path[i]) for i in range(len(step.learner.path))]
        names, rng = list(path[0]), step.rng.fold("subspace")
        at = path[rng.fold("at").choice(len(path) - 1)]
        weights = {name: p.requires_grad_() for name, p in at.items()}
        batch = step.syn.take(torch.arange(len(step.syn), device=step.syn.device))
        if self.augment is not None:
            batch = self.augment.sample(rng.fold("warp"), len(batch), step.progress)(batch)
        own = step.syn.loss or TaskLoss()
        loss = own if isinstance(self.loss, OwnLoss) else self.loss.rewrite(OwnLoss, lambda _: own)

        def logits(x: Any) -> Tensor:
            said: Tensor = functional_call(step.model, weights, (x,))
            return said

        value = loss(logits, batch, step.syn.task, rng.fold("loss")).mean()
        g = flat(torch.autograd.grad(value, list(weights.values()), create_graph=True))
        start = flat(path[0][name].detach() for name in names)
        moves = [flat(later[name].detach() for name in names) - start for later in path[1:]]
        basis = torch.linalg.qr(torch.stack(moves, dim=1)).Q
        left = g - basis @ (basis.T @ g)
        return [Term({"subspace": left.square().sum() / g.square().sum()})]


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All of them as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])
