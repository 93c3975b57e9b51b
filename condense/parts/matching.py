"""Matching: a statistic of real examples and of synthetic ones should agree, pair by pair."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from condense import clipping, execution
from condense.axes import Distance, Loss, Objective, Pair, Pairing, Statistic, TaskLoss, Term
from condense.data import Ask
from condense.errors import NotBuilt
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch, Task

Tensors = Mapping[str, Tensor]
CHUNK = 32  # examples whose gradients are held at a time


class Gradient(Statistic):
    """The gradient of the mean loss with respect to the network's parameters, by parameter name.

    Source: DC (Zhao et al., arXiv:2006.05929), eq. 5.
    """

    loss: Loss = TaskLoss()

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        """Each example's own gradient, (N, *parameter shape), in the network's own precision.

        Mapped over examples, `CHUNK` at a time; one after the other where that cannot be (see
        `execution.gradient_rows`).
        """
        params, n = dict(model.named_parameters()), len(batch)
        rows = {name: torch.empty(n, *p.shape, dtype=p.dtype, device=p.device) for name, p in params.items()}
        for part in clipping.slices(n, CHUNK):
            some = Batch(task.form.take(batch.x, part), batch.y[part])
            for name, row in execution.gradient_rows(model, self.loss, [some], task).items():
                rows[name][part] = row
        return rows

    def clipped_sums(
        self,
        model: nn.Module,
        views: Sequence[Batch],
        task: Task,
        groups: Tensor,
        count: int,
        bound: float,
        *,
        chunk: int = CHUNK,
        dtype: torch.dtype = torch.float32,
    ) -> Mapping[str, Tensor]:
        clipping.check_asked([len(view) for view in views], groups, count, bound, chunk)
        if not len(groups):
            params = model.named_parameters()
            return {name: groups.new_zeros(count, *p.shape, dtype=dtype) for name, p in params}
        found = execution.current().clipped_gradients(model, self.loss, views, task, groups, count, bound, chunk)
        return {name: value.to(dtype) for name, value in found.items()}

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> Mapping[str, Tensor]:
        if not live:
            return execution.current().gradients(model, self.loss, batch, task, Rng(0))[1]
        return execution.parameter_gradient(model, lambda model: self.loss(model, batch, task, Rng(0)).mean())

    def means(
        self, model: nn.Module, batches: Sequence[Batch], task: Task, *, live: bool
    ) -> Sequence[Mapping[str, Tensor]]:
        if task.form.independent:
            return super().means(model, batches, task, live=live)
        losses = self.loss(model, joined(batches, task), task, Rng(0))
        values = [part.mean() for part in losses.split([len(batch) for batch in batches])]  # type: ignore[no-untyped-call]
        return execution.parameter_gradients(model, values, live=live)


class MeanFeature(Statistic):
    """The features in front of the head: one part, `feature`, (N, D).

    Source: DM (Zhao and Bilen, WACV 2023, arXiv:2110.04181), eq. 4.
    """

    vectors: ClassVar[bool] = True

    def rows(self, model: nn.Module, batch: Batch, task: Task) -> dict[str, Tensor]:
        return {"feature": execution.current().features(model, batch.x, task.form)}

    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> dict[str, Tensor]:
        if live:
            return {"feature": model.features(batch.x).mean(dim=0)}  # type: ignore[operator]
        return {"feature": execution.current().features(model, batch.x, task.form).mean(dim=0)}

    def means(
        self, model: nn.Module, batches: Sequence[Batch], task: Task, *, live: bool
    ) -> Sequence[Mapping[str, Tensor]]:
        if task.form.independent:
            return super().means(model, batches, task, live=live)
        x = joined(batches, task).x
        rows = model.features(x) if live else execution.current().features(model, x, task.form)  # type: ignore[operator]
        return [{"feature": part.mean(dim=0)} for part in rows.split([len(batch) for batch in batches])]


def joined(batches: Sequence[Batch], task: Task) -> Batch:
    """Several batches as one."""
    return Batch(task.form.join([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]))


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


class Joint(Pairing):
    """All classes together: `n` real examples of any class (None: all), all synthetic ones, one warp for both sides.

    One pair. A statistic for it says itself of which class an example is, as a gradient does (PSG, arXiv:2211.04446).
    """

    n: int | None = Field(default=256, ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def pairs(self, step: Step) -> Iterable[Pair]:
        warps = step.warps("pair")
        yield Pair(Ask(None, self.n, warps), Ask(None, None, warps))


class Matching(Objective):
    """sum over pairs of weight * distance(statistic(real), statistic(synthetic)), part by part.

    The real side is measured once per step, with all of the pairing's asks; it is a constant. Each pair is a term of
    its own, so memory is bounded by one pair; where examples cannot be taken without all the others (nodes), all pairs
    are one term, made in one pass. `weights`: globs over the statistic's part names; the first match counts, 0 skips.
    """

    statistic: Statistic
    distance: Distance
    pairing: Pairing
    weights: Mapping[str, float] = {"*": 1.0}

    def check(self, recipe: Recipe, task: Task) -> None:
        if self.distance.over != "mean":
            problem = f"compares {self.distance.over}, and only means are measured so far"
            raise NotBuilt("objective.distance", self.distance.name, problem, "Use a distance of means.")

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(per_step=1)

    def __call__(self, step: Step) -> Iterable[Term]:
        model, task, passes = step.model, step.syn.task, execution.current()
        pairs = list(self.pairing.pairs(step))
        targets = step.real.measure(self.statistic, model, [pair.real for pair in pairs], step.rng.fold("real"))
        if not (task.form.independent or step.run.recipe.outer.commit == "term"):
            yield self.together(step, pairs, list(targets))
            return
        for pair, target in zip(pairs, targets, strict=True):
            ask, batch = pair.synthetic, synthetic(step, pair)
            leaves, fixed = moving(batch, task)
            gap = functools.partial(self.gap, task=task, weights=self.weights_of(target))
            value, cotangents = passes.gap(self.digest(), gap, model, leaves, {**fixed, **target})
            yield Term({"matching": value}, cls=ask.cls, weight=pair.weight, cotangents=cotangents)

    def together(self, step: Step, pairs: Sequence[Pair], targets: Sequence[Tensors]) -> Term:
        """All pairs as one term, their weights inside."""
        batches = [synthetic(step, pair) for pair in pairs]
        mine = self.statistic.means(step.model, batches, step.syn.task, live=True)
        gaps = [
            pair.weight * self.apart(target, self.statistic.finish(own), self.weights_of(target))
            for pair, target, own in zip(pairs, targets, mine, strict=True)
        ]
        return Term({"matching": torch.stack(gaps).sum()})

    def gap(
        self, model: nn.Module, leaves: Tensors, constants: Tensors, *, task: Task, weights: Mapping[str, float]
    ) -> Tensor:
        """The weighted sum of the parts' distances, 0-d: a pure function of tensors, differentiable in `leaves`."""
        both = {**leaves, **constants}
        x = task.form.unpack({key.removeprefix("x:"): value for key, value in both.items() if key.startswith("x:")})
        mine = self.statistic.finish(self.statistic.mean(model, Batch(x, both["y:"]), task, live=True))
        return self.apart(constants, mine, weights)

    def apart(self, real: Tensors, mine: Tensors, weights: Mapping[str, float]) -> Tensor:
        """The weighted sum of the parts' distances, 0-d."""
        return torch.stack([w * self.distance(real[part], mine[part]) for part, w in weights.items()]).sum()

    def weights_of(self, parts: Iterable[str]) -> dict[str, float]:
        """The weight of each part of the statistic that counts."""
        found = {
            part: next((weight for glob, weight in self.weights.items() if fnmatchcase(part, glob)), 0.0)
            for part in parts
        }
        return {part: weight for part, weight in found.items() if weight}


def synthetic(step: Step, pair: Pair) -> Batch:
    """What a pair asks of the synthetic set, warped."""
    ask = pair.synthetic
    batch = step.syn.draw(ask.n, ask.cls, step.rng.fold("synthetic"))
    for warp in ask.warps:
        batch = warp(batch)
    return batch


def moving(batch: Batch, task: Task) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The batch's tensors by name (`x:<packed name>`, `y:`): those that a gradient goes to, and the others."""
    named = {f"x:{key}": value for key, value in task.form.pack(batch.x).items()} | {"y:": batch.y}
    leaves = {key: value for key, value in named.items() if value.requires_grad}
    return leaves, {key: value for key, value in named.items() if key not in leaves}
