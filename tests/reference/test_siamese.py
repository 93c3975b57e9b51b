"""Augmentation: one warp for both sides of a pair, and numbers of its own for each example that a network trains on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from condense.axes import Augment, Learner, Warp
from condense.data import TensorSampler
from condense.engine import condense
from condense.fit import Fit
from condense.parts.distances import SquaredError
from condense.parts.matching import ClassWise, Matching, MeanFeature
from condense.parts.rules import SGD
from condense.running import Step
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits


class Faded(Warp):
    """Examples times numbers: (1,) for all of them, or (n,)."""

    def __init__(self, factors):
        self.factors = factors

    def __call__(self, batch):
        return batch.with_x(batch.x * self.factors.to(batch.x.dtype).view(-1, 1, 1, 1))

    def state(self):
        return {"factors": self.factors}


class Fading(Augment):
    """Draws between 0.5 and 1.5, and more as training goes on."""

    def sample(self, rng, n=None, progress=0.0):
        return Faded(0.5 + torch.rand(n or 1, generator=rng.generator()) + 10 * progress)


DM = Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=None))


def step_with(augment, x, y, index=3):
    recipe = toy_recipe(objective=DM, augment=augment, preprocess=Raw(dtype="float64")).with_(
        outer={"steps": 10, "groups": [{"rule": SGD()}]}
    )
    run = toy_run(recipe)
    net = ToyNet(dtype="float64").make(run.task, run.rng)
    return Step(run, index, Learner(net), TensorSampler(run.task, x, y))


def test_both_sides_of_a_pair_go_through_the_same_warp_and_each_class_has_its_own():
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    y = torch.arange(3).repeat_interleave(2)
    step = step_with(Fading(), x, y)
    found = [float(term.losses["matching"].detach()) for term in DM(step)]
    slow, factors = [], []
    for c in range(3):
        factor = Fading().sample(step.rng.fold("warp", "pair", c), None, 0.3).factors
        real = step.model.features(step.real.draw(None, c, step.rng).x * factor).mean(0)
        mine = step.model.features(x[y == c] * factor).mean(0)
        slow.append(float((real - mine).detach().square().sum()))
        factors.append(float(factor))
    assert found == pytest.approx(slow, rel=1e-10)
    assert len(set(factors)) == 3
    assert all(3.5 <= factor <= 4.5 for factor in factors), "progress is 3 of 10 steps"


def test_where_the_set_is_the_data_one_warp_for_both_sides_leaves_nothing():
    real = toy_splits().train
    step = step_with(Fading(), real.x.double().requires_grad_(), real.y)
    assert sum(float(term.losses["matching"].detach()) for term in DM(step)) == pytest.approx(0, abs=1e-20)


def test_every_step_draws_another_warp():
    x = torch.ones(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    drawn = [step_with(Fading(), x, torch.arange(3), index).warps("pair", 0)[0].factors for index in range(3)]
    assert len({float(f) for f in drawn}) == 3


def test_a_network_trains_on_examples_augmented_one_by_one(rng):
    """Against a plain loop: batch t goes through the warp of key ("warp", t), with a number for each example."""
    data = toy_splits().train
    fit = Fit(rule=SGD(), lr=0.05, steps=4, batch=16, augment=Fading())
    ours, theirs = (ToyNet().make(data.task, rng) for _ in range(2))
    fit.begin(ours, rng).advance(data, 4)
    for t in range(4):
        batch = data.draw(16, None, rng.fold("batch"), at=t)
        factors = 0.5 + torch.rand(len(batch), generator=rng.fold("warp", t).generator()) + 10 * t / 4
        assert factors.std() > 0.1
        loss = F.cross_entropy(theirs(batch.x * factors.view(-1, 1, 1, 1)), batch.y)
        grads = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(theirs.parameters(), grads, strict=True):
                parameter -= 0.05 * grad
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_an_augmentation_changes_the_set_that_is_made():
    plain, faded = (condense(toy_run(toy_recipe(**changes))).freeze().x for changes in ({}, {"augment": Fading()}))
    assert not torch.equal(plain, faded)
