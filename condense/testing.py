"""For authors of plugins: toys that every part runs on in milliseconds, and the checks that every part passes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .axes import Augment, Net, Preprocess, Statistic, Transform, Warp
from .clipping import lengths
from .component import Component, checked, member
from .data import Ask, Class, Data, Facts, Source, Splits, TensorSource
from .engine import condense
from .errors import BadData
from .plugins import Plugin, Registry, registry, run_manager, using
from .recipe import Execution, Plan, Recipe
from .rng import Rng
from .running import Limits, Run
from .task import Batch, Task

Dtype = Literal["float32", "float64"]


class ToyNet(Net):
    """Two small convolutions and a head, smooth throughout, for images of 4 pixels and more.

    dtype: float64 is for finite differences; feed it examples that `Raw(dtype="float64")` has encoded.
    """

    width: int = 4
    dtype: Dtype = "float32"

    def build(self, task: Task) -> nn.Module:
        return _Toy(task, self.width).to(getattr(torch, self.dtype))


class _Toy(nn.Module):
    def __init__(self, task: Task, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(task.shape[0], width, 3, padding=1),
            nn.Softplus(),
            nn.AvgPool2d(2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, task.outputs)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


class Raw(Preprocess):
    """Examples as they are, as floats."""

    dtype: Dtype = "float32"

    def fit(self, train: Source, facts: Any) -> Transform:
        return _Raw(getattr(torch, self.dtype))

    def blank(self, task: Task) -> Transform:
        return _Raw(getattr(torch, self.dtype))


class _Raw(Transform):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def encode(self, raw: Tensor) -> Tensor:
        return raw.to(self.dtype)

    def decode(self, x: Tensor) -> Tensor:
        return x

    def describe(self) -> dict[str, Any]:
        return {"name": Raw.name}


class Still(Augment):
    """No augmentation."""

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        return _Still()


class _Still(Warp):
    def __call__(self, batch: Batch) -> Batch:
        return batch

    def state(self) -> dict[str, Tensor]:
        return {}


def toy_splits(device: torch.device | str = "cpu", seed: int = 7) -> Splits:
    """Three separable classes of 1x8x8 float images: 60 to train on (30, 20 and 10, shuffled), 30 to test on."""
    g = torch.Generator().manual_seed(seed)
    task = Task(classes=("circle", "square", "star"), shape=(1, 8, 8))
    centres = torch.randn(3, 1, 8, 8, generator=g)

    def source(sizes: tuple[int, ...]) -> TensorSource:
        y = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])[torch.randperm(sum(sizes), generator=g)]
        x = centres[y] + 0.3 * torch.randn(len(y), 1, 8, 8, generator=g)
        return TensorSource(task, x.to(device), y.to(device))

    return Splits(train=source((30, 20, 10)), test=source((10, 10, 10)), facts=Facts(title="toy"))


class Toy(Data):
    """The toy splits, as data that a plan can name."""

    seed: int = 7

    def open(self, device: torch.device | str = "cpu") -> Splits:
        return toy_splits(device, self.seed)


def toy_run(recipe: Recipe, splits: Splits | None = None, **changes: Any) -> Run:
    """A run of `recipe` on the toy (or other) splits, that stores nothing unless a `folder` is given."""
    splits = splits or toy_splits()
    device = str(splits.train.device)
    transform = recipe.preprocess.fit(splits.train, splits.facts)
    plan = Plan(
        method="toy",
        data=Toy(),
        recipe=recipe,
        protocol=None,
        seed=changes.pop("seed", 0),
        execution=Execution(device=device),
    )
    limits = changes.pop("limits", None) or Limits()
    encoded = splits.map(lambda source: source.encoded(transform))
    return Run(plan, encoded, transform, run_manager(changes.pop("observers", ())), changes.pop("folder", None), limits)


class Sealed(Source):
    """Real data behind the door that a private source leaves open: `measure` answers, everything else refuses.

    `releases` counts the calls of `measure`: what a private source would bill.
    """

    def __init__(self, inner: Source) -> None:
        self.inner, self.task, self.releases = inner, inner.task, 0

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def __len__(self) -> int:
        return len(self.inner)  # how many records there are is public, as a private source declares it

    @property
    def groups(self) -> Tensor:
        raise self._refusal("the class of each example")

    def take(self, index: Tensor) -> Batch:
        raise self._refusal("examples")

    def draw(self, n: int | None, cls: Class, rng: Rng, at: int | None = None) -> Batch:
        raise self._refusal("examples")

    def _refusal(self, what: str) -> BadData:
        return BadData("data", "sealed", f"does not give {what}", "Use `measure` only.")

    def measure(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], rng: Rng
    ) -> Iterator[Mapping[str, Tensor]]:
        self.releases += 1
        return self.inner.measure(statistic, model, asks, rng)

    def admit(self, recipe: Recipe) -> None:
        """Refuse a recipe of which any part says that it reads examples, naming those parts."""
        parts = [part for part in recipe.walk() if part is not recipe and part.reads(recipe).examples]
        if parts:
            names = ", ".join(f"{part.axis} {part.name}" for part in parts)
            raise BadData("data", "sealed", f"gives no examples, which {names} would read", "Use `measure` only.")

    def provenance(self) -> dict[str, Any]:
        return {"classes": list(self.task.classes)}

    def encoded(self, transform: Transform) -> Sealed:
        return Sealed(self.inner.encoded(transform))


def check_component(part: Component) -> None:
    """What holds of every component: it is final, frozen, hashes by its settings, and survives JSON unchanged.

    Its class must be registered. Raises AssertionError with the part's name. For strangers' parts as for ours.
    """
    kind = type(part)
    where = f"{kind.axis} {kind.name!r}"
    assert not getattr(kind, "__abstractmethods__", None), f"{where} is abstract"
    axis = next(base for base in kind.__mro__ if isinstance(base, type) and "axis" in base.__dict__)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", kind.name), f"{where} is no name in lower case with hyphens"
    data = json.loads(json.dumps(part.dump(), allow_nan=False))
    assert data["name"] == kind.name, f"{where} is written under another name"
    again: Component = member(axis, data)
    assert again == part, f"{where} changes on its way through JSON"
    assert hash(again) == hash(part), f"{where} has an unstable digest"
    assert part.model_config.get("frozen"), f"{where} can be changed in place"
    assert kind.__doc__, f"{where} has no docstring"
    assert part.rewrite(type("Nothing", (), {}), lambda x: x) == part, f"{where} does not survive a rewrite"


def check_statistic(statistic: Statistic, model: nn.Module, batch: Batch, task: Task, tolerance: float = 1e-5) -> None:
    """What holds of every statistic: its mean is the mean of its rows, each row is about its example alone, and clipped
    sums are sums of rows, to which no example adds more than the bound.

    Private sources rest on the last two; networks with batch norm do not have the second. tolerance: relative,
    absolute.
    """
    rows = statistic.rows(model, batch, task)
    for live in (False, True):
        mean = statistic.mean(model, batch, task, live=live)
        assert list(mean) == list(rows), f"{statistic.name} names its parts differently in rows and in mean"
        for part, value in mean.items():
            torch.testing.assert_close(value.detach(), rows[part].detach().mean(dim=0), rtol=tolerance, atol=tolerance)
            assert live or not value.requires_grad, f"{statistic.name} is not detached"
    for i in range(len(batch)):
        one = Batch(task.form.take(batch.x, slice(i, i + 1)), batch.y[i : i + 1])
        for part, value in statistic.rows(model, one, task).items():
            torch.testing.assert_close(value[0].detach(), rows[part][i].detach(), rtol=tolerance, atol=tolerance)
    if task.form.independent:
        _check_clipped_sums(statistic, model, batch, task, rows, tolerance)


def _check_clipped_sums(
    statistic: Statistic, model: nn.Module, batch: Batch, task: Task, rows: Mapping[str, Tensor], tolerance: float
) -> None:
    def sums(groups: Tensor, count: int, bound: float) -> Mapping[str, Tensor]:
        return statistic.clipped_sums(model, [batch], task, groups, count, bound, chunk=2, dtype=torch.float64)

    own = torch.arange(len(batch), device=batch.y.device)
    whole = sums(own * 0, 1, math.inf)
    assert set(whole) == set(rows), f"{statistic.name} names its parts differently in rows and in clipped sums"
    bound = float(lengths(rows).median()) or 1.0
    cut, both = sums(own, len(batch), bound), sums(own * 0, 1, bound)
    assert float(lengths(cut).max()) <= bound * (1 + 1e-6), f"{statistic.name} lets an example add more than the bound"
    close: dict[str, Any] = {"rtol": max(tolerance, 1e-6), "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(lengths(cut), lengths(rows).clamp(max=bound), **close)
    for part, row in rows.items():
        torch.testing.assert_close(whole[part][0], row.detach().sum(dim=0), **close)
        torch.testing.assert_close(both[part][0], cut[part].sum(dim=0), **close)


@contextmanager
def toys(*parts: type[Component]) -> Iterator[Registry]:
    """The registry in force with the toys, and with `parts` of your own, in it: recipes of them can be read."""
    now = registry()
    plugin = Plugin("toys", __name__, "toys", "0", parts=[ToyNet, Raw, Still, Toy, *parts])
    with using(Registry([*now.plugins, plugin], now.manager)) as wider:
        yield wider


def toy_recipe(**changes: Any) -> Recipe:
    """Distribution matching in miniature, to put a part of your own into: `toy_recipe(objective=Mine())`."""
    matching = {"name": "matching", "statistic": "mean-feature", "distance": "squared-error"}
    parts: dict[str, Any] = {
        "objective": {**matching, "pairing": {"name": "class-wise", "n": 8}},
        "pool": {"name": "fresh", "net": ToyNet()},
        "parameterization": "pixels",
        "budget": {"name": "per-class", "n": 2},
        "init": "noise",
        "labels": "hard",
        "augment": Still(),
        "preprocess": Raw(),
        "outer": {"steps": 2, "groups": [{"rule": "sgd"}]},
    }
    return checked(lambda: Recipe.model_validate({**parts, **changes}), "recipe")


def check_method(recipe: Recipe, splits: Splits | None = None) -> None:
    """What holds of every method: it is a value, two runs of it give equal bits, and a sealed source is respected.

    Hand over a recipe that is cheap on the toy (or on `splits`). On a sealed source it must say by `reads` that it
    cannot run, or run; the last step must leave a finite set of the classes that the budget allots.
    """
    again = checked(lambda: Recipe.model_validate(recipe.dump()), "recipe")
    assert again == recipe, "the recipe changes on its way through JSON"
    splits = splits or toy_splits()
    sets = [condense(toy_run(made, splits)).freeze() for made in (recipe, again)]
    form, groups = splits.task.form, recipe.budget.allot(splits.train)
    first, second = (form.pack(made.x) for made in sets)
    for key, value in first.items():
        assert bool(torch.isfinite(value).all()), f"the set's {key} is not finite"
        assert torch.equal(value, second[key]), f"two runs with one seed differ in {key}"
    assert torch.equal(sets[0].groups.cpu(), groups.cpu()), "the set's classes are not those of its budget"
    sealed = Sealed(splits.train)
    if not recipe.total_reads().examples:
        condense(toy_run(recipe, replace(splits, train=sealed)))
