"""Matching: a statistic of real examples and of synthetic ones should agree, pair by pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from condense import execution
from condense.axes import Distance, Loss, Objective, Pair, Pairing, Statistic, TaskLoss, Term
from condense.data import Ask
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch, Task


class Gradient(Statistic):
    """The gradient of the mean loss with respect to the network's parameters, by parameter name.

    Source: DC (Zhao et al., arXiv:2006.05929), eq. 5.
    """

    loss: Loss = TaskLoss()

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        """Each example's own gradient, (N, *parameter shape)."""
        form, each = task.form, []
        for i in range(len(batch)):
            one = Batch(form.take(batch.x, slice(i, i + 1)), batch.y[i : i + 1])
            each.append(self.mean(model, one, task, live=False))
        return {name: torch.stack([row[name] for row in each]) for name in each[0]}

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> Mapping[str, Tensor]:
        if not live:
            return execution.current().gradients(model, self.loss, batch, task, Rng(0))[1]
        params = dict(model.named_parameters())
        value = self.loss(model, batch, task, Rng(0)).mean()
        return dict(zip(params, torch.autograd.grad(value, list(params.values()), create_graph=True), strict=True))


class MeanFeature(Statistic):
    """The features in front of the head: one part, `feature`, (N, D).

    Source: DM (Zhao and Bilen, WACV 2023, arXiv:2110.04181), eq. 4.
    """

    vectors: ClassVar[bool] = True

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        return {"feature": execution.current().features(model, batch.x)}

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> dict[str, Tensor]:
        features = model.features(batch.x) if live else execution.current().features(model, batch.x)  # type: ignore[operator]
        return {"feature": features.mean(dim=0)}


class ClassWise(Pairing):
    """Each class meets itself: `n` real examples, all synthetic ones, one warp for both sides.

    weight: every class counts 1, or by its share of the synthetic set (n'_c / max n').
    """

    n: int | None = Field(default=256, ge=1)
    weight: Literal["uniform", "frequency"] = "uniform"

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def pairs(self, step: Step) -> Iterable[Pair]:
        counts = step.syn.counts()
        for c, count in enumerate(counts):
            if count:
                warps = step.warps("pair", c)
                weight = 1.0 if self.weight == "uniform" else count / max(counts)
                yield Pair(Ask(c, self.n, warps), Ask(c, None, warps), weight)


class Matching(Objective):
    """sum over pairs of weight * distance(statistic(real), statistic(synthetic)), part by part.

    The real side is measured once per step, with all of the pairing's asks; it is a constant. Each pair is a term of its
    own, so memory is bounded by one pair. `weights`: globs over the statistic's part names; the first match counts, 0 skips.
    """

    statistic: Statistic
    distance: Distance
    pairing: Pairing
    weights: Mapping[str, float] = {"*": 1.0}

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(per_step=1)

    def __call__(self, step: Step) -> Iterable[Term]:
        model = step.model
        pairs = list(self.pairing.pairs(step))
        targets = step.real.measure(self.statistic, model, [pair.real for pair in pairs], step.rng.fold("real"))
        for pair, target in zip(pairs, targets, strict=True):
            ask = pair.synthetic
            batch = step.syn.draw(ask.n, ask.cls, step.rng.fold("synthetic"))
            for warp in ask.warps:
                batch = warp(batch)
            mine = self.statistic.finish(self.statistic.mean(model, batch, step.syn.task, live=True))
            yield Term({"matching": self.compare(target, mine)}, cls=ask.cls, weight=pair.weight)

    def compare(self, real: Mapping[str, Tensor], synthetic: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the parts' distances, 0-d."""
        return torch.stack(
            [self._weight(key) * self.distance(real[key], synthetic[key]) for key in real if self._weight(key)]
        ).sum()

    def _weight(self, part: str) -> float:
        return next((weight for glob, weight in self.weights.items() if fnmatchcase(part, glob)), 0.0)
