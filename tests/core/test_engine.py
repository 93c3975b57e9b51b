"""The engine on a toy: what moves, what stays, what a resume repeats, and what is refused."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from condense.axes import Learner, Learners, Objective, Pool, Term
from condense.engine import condense
from condense.errors import BadValue, Diverged
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.inits import Noise, Real
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Gradient, Matching, MeanFeature
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh, NoModel
from condense.parts.rules import SGD
from condense.recipe import Group, Outer, Recipe
from condense.running import Limits, Paused
from condense.testing import Raw, Still, ToyNet, toy_run, toy_splits


def recipe(**changes) -> Recipe:
    whole = Recipe(
        objective=Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=8)),
        pool=Fresh(net=ToyNet()),
        parameterization=Pixels(),
        budget=PerClass(n=2),
        init=Real(),
        labels=Hard(),
        augment=Still(),
        preprocess=Raw(),
        outer=Outer(steps=6, groups=(Group(rule=SGD(momentum=0.5), lr=1.0),)),
    )
    return whole.with_(**changes)


def gradient_recipe(**changes) -> Recipe:
    """DC's double loop in miniature."""
    return recipe(
        objective=Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise(n=8)),
        pool=Fresh(net=ToyNet(), turns=3, inner=Fit(rule=SGD(momentum=0.9), lr=0.05, epochs=2, batch=4)),
        **changes,
    )


def images(syn) -> Tensor:
    return syn.freeze().x


def test_dm_draws_synthetic_features_to_the_real_ones(device):
    outer = Outer(steps=60, groups=(Group(rule=SGD(momentum=0.5), lr=200.0),))
    run = toy_run(recipe(outer=outer, init=Noise()), toy_splits(device))
    start = Noise()(run, PerClass(n=2).allot(run.splits.train))
    net = ToyNet().make(run.task, run.rng.fold("check"), device)

    def gap(x):
        real = torch.stack([net.features(run.splits.train.draw(None, c, run.rng).x).mean(0) for c in range(3)])
        return (net.features(x).unflatten(0, (3, 2)).mean(1) - real).square().sum().item()

    assert gap(images(condense(run))) < 0.2 * gap(start.x)


def test_labels_are_class_major_and_images_are_of_their_class(device):
    run = toy_run(recipe(outer=Outer(steps=0)), toy_splits(device))
    syn = condense(run)
    assert syn.freeze().y.tolist() == [0, 0, 1, 1, 2, 2]
    for x, y in zip(images(syn), syn.freeze().y, strict=True):
        real = run.splits.train.draw(None, int(y), run.rng).x
        assert (real - x).abs().flatten(1).amax(1).min() == 0, "an image does not come from its class"


def test_only_the_set_gets_gradients():
    seen = []

    class Watcher:
        @hookimpl
        def condense_stepped(self, run, index, losses):
            seen.append(losses)

    run = toy_run(gradient_recipe(), observers=[Watcher()])
    syn = condense(run)
    assert len(seen) == 6
    assert all(not value.requires_grad and value.dim() == 0 for losses in seen for value in losses.values())
    assert all(p.grad is None for p in syn.parameters())


@pytest.mark.parametrize("make", [recipe, gradient_recipe])
def test_same_seed_same_bits_and_another_seed_other_bits(make):
    first, again = images(condense(toy_run(make()))), images(condense(toy_run(make())))
    assert torch.equal(first, again)
    assert not torch.equal(first, images(condense(toy_run(make(), seed=1))))


@pytest.mark.parametrize("make", [recipe, gradient_recipe])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_run_that_was_stopped_ends_with_the_same_bits(make, stop, tmp_path):
    (tmp_path / ".run").mkdir()

    class Stopper:
        @hookimpl
        def condense_stepped(self, run, index, losses):
            if index == stop - 1:
                run.interrupted.set()

    with pytest.raises(Paused, match=f"{stop} of 6"):
        condense(toy_run(make(), folder=tmp_path, observers=[Stopper()]))
    resumed = condense(toy_run(make(), folder=tmp_path))
    assert torch.equal(images(resumed), images(condense(toy_run(make()))))


class Dropping(ToyNet):
    """The toy, whose features pass dropout, which reads torch's global generator."""

    def build(self, task):
        net = super().build(task)
        net.body.append(nn.Dropout(0.5))
        return net


@pytest.mark.parametrize("make", [recipe, gradient_recipe])
def test_dropout_in_matching_follows_the_seed_alone_and_over_a_resume(make, tmp_path, device):
    (tmp_path / ".run").mkdir()
    made, splits = make(), toy_splits(device)
    made = made.with_(pool=made.pool.with_(net=Dropping()))

    def begun(**changes):
        return toy_run(made, splits, **changes)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = images(condense(begun()))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(images(condense(begun())), first)
    with pytest.raises(Paused):
        condense(begun(folder=tmp_path, limits=Limits(minutes=1e-9)))
    torch.manual_seed(3)
    assert torch.equal(images(condense(begun(folder=tmp_path))), first)
    assert not torch.equal(images(condense(begun(seed=1))), first)


