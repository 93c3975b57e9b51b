"""The estimate of memory."""

from __future__ import annotations

import pytest
import torch

from condense import memory
from condense.data import TensorSource
from condense.errors import NoRoom
from condense.parts.budgets import PerClass
from condense.parts.distances import SquaredError
from condense.parts.matching import ClassWise, Matching, MeanFeature
from condense.task import Task
from condense.testing import ToyNet, toy_splits
from tests.core.test_engine import recipe


def test_activations_are_counted_by_hand():
    task = Task(classes=("a", "b"), shape=(1, 8, 8))
    # conv 4x8x8, softplus, pool 4x4x4, conv 4x4x4, softplus, pool 4x2x2, flatten 16, head 2
    by_hand = 4 * (4 * 64 * 2 + 4 * 16 * 3 + 4 * 4 + 16 + 2)
    assert memory.activations(ToyNet(), task) == by_hand


def test_the_estimate_grows_with_the_set_and_the_batch():
    source = toy_splits().train
    small = memory.estimate(recipe(), source)
    assert memory.estimate(recipe(budget=PerClass(n=2000)), source) > small + 3 * 4 * 2000 * 64 * 3
    pairs = Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=32))
    assert memory.estimate(recipe(objective=pairs), source) > 3 * small


def test_what_does_not_fit_is_refused_with_numbers_and_a_remedy(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    with pytest.raises(NoRoom, match=r"GiB are needed and 0\.0 GiB are free on cpu.*a smaller set"):
        memory.check_memory(recipe(), toy_splits().train, torch.device("cpu"))


def test_an_absurd_budget_is_refused_before_anything_of_its_size_is_made():
    source: TensorSource = toy_splits().train
    with pytest.raises(NoRoom):
        memory.check_memory(recipe(budget=PerClass(n=10**12)), source, torch.device("cpu"))


def test_there_is_some_memory():
    assert 2**20 < memory.available(torch.device("cpu")) < 2**50
