"""The outer gradients of DD and RaT-BPTT against finite differences, and against a training written out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from condense.axes import Learner, Net
from condense.data import TensorSampler
from condense.fit import Fit, drawn
from condense.parts.bilevel import Bilevel
from condense.parts.rules import SGD, Adam, NormClipped
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toys
from condense_image.dd import dd
from condense_image.rat_bptt import rat_bptt

NET = ToyNet(dtype="float64")


class World:
    """One outer step of a method on the toy, in float64: a set with storage of its own, and the network of the pool."""

    def __init__(self, recipe, index=3):
        recipe = recipe.rewrite(Net, lambda _: NET).with_(preprocess=Raw(dtype="float64"))
        self.run = run = toy_run(recipe)
        groups = recipe.budget.allot(run.splits.train)
        self.syn = recipe.parameterization.empty(run.task, groups, recipe.labels).double()
        self.syn.start(run.rng.fold("start"))
        g = torch.Generator().manual_seed(1)
        x = torch.randn(len(groups), 1, 8, 8, generator=g, dtype=torch.float64)
        self.syn.fill(Batch(x, recipe.labels.start(Batch(x, groups), run)))
        self.module = recipe.pool.learners(run, self.syn).next(index).module
        self.step = Step(run, index, Learner(self.module), self.sampler())

    def sampler(self):
        return self.syn.sampler(self.syn.decode(None, None))

    def value(self):
        self.step.syn = self.sampler()
        (term,) = self.run.recipe.objective(self.step)
        return term.losses["real"]

    def parameters(self):
        return {role: parameter for role, some in self.syn.roles().items() for parameter in some}

    def gradients(self):
        named = self.parameters()
        return dict(zip(named, torch.autograd.grad(self.value(), list(named.values())), strict=True))

    def differences(self, role, i, value, by=1e-6):
        """(value(p + by) - value(p - by)) / 2 by, at coordinate i of the parameter of this role."""
        flat, sides = self.parameters()[role].data.view(-1), []
        for sign in (1, -2):
            flat[i] += sign * by
            sides.append(value().item())
        flat[i] += by
        return (sides[0] - sides[1]) / (2 * by)


def top(grad, n=3):
    """n coordinates drawn by seed among those whose gradient is in the top tenth, of all where these are fewer."""
    flat = grad.flatten().abs()
    best = flat.topk(max(min(n, len(flat)), len(flat) // 10)).indices
    return best[torch.randperm(len(best), generator=Rng(11).generator())[:n]].tolist()


@pytest.mark.parametrize("segment", [None, 2])
def test_the_gradient_of_dd_equals_finite_differences_in_images_and_step_sizes(segment):
    with toys():
        recipe = dd(per_class=2).set("parameterization.start", 0.5).set("objective.segment", segment)
        world = World(recipe.set("objective.n", 16))
        found = world.gradients()
        assert {role: grad.numel() for role, grad in found.items()} == {"images": 6 * 64, "rate": 6}
        for role, grad in found.items():
            for i in top(grad):
                assert grad.view(-1)[i].item() == pytest.approx(world.differences(role, i, world.value), rel=1e-4)


def test_dd_is_gradient_descent_in_turns_written_by_hand():
    with toys():
        world = World(dd(per_class=2).set("objective.n", 16))
        real = world.step.real.draw(16, None, world.run.rng.fold("bilevel"), at=3)
        x, pace = world.syn.decode(None, None).x, world.parameters()["rate"]
        w = {name: p.detach().clone().requires_grad_() for name, p in world.module.named_parameters()}
        for t in range(6):
            turn = [t % 2, 2 + t % 2, 4 + t % 2]  # of 2 items of each of 3 classes, class after class
            value = F.cross_entropy(functional_call(world.module, w, (x[turn],)), torch.arange(3))
            grads = torch.autograd.grad(value, list(w.values()), create_graph=True)
            rate = pace[t].exp().log1p()
            w = {name: p - rate * g for (name, p), g in zip(w.items(), grads, strict=True)}
        expected = F.cross_entropy(functional_call(world.module, w, (real.x,)), real.y)
        assert world.value().item() == pytest.approx(expected.item(), rel=1e-12)
        named = world.parameters()
        wanted = dict(zip(named, torch.autograd.grad(expected, list(named.values())), strict=True))
        for role, grad in world.gradients().items():
            torch.testing.assert_close(grad, wanted[role], rtol=1e-8, atol=1e-14)


def by_hand(world, before, window):
    """The loss after RaT-BPTT's training, as a function of images that only the last `window` steps see: Adam."""
    step, objective = world.step, world.run.recipe.objective
    now = world.syn.freeze()
    frozen = TensorSampler(now.task, now.x.clone(), now.y.clone())
    rng, real = step.rng.fold("student"), step.real.draw(objective.n, None, world.run.rng.fold("bilevel"), at=3)
    real = world.run.recipe.augment.sample(step.rng.fold("warp"), len(real))(real)
    start = {name: p.detach().clone() for name, p in world.module.named_parameters()}

    def value():
        w = {name: p.requires_grad_() for name, p in start.items()}
        m, v = ({name: torch.zeros_like(p) for name, p in w.items()} for _ in range(2))
        for t in range(before + window):
            data = frozen if t < before else world.sampler()
            batch = drawn(objective.fit, data, rng, t, 0.0)
            loss = F.cross_entropy(functional_call(world.module, w, (batch.x,)), batch.y)
            grads = torch.autograd.grad(loss, list(w.values()), create_graph=t >= before)
            for name, g in zip(w, grads, strict=True):
                m[name], v[name] = 0.9 * m[name] + 0.1 * g, 0.999 * v[name] + 0.001 * g * g
                down = (m[name] / (1 - 0.9 ** (t + 1))) / ((v[name] / (1 - 0.999 ** (t + 1))).sqrt() + 1e-8)
                w[name] = w[name] - objective.fit.lr * down
            if t + 1 == before:
                w = {name: p.detach().requires_grad_() for name, p in w.items()}
                m, v = ({name: p.detach() for name, p in s.items()} for s in (m, v))
        return F.cross_entropy(functional_call(world.module, w, (real.x,)), real.y)

    return value


