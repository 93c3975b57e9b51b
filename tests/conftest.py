"""Fixtures: the device under test, the folder of real data, and a toy task that every part runs on in milliseconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from condense.data import TensorSource
from condense.rng import Rng
from condense.task import Task

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tensors live in tests that take `device` (cpu, cuda)")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    name = request.config.getoption("--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(name)


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("CONDENSE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is no folder (set CONDENSE_DATA)")
    return root


@pytest.fixture
def rng() -> Rng:
    return Rng(0)


@pytest.fixture
def toy_task() -> Task:
    return Task(classes=("circle", "square", "star"), shape=(1, 8, 8))


@pytest.fixture
def toy_source(toy_task, device) -> TensorSource:
    """60 separable 1x8x8 images, float, 3 classes in shuffled order and of unequal sizes (30, 20, 10)."""
    g = torch.Generator().manual_seed(7)
    y = torch.cat([torch.full((n,), c) for c, n in enumerate((30, 20, 10))])[torch.randperm(60, generator=g)]
    centres = torch.randn(3, 1, 8, 8, generator=g)
    x = centres[y] + 0.3 * torch.randn(60, 1, 8, 8, generator=g)
    return TensorSource(toy_task, x.to(device), y.to(device))
