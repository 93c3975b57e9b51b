"""An example of a plugin for condense: one objective, one parameterization and one recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condense import hookimpl
from condense.axes import Augment, Budget, Init, Labels, Objective, Parameterization, Pool, Preprocess, Rule, Term
from condense.component import Component, named
from condense.recipe import Group, Outer, Published, Recipe, published
from condense.rng import Rng
from condense.running import Step
from condense.synthetic import Synthetic
from condense.task import Batch, Task


class PixelMoments(Objective):
    """Class by class, the mean and the standard deviation of every pixel should agree with those of real images."""

    n: int = 256  # real images of each class in one step

    def __call__(self, step: Step) -> Iterable[Term]:
        for c in range(step.real.task.groups):
            real = step.real.draw(self.n, c, step.rng.fold("real", c)).x  # (n, C, H, W)
            mine = step.syn.draw(None, c, step.rng.fold("synthetic", c)).x  # (per class, C, H, W), differentiable
            mean = (real.mean(0) - mine.mean(0)).square().mean()
            spread = (real.std(0, correction=0) - (mine.var(0, correction=0) + 1e-6).sqrt()).square().mean()
            yield Term({"mean": mean, "spread": spread}, cls=c)


class HalfSize(Parameterization):
    """Images stored at half their height and width, a quarter of the floats, and enlarged when they are used."""

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Half(task, groups, labels)


class _Half(Synthetic):
    def __init__(self, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        channels, *size = task.shape
        self.small = nn.Parameter(torch.zeros(len(groups), channels, *(-(-side // 2) for side in size)))

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {"images": [self.small]}

    def fill(self, batch: Batch) -> None:
        with torch.no_grad():
            self.small.copy_(F.interpolate(batch.x, self.small.shape[2:], mode="area"))
            self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        pick = slice(None) if index is None else index
        x = F.interpolate(self.small[pick], self.task.shape[1:], mode="bilinear", align_corners=False)
        return Batch(x, self.y[pick], index)


@published(paper="", title="Tiny moments: match the pixels' means and standard deviations, at half size")
def tiny_moments(*, per_class: int = 10, iterations: int = 500) -> Recipe:
    return Recipe(
        objective=PixelMoments(),
        pool=named(Pool, "no-model"),
        parameterization=HalfSize(),
        budget=named(Budget, "per-class", n=per_class),
        init=named(Init, "real"),
        labels=named(Labels, "hard"),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=(Group(rule=named(Rule, "adam"), lr=0.02),)),
    )


@hookimpl
def condense_components() -> list[type[Component]]:
    return [PixelMoments, HalfSize]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"tiny-moments": tiny_moments}