def test_an_observer_that_draws_changes_nothing():
    class Nosy:
        @hookimpl
        def condense_stepped(self, run, index, losses):
            torch.rand(7)
            run.splits.train.draw(3, None, run.rng.fold("nosy"))

    assert torch.equal(images(condense(toy_run(recipe(), observers=[Nosy()]))), images(condense(toy_run(recipe()))))


def test_a_stop_reason_ends_the_run_and_is_noted():
    class Enough:
        @hookimpl
        def condense_stop(self, run, index):
            return "enough" if index == 2 else None

    run = toy_run(recipe(), observers=[Enough()])
    condense(run)
    assert run.notes["stopped"] == {"reason": "enough", "after": 3}


class Explodes(Objective):
    """Infinite from step 3 on."""

    def __call__(self, step):
        x = step.syn.x
        scale = float("inf") if step.index >= 3 else 1.0
        yield Term({"loss": x.square().mean() * scale})


def test_a_bad_loss_stops_names_its_step_and_spares_the_checkpoint(tmp_path):
    from condense.checkpoint import Checkpoints

    (tmp_path / ".run").mkdir()
    run = toy_run(recipe(objective=Explodes()), folder=tmp_path, limits=Limits(steps=2))
    with pytest.raises(Diverged, match="since outer step 3"):
        condense(run)
    index, _ = Checkpoints(tmp_path / ".run").latest()
    assert index == 2


class Roles(Objective):
    """Two parts of one step that may each move one role only."""

    def __call__(self, step):
        yield Term({"a": step.syn.x.square().sum()}, role="images")
        yield Term({"b": step.syn.x.sum()}, role="labels")


def test_a_term_moves_its_role_only():
    pull = recipe(objective=Roles(), outer=Outer(steps=1, groups=(Group(rule=SGD(), lr=0.25),)))
    start = images(condense(toy_run(recipe(outer=Outer(steps=0)))))
    torch.testing.assert_close(images(condense(toy_run(pull))), 0.5 * start)


class Half(Objective):
    """Each term halves the set: with an update per term the second sees what the first has done."""

    def __call__(self, step):
        for _ in range(2):
            yield Term({"loss": step.syn.x.square().sum()})


@pytest.mark.parametrize(("commit", "left"), [("step", 0.0), ("term", 0.25)])
def test_commit_per_step_sums_and_per_term_sees_the_last_update(commit, left):
    outer = Outer(steps=1, groups=(Group(rule=SGD(), lr=0.25),), commit=commit)
    start = images(condense(toy_run(recipe(outer=Outer(steps=0)))))
    torch.testing.assert_close(images(condense(toy_run(recipe(objective=Half(), outer=outer)))), left * start)


def test_weight_zero_skips_a_term():
    class Skipped(Objective):
        def __call__(self, step):
            yield Term({"loss": step.syn.x.square().sum()}, weight=torch.zeros(()))

    start = images(condense(toy_run(recipe(outer=Outer(steps=0)))))
    with pytest.warns(RuntimeWarning, match="no value of the set has moved in 6 steps"):
        assert torch.equal(images(condense(toy_run(recipe(objective=Skipped())))), start)


class Given(Objective):
    """Gives its gradient itself."""

    def __call__(self, step):
        x = step.syn.x * 2
        yield Term({"loss": x.detach().sum()}, cotangents=[(x, torch.ones_like(x))])


def test_cotangents_replace_the_backward_pass():
    outer = Outer(steps=1, groups=(Group(rule=SGD(), lr=0.5),))
    start = images(condense(toy_run(recipe(outer=Outer(steps=0)))))
    torch.testing.assert_close(images(condense(toy_run(recipe(objective=Given(), outer=outer)))), start - 1.0)


def test_bounds_schedules_and_turns():
    outer = Outer(steps=4, groups=(Group(rule=SGD(), lr=100.0, bounds=(-1.0, 1.0), every=2, phase=1),))
    moved = images(condense(toy_run(recipe(objective=Given(), outer=outer))))
    assert float(moved.max()) == -1.0 or float(moved.min()) >= -1.0


def test_a_role_without_a_group_is_refused_by_name():
    with pytest.raises(BadValue, match=r"the role 'images' is matched by 0 groups"):
        condense(toy_run(recipe(outer=Outer(steps=1, groups=(Group(role="labels", rule=SGD()),)))))


class _Counted(Learners):
    def __init__(self) -> None:
        self.asked: list[int] = []

    def next(self, index: int) -> Learner:
        self.asked.append(index)
        return Learner(None)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Counting(Pool):
    """Lends nothing, and keeps count."""

    last: ClassVar[_Counted]

    def learners(self, run, syn):
        type(self).last = _Counted()
        return type(self).last


def test_exactly_one_learner_is_pulled_for_each_step():
    condense(toy_run(recipe(pool=Counting(), objective=Half())))
    assert Counting.last.asked == list(range(6))


def test_an_objective_that_needs_a_network_says_so_when_there_is_none():
    with pytest.raises(TypeError, match="lends no network"):
        condense(toy_run(recipe(pool=NoModel())))
