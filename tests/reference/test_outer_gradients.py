"""The outer gradients of the regressing methods, in float64, against finite differences and an unrolled training.

RCIG's is compared with an inner problem that is written out with explicit Jacobians, and solved, or unrolled.
"""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, jacrev

from condense.axes import Learner
from condense.data import TensorSampler
from condense.execution import Calls
from condense.parts.features import Ensemble
from condense.parts.implicit import Implicit, Inner, descend, falls, first_rate
from condense.parts.ridge import KernelRidge
from condense.parts.rules import SGD, Adam
from condense.plugins import registry
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits

TASK = toy_splits().task
CLASSES = torch.tensor([0, 0, 1, 1, 2, 2])


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_step(objective, net, x, y, temperature=0.3):
    """Step 0 of a run of this objective on the toy, with a set of these images and targets, and this network."""
    recipe = toy_recipe(objective=objective, labels="learned", preprocess=Raw(dtype="float64"))
    run = toy_run(recipe)
    run.states = {part.digest(): made for part in recipe.walk() if (made := part.state(run)) is not None}
    for module in run.states.values():
        for parameter in module.parameters():
            parameter.data = torch.full_like(parameter, temperature, dtype=torch.float64)
    return Step(run, 0, Learner(net.make(run.task, Rng(1)).eval()), TensorSampler(run.task, x, y))


def the_set():
    x = numbers(6, 1, 8, 8, seed=5).requires_grad_()
    y = (torch.eye(3, dtype=torch.float64)[CLASSES] - 1 / 3 + 0.1 * numbers(6, 3, seed=6)).requires_grad_()
    return x, y


def value_of(objective, net, x, y):
    terms = list(objective(a_step(objective, net, x, y)))
    return torch.stack([loss for term in terms for loss in term.losses.values()]).sum()


