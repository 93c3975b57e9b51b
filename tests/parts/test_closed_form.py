"""Closed forms: the judge krr against numpy, label solve against plain least squares, and what both refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from condense.component import member, named
from condense.data import TensorSampler
from condense.engine import condense
from condense.errors import BadValue, NoRoom
from condense.evaluate import Candidate, Protocol, evaluate
from condense.fit import Fit
from condense.parts import closed_form
from condense.parts.closed_form import InfiniteWidth, Krr, Ridge, Solved, least_squares
from condense.parts.kernels import InfiniteConvNet, InfiniteMLP
from condense.parts.rules import SGD
from condense.rng import Rng
from condense.task import Batch
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits, toys

NETWORK = InfiniteWidth(kernel=InfiniteMLP(depth=2))


@pytest.fixture(autouse=True)
def _toys():
    with toys():
        yield


def toy_set(labels=None, n=2):
    """n examples of each class of the toy, with these labels."""
    splits = toy_splits()
    batch = splits.train.draw(n, "each", Rng(3))
    return splits, TensorSampler(splits.task, batch.x, batch.y if labels is None else labels)


def by_hand(kernel, ridge, support, y, x):
    """K_ts (K_ss + ridge tr / M)^-1 y, by numpy's general solver."""
    s, t = Batch(support.x, support.y), Batch(x, torch.zeros(len(x), dtype=torch.int64))
    k = kernel(None, s, s).numpy()
    return kernel(None, t, s).numpy() @ np.linalg.solve(k + ridge * np.trace(k) / len(k) * np.eye(len(k)), y)


# -- the judge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "learned labels"])
def test_krr_says_what_the_closed_form_says(soft):
    y = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)) if soft else None
    splits, data = toy_set(y)
    protocol = Krr(kernel=InfiniteMLP(depth=2), ridge=1e-2)
    (row,) = evaluate(Candidate(data, Raw().blank(splits.task), "mine"), splits, protocol).rows
    targets = y.double().numpy() if soft else np.eye(3)[data.y.numpy()] - 1 / 3
    said = by_hand(InfiniteMLP(depth=2), 1e-2, data, targets, splits.test.x)
    assert row.accuracies == (pytest.approx((said.argmax(1) == splits.test.y.numpy()).mean()),)
    assert row.net == "infinite-width(kernel=infinite-mlp(depth=2))"
    assert row.hardware["passes"] == "closed form"


def test_a_network_of_infinite_width_predicts_nothing_before_it_is_solved_for():
    splits, data = toy_set()
    module = NETWORK.make(splits.task, Rng(0))
    assert not module(splits.test.x).any()
    say = Ridge(ridge=1e-6)(module, data, Rng(0))
    expected = by_hand(NETWORK.kernel, 1e-6, data, np.eye(3)[data.y.numpy()] - 1 / 3, splits.test.x)
    np.testing.assert_allclose(say(splits.test.x).numpy(), expected, rtol=1e-6, atol=1e-9)
    assert module.features(splits.test.x).shape == (30, 6)
    own = say(data.x)
    np.testing.assert_allclose(own.numpy(), np.eye(3)[data.y.numpy()] - 1 / 3, atol=1e-3)


def test_the_kernel_is_a_field_and_numbers_of_two_kernels_have_other_rules():
    conv = named(Protocol, "krr", kernel={"name": "infinite-conv-net", "depth": 2})
    assert conv.nets == (InfiniteWidth(kernel=InfiniteConvNet(depth=2)),)
    assert conv.rules_digest() != Krr().rules_digest()
    assert member(Protocol, {**conv.dump(), "kernel": "infinite-mlp"}).nets == Krr().nets
    assert Krr(repeats=20).repeats == 1, "there is no chance in it"
    with pytest.raises(ValueError, match="krr asks a kernel"):
        Krr(nets=(ToyNet(),))


def test_a_kernel_that_does_not_fit_the_examples_is_refused_before_anything_is_solved():
    splits, data = toy_set()
    with pytest.raises(BadValue, match="poolings leave nothing of images of 8 x 8"):
        evaluate(Candidate(data, Raw().blank(splits.task), "mine"), splits, Krr(kernel=InfiniteConvNet(depth=4)))


def test_equal_items_without_a_ridge_are_named():
    splits, data = toy_set()
    x = data.x.clone()
    x[4] = x[1]
    twice = TensorSampler(splits.task, x, data.y)
    module = NETWORK.make(splits.task, Rng(0))
    with pytest.raises(BadValue, match=r"ridge: leaves the system singular: .* 1 and 4 are equal"):
        Ridge(ridge=0.0)(module, twice, Rng(0))
    assert Ridge(ridge=1e-6)(module, twice, Rng(0))(x).isfinite().all()


