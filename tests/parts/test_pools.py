"""Pools: when a network is new, when it is trained and on what, and how batch norm is held still."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from condense.axes import Net, Pool
from condense.component import checked, member
from condense.engine import condense
from condense.fit import Fit
from condense.parts.inits import Noise
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh, NoModel
from condense.parts.rules import SGD
from condense.running import Limits, Paused
from condense.testing import ToyNet, toy_recipe, toy_run, toys

INNER = Fit(rule=SGD(momentum=0.9), lr=0.1, epochs=1, batch=4)


class Normed(Net):
    """One convolution, batch norm, a head."""

    def build(self, task):
        return _Normed(task)


class _Normed(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.conv = nn.Conv2d(task.shape[0], 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, task.outputs)

    def features(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


def lent(pool, steps):
    """Copies of the weights lent at each step, and the run."""
    run = toy_run(toy_recipe(pool=pool))
    groups = torch.arange(3).repeat_interleave(2)
    syn = Pixels().empty(run.task, groups, run.recipe.labels)
    syn.fill(Noise()(run, groups))
    learners = pool.learners(run, syn)
    return [torch.cat([p.detach().flatten() for p in learners.next(i).module.parameters()]) for i in range(steps)], run


def same(a, b):
    return torch.equal(a, b)


def test_one_turn_means_a_new_network_for_every_step():
    weights, run = lent(Fresh(net=ToyNet()), 4)
    assert all(not same(a, b) for i, a in enumerate(weights) for b in weights[:i])
    for life, lent_now in enumerate(weights):
        made = ToyNet().make(run.task, run.rng.fold("pool", life))
        assert same(lent_now, torch.cat([p.detach().flatten() for p in made.parameters()]))


def test_several_turns_without_training_lend_the_same_network():
    weights, _ = lent(Fresh(net=ToyNet(), turns=3), 6)
    assert same(weights[0], weights[1])
    assert same(weights[1], weights[2])
    assert not same(weights[2], weights[3])
    assert same(weights[3], weights[5])


def test_a_network_is_trained_between_its_turns_and_not_after_the_last():
    """3 turns: two trainings a life, each of one epoch; the next life starts from its own fresh weights."""
    weights, run = lent(Fresh(net=ToyNet(), turns=3, inner=INNER), 4)
    assert not same(weights[0], weights[1])
    assert not same(weights[1], weights[2])
    made = ToyNet().make(run.task, run.rng.fold("pool", 1))
    assert same(weights[3], torch.cat([p.detach().flatten() for p in made.parameters()]))


def test_a_network_is_trained_after_every_so_many_turns():
    """6 turns, trained after each 2: two trainings, and none after the last turn."""
    weights, run = lent(Fresh(net=ToyNet(), turns=6, every=2, inner=INNER), 7)
    trained = [i for i in range(1, 6) if not same(weights[i - 1], weights[i])]
    assert trained == [2, 4]
    sparse, _ = lent(Fresh(net=ToyNet(), turns=3, inner=INNER), 3)
    assert all(same(a, b) for a, b in zip(weights[0:6:2], sparse, strict=True)), "the same training as of 3 turns"
    made = ToyNet().make(run.task, run.rng.fold("pool", 1))
    assert same(weights[6], torch.cat([p.detach().flatten() for p in made.parameters()]))


def test_a_pool_written_before_every_was_a_field_is_read_as_it_was():
    now = Fresh(net=ToyNet(), turns=3, inner=INNER)
    before = {key: value for key, value in now.dump().items() if key != "every"}
    with toys():
        assert checked(lambda: member(Pool, before), "pool") == now


@pytest.mark.parametrize("on", ["real", "synthetic"])
def test_training_is_on_what_the_pool_says(on):
    pool = Fresh(net=ToyNet(), turns=2, inner=INNER, on=on)
    weights, run = lent(pool, 2)
    net = ToyNet().make(run.task, run.rng.fold("pool", 0))
    syn = Pixels().empty(run.task, torch.arange(3).repeat_interleave(2), run.recipe.labels)
    syn.fill(Noise()(run, syn.item_groups))
    data = run.splits.train if on == "real" else syn.freeze()
    INNER.begin(net, run.rng.fold("pool", 0, "inner")).advance(data, INNER.length(data))
    assert same(weights[1], torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert INNER.length(data) == (15 if on == "real" else 2)


def test_momentum_lives_on_from_one_training_to_the_next_of_the_same_network():
    """Two trainings of one epoch equal one of two epochs, on a set that stands still."""
    weights, run = lent(Fresh(net=ToyNet(), turns=3, inner=INNER), 3)
    syn = Pixels().empty(run.task, torch.arange(3).repeat_interleave(2), run.recipe.labels)
    syn.fill(Noise()(run, syn.item_groups))
    net = ToyNet().make(run.task, run.rng.fold("pool", 0))
    INNER.begin(net, run.rng.fold("pool", 0, "inner")).advance(syn.freeze(), 4)
    torch.testing.assert_close(weights[2], torch.cat([p.detach().flatten() for p in net.parameters()]))


def test_batch_norm_is_set_by_16_real_images_of_each_class_and_then_held_still():
    run = toy_run(toy_recipe(pool=Fresh(net=Normed())))
    syn = Pixels().empty(run.task, torch.arange(3), run.recipe.labels)
    module = run.recipe.pool.learners(run, syn).next(0).module
    images = run.splits.train.draw(16, "each", run.rng.fold("pool", 0, "calibrate", 0)).x
    assert len(images) == 16 + 16 + 10, "of each class 16, or all there are"
    seen = module.conv(images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(module.norm.running_mean, 0.1 * seen.mean(1))
    torch.testing.assert_close(module.norm.running_var, 0.9 + 0.1 * seen.var(1))
    before = module.norm.running_mean.clone()
    module(torch.randn(4, 1, 8, 8))
    assert torch.equal(module.norm.running_mean, before)
    assert module.training
    assert not module.norm.training
    alone, together = module(images[:1]), module(images)
    torch.testing.assert_close(together[:1], alone, msg="an example's logits depend on its neighbours")


def test_batch_norm_moves_again_while_the_network_is_trained():
    pool = Fresh(net=Normed(), turns=2, inner=INNER)
    run = toy_run(toy_recipe(pool=pool))
    syn = Pixels().empty(run.task, torch.arange(3).repeat_interleave(2), run.recipe.labels)
    syn.fill(Noise()(run, syn.item_groups))
    learners = pool.learners(run, syn)
    first = learners.next(0).module.norm.running_mean.clone()
    module = learners.next(1).module
    assert int(module.norm.num_batches_tracked) == 1 + 2 + 1  # calibrated, trained for two steps, calibrated
    assert not torch.equal(module.norm.running_mean, first)


def test_a_network_with_batch_norm_resumes_with_the_same_bits(tmp_path):
    (tmp_path / ".run").mkdir()
    recipe = toy_recipe(pool=Fresh(net=Normed(), turns=3, inner=INNER)).with_(
        outer={"steps": 5, "groups": [{"rule": SGD()}]}
    )
    for minutes in (0.0, 0.0, None):
        try:
            resumed = condense(toy_run(recipe, folder=tmp_path, limits=Limits(minutes=minutes)))
        except Paused:
            continue
    assert torch.equal(resumed.freeze().x, condense(toy_run(recipe)).freeze().x)


def test_no_model_lends_none():
    run = toy_run(toy_recipe(objective=None, pool=NoModel()))
    learners = run.recipe.pool.learners(run, None)
    assert learners.next(0).module is None
    assert learners.state_dict() == {}