@pytest.mark.parametrize("labels", ["hard", "learned-one-hot"])
@pytest.mark.parametrize("segment", [None, 2])
def test_the_gradient_of_rat_bptt_equals_finite_differences_in_the_window(segment, labels):
    with toys():
        recipe = rat_bptt(per_class=2).set("objective.window", 3).set("objective.fit.steps", 8)
        recipe = recipe.set("objective.n", 16).set("objective.segment", segment).set("labels", labels)
        world = World(recipe.set("objective.fit.lr", 0.02).set("objective.least", 2), index=3)
        before, window = world.run.recipe.objective.place(world.step)
        assert 2 <= before <= 5
        assert window == 3
        value, found = by_hand(world, before, window), world.gradients()
        assert world.value().item() == pytest.approx(value().item(), rel=1e-9)
        assert set(found) == {"images", "labels"} - ({"labels"} if labels == "hard" else set())
        for role, grad in found.items():
            for i in top(grad):
                assert grad.view(-1)[i].item() == pytest.approx(world.differences(role, i, value), rel=1e-4)


def test_the_window_lies_anywhere_within_the_length_and_moves_when_it_should():
    data = TensorSampler(toy_run(toy_recipe()).task, torch.zeros(6, 1, 8, 8), torch.arange(6) % 3)
    fit = Fit(rule=SGD(), steps=10, batch=None)
    run = toy_run(toy_recipe())

    def places(**how):
        objective = Bilevel(fit=fit, n=20, **how)
        return [objective.place(Step(run, i, Learner(None), data)) for i in range(300)]

    drawn = places(window=4, least=1)
    assert {before for before, _ in drawn} == {1, 2, 3, 4, 5, 6}
    assert {window for _, window in drawn} == {4}
    counts = torch.bincount(torch.tensor([before for before, _ in drawn]))[1:]
    assert ((counts - 50).abs() < 30).all(), counts
    held = [before for before, _ in places(window=4, redraw="epoch")]
    assert all(len(set(held[i : i + 3])) == 1 for i in range(0, 300, 3)), "60 real examples are 3 batches of 20"
    assert len(set(held)) == 7
    assert set(places(window=4, least=99)) == {(6, 4)}
    assert set(places()) == set(places(window=10)) == set(places(window=99)) == {(0, 10)}


