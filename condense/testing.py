"""For authors of plugins: toys that every part runs on in milliseconds, and the checks that every registered part passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .axes import Augment, Net, Preprocess, Transform, Warp
from .component import Component, member
from .data import Data, Facts, Source, Splits, TensorSource
from .plugins import run_manager
from .recipe import Execution, Plan, Recipe
from .rng import Rng
from .running import Limits, Run
from .task import Batch, Task


class ToyNet(Net):
    """Two small convolutions and a head, for images of 4 pixels and more."""

    width: int = 4

    def build(self, task: Task) -> nn.Module:
        return _Toy(task, self.width)


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
    """Examples as they are, as float32."""

    def fit(self, train: Source, facts: Any) -> Transform:
        return _Raw()

    def blank(self, task: Task) -> Transform:
        return _Raw()


class _Raw(Transform):
    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return x

    def describe(self) -> dict[str, Any]:
        return {"name": "raw"}


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


def check_component(part: Component) -> None:
    """What holds of every component: it is final, frozen, hashes by its settings, and survives JSON unchanged.

    Raises AssertionError with the part's name. Strangers' tests call this for their own parts.
    """
    kind = type(part)
    where = f"{kind.axis} {kind.name!r}"
    assert not getattr(kind, "__abstractmethods__", None), f"{where} is abstract"
    axis = next(base for base in kind.__mro__ if isinstance(base, type) and "axis" in base.__dict__)
    data: Mapping[str, Any] = part.dump()
    assert data["name"] == kind.name, f"{where} is written under another name"
    again: Component = member(axis, data)
    assert again == part, f"{where} changes on its way through JSON"
    assert again.digest() == part.digest(), f"{where} has an unstable digest"  # type: ignore[attr-defined]
    assert kind.__doc__, f"{where} has no docstring"
    assert part.rewrite(type("Nothing", (), {}), lambda x: x) == part, f"{where} does not survive a rewrite"