def steepest(gradient, seed):
    """Three coordinates, drawn among the tenth with the largest gradient."""
    flat = gradient.flatten().abs()
    top = flat.topk(max(3, len(flat) // 10)).indices
    return [int(top[i]) for i in Rng(seed).permutation(len(top))[:3]]


def slope(value, tensor, at, h=1e-5):
    """The central difference of value(tensor) at one coordinate."""

    def moved(by):
        other = tensor.detach().clone()
        other.view(-1)[at] += by
        return float(value(other).detach())

    return (moved(h) - moved(-h)) / (2 * h)


def objective_of(name):
    """The method's own objective, on few examples, with a ridge at which finite differences mean something."""
    objective = registry().recipe(name)(per_class=2).objective
    return objective.rewrite(KernelRidge, lambda part: part.with_(n=32, ridge=1e-3))


@pytest.mark.parametrize("name", ["frepo", "rfad"])
def test_the_outer_gradient_equals_finite_differences(name):
    objective, (x, y) = objective_of(name), the_set()
    net = ToyNet(dtype="float64")
    net = net if name == "frepo" else Ensemble(net=net, n=2)
    grads = torch.autograd.grad(value_of(objective, net, x, y), (x, y))
    for i, gradient in enumerate(grads):
        for at in steepest(gradient, seed=i):
            found = slope(lambda t, i=i: value_of(objective, net, *((t, y) if i == 0 else (x, t))), (x, y)[i], at)
            assert float(gradient.flatten()[at]) == pytest.approx(found, rel=1e-5)


def test_the_gradient_in_the_learned_temperature_equals_finite_differences():
    objective, (x, y), net = objective_of("rfad"), the_set(), Ensemble(net=ToyNet(dtype="float64"), n=2)

    def at(temperature):
        step = a_step(objective, net, x, y, temperature)
        (parameter,) = [p for module in step.run.states.values() for p in module.parameters()]
        return torch.stack([loss for term in objective(step) for loss in term.losses.values()]).sum(), parameter

    (gradient,) = torch.autograd.grad(*at(0.3))
    values = [float(at(0.3 + h)[0].detach()) for h in (1e-5, -1e-5)]
    assert abs(float(gradient)) > 1e-3
    assert float(gradient) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


# -- RCIG -------------------------------------------------------------------------------------------------------------

NET = ToyNet(dtype="float64", width=2)
DECAY = 0.5  # for each item: a problem that descends quickly


def explicit(module, x):
    """The Jacobian of the logits, (N K, P), without the last layer's matrix, and the features, (N, D)."""
    theta = {name: p.detach() for name, p in module.named_parameters()}
    rest = {f"net.{name}": p for name, p in theta.items()}
    moving = {f"net.{name}": p for name, p in theta.items() if name != "head.weight"}
    found = jacrev(lambda some: functional_call(Calls(module), {**rest, **some}, ("forward", x)))(moving)
    jacobian = torch.cat([part.flatten(2) for part in found.values()], dim=2)
    return jacobian.flatten(0, 1), functional_call(Calls(module), rest, ("features", x))


def inner_loss(w, x, y, module):
    """(|y - Jw - phi W|^2 + l |W|^2 + l |w|^2) / (2 M K) at the best W."""
    jacobian, phi = explicit(module, x)
    decay = DECAY * len(x)
    left = y - (jacobian @ w).view_as(y)
    weight = torch.linalg.solve(phi.T @ phi + decay * torch.eye(phi.shape[1]).double(), phi.T @ left)
    squares = (left - phi @ weight).square().sum() + decay * (weight.square().sum() + w.square().sum())
    return squares / (2 * y.numel()), weight


def outer_loss(w, x, y, step, temperature):
    real = step.real.draw(16, None, step.run.rng.fold("implicit"), at=0)
    jacobian, phi = explicit(step.model, real.x)
    said = (jacobian @ w).view(16, 3) + phi @ inner_loss(w, x, y, step.model)[1]
    first, second = y.topk(2, dim=1).values.unbind(1)
    return (
        torch.nn.functional.cross_entropy(temperature.exp() * said, real.y) - (first - second).clamp_max(1 / 6).mean()
    )


def hessian_of(x, y, module):
    w = torch.zeros(explicit(module, x)[0].shape[1]).double()
    return torch.autograd.functional.hessian(lambda w: inner_loss(w, x, y, module)[0], w)


def solved_loss(x, y, step, temperature):
    """The outer loss at the exact solution: the inner problem is a quadratic, so that one step of Newton solves it."""
    w = torch.zeros(explicit(step.model, x)[0].shape[1], dtype=torch.float64)
    slope_at_0 = torch.func.grad(lambda w: inner_loss(w, x, y, step.model)[0])(w)
    return outer_loss(-torch.linalg.solve(hessian_of(x, y, step.model), slope_at_0), x, y, step, temperature)


def unrolled_loss(x, y, step, temperature, rate, steps):
    """The outer loss after gradient descent on the inner one, as a function of the set: differentiable all the way."""
    w = torch.zeros(explicit(step.model, x)[0].shape[1], dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(inner_loss(w, x, y, step.model)[0], w, create_graph=True)
        w = w - rate * gradient
    return outer_loss(w, x, y, step, temperature)


def implicit(steps, rate, **how):
    same = {"inner": steps, "inverse": steps, "inner_rate": rate, "inverse_rate": rate}
    return Implicit(n=16, decay=DECAY, rule=SGD(momentum=0.6), clip=False, **same, **how)


def largest(x, y, step):
    return float(torch.linalg.eigvalsh(hessian_of(x.detach(), y.detach(), step.model))[-1])


def test_the_implicit_gradient_is_that_of_the_solved_and_of_the_unrolled_inner_problem():
    x, y = the_set()
    step = a_step(Implicit(n=16, decay=DECAY), NET, x, y)
    rate = 1 / largest(x, y, step)
    objective = implicit(150, rate)
    step = a_step(objective, NET, x, y)
    (term,) = objective(step)
    t = torch.tensor(0.3).double().requires_grad_()
    assert float(term.losses["implicit"]) == pytest.approx(float(solved_loss(x, y, step, t).detach()), rel=1e-8)
    cotangents = [gradient for _, gradient in term.cotangents]
    assert [drawn.shape for drawn, _ in term.cotangents] == [x.shape, y.shape, ()]
    for i, gradient in enumerate(cotangents[:2]):
        for at in steepest(gradient, seed=i):
            found = slope(
                lambda v, i=i: solved_loss(*((v, y) if i == 0 else (x, v)), step, t), (x.detach(), y.detach())[i], at
            )
            assert float(gradient.flatten()[at]) == pytest.approx(found, rel=1e-5)
    unrolled = torch.autograd.grad(unrolled_loss(x, y, step, t, rate, 120), (x, y, t))
    for got, want in zip(cotangents, unrolled, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
    few = torch.autograd.grad(unrolled_loss(x, y, step, t, rate, 2), x)[0]
    assert float((few - cotangents[0]).norm() / cotangents[0].norm()) > 0.01, "two steps would be far from it"
    direct = torch.autograd.grad(
        outer_loss(torch.zeros(explicit(step.model, x)[0].shape[1]).double(), x, y, step, t), x
    )
    assert float((direct[0] - cotangents[0]).norm() / cotangents[0].norm()) > 0.01, "and so would be no inner training"


def test_the_implicit_part_is_clipped_to_the_direct_one():
    x, y = the_set()
    rate = 0.05
    none = implicit(10, rate)(a_step(implicit(10, rate), NET, x, y))[0].cotangents
    alone = implicit(10, rate).with_(inverse=0)
    direct = alone(a_step(alone, NET, x, y))[0].cotangents
    clips = implicit(10, rate).with_(clip=True)
    clipped = clips(a_step(clips, NET, x, y))[0].cotangents
    for (_, full), (_, plain), (_, cut) in zip(none, direct, clipped, strict=True):
        part = full - plain
        share = min(1.0, float(plain.norm() / part.norm())) if float(part.norm()) else 1.0
        torch.testing.assert_close(cut, plain + share * part)
    # a part that is too long: as long as the direct one, in its direction
    long = clips.clipped(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(long, torch.tensor([0.6, 0.8]))
    assert clips.clipped(torch.zeros(2), torch.ones(2)).equal(torch.zeros(2))


def test_the_product_with_the_hessian_is_that_of_the_written_out_problem():
    x, y = the_set()
    module = NET.make(TASK, Rng(1)).eval()
    inner = Inner(module, Batch(x.detach(), y.detach()), DECAY * 6, TASK.form)
    assert sorted(set(dict(module.named_parameters())) - set(inner.moving)) == ["head.weight"]
    v = {name: numbers(*module.get_parameter(name).shape, seed=i) for i, name in enumerate(inner.moving)}
    got = torch.cat([value.flatten() for value in inner.curved(v).values()])
    flat = torch.cat([value.flatten() for value in v.values()])
    torch.testing.assert_close(got, hessian_of(x.detach(), y.detach(), module) @ flat)
    right = torch.cat([value.flatten() for value in inner.right_side().values()])
    w = torch.zeros(len(flat)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(inner_loss(w, x.detach(), y.detach(), module)[0], w)
    torch.testing.assert_close(right, -gradient)


def test_the_first_rate_is_the_last_at_which_every_step_descends():
    curve = torch.tensor([1.0, 10.0]).double()

    def curved(v):
        return {"w": curve * v["w"]}

    b = {"w": torch.ones(2).double()}
    found = first_rate(curved, b, SGD(), 1e-3, 20)
    assert falls(descend(curved, b, SGD(), found, 20)[1])
    assert not falls(descend(curved, b, SGD(), found / 0.7, 20)[1])
    x, values = descend(curved, b, Adam(), 0.05, 400)
    torch.testing.assert_close(x["w"], b["w"] / curve, rtol=1e-3, atol=1e-3)
    assert float(values[-1]) == pytest.approx(-0.55, abs=1e-3)
