"""What experts say of examples: labels that start from it, and a start from examples that they understand.

Both ask the recipe's own pool of experts. Source: DATM (Guo et al., ICLR 2024, arXiv:2310.05773) and its code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from condense.axes import Labels, Loss
from condense.component import Component
from condense.errors import BadValue
from condense.recipe import Recipe
from condense.rng import Rng
from condense.running import Run
from condense.task import Batch, Task

from .experts import Experts, check_pool
from .inits import RealExamples

CHUNK = 256  # examples that an expert is asked about at once


class SoftTargets(Loss):
    """Cross-entropy with targets that are logits, (N, K) float: their softmax is what should be said."""

    deterministic = True

    def __call__(self, model: Callable[[Any], Tensor], batch: Batch, task: Task, rng: Rng) -> Tensor:
        return F.cross_entropy(model(batch.x), batch.y.softmax(dim=-1), reduction="none")


class ExpertLogits(Labels):
    """Learned soft labels: a row of logits for each item, in the role "labels", which start from what experts say.

    The start is the mean of the logits that experts give at their last epoch, over those that name the item's class;
    where none does, over all of them (the code of DATM divides by zero there).
    """

    def check(self, recipe: Recipe, task: Task) -> None:
        check_asked(self, recipe, task)

    def blank(self, groups: Tensor, task: Task) -> Tensor:
        return nn.Parameter(torch.zeros(len(groups), task.outputs, device=groups.device))

    def start(self, batch: Batch, run: Run) -> Tensor:
        right = torch.zeros(len(batch), device=batch.y.device)
        total, said_right = torch.zeros(2, len(batch), run.task.outputs, device=batch.y.device).unbind(0)
        asked = 0
        for model in last_epochs(run):
            asked += 1
            logits = said_of(run, model, batch)
            names = (logits.argmax(dim=1) == batch.y).to(logits.dtype)
            right, total, said_right = right + names, total + logits, said_right + names[:, None] * logits
        mean = said_right / right.clamp_min(1)[:, None]
        return torch.where(right[:, None] > 0, mean, total / asked)

    def loss(self) -> Loss:
        return SoftTargets()


class Understood(RealExamples):
    """Random real examples of each class that an expert, at its last epoch, names rightly.

    The first expert is asked, and the next where it names too few; where all of them do, others fill up.
    """

    def check(self, recipe: Recipe, task: Task) -> None:
        check_asked(self, recipe, task)

    def choose(self, run: Run, cls: int, n: int, rng: Rng) -> Tensor:
        ids = run.splits.train.ids(cls)
        ids = ids[rng.permutation(len(ids), ids.device)]
        chosen = ids[:0]
        for model in last_epochs(run):
            found = []
            for part in ids.split(CHUNK):  # type: ignore[no-untyped-call]
                found.append(part[said_of(run, model, run.splits.train.take(part)).argmax(dim=1) == cls])
                if len(chosen) + sum(map(len, found)) >= n:
                    break
            chosen = torch.cat([chosen, *found])[:n]
            ids = ids[~torch.isin(ids, chosen)]
            if len(chosen) == n:
                break
        return torch.cat([chosen, ids[: n - len(chosen)]])


def check_asked(part: Component, recipe: Recipe, task: Task) -> None:
    """Refuse a recipe whose pool has no experts, or such as cannot be asked. Raises `BadValue`."""
    check_pool(part, recipe)
    assert isinstance(recipe.pool, Experts)
    net = recipe.pool.experts.net
    with torch.device("meta"):
        module = net.build(task)
    if any(isinstance(below, nn.modules.batchnorm._BatchNorm) for below in module.modules()):
        problem = f"asks experts what they say, and of {net.name} with batch norm no statistics are kept"
        raise BadValue(
            part.axis, part.name, problem, "Use another norm, or hard labels and a start from random images."
        )


def last_epochs(run: Run) -> Iterator[Callable[[Any], Tensor]]:
    """The networks that the pool's experts ended as, in evaluation mode, each loaded when it is asked for."""
    pool = run.recipe.pool
    assert isinstance(pool, Experts)  # as `check_pool` has seen to
    module = pool.experts.net.make(run.task, run.rng.fold("said"), run.device).eval()
    like = {name: p.detach() for name, p in module.named_parameters()}
    for reader in pool.readers(run):
        yield _Said(module, reader.get(len(reader) - 1, like))


class _Said:
    def __init__(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        self.module, self.weights = module, dict(weights)

    def __call__(self, x: Any) -> Tensor:
        logits: Tensor = functional_call(self.module, self.weights, (x,))
        return logits


@torch.no_grad()
def said_of(run: Run, model: Callable[[Any], Tensor], batch: Batch) -> Tensor:
    """Logits (N, K) of all examples of a batch."""
    form = run.task.form
    parts = range(0, len(batch), CHUNK)
    return torch.cat([model(form.take(batch.x, slice(i, i + CHUNK))) for i in parts])
