"""Draws, class tables and loop tables against counting by hand."""

from __future__ import annotations

import pytest
import torch

from condense.data import TensorSampler
from condense.parts.budgets import PerClass
from condense.plugins import registry
from condense.rng import Rng
from condense.task import Batch, Tensors
from condense.testing import toy_splits


def test_ids_of_a_class_are_its_positions_ascending():
    source = toy_splits().train
    for c in range(3):
        assert source.ids(c).tolist() == [i for i, y in enumerate(source.y.tolist()) if y == c]
    assert source.counts() == [30, 20, 10]
    assert source.ids(None).tolist() == list(range(60))


def test_a_class_without_examples_has_an_empty_slice():
    task = toy_splits().task
    sampler = TensorSampler(task, torch.zeros(3, 1, 8, 8), torch.tensor([2, 0, 2]))
    assert sampler.counts() == [1, 0, 2]
    assert sampler.ids(1).tolist() == []
    assert sampler.ids(2).tolist() == [0, 2]


def test_soft_labels_are_counted_under_their_largest_weight():
    task = toy_splits().task
    y = torch.tensor([[0.1, 0.2, 0.7], [0.9, 0.0, 0.1], [0.2, 0.3, 0.5]])
    sampler = TensorSampler(task, torch.zeros(3, 1, 8, 8), y)
    assert sampler.counts() == [1, 0, 2]
    assert torch.equal(sampler.draw(None, 2, Rng(0)).y, y[[0, 2]])


@pytest.mark.parametrize("cls", [None, 0, 1, 2])
@pytest.mark.parametrize("n", [1, 7, 10, 64])
def test_an_epoch_of_draws_is_a_permutation_of_the_class(cls, n, rng):
    source = toy_splits().train
    chunks = source.chunks(n, cls)
    epochs = []
    for epoch in range(3):
        draws = [source.draw(n, cls, rng, at=epoch * chunks + i) for i in range(chunks)]
        assert all(len(draw) == n for draw in draws[:-1])
        epochs.append([i for draw in draws for i in draw.index.tolist()])
        assert sorted(epochs[-1]) == source.ids(cls).tolist()
    if n < 64 or cls is None:
        assert epochs[0] != epochs[1] != epochs[2]


def test_a_draw_is_a_function_of_its_key():
    source = toy_splits().train
    ahead = source.draw(7, None, Rng(1), at=11)
    for at in (0, 3, 11):
        source.draw(7, None, Rng(1), at=at)
    assert torch.equal(source.draw(7, None, Rng(1), at=11).index, ahead.index)
    assert not torch.equal(source.draw(7, None, Rng(2), at=11).index, ahead.index)


def test_a_draw_without_a_place_is_without_repetition_and_gives_what_there_is(rng):
    source = toy_splits().train
    draw = source.draw(8, 1, rng)
    assert len(set(draw.index.tolist())) == 8
    assert (draw.y == 1).all()
    assert len(source.draw(99, 2, rng)) == 10
    assert source.draw(None, 2, rng).index.tolist() == source.ids(2).tolist()


def test_each_draws_so_many_of_every_class_in_class_order(rng):
    draw = toy_splits().train.draw(4, "each", rng)
    assert draw.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(draw.index.tolist())) == 12
    alone = [toy_splits().train.draw(4, c, rng.fold(c)).index for c in range(3)]
    assert torch.equal(draw.index, torch.cat(alone)), "each class has a key of its own"


def test_every_example_is_drawn_equally_often():
    """Of 10 examples 3 at a time, 3000 times: each 900 times, give or take four standard deviations."""
    source = toy_splits().train
    seen = torch.zeros(60)
    for i in range(3000):
        seen[source.draw(3, 2, Rng(0).fold(i)).index] += 1
    seen = seen[source.ids(2)]
    assert float((seen - 900).abs().max()) < 4 * (3000 * 0.3 * 0.7) ** 0.5


def test_a_sweep_visits_all_in_order():
    source = toy_splits().train
    assert [i for batch in source.sweep(7) for i in batch.index.tolist()] == list(range(60))


def test_budgets_are_class_major():
    assert PerClass(n=3).allot(toy_splits().train).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_form_of_tensors_packs_takes_and_joins():
    form, task = Tensors(), toy_splits().task
    x = torch.arange(6.0).view(3, 2)
    assert form.pack(x) == {"x": x}
    assert form.unpack(form.pack(x)) is x
    assert torch.equal(form.take(x, torch.tensor([2, 0])), x[[2, 0]])
    assert torch.equal(form.join([x, x[:1]]), torch.cat([x, x[:1]]))
    assert form.blank(task, 2).shape == (2, 1, 8, 8)
    leaf = form.leaf(x)
    assert leaf.requires_grad
    assert leaf.is_leaf
    assert not form.detach(leaf).requires_grad
    assert len(Batch(x, torch.zeros(3))) == 3


def loops(per_class):
    recipe = registry().recipe("dc")(per_class=per_class)
    return recipe.pool.turns, recipe.pool.inner.epochs


PUBLISHED_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}  # DC, utils.py


@pytest.mark.parametrize("per_class", PUBLISHED_LOOPS)
def test_the_loop_table_of_dc_is_the_published_one(per_class):
    assert loops(per_class) == PUBLISHED_LOOPS[per_class]


def test_between_the_published_budgets_the_documented_rule_holds():
    """As many turns as images per class, at most 50, and epochs that keep the product near 500, at most 50."""
    for per_class in (2, 5, 15, 25, 35, 45, 60, 100):
        turns, epochs = loops(per_class)
        assert turns == min(per_class, 50)
        assert epochs == min(50, round(500 / turns))


@pytest.mark.parametrize(("per_class", "turns"), [(1, 1), (10, 10)])
def test_steps_count_updates_of_the_images(per_class, turns):
    assert registry().recipe("dc")(per_class=per_class, iterations=1000).outer.steps == 1000 * turns
    assert registry().recipe("dm")(per_class=per_class, iterations=20).outer.steps == 20
