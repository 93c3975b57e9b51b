"""Where storage starts: noise, or real examples chosen at random or by their features."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from condense import execution
from condense.axes import Asset, Init
from condense.data import Source
from condense.errors import BadValue
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Run
from condense.task import Batch


class Noise(Init):
    """Standard normal examples in the network's input scale. Reads nothing."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def __call__(self, run: Run, groups: Tensor) -> Batch:
        form = run.task.form
        generator = run.rng.fold("init").generator()
        blank = form.pack(form.blank(run.task, len(groups)))
        drawn = {key: torch.randn(t.shape, generator=generator) for key, t in blank.items() if t.is_floating_point()}
        x = form.unpack({**blank, **drawn})  # what is no number of an example (places, sizes) stays as in a blank one
        return Batch(form.to(x, run.device), groups.to(run.device))


class RealExamples(Init):
    """Base of the inits that store real examples: as many of each class as the budget asks for."""

    @abstractmethod
    def choose(self, run: Run, cls: int, n: int, rng: Rng) -> Tensor:
        """(n,) positions in the training split, of class `cls`."""

    def admit(self, source: Source, groups: Tensor) -> None:
        have, want = source.counts(), torch.bincount(groups, minlength=source.task.groups).tolist()
        for name, available, asked in zip(source.task.classes, have, want, strict=True):
            if asked > available:
                problem = f"{self.name} needs {asked} real examples of class {name!r}, which has {available}"
                remedy = f"Ask for at most {min(have)} per class; a method that learns may start from --set init=noise."
                raise BadValue("per_class", asked, problem, remedy)

    def __call__(self, run: Run, groups: Tensor) -> Batch:
        want = torch.bincount(groups, minlength=run.task.groups).tolist()
        chosen = torch.cat([self.choose(run, c, n, run.rng.fold("init", c)) for c, n in enumerate(want) if n])
        index = torch.empty_like(chosen)
        index[torch.argsort(groups, stable=True).to(chosen.device)] = chosen
        return run.splits.train.take(index)


class Real(RealExamples):
    """Random real examples of each class (`real` of DC, DSA and DM; the `random` baseline)."""

    def choose(self, run: Run, cls: int, n: int, rng: Rng) -> Tensor:
        ids = run.splits.train.ids(cls)
        return ids[rng.permutation(len(ids), ids.device)[:n]]


def herding(features: Tensor, n: int) -> Tensor:
    """n positions whose running mean stays closest to the mean of `features` (M, D), greedily; (n,) int64.

    Source: Welling, ICML 2009, as iCaRL (arXiv:1611.07725, algorithm 4) uses it. An example is chosen once.
    """
    goal, total = features.mean(dim=0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, n + 1):
        gap = (goal - (total + features) / k).square().sum(dim=1).masked_fill(~free, torch.inf)
        best = gap.argmin()
        chosen.append(best)
        free = free & (torch.arange(len(features), device=features.device) != best)
        total = total + features[best]
    return torch.stack(chosen)


def k_center(features: Tensor, n: int) -> Tensor:
    """n centres of `features` (M, D), farthest first from the one nearest to the mean; (n,) int64.

    A 2-approximation of the smallest covering radius (Gonzalez 1985; Sener and Savarese, arXiv:1708.00489, algorithm
    1). An example is chosen once, also where it has a twin.
    """
    best = (features - features.mean(dim=0)).square().sum(dim=1).argmin()
    chosen, gap = [best], torch.full_like(features[:, 0], torch.inf)
    for _ in range(1, n):
        gap = torch.minimum(gap, (features - features[best]).square().sum(dim=1)).index_fill(0, best, -1.0)
        best = gap.argmax()
        chosen.append(best)
    return torch.stack(chosen)


class ByFeatures(RealExamples):
    """Base of the inits that choose by what a network (`scorer`) says of each example; without one, by its inputs."""

    scorer: Asset | None = None

    def choose(self, run: Run, cls: int, n: int, rng: Rng) -> Tensor:
        ids = run.splits.train.ids(cls)
        return ids[type(self).rule(self._features(run, ids), n)]

    @staticmethod
    @abstractmethod
    def rule(features: Tensor, n: int) -> Tensor: ...

    def _features(self, run: Run, ids: Tensor) -> Tensor:
        network = run.assets.get(self.scorer) if self.scorer else None
        passes, form, rows = execution.current(), run.task.form, []
        for part in ids.split(512):  # type: ignore[no-untyped-call]
            x = run.splits.train.take(part).x
            rows.append(passes.features(network, x, form) if network else form.flat(x))
        return torch.cat(rows)


class Herding(ByFeatures):
    """Examples whose running mean follows the class mean: see `herding`."""

    @staticmethod
    def rule(features: Tensor, n: int) -> Tensor:
        return herding(features, n)


class KCenter(ByFeatures):
    """Examples that cover their class: see `k_center`."""

    @staticmethod
    def rule(features: Tensor, n: int) -> Tensor:
        return k_center(features, n)
