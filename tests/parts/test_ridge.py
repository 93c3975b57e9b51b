"""Kernel ridge regression: the closed form against numpy and scikit-learn, and the objective by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge as Sklearn
from torch import nn

from condense.axes import Kernel, Learner
from condense.data import TensorSampler
from condense.engine import condense
from condense.parts.ridge import (
    CentredError,
    KernelOrthogonal,
    KernelRidge,
    away_from_orthogonal,
    coded,
    predict,
    predictor,
    solve,
)
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits


class Gauss(Kernel):
    """exp(-|x - x'|^2 / 2 width^2) of the examples themselves: it needs no network."""

    width: float = 8.0

    def __call__(self, model: nn.Module | None, a: Batch, b: Batch) -> torch.Tensor:
        gap = a.x.flatten(1).unsqueeze(1) - b.x.flatten(1).unsqueeze(0)
        return (-gap.square().sum(dim=2) / (2 * self.width**2)).exp()


class OfFeatures(Kernel):
    """FRePo's in miniature: products of a network's features."""

    def __call__(self, model: nn.Module | None, a: Batch, b: Batch) -> torch.Tensor:
        return model.features(a.x) @ model.features(b.x).T


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_step(objective, groups=(0, 0, 1, 1, 2, 2), index=0, module=None):
    """Outer step `index` on the toy in float64, with a set of random images of these classes."""
    run = toy_run(toy_recipe(objective=objective, pool="no-model", preprocess=Raw(dtype="float64")))
    x = numbers(len(groups), 1, 8, 8, seed=5).requires_grad_()
    return Step(run, index, Learner(module), TensorSampler(run.task, x, torch.tensor(groups)))


def loss_of(objective, step):
    (term,) = objective(step)
    return term.losses["ridge" if isinstance(objective, KernelRidge) else "orthogonal"]


# -- the closed form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 1.0])
def test_the_regression_is_the_closed_form(ridge):
    root, targets, cross = numbers(7, 9), numbers(7, 3, seed=1), numbers(5, 7, seed=2)
    gram = root @ root.T
    k = gram.numpy()
    expected = cross.numpy() @ np.linalg.inv(k + ridge * np.trace(k) / 7 * np.eye(7)) @ targets.numpy()
    got = predict(cross, solve(gram, targets, ridge))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-8)


def test_predictions_equal_scikit_learns(toy_task):
    ridge, support = 1e-2, Batch(numbers(9, 1, 8, 8), torch.arange(9) % 3)
    new = Batch(numbers(4, 1, 8, 8, seed=1), torch.zeros(4, dtype=torch.int64))
    kernel = Gauss()
    alpha = ridge * float(kernel(None, support, support).trace()) / 9
    theirs = Sklearn(alpha=alpha, kernel="rbf", gamma=1 / (2 * kernel.width**2))
    theirs.fit(support.x.flatten(1).numpy(), coded(support.y, toy_task).numpy())
    ours = predictor(kernel, None, support, ridge, toy_task)(new)
    np.testing.assert_allclose(ours.numpy(), theirs.predict(new.x.flatten(1).numpy()), rtol=1e-9)


def test_a_ridge_of_a_millionth_survives_float32():
    """Eight items in four pairs that differ by a millionth: float32 alone would have no digit left."""
    pairs = numbers(4, 20).repeat_interleave(2, dim=0) + 1e-6 * numbers(8, 20, seed=1)
    gram, targets = pairs @ pairs.T, numbers(8, 2, seed=2)
    exact = np.linalg.solve(gram.numpy() + 1e-6 * gram.diagonal().mean().item() * np.eye(8), targets.numpy())
    got = solve(gram.float(), targets, 1e-6)
    fitted = gram.numpy() @ exact
    assert np.abs(gram.numpy() @ got.numpy() - fitted).max() < 0.1 * np.abs(fitted).max()