def test_real_examples_are_the_batches_of_epochs():
    """Three outer steps see all 60 real examples; the next three see them in another order."""
    with toys():
        world, seen = World(dd(per_class=2).set("objective.n", 20)), []
        objective = world.run.recipe.objective
        for index in range(6):
            step = Step(world.run, index, Learner(world.module), world.sampler())
            draw = step.real.draw

            def spied(*args, draw=draw, **kwargs):
                seen.append(draw(*args, **kwargs))
                return seen[-1]

            step.real.draw = spied
            objective(step)
            step.real.draw = draw
    epochs = [torch.cat([batch.index for batch in seen[i : i + 3]]) for i in (0, 3)]
    assert all(sorted(epoch.tolist()) == list(range(60)) for epoch in epochs)
    assert not torch.equal(*epochs)


# -- the update of the images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [SGD(momentum=0.5), Adam()], ids=["sgd", "adam"])
def test_gradients_are_clipped_by_the_running_mean_of_their_length_as_torch_clips(rule):
    clipped, g = NormClipped(rule=rule, times=2.0, decay=0.9), torch.Generator().manual_seed(0)
    params = {"a": torch.randn(3, 4, generator=g), "b": torch.randn(5, generator=g)}
    ours, moved = dict(params), {name: p.clone() for name, p in params.items()}
    plain = dict(params)
    state, inner, kept = clipped.init(params), rule.init(params), clipped.init(params)
    shadow, cut = None, 0
    for t in range(12):
        size = 30.0 if t in (4, 9) else 1.0
        grads = {name: size * torch.randn(p.shape, generator=g) for name, p in params.items()}
        ours, state = clipped.update(ours, grads, state, 0.1)
        kept = clipped.move(moved, grads, kept, 0.1)
        leaves = [torch.zeros_like(grad, requires_grad=True) for grad in grads.values()]
        for leaf, grad in zip(leaves, grads.values(), strict=True):
            leaf.grad = grad.clone()
        norm = torch.cat([grad.flatten() for grad in grads.values()]).norm().item()
        shadow = norm if shadow is None else 0.9 * shadow + 0.1 * norm
        torch.nn.utils.clip_grad_norm_(leaves, 2 * shadow)
        cut += norm > 2 * shadow
        plain, inner = rule.update(plain, {n: leaf.grad for n, leaf in zip(grads, leaves, strict=True)}, inner, 0.1)
        for name in params:
            torch.testing.assert_close(ours[name], plain[name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(moved[name], ours[name], rtol=1e-5, atol=1e-6)
    assert cut == 2
    assert state["all/norm"].item() == pytest.approx(shadow, rel=1e-5)
    assert kept["all/norm"].item() == pytest.approx(shadow, rel=1e-5)


def test_parameters_without_a_gradient_leave_the_outer_gradient_finite():
    """A ReLU that is never on: Adam's second moment is 0, where the root has no derivative."""
    w = torch.tensor([[1.0, 2.0], [-9.0, -9.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    params, state = {"w": w.clone().requires_grad_()}, Adam().init({"w": w})
    for _ in range(3):
        value = F.relu(x @ params["w"].T).square().sum()
        grads = dict(zip(params, torch.autograd.grad(value, list(params.values()), create_graph=True), strict=True))
        assert (grads["w"][1] == 0).all()
        params, state = Adam().update(params, grads, state, 0.1)
    (found,) = torch.autograd.grad(F.relu(x.detach() @ params["w"].T).sum(), [x])
    assert torch.isfinite(found).all()