def test_ridge_solves_for_no_ordinary_network():
    splits, data = toy_set()
    with pytest.raises(BadValue, match="is no kernel"):
        Ridge()(ToyNet().make(splits.task, Rng(0)), data, Rng(0))


def test_a_regression_beyond_the_memory_is_refused(monkeypatch):
    splits, data = toy_set()
    monkeypatch.setattr(closed_form, "available", lambda _: 1000)
    with pytest.raises(NoRoom, match="a regression on 6 items takes matrices of"):
        Ridge()(NETWORK.make(splits.task, Rng(0)), data, Rng(0))


def test_trainings_still_go_together_and_look_by_epochs():
    """What the judge asks of a way to learn, of a fit and of a closed form."""
    _, data = toy_set()
    fit = Fit(rule=SGD(), epochs=4, batch=4)
    assert (fit.interval(data, 3), Fit(rule=SGD(), steps=4).interval(data, 3), Ridge().interval(data, 3)) == (6, 3, 3)
    assert fit.together(ToyNet().make(data.task, Rng(0)), data)
    assert not Ridge().together(NETWORK.make(data.task, Rng(0)), data)
    assert Ridge().length(data) == 1


# -- label solve ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(40,), (7, 20, 13), (3, 3, 34)])
def test_least_squares_in_blocks_is_least_squares(sizes):
    state = np.random.RandomState(0)
    a, b = state.standard_normal((40, 6)), state.standard_normal((40, 2))
    expected = np.linalg.lstsq(a, b, rcond=None)[0]
    blocks = zip(torch.from_numpy(a).split(sizes), torch.from_numpy(b).split(sizes), strict=True)
    np.testing.assert_allclose(least_squares(blocks, 6).numpy(), expected, rtol=1e-9)


def test_of_several_solutions_the_shortest_is_taken():
    state = np.random.RandomState(0)
    a, b = state.standard_normal((40, 4)) @ state.standard_normal((4, 6)), state.standard_normal((40, 2))
    found = least_squares([(torch.from_numpy(a), torch.from_numpy(b))], 6).numpy()
    np.testing.assert_allclose(found, np.linalg.lstsq(a, b, rcond=1e-10)[0], rtol=1e-6)


def recipe_of(labels):
    return toy_recipe(init="real", labels=labels, objective=None, pool="no-model", outer={"steps": 0})


def error_on_real(labels, kernel, ridge):
    """The mean squared error of the regression on the finished set, on all real examples."""
    splits = toy_splits()
    made = condense(toy_run(recipe_of(labels), splits)).freeze()
    y = made.y.double().numpy() if made.y.is_floating_point() else np.eye(3)[made.y.numpy()] - 1 / 3
    said = by_hand(kernel, ridge, made, y, splits.train.x)
    return np.square(said - (np.eye(3)[splits.train.y.numpy()] - 1 / 3)).mean(), made


def test_solved_labels_are_the_least_squares_solution():
    kernel, ridge = InfiniteMLP(), 1e-3
    solved, made = error_on_real(Solved(kernel=kernel, ridge=ridge, block=17), kernel, ridge)
    hard, same = error_on_real("hard", kernel, ridge)
    torch.testing.assert_close(made.x, same.x, rtol=0, atol=0)
    assert solved < 0.9 * hard
    matrix = by_hand(kernel, ridge, made, np.eye(len(made)), toy_splits().train.x)
    expected = np.linalg.lstsq(matrix, np.eye(3)[toy_splits().train.y.numpy()] - 1 / 3, rcond=None)[0]
    np.testing.assert_allclose(made.y.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_set_of_solved_labels_is_trained_on_by_their_squared_error():
    made = condense(toy_run(recipe_of(Solved())))
    assert made.loss.name == "centred-error"
    assert made.stored() == {"images": 6 * 64 * 4, "labels": 6 * 3 * 4}
    assert torch.equal(made.groups, torch.tensor([0, 0, 1, 1, 2, 2]))


def test_label_solve_names_two_equal_items():
    splits = toy_splits()
    x = splits.train.x.clone()
    x[splits.train.y == 0] = x[0].clone()
    twice = replace(splits, train=type(splits.train)(splits.task, x, splits.train.y))
    with pytest.raises(BadValue, match=r"labels\.ridge: .*0 and 1 are equal"):
        condense(toy_run(recipe_of(Solved(ridge=0.0)), twice))


def test_learned_labels_start_as_centred_classes():
    made = condense(toy_run(recipe_of("learned"))).freeze()
    expected = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2])] - 1 / 3
    torch.testing.assert_close(made.y, expected)
    wide = condense(toy_run(recipe_of({"name": "learned", "scale": "root"}))).freeze()
    torch.testing.assert_close(wide.y, expected / math.sqrt(3 / 10))