def test_what_is_not_positive_definite_is_nan_and_no_number():
    assert solve(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.eye(2), 1e-6).isnan().all()
    assert solve(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.eye(2), 2.0).isfinite().all()


def test_a_regression_knows_its_own_targets():
    root, targets = numbers(6, 8), numbers(6, 3, seed=1)
    gram = root @ root.T
    torch.testing.assert_close(predict(gram, solve(gram, targets, 0.0)), targets)


def test_classes_are_coded_centred_which_changes_no_softmax(toy_task):
    y = torch.tensor([0, 2, 1, 1])
    assert torch.allclose(coded(y, toy_task).sum(dim=1), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    root = numbers(4, 6)
    gram, cross = root @ root.T, numbers(5, 4, seed=1)
    plain = predict(cross, solve(gram, torch.nn.functional.one_hot(y, 3), 1e-3))
    centred = predict(cross, solve(gram, coded(y, toy_task), 1e-3))
    assert not torch.allclose(plain, centred)
    torch.testing.assert_close(plain.softmax(dim=1), centred.softmax(dim=1))
    soft = numbers(4, 3, seed=2)
    assert coded(soft, toy_task) is soft


# -- the objective ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["task-loss", "centred-error"])
def test_the_objective_is_the_loss_of_the_regression_on_real_examples(error):
    objective = KernelRidge(kernel=Gauss(), ridge=1e-2, n=11, target_loss=error)
    step = a_step(objective)
    real = step.real.draw(11, None, step.run.rng.fold("ridge"), at=0)
    s, t = step.syn.x.detach().flatten(1).numpy(), real.x.flatten(1).numpy()

    def gauss(a, b):
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 8.0**2))

    k = gauss(s, s)
    targets = np.eye(3)[step.syn.y.numpy()] - 1 / 3
    said = gauss(t, s) @ np.linalg.inv(k + 1e-2 * np.trace(k) / 6 * np.eye(6)) @ targets
    if error == "task-loss":
        chances = np.exp(said) / np.exp(said).sum(axis=1, keepdims=True)
        expected = -np.log(chances[np.arange(11), real.y.numpy()]).mean()
    else:
        expected = (((said - np.eye(3)[real.y.numpy()] + 1 / 3) ** 2).sum(axis=1) / 2).mean()
    assert float(loss_of(objective, step).detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "objective",
    [
        KernelRidge(kernel=Gauss(), ridge=1e-3, n=None),
        KernelRidge(kernel=Gauss(), ridge=1e-6, n=4, draw="each", m=4, target_loss="centred-error"),
        KernelRidge(kernel=OfFeatures(), ridge=1e-2, n=16),
        KernelOrthogonal(kernel=Gauss(), weight=0.5),
    ],
    ids=["all", "few", "network", "orthogonal"],
)
def test_the_outer_gradient_equals_finite_differences(objective):
    run = toy_run(toy_recipe(preprocess=Raw(dtype="float64")))
    module = ToyNet(dtype="float64").make(run.task, Rng(1)) if isinstance(objective.kernel, OfFeatures) else None
    step = a_step(objective, module=module)
    (gradient,) = torch.autograd.grad(loss_of(objective, step), step.syn.x)
    direction, h = numbers(6, 1, 8, 8, seed=9), 1e-5

    def at(sign):
        moved = step.syn.x.detach() + sign * h * direction
        other = Step(step.run, 0, step.learner, TensorSampler(step.run.task, moved, step.syn.y))
        return float(loss_of(objective, other).detach())

    slope = (at(1) - at(-1)) / (2 * h)
    assert abs(slope) > 1e-6
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("groups", [(1, 1), (2,)], ids=["two of a class", "a single item"])
def test_a_set_of_a_single_class_has_a_loss_and_a_gradient(groups):
    objective = KernelRidge(kernel=Gauss(), n=8)
    step = a_step(objective, groups=groups)
    loss = loss_of(objective, step)
    (gradient,) = torch.autograd.grad(loss, step.syn.x)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_the_real_examples_of_an_epoch_are_all_of_them_once():
    class Seen(Gauss):
        def __call__(self, model, a, b):
            if a is not b:
                seen.append(a.index.tolist())
            return super().__call__(model, a, b)

    seen = []
    objective = KernelRidge(kernel=Seen(), n=16)
    for index in range(8):
        loss_of(objective, a_step(objective, index=index))
    assert [len(part) for part in seen] == [16, 16, 16, 12] * 2
    first, second = ([i for part in parts for i in part] for parts in (seen[:4], seen[4:]))
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second


