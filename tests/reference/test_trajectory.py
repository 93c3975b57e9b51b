"""Trajectory matching: its value against a loop written by hand, its gradients against differences, its memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from condense import memory
from condense.axes import Learner, Pool
from condense.component import named
from condense.data import TensorSampler
from condense.engine import condense
from condense.errors import BadValue, Diverged, NoRoom
from condense.fit import Fit
from condense.parts import trajectory
from condense.parts.by_experts import SoftTargets
from condense.parts.experts import Experts, Trajectories
from condense.parts.parameterizations import WithRate
from condense.parts.rules import SGD
from condense.parts.schedules import Learned
from condense.parts.trajectory import Trajectory
from condense.rng import Rng
from condense.running import Limits, Paused, Step
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits, toys

GROUPS = [
    {"role": "images", "rule": {"name": "sgd", "momentum": 0.5}, "lr": 3.0},
    {"role": "rate", "rule": {"name": "sgd", "momentum": 0.5}, "lr": 1e-4},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


def recipe(dtype="float64", augment=None, steps=4, batch=4, outer=2, **how):
    """Students of `steps` steps, and two experts of 3 epochs; in float64 for finite differences."""
    student = Fit(rule=SGD(), lr=Learned(), steps=steps, batch=batch, augment=augment)
    trained = Fit(rule=SGD(), lr=0.3, epochs=3, batch=16)
    return toy_recipe(
        objective=Trajectory(fit=student, **how),
        pool=Experts(experts=Trajectories(net=ToyNet(dtype=dtype), fit=trained, count=2), below=2, span=1),
        parameterization=WithRate(start=0.2),
        preprocess=Raw(dtype=dtype),
        outer={"steps": outer, "groups": GROUPS},
    )


class World:
    """One outer step on 6 images of 3 classes and a step size, in float64, whose set is given as leaves.

    soft: labels are logits that are learned, as DATM's.
    """

    def __init__(self, soft=False, **how):
        self.run = toy_run(recipe(**how))
        self.learner = self.run.recipe.pool.learners(self.run, None).next(0)
        g = torch.Generator().manual_seed(3)
        self.x = torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
        self.y = torch.arange(3).repeat_interleave(2)
        self.rate = torch.tensor(0.3, dtype=torch.float64)
        self.set = {"x": self.x, "rate": self.rate}
        if soft:
            self.set["y"] = 2 * torch.randn(6, 3, generator=g, dtype=torch.float64)

    def leaves(self):
        return {name: value.clone().requires_grad_() for name, value in self.set.items()}

    def loss(self, x, rate, y=None):
        own = self.y if y is None else y
        loss = None if y is None else SoftTargets()
        sampler = TensorSampler(self.run.task, x, own, loss=loss, rate=lambda at: rate)
        (term,) = self.run.recipe.objective(Step(self.run, 0, self.learner, sampler))
        return term.losses["trajectory"]

    def gradients(self):
        leaves = self.leaves()
        value = self.loss(**leaves)
        return value, dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def test_the_loss_is_that_of_a_student_trained_by_hand():
    world = World()
    start, end = world.learner.path[0], world.learner.path[-1]
    w = {name: p.clone().requires_grad_() for name, p in start.items()}
    sampler = TensorSampler(world.run.task, world.x, world.y)
    key = Rng(0).fold("step", 0).fold("student").fold("batch")
    for at in range(4):
        batch = sampler.draw(4, None, key, at=at)
        value = F.cross_entropy(functional_call(world.learner.module, w, (batch.x,)), batch.y)
        grads = torch.autograd.grad(value, list(w.values()))
        w = {name: (p - 0.3 * g).detach().requires_grad_() for (name, p), g in zip(w.items(), grads, strict=True)}
    far = sum(float((w[name].detach() - end[name]).square().sum()) for name in w)
    whole = sum(float((start[name] - end[name]).square().sum()) for name in w)
    assert world.loss(world.x, world.rate).item() == pytest.approx(far / whole, rel=1e-9)


@pytest.mark.parametrize("augment", [None, "dsa"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("segment", [None, 3])
def test_gradients_equal_finite_differences(augment, soft, segment):
    """On 3 coordinates drawn by seed among those whose gradient is in the top tenth."""
    world = World(augment=augment, soft=soft, segment=segment)
    _, found = world.gradients()
    for name, grad in found.items():
        flat = grad.flatten()
        top = flat.abs().topk(max(1, len(flat) // 10)).indices
        for i in top[torch.randperm(len(top), generator=Rng(11).generator())[:3]].tolist():
            sides = []
            for sign in (1, -1):
                moved = {key: value.detach().clone() for key, value in world.leaves().items()}
                moved[name].view(-1)[i] += sign * 1e-6
                sides.append(world.loss(**moved).item())
            assert flat[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4), (name, i)


@pytest.mark.parametrize("segment", [1, 3, 10])
def test_in_pieces_the_gradient_is_the_plain_one(segment):
    worlds = World(steps=10, soft=True), World(steps=10, soft=True, segment=segment)
    (value, whole), (again, pieces) = (world.gradients() for world in worlds)
    assert again.item() == value.item()
    for name, grad in pieces.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(grad, whole[name], rtol=1e-5, atol=0)


class Held:
    """Bytes that autograd holds on to, and the most that it has held; a storage counts once."""

    def __init__(self):
        self.uses, self.bytes, self.peak = {}, 0, 0

    def __enter__(self):
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Kept(self, tensor), lambda kept: kept.tensor
        )
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


class _Kept:
    def __init__(self, held, tensor):
        self.held, self.tensor, storage = held, tensor, tensor.untyped_storage()
        self.key, self.size = storage.data_ptr(), storage.nbytes()
        held.uses[self.key] = held.uses.get(self.key, 0) + 1
        held.bytes += self.size * (held.uses[self.key] == 1)
        held.peak = max(held.peak, held.bytes)

    def __del__(self):
        self.held.uses[self.key] -= 1
        self.held.bytes -= self.size * (self.held.uses[self.key] == 0)


def test_in_pieces_memory_hardly_grows_with_the_steps():
    def peak(steps, segment):
        world = World(steps=steps, batch=None, segment=segment)
        with Held() as held:
            world.gradients()
        return held.peak

    assert peak(80, None) > 6 * peak(10, None)
    assert peak(80, 10) < 1.5 * peak(10, 10)
    assert peak(80, 10) < 1.5 * peak(10, None)


def test_what_a_run_will_need_of_memory_counts_the_steps_that_are_recorded(monkeypatch):
    source = toy_splits().train
    made, pieced, cut = (
        recipe("float32", steps=500, batch=b, segment=n) for b, n in ((None, None), (None, 20), (4, None))
    )
    each = memory.PASSES * memory.activations(ToyNet(), source.task)
    whole, pieces, smaller = (memory.estimate(one, source) for one in (made, pieced, cut))
    assert whole - pieces == 6 * (500 - 20) * each
    assert whole - smaller == 2 * 500 * each
    monkeypatch.setattr(memory, "available", lambda device: whole - 1)
    with pytest.raises(NoRoom, match=r"fewer steps at a time \(objective.segment\)"):
        memory.check_memory(made, source, torch.device("cpu"))
    memory.check_memory(pieced, source, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:no value of the set has moved")
def test_a_stretch_above_the_limit_moves_nothing():
    with toys():
        stay, move = (condense(toy_run(recipe("float32", outer=1, limit=limit))) for limit in (1e-9, 1e9))
        start = condense(toy_run(recipe("float32", outer=0)))
    assert torch.equal(stay.freeze().x, start.freeze().x)
    assert torch.equal(stay.pace, start.pace)
    assert not torch.equal(move.freeze().x, start.freeze().x)
    assert not torch.equal(move.pace, start.pace)


@pytest.mark.filterwarnings("ignore:no value of the set has moved")
def test_a_student_that_explodes_is_passed_over_where_there_is_a_limit():
    """Its loss is no number, and nothing of it may reach the set: DATM's code takes no step."""
    with toys():
        start = condense(toy_run(recipe("float32", outer=0)))
        wild = recipe("float32", outer=2, limit=10.0).with_(parameterization=WithRate(start=1e30))
        stay = condense(toy_run(wild))
        assert torch.equal(stay.freeze().x, start.freeze().x)
        with pytest.raises(Diverged):
            condense(toy_run(wild.with_(objective=wild.objective.with_(limit=None))))


