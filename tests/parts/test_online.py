"""The online pool: which network is lent, how it ages, what it is trained on, and that all of it survives a resume."""

from __future__ import annotations

import itertools

import pytest
import torch

from condense.axes import Pool
from condense.component import checked, member
from condense.engine import condense
from condense.errors import BadValue
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.inits import Noise
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Online
from condense.parts.rules import Adam
from condense.running import Limits, Paused
from condense.testing import ToyNet, toy_recipe, toy_run, toys

from .test_pools import Normed

INNER = Fit(rule=Adam(), lr=0.01, steps=1)


def opened(pool, seed=0):
    run = toy_run(toy_recipe(pool=pool), seed=seed)
    syn = Pixels().empty(run.task, torch.arange(3).repeat_interleave(2), run.recipe.labels)
    syn.fill(Noise()(run, syn.item_groups))
    return pool.learners(run, syn), run, syn


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_networks_take_turns_at_random_and_only_the_one_that_was_lent_is_trained():
    learners, _, _ = opened(Online(net=ToyNet(), inner=INNER, size=4, max_age=1000))
    lent = []
    for index in range(24):
        before = [weights(module) for module in learners.modules]
        learner = learners.next(index)
        now = [i for i, module in enumerate(learners.modules) if module is learner.module]
        moved = [i for i, w in enumerate(before) if not torch.equal(w, weights(learners.modules[i]))]
        assert moved == lent[-1:], "the network of the step before, and no other"
        lent += now
    assert set(lent) == {0, 1, 2, 3}
    assert lent != sorted(lent)
    other, _, _ = opened(Online(net=ToyNet(), inner=INNER, size=4, max_age=1000), seed=1)
    assert [other._slot(i) for i in range(24)] != lent


def test_ages_are_staggered_and_a_network_lives_one_step_longer_than_its_age_allows():
    """As in FRePo's code: a network of age max_age + 1 is replaced instead of trained, and starts at 0."""
    learners, run, _ = opened(Online(net=ToyNet(), inner=INNER, size=2, max_age=5))
    assert learners.ages == [0, 2]
    fresh = [weights(ToyNet().make(run.task, run.rng.fold("online", "network", slot, 0))) for slot in (0, 1)]
    assert all(torch.equal(weights(module), w) for module, w in zip(learners.modules, fresh, strict=True))
    ages, seen = [0, 2], {0: [0], 1: [2]}
    for index in range(60):
        learner = learners.next(index)
        slot = next(i for i, module in enumerate(learners.modules) if module is learner.module)
        assert learner.age == ages[slot]
        ages[slot] = ages[slot] + 1 if ages[slot] <= 5 else 0
        seen[slot].append(ages[slot])
    assert {*seen[0]} == {*seen[1]} == set(range(7))
    assert learners.lives[0] >= 2


def test_training_equals_a_training_of_the_same_network_on_the_set_as_it_is_at_each_step():
    pool = Online(net=ToyNet(), inner=INNER, size=1, max_age=100)
    learners, run, syn = opened(pool)
    key = run.rng.fold("online", "network", 0, 0)
    module = ToyNet().make(run.task, key)
    training = INNER.begin(module, key.fold("inner"))
    for index in range(5):
        if index:
            training.advance(syn.freeze(), 1)
        assert torch.equal(weights(learners.next(index).module), weights(module))
        with torch.no_grad():
            syn.packed["x"].mul_(0.9)


def test_as_many_steps_as_are_drawn_and_replaced_right_after_the_last():
    """As in RCIG's code: all start at 0, and what reaches max_age is fresh when it is lent again."""
    pool = Online(net=ToyNet(), inner=INNER, size=1, max_age=20, most=8, staggered=False)
    learners, _, _ = opened(pool)
    ages = [learners.next(index).age for index in range(60)]
    gaps = {b - a for a, b in itertools.pairwise(ages) if b}
    assert ages[0] == 0
    assert gaps == set(range(1, 9))
    assert max(ages) < 20
    assert ages.count(0) == learners.lives[0] + 1 > 5
    assert len(learners.trainings) == 1


def test_networks_are_lent_in_evaluation_mode_with_statistics_of_their_training():
    learners, _, syn = opened(Online(net=Normed(), inner=INNER, size=1, max_age=100))
    module = learners.next(0).module
    assert not any(part.training for part in module.modules())
    assert module.norm.running_mean.eq(0).all()
    expected = 0.1 * module.conv(syn.freeze().x).mean((0, 2, 3))
    torch.testing.assert_close(learners.next(1).module.norm.running_mean, expected.detach())


@pytest.mark.parametrize("how", [{}, {"most": 4, "staggered": False}], ids=["frepo", "rcig"])
def test_a_paused_run_gives_the_bits_of_one_that_was_not(tmp_path, how):
    pool = Online(net=ToyNet(), inner=INNER, size=3, max_age=4, **how)
    recipe = toy_recipe(pool=pool, outer={"steps": 24, "groups": [{"rule": "adam", "lr": 0.05}]})
    whole = condense(toy_run(recipe)).freeze().x
    with pytest.raises(Paused):
        condense(toy_run(recipe, folder=tmp_path, limits=Limits(minutes=0.0)))
    for steps in (5, 6):
        run = toy_run(recipe, folder=tmp_path, limits=Limits(steps=steps), observers=[Stop(after=steps)])
        with pytest.raises(Paused):
            condense(run)
    assert torch.equal(condense(toy_run(recipe, folder=tmp_path)).freeze().x, whole)


class Stop:
    """Asks the run to pause after so many more steps."""

    def __init__(self, after):
        self.left = after

    @hookimpl
    def condense_stepped(self, run, index, losses):
        self.left -= 1
        if self.left == 0:
            run.interrupted.set()


def test_what_cannot_be_is_refused():
    for fields in ({"inner": {"name": "fit", "rule": "sgd", "epochs": 3}}, {"most": 2, "inner": INNER.with_(steps=3)}):
        settings = {"name": "online", "net": "mlp", "inner": INNER.dump(), **fields}
        with toys(), pytest.raises(BadValue, match=r"inner\.steps"):
            checked(lambda s=settings: member(Pool, s), "pool")