def test_each_class_is_drawn_alike_if_asked():
    objective = KernelRidge(kernel=Gauss(), n=4, draw="each")
    step = a_step(objective)
    real = step.real.draw(4, "each", step.run.rng.fold("ridge"), at=0)
    assert real.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    say = predictor(objective.kernel, None, step.syn.draw(None, None, Rng(0)), 1e-6, step.run.task)
    expected = torch.nn.functional.cross_entropy(say(real), real.y)
    torch.testing.assert_close(loss_of(objective, step), expected)


def test_both_objectives_of_a_step_draw_the_same_items_and_others_in_the_next():
    class Seen(Gauss):
        def __call__(self, model, a, b):
            seen.append(b.index.tolist())
            return super().__call__(model, a, b)

    seen = []
    ridge, orthogonal = KernelRidge(kernel=Seen(), m=3, n=4), KernelOrthogonal(kernel=Seen(), m=3)
    for index in (0, 1):
        for objective in (ridge, orthogonal):
            loss_of(objective, a_step(objective, index=index))
    assert seen[0] == seen[1] == seen[2]
    assert seen[3] == seen[4] == seen[5]
    assert seen[0] != seen[3]
    assert len(set(seen[0])) == 3


def test_items_that_are_alike_are_far_from_orthogonal():
    assert float(away_from_orthogonal(3 * torch.eye(4))) == 0.0
    assert float(away_from_orthogonal(torch.full((4, 4), 3.0))) == pytest.approx(12**0.5)
    gram = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
    assert float(away_from_orthogonal(gram)) == pytest.approx(2**0.5 / 6)
    gram = torch.eye(3).requires_grad_()
    away_from_orthogonal(gram).backward()
    assert gram.grad.isfinite().all()


def test_what_is_read_is_declared():
    recipe = toy_recipe()
    assert KernelRidge(kernel=Gauss()).reads(recipe).examples
    assert not KernelOrthogonal(kernel=Gauss()).reads(recipe).examples


# -- in a run ---------------------------------------------------------------------------------------------------------


def accuracy(syn, test, task):
    say = predictor(Gauss(), None, syn.decode(None, None), 1e-3, task)
    return float((say(test).argmax(dim=1) == test.y).float().mean())


def test_noise_learns_to_predict_by_regression():
    outer = {"steps": 60, "groups": [{"rule": "adam", "lr": 0.1}]}
    recipe = toy_recipe(objective=KernelRidge(kernel=Gauss(), n=32, target_loss="centred-error"), pool="no-model")
    recipe = recipe.with_(init="noise", outer=outer)
    test = toy_splits().test.draw(None, None, Rng(0))
    task = toy_splits().task
    before = accuracy(condense(toy_run(recipe.with_(outer={**outer, "steps": 0}))), test, task)
    after = accuracy(condense(toy_run(recipe)), test, task)
    assert before < 0.7
    assert after > 0.95


def test_the_centred_error_is_a_loss_of_any_network(toy_task):
    logits = numbers(4, 3)
    y = torch.tensor([0, 1, 2, 2])
    got = CentredError()(lambda x: x, Batch(logits, y), toy_task, Rng(0))
    expected = ((logits - (torch.eye(3)[y] - 1 / 3)) ** 2).sum(dim=1) / 2
    torch.testing.assert_close(got, expected)
