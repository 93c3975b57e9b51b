"""Update rules against torch.optim, schedules against their definitions, and what purity means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from condense.axes import Net
from condense.data import TensorSampler
from condense.fit import Constant, Fit, schedule
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Cosine, Drops
from condense.rng import Rng
from condense.task import Task
from condense.testing import ToyNet, toy_splits

RULES = [
    (SGD(), torch.optim.SGD, {}),
    (SGD(momentum=0.9, weight_decay=5e-4), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}),
    (SGD(weight_decay=0.1), torch.optim.SGD, {"weight_decay": 0.1}),
    (Adam(), torch.optim.Adam, {}),
    (Adam(betas=(0.5, 0.9), eps=1e-3, weight_decay=0.1), torch.optim.Adam, None),
]


def gradients(params, t):
    """Gradients that depend on the parameters and on time."""
    return {name: torch.sin(p.detach() * (t + 1)) + 0.1 * t for name, p in params.items()}


def start():
    g = torch.Generator().manual_seed(1)
    return {"w": torch.randn(3, 4, generator=g, dtype=torch.float64), "b": torch.randn(4, generator=g).double()}


@pytest.mark.parametrize(("rule", "theirs", "options"), RULES)
def test_twenty_updates_equal_those_of_torch_optim(rule, theirs, options):
    options = {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1} if options is None else options
    params, state = start(), rule.init(start())
    leaves = {name: nn.Parameter(p.clone()) for name, p in start().items()}
    optimiser = theirs(leaves.values(), lr=0.05, **options)
    for t in range(20):
        params, state = rule.update(params, gradients(params, t), state, 0.05)
        for name, grad in gradients(leaves, t).items():
            leaves[name].grad = grad
        optimiser.step()
        for name, p in params.items():
            torch.testing.assert_close(p, leaves[name].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [row[0] for row in RULES])
def test_an_update_changes_none_of_its_inputs(rule):
    params, state = start(), rule.init(start())
    params, state = rule.update(params, gradients(params, 0), state, 0.05)
    grads = gradients(params, 1)
    before = [{k: v.clone() for k, v in tree.items()} for tree in (params, grads, state)]
    rule.update(params, grads, state, 0.05)
    for tree, kept in zip((params, grads, state), before, strict=True):
        assert all(torch.equal(tree[key], kept[key]) for key in kept)


@pytest.mark.parametrize("rule", [row[0] for row in RULES])
def test_the_same_updates_give_the_same_bits_wherever_state_was_stored_in_between(rule):
    def walk(cut):
        params, state = start(), rule.init(start())
        for t in range(6):
            params, new = rule.update(params, gradients(params, t), state, 0.05)
            state = {key: value.clone() for key, value in new.items()} if t == cut else new
        return params["w"]

    assert torch.equal(walk(None), walk(3))


@pytest.mark.parametrize("rule", [SGD(momentum=0.9, weight_decay=0.01), Adam(eps=1e-3)])
def test_two_updates_are_differentiable_through(rule):
    """d loss / d data and d loss / d rate of a quadratic, against central differences."""

    def loss(target, lr):
        params = {"w": torch.ones(3, dtype=torch.float64)}
        state = rule.init(params)
        for _ in range(2):
            params, state = rule.update(params, {"w": (params["w"] - target) ** 3}, state, lr)
        return params["w"].square().sum()

    target = torch.tensor([0.2, -0.5, 2.0], dtype=torch.float64, requires_grad=True)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (target, lr), atol=1e-6)


@pytest.mark.parametrize("rule", [SGD(), SGD(momentum=0.9, weight_decay=0.01), Adam(eps=1e-3), Adam(weight_decay=0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_a_move_is_an_update_in_place(rule, dtype, turned):
    """Gradients of any layout in memory: the fused kernel would read them in the order of memory."""
    g = torch.Generator().manual_seed(0)
    shapes = {"weight": (6, 5), "other": (4, 3), "bias": (5, 1)}
    params = {name: torch.randn(shape, generator=g, dtype=dtype) for name, shape in shapes.items()}
    params["other"] = params["other"].T if turned else params["other"]
    there = {name: p.detach().clone(memory_format=torch.preserve_format) for name, p in params.items()}
    leaves = {name: p.requires_grad_() for name, p in there.items()}
    pure, moved = rule.init(params), rule.init(leaves)
    for step in range(5):
        grads = {name: torch.randn(*reversed(p.shape), generator=g, dtype=dtype).T for name, p in params.items()}
        params, pure = rule.update(params, grads, pure, 0.1 / (1 + step))
        moved = rule.move(leaves, grads, moved, 0.1 / (1 + step))
        for name, p in params.items():
            torch.testing.assert_close(leaves[name].detach(), p, rtol=1e-5, atol=1e-6)
    assert {name: list(value.shape) for name, value in moved.items()} == {k: list(v.shape) for k, v in pure.items()}


def test_what_a_training_stored_does_not_move_with_it():
    data = TensorSampler(Task(classes=("a", "b"), shape=(3,)), torch.randn(8, 3), torch.arange(8) % 2)
    training = Fit(rule=Adam(), steps=4).begin(torch.nn.Linear(3, 2), Rng(0))
    training.advance(data, 2)
    state = training.state_dict()
    kept = {name: value.clone() for name, value in state["rule"].items()}
    training.advance(data, 2)
    training.load_state_dict(state)
    training.advance(data, 2)
    assert all(torch.equal(state["rule"][name], value) for name, value in kept.items())


def test_sgd_without_momentum_keeps_no_state():
    assert SGD().init(start()) == {}


def test_drops_multiply_once_for_each_point_that_is_reached():
    drops = Drops(start=0.8, at=(0.25, 0.5), factor=0.5)
    assert [drops.value(p) for p in (0.0, 0.2499, 0.25, 0.4999, 0.5, 0.99)] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]
    assert not drops.restarts(0.2, 0.3)


def test_drops_restart_once_at_each_point_on_a_walk_of_any_length():
    drops = Drops(start=1.0, at=(0.25, 0.5), restart=True)
    for steps in (4, 7, 100, 302):
        fired = [t for t in range(steps) if drops.restarts((t - 1) / steps, t / steps)]
        assert fired == [next(t for t in range(steps) if t / steps >= point) for point in drops.at]


def test_cosine_starts_and_ends_where_it_says():
    cosine = Cosine(start=0.4, to=0.1)
    assert cosine.value(0.0) == pytest.approx(0.4)
    assert cosine.value(0.5) == pytest.approx(0.25)
    assert cosine.value(1.0) == pytest.approx(0.1)
    assert cosine.value(1 / 3) == pytest.approx(0.1 + 0.3 * (1 + math.cos(math.pi / 3)) / 2)


def test_a_plain_number_is_a_constant_schedule():
    assert schedule(0.3) == Constant(at=0.3)
    assert [Constant(at=0.3).value(p) for p in (0.0, 0.9)] == [0.3, 0.3]
    assert schedule(Cosine(start=1.0)) == Cosine(start=1.0)


def test_fit_equals_a_plain_loop_over_torch_optim(rng, device):
    """Two and a half epochs in batches of 16 with momentum, weight decay, and a drop that re-creates the optimiser."""
    splits = toy_splits(device)
    data, net = splits.train, ToyNet()
    fit = Fit(
        rule=SGD(momentum=0.9, weight_decay=5e-4), lr=Drops(start=0.1, at=(0.5,), restart=True), steps=10, batch=16
    )
    ours = net.make(data.task, rng, device)
    fit.begin(ours, rng).advance(data, 10)

    theirs = net.make(data.task, rng, device)
    for t in range(10):
        if t in (0, 5):
            optimiser = torch.optim.SGD(
                theirs.parameters(), lr=0.1 if t == 0 else 0.01, momentum=0.9, weight_decay=5e-4
            )
        order = rng.fold("batch").fold("epoch", t // 4).permutation(60, device)
        index = order[t % 4 * 16 : (t % 4 + 1) * 16]
        optimiser.zero_grad()
        nn.functional.cross_entropy(theirs(data.x[index]), data.y[index]).backward()
        optimiser.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


class Dropped(Net):
    """A linear layer behind dropout, which reads torch's global generator."""

    def build(self, task):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, task.outputs))


def test_dropout_is_keyed_too_and_leaves_the_global_generator_alone(rng):
    data = toy_splits().train
    fit = Fit(rule=SGD(), lr=0.1, steps=2, batch=None)

    def weights(key, cuts):
        net = Dropped().make(data.task, rng)
        training = fit.begin(net, key)
        for steps in cuts:
            training.advance(data, steps)
        return net[2].weight.detach()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(rng, (1, 1))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(weights(rng, (1, 1)), first)
    assert not torch.equal(weights(rng.fold("other"), (1, 1)), first)

    net = Dropped().make(data.task, rng)
    masks = []
    for at in range(2):
        hook = net[1].register_forward_hook(lambda module, args, out: masks.append(out == 0))
        training = fit.begin(net, rng)
        training.at = at
        training.advance(data, 1)
        hook.remove()
    assert not torch.equal(*masks), "two stretches of a training drop the same inputs"