@pytest.mark.filterwarnings("ignore:no value of the set has moved")
def test_stretches_that_are_passed_over_are_counted_across_a_pause_and_too_many_in_a_row_end_the_run(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(trajectory, "PATIENCE", 4)
    wild = recipe("float32", outer=6, limit=10.0).with_(parameterization=WithRate(start=1e30))
    with toys():
        short = toy_run(wild.set("outer.steps", 3))
        condense(short)
        paused = toy_run(wild, folder=tmp_path, limits=Limits(steps=1))
        paused.recipe.pool.learners(paused, None)
        paused.interrupted.set()
        with pytest.raises(Paused):
            condense(paused)
        again = toy_run(wild, folder=tmp_path)
        with pytest.raises(Diverged, match=r"above the limit of 10 on 4 stretches in a row, up to outer step 3"):
            condense(again)
    assert short.notes["stretches passed over"]["steps"] == 3
    assert again.notes["stretches passed over"]["steps"] == 4


def test_a_stretch_that_is_taken_in_between_ends_the_count(monkeypatch):
    monkeypatch.setattr(trajectory, "PATIENCE", 2)
    run = toy_run(recipe())
    for index in (0, 2, 4):
        trajectory.pass_over(Step(run, index, Learner(None), None), torch.tensor(1.0), 0.5)
    assert run.notes["stretches passed over"] == {"steps": 3, "in a row": 1, "last": 4}


def test_a_pool_without_experts_is_refused():
    made = recipe().with_(pool=named(Pool, "fresh", net=ToyNet()))
    with pytest.raises(BadValue, match="asks the experts of the pool, and fresh has none"):
        made.objective.check(made, toy_run(recipe()).task)


@pytest.mark.parametrize("segment", [None, 2])
def test_a_run_that_was_interrupted_ends_on_the_same_bits(tmp_path, segment):
    """Experts' order, the window, momentum of the images and of the rate."""
    made = recipe("float32", outer=5, segment=segment)
    with toys():
        whole = condense(toy_run(made))
        run = toy_run(made, folder=tmp_path, limits=Limits(steps=1))
        run.recipe.pool.learners(run, None)  # experts are made: the pause falls between two outer steps
        for _ in range(5):
            run = toy_run(made, folder=tmp_path)
            run.interrupted.set()
            try:
                again = condense(run)
            except Paused:
                continue
    assert run.notes["seconds"] > 0
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
