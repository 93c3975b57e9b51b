"""A toy artifact: real parts where the core has them, and a data set and a preprocessing of its own."""

from __future__ import annotations

from typing import Any

import pluggy
import pytest
import torch
from torch import Tensor

from condense import plugins
from condense.artifact import write_artifact
from condense.axes import Preprocess, Transform
from condense.data import Data, Sampler, Splits, TensorSource
from condense.fit import Fit
from condense.metrics import Accuracy
from condense.parts import condense_components
from condense.plugins import Plugin, Registry
from condense.protocol import Protocol
from condense.recipe import Plan, Recipe
from condense.task import Batch, Task
from condense.testing import ToyNet

TASK = Task(classes=("circle", "T-shirt/top", "star"), shape=(3, 6, 5))


class Shapes(Data):
    def open(self, device: torch.device | str = "cpu") -> Splits:
        x = torch.rand(30, 3, 6, 5, generator=torch.Generator().manual_seed(1))
        source = TensorSource(TASK, x, torch.arange(30) % 3)
        return Splits(source, source)


class Scaled(Preprocess):
    def fit(self, train: Any, facts: Any) -> Transform:
        return _Scaled(train.task.shape[0], 0.25, 0.5)

    def blank(self, task: Task) -> Transform:
        return _Scaled(task.shape[0], 0.0, 1.0)


class _Scaled(Transform):
    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), mean))
        self.register_buffer("std", torch.full((channels, 1, 1), std))

    def encode(self, raw: Tensor) -> Tensor:
        x = raw.float() / 255 if raw.dtype == torch.uint8 else raw
        return (x - self.mean) / self.std

    def decode(self, x: Tensor) -> Tensor:
        return x * self.std + self.mean

    def describe(self) -> dict[str, Any]:
        return {"name": "scaled", "mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}


class Judged(Protocol):
    def fit(self, data: Sampler) -> Fit:
        return Fit(rule="sgd", steps=1)


@pytest.fixture
def toy_registry():
    """The parts of the core and the toy's, with nothing that is installed."""
    parts = [*condense_components(), Shapes, Scaled, Judged, ToyNet, Accuracy]
    plugin = Plugin("toy", "toy", "toy", "0", parts=parts)
    with plugins.using(Registry([plugin], pluggy.PluginManager("condense"))) as registry:
        yield registry


@pytest.fixture
def toy_plan(toy_registry) -> Plan:
    recipe = Recipe(
        pool="no-model",
        parameterization="pixels",
        budget={"name": "per-class", "n": 2},
        init="noise",
        labels="hard",
        augment="none",
        preprocess="scaled",
        outer={"steps": 0},
    )
    return Plan(method="toy", data="shapes", recipe=recipe, protocol={"name": "judged", "nets": ["toy-net"]}, seed=3)


@pytest.fixture
def toy_images() -> Tensor:
    """(6, 3, 6, 5) raw images in [0, 1], class-major, two of each class."""
    return torch.rand(6, 3, 6, 5, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def toy_artifact(toy_plan, toy_images, tmp_path, device):
    splits = toy_plan.data.open()
    transform = toy_plan.recipe.preprocess.fit(splits.train, splits.facts).to(device)
    groups = toy_plan.recipe.budget.allot(splits.train)
    syn = toy_plan.recipe.parameterization.empty(TASK, groups, toy_plan.recipe.labels).to(device)
    syn.fill(Batch(transform.encode(toy_images.to(device)), groups.to(device)))
    return write_artifact(tmp_path / "made", toy_plan, syn, transform, TASK, {"machine": "toy"})
