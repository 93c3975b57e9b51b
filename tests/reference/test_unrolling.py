"""Unrolled training against a loop written by hand, finite differences, and itself in pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from condense.data import TensorSampler
from condense.errors import BadValue
from condense.fit import Fit
from condense.parts.rules import LAMB, SGD, Adam
from condense.parts.schedules import Drops, Learned, Linear
from condense.rng import Rng
from condense.testing import ToyNet, toy_splits

STEPS = 5
RULES = [SGD(), SGD(momentum=0.9, weight_decay=0.01), Adam(eps=1e-3), LAMB(eps=1e-3, weight_decay=0.01)]
NAMES = [rule.name + ("-momentum" if getattr(rule, "momentum", 0) else "") for rule in RULES]


class World:
    """A toy set of 6 images with soft labels and a step size, a network and a real batch, in float64."""

    def __init__(self, seed=0):
        splits = toy_splits()
        self.task = splits.task
        self.real = splits.train.draw(20, None, Rng(5))
        self.net = ToyNet(dtype="float64").make(self.task, Rng(seed))
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
        self.y = torch.rand(6, 3, generator=g, dtype=torch.float64)
        self.rate = torch.tensor(0.3, dtype=torch.float64)

    def leaves(self):
        return {name: getattr(self, name).clone().requires_grad_() for name in ("x", "y", "rate")}

    def sampler(self, x, y, rate):
        return TensorSampler(self.task, x, y, rate=lambda at: rate * 0.9**at)

    def loss(self, params):
        logits = functional_call(self.net, params, (self.real.x.double(),))
        return F.cross_entropy(logits, self.real.y)

    def unrolled(self, fit, leaves, **how):
        after = fit.unroll(self.net, None, self.sampler(**leaves), Rng(3), STEPS, **how)
        return self.loss(after)


def fit(rule, **more):
    return Fit(rule=rule, lr=Learned(), steps=STEPS, batch=4, **more)


def gradients(value, leaves):
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def by_hand(rule, net, sampler, steps, cut=0):
    """The same training written out: chunks of the sampler's own permutation, rates of the set, rules by their papers.

    cut: everything before that step is without a graph.
    """
    w = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    m = {name: torch.zeros_like(p) for name, p in w.items()}
    v = {name: torch.zeros_like(p) for name, p in w.items()}
    for t in range(steps):
        batch = sampler.draw(4, None, Rng(3).fold("batch"), at=t)
        logits = functional_call(net, w, (batch.x,))
        value = -(batch.y * logits.log_softmax(1)).sum(1).mean()
        grads = dict(zip(w, torch.autograd.grad(value, list(w.values()), create_graph=True), strict=True))
        lr = sampler.rate(t)
        for name, g in grads.items():
            if isinstance(rule, SGD):
                m[name] = rule.momentum * m[name] + g + rule.weight_decay * w[name]
                w[name] = w[name] - lr * m[name]
                continue
            b1, b2 = rule.betas
            m[name], v[name] = b1 * m[name] + (1 - b1) * g, b2 * v[name] + (1 - b2) * g * g
            step = (m[name] / (1 - b1 ** (t + 1))) / ((v[name] / (1 - b2 ** (t + 1))).sqrt() + rule.eps)
            if isinstance(rule, LAMB):
                step = step + rule.weight_decay * w[name]
                if w[name].norm() > 0:
                    step = step * w[name].norm() / step.norm()
            w[name] = w[name] - lr * step
        if t + 1 <= cut:
            w = {name: p.detach().requires_grad_() for name, p in w.items()}
            m, v = ({name: p.detach() for name, p in s.items()} for s in (m, v))
    return w


@pytest.mark.parametrize("cut", [0, 3])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_parameters_and_gradients_are_those_of_a_loop_written_by_hand(rule, cut):
    world = World()
    ours, theirs = world.leaves(), world.leaves()
    after = fit(rule).unroll(world.net, None, world.sampler(**ours), Rng(3), STEPS, graph_from=cut)
    expected = by_hand(rule, world.net, world.sampler(**theirs), STEPS, cut)
    for name, value in after.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    found, other = gradients(world.loss(after), ours), gradients(world.loss(expected), theirs)
    for name, grad in found.items():
        assert grad.abs().max() > 0
        torch.testing.assert_close(grad, other[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_gradients_of_images_labels_and_rate_equal_finite_differences(rule):
    """On 3 coordinates of each, drawn by seed among those whose gradient is in the top tenth."""
    world = World()
    leaves = world.leaves()
    found = gradients(world.unrolled(fit(rule), leaves), leaves)
    for name, grad in found.items():
        flat = grad.flatten()
        top = flat.abs().topk(max(1, len(flat) // 10)).indices
        for i in top[torch.randperm(len(top), generator=Rng(11).generator())[:3]].tolist():
            sides = []
            for sign in (1, -1):
                moved = {key: value.detach().clone() for key, value in leaves.items()}
                moved[name].view(-1)[i] += sign * 1e-6
                sides.append(world.unrolled(fit(rule), moved).detach())
            assert flat[i].item() == pytest.approx((sides[0] - sides[1]).item() / 2e-6, rel=1e-4), (name, i)


@pytest.mark.parametrize("segment", [1, 2, 5, 9])
@pytest.mark.parametrize("cut", [0, 2])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_training_in_pieces_gives_the_same_gradients(rule, cut, segment):
    world = World()
    how = fit(rule).with_(lr=Learned(times=Drops(start=1.0, at=(0.5,), restart=True)))
    whole, pieces = world.leaves(), world.leaves()
    value = world.unrolled(how, whole, graph_from=cut)
    again = world.unrolled(how, pieces, graph_from=cut, segment=segment)
    assert again.item() == value.item()
    found, other = gradients(again, pieces), gradients(value, whole)
    for name, grad in found.items():
        torch.testing.assert_close(grad, other[name], rtol=1e-10, atol=1e-14)


def test_the_start_is_differentiable_where_it_is_given_to_be():
    world = World()
    found = []
    for segment in (None, 2):
        start = {name: p.detach().clone().requires_grad_() for name, p in world.net.named_parameters()}
        sampler = world.sampler(**world.leaves())
        after = fit(SGD()).unroll(world.net, start, sampler, Rng(3), STEPS, segment=segment)
        found.append(torch.autograd.grad(world.loss(after), list(start.values())))
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_it_is_the_training_that_a_network_gets(rule):
    """Without a graph it is what `Training` gives, batches included; the network lent stays as it was."""
    world = World()
    leaves = world.leaves()
    before = {name: p.detach().clone() for name, p in world.net.named_parameters()}
    how = fit(rule).with_(lr=Linear(start=0.3, to=0.1))
    after = how.unroll(world.net, None, world.sampler(**leaves), Rng(3), STEPS, graph_from=STEPS)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in world.net.named_parameters())
    still = {name: value.detach() for name, value in leaves.items()}
    how.begin(world.net, Rng(3)).advance(world.sampler(**still), STEPS)
    for name, p in world.net.named_parameters():
        torch.testing.assert_close(after[name].detach(), p.detach(), rtol=1e-12, atol=1e-12)


def test_learned_rates_are_those_of_the_set_also_where_networks_are_trained_on_it():
    world = World()
    leaves = {name: value.detach() for name, value in world.leaves().items()}
    how = fit(SGD(), augment=None)
    paced = how.with_(lr=Learned(times=Drops(start=1.0, at=(0.5,), factor=0.1)))
    trained = {}
    for name, sampler in (("set", world.sampler(**leaves)), ("none", TensorSampler(world.task, world.x, world.y))):
        net = ToyNet(dtype="float64").make(world.task, Rng(0))
        fitted = paced if name == "set" else paced.with_(lr=Learned(times=paced.lr.times, otherwise=0.3))
        fitted.begin(net, Rng(3)).advance(sampler, STEPS)
        trained[name] = net
    rates = {"set": [0.3 * 0.9**t for t in range(STEPS)], "none": [0.3] * STEPS}
    for name, each in rates.items():
        net = ToyNet(dtype="float64").make(world.task, Rng(0))
        w = dict(net.named_parameters())
        for t, rate in enumerate(each):
            batch = world.sampler(**leaves).draw(4, None, Rng(3).fold("batch"), at=t)
            value = F.cross_entropy(net(batch.x), batch.y)
            grads = torch.autograd.grad(value, list(w.values()))
            with torch.no_grad():
                for p, g in zip(w.values(), grads, strict=True):
                    p -= (rate if t / STEPS < 0.5 else 0.1 * rate) * g
        for one, other in zip(trained[name].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_set_without_a_rate_is_refused_where_nothing_else_is_said():
    world = World()
    with pytest.raises(BadValue, match=r"^lr: asks for the step size of a set that brings none"):
        fit(SGD()).begin(world.net, Rng(3)).advance(TensorSampler(world.task, world.x, world.y), 1)
    with pytest.raises(BadValue, match=r"^lr: is the step size of a training"):
        Learned().value(0.5)
    assert Fit(rule=SGD(), lr="learned", steps=1).lr == Learned()
