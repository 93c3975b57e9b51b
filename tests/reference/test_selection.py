"""Herding and k-center against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from condense.parts.budgets import PerClass
from condense.parts.inits import Herding, KCenter, Noise, Real, herding, k_center
from condense.testing import toy_recipe, toy_run


def features(seed, m=12, d=3):
    return np.random.default_rng(seed).normal(size=(m, d))


def slow_herding(rows, n):
    goal, chosen = rows.mean(axis=0), []
    for _ in range(n):
        gaps = {}
        for i in range(len(rows)):
            if i not in chosen:
                mean = np.mean([rows[j] for j in [*chosen, i]], axis=0)
                gaps[i] = float(np.sum((goal - mean) ** 2))
        chosen.append(min(gaps, key=gaps.get))
    return chosen


def slow_k_center(rows, n):
    goal = rows.mean(axis=0)
    chosen = [min(range(len(rows)), key=lambda i: float(np.sum((rows[i] - goal) ** 2)))]
    while len(chosen) < n:
        gaps = {
            i: min(float(np.sum((rows[i] - rows[j]) ** 2)) for j in chosen) for i in range(len(rows)) if i not in chosen
        }
        chosen.append(max(gaps, key=gaps.get))
    return chosen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("ours", "slow"), [(herding, slow_herding), (k_center, slow_k_center)])
def test_the_choice_equals_brute_force(ours, slow, seed):
    rows = features(seed)
    assert ours(torch.tensor(rows), 7).tolist() == slow(rows, 7)


def test_herding_of_all_is_all_and_its_mean_is_the_mean():
    rows = torch.tensor(features(0))
    assert sorted(herding(rows, len(rows)).tolist()) == list(range(len(rows)))


def test_the_herded_mean_is_nearer_than_that_of_random_choices():
    rows = torch.tensor(features(3, m=60, d=4))
    goal = rows.mean(0)
    g = torch.Generator().manual_seed(0)
    gaps = [float((rows[torch.randperm(60, generator=g)[:8]].mean(0) - goal).norm()) for _ in range(50)]
    assert float((rows[herding(rows, 8)].mean(0) - goal).norm()) < min(gaps)


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_within_twice_the_best_radius(seed):
    rows = features(seed, m=9, d=2)

    def radius(centres):
        return max(min(np.linalg.norm(row - rows[c]) for c in centres) for row in rows)

    best = min(radius(centres) for centres in combinations(range(9), 3))
    assert radius(k_center(torch.tensor(rows), 3).tolist()) <= 2 * best


def test_twins_are_chosen_once_each():
    rows = torch.zeros(4, 2)
    assert sorted(k_center(rows, 4).tolist()) == [0, 1, 2, 3]
    assert sorted(herding(rows, 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("init", [Real(), Herding(), KCenter()])
def test_real_inits_take_examples_of_the_class_once_each_with_their_labels(init):
    run = toy_run(toy_recipe())
    groups = PerClass(n=5).allot(run.splits.train)
    batch = init(run, groups)
    assert batch.y.tolist() == groups.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert len(set(batch.index.tolist())) == 15
    assert torch.equal(run.splits.train.take(batch.index).x, batch.x)
    assert torch.equal(run.splits.train.y[batch.index], batch.y)


@pytest.mark.parametrize("init", [Real(), Herding(), KCenter()])
def test_real_inits_follow_the_order_of_the_groups(init):
    run = toy_run(toy_recipe())
    groups = torch.tensor([2, 0, 2, 1, 0, 0])
    mixed, sorted_ = init(run, groups), init(run, groups.sort().values)
    assert mixed.y.tolist() == groups.tolist()
    assert sorted(mixed.index.tolist()) == sorted(sorted_.index.tolist())


@pytest.mark.parametrize(("init", "slow"), [(Herding(), slow_herding), (KCenter(), slow_k_center)])
def test_without_a_scorer_the_inputs_are_the_features(init, slow):
    run = toy_run(toy_recipe())
    train = run.splits.train
    batch = init(run, torch.tensor([2, 2, 2]))
    ids = train.ids(2).tolist()
    rows = train.x[ids].flatten(1).double().numpy()
    assert batch.index.tolist() == [ids[i] for i in slow(rows, 3)]


def test_noise_is_standard_normal_in_the_shape_of_the_task_and_reads_nothing():
    recipe = toy_recipe()
    run = toy_run(recipe)
    batch = Noise()(run, torch.arange(3).repeat_interleave(300))
    assert batch.x.shape == (900, 1, 8, 8)
    assert float(batch.x.mean()) == pytest.approx(0, abs=0.02)
    assert float(batch.x.std()) == pytest.approx(1, abs=0.02)
    assert batch.y.bincount().tolist() == [300, 300, 300]
    assert not Noise().reads(recipe).examples
    assert Real().reads(recipe).examples
