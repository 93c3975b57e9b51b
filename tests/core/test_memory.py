"""The estimate of memory."""

from __future__ import annotations

import pytest
import torch

import condense
from condense import memory
from condense.axes import Net
from condense.component import named
from condense.data import TensorSource
from condense.errors import NoRoom
from condense.parts.budgets import PerClass
from condense.parts.distances import SquaredError
from condense.parts.matching import ClassWise, Matching, MeanFeature
from condense.task import Task
from condense.testing import ToyNet, toy_splits
from condense_image.augment import mirrored
from tests.core.test_engine import recipe
from tests.core.test_evaluate import Quick


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


def test_a_network_that_does_not_fit_is_refused_before_it_judges(monkeypatch):
    rules, cpu = Quick(nets=(ToyNet(),)), torch.device("cpu")  # in batches of 7
    data = toy_splits().train
    one = memory.trace(ToyNet(), data.task)
    assert one.weights == 4 * sum(p.numel() for p in ToyNet().build(data.task).parameters())
    # all layers' outputs, the gradients of two of them at a time, and weights with gradient and momentum
    needed = 7 * (one.total + 2 * one.largest) + 3 * one.weights
    monkeypatch.setattr(memory, "available", lambda device: needed)
    memory.check_judging(rules, data, cpu)
    monkeypatch.setattr(memory, "available", lambda device: needed - 1)
    with pytest.raises(NoRoom, match=r"free on cpu.*protocol\.nets\.0"):
        memory.check_judging(rules, data, cpu)


def test_a_set_that_a_network_too_wide_is_to_judge_stays_as_it_was(tmp_path):
    made = condense.run("random", data="digits", per_class=1, out=tmp_path / "out")
    before = sorted(path.name for path in made.path.rglob("*"))
    wide = condense.plan("random", data="digits", per_class=1, settings={"protocol.nets.0.width": 2**20}).protocol
    with pytest.raises(NoRoom, match="narrower or smaller network"):
        condense.judge(made, protocol=wide)
    assert sorted(path.name for path in made.path.rglob("*")) == before


def test_networks_are_trained_in_step_as_memory_and_the_size_of_a_step_allow(monkeypatch):
    source = toy_splits().train
    assert memory.together(ToyNet(), source, 16) == memory.TOGETHER // 16
    assert memory.together(ToyNet(), source, None) == memory.TOGETHER // len(source)
    each = memory.PASSES * 16 * memory.activations(ToyNet(), source.task)
    monkeypatch.setattr(memory, "available", lambda device: 6 * each)
    assert memory.together(ToyNet(), source, 16) == 3
    monkeypatch.setattr(memory, "available", lambda device: each)
    assert memory.together(ToyNet(), source, 16) == 1


def test_an_absurd_budget_is_refused_before_anything_of_its_size_is_made():
    source: TensorSource = toy_splits().train
    with pytest.raises(NoRoom):
        memory.check_memory(recipe(budget=PerClass(n=10**12)), source, torch.device("cpu"))


def test_there_is_some_memory():
    assert 2**20 < memory.available(torch.device("cpu")) < 2**50


def test_real_examples_that_meet_the_set_block_by_block_leave_only_their_features():
    """A step of FRePo at 10 per class of 10: some hundred megabytes a thousand rows would need, and does not."""
    task = Task(classes=tuple("abcdefghij"), shape=(3, 32, 32))
    source = TensorSource(task, torch.zeros(2000, 3, 32, 32), torch.arange(2000) % 10)
    frepo = condense.plan("frepo", data="digits", per_class=10).recipe.with_(budget=PerClass(n=10))
    net = named(Net, "kernel-conv-net", norm="before")
    made = frepo.rewrite(Net, lambda _: net)
    ridge = made.objective.objectives[0].with_(n=1024, support=mirrored())
    made = made.with_(objective=made.objective.with_(objectives=(ridge, *made.objective.objectives[1:])))
    each = memory.trace(net, task)
    assert each.features == 512 * 16
    assert each.largest == 4 * 128 * 32 * 32
    assert memory.estimate(made, source) == (
        4 * 100 * 4 * 3 * 32 * 32  # the set, its gradient, two slots
        + memory.PASSES * (200 * each.total + each.weights)  # the images and their mirror images; the network
        + 2 * 256 * each.largest
        + 8 * 1024 * each.features
    )
    halved = made.with_(objective=made.objective.with_(objectives=(ridge.with_(n=512),)))
    assert memory.estimate(made, source) - memory.estimate(halved, source) == 8 * 512 * each.features


@pytest.mark.parametrize(
    ("method", "setting"),
    [("dm", "objective.pairing.n"), ("rat-bptt", "objective.segment"), ("rcig", "objective.n")],
)
def test_the_remedy_names_the_setting_that_counts(method, setting, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    recipe = condense.plan(method, data="digits", per_class=1).recipe
    with pytest.raises(NoRoom, match=rf"\({setting}\)"):
        memory.check_memory(recipe, toy_splits().train, torch.device("cpu"))


def test_an_unrolled_window_is_counted():
    """RaT-BPTT at 50 per class holds 60 steps of 500 images, and the real examples that it ends on."""
    objective = condense.plan("rat-bptt", data="cifar10", per_class=50).recipe.objective
    assert objective.held(500) == 60 * 500 + objective.n
    assert objective.with_(segment=7).held(500) == 7 * 500 + objective.n
