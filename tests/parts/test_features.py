"""Kernels of features, learned labels, doubled sets, and what a run says of a system that cannot be solved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from condense.api import carry_out
from condense.axes import Learner
from condense.data import TensorSampler
from condense.engine import condense
from condense.errors import BadValue, Diverged
from condense.parts.augment import Beside
from condense.parts.features import Ensemble, FeatureKernel, LabelMargin, features, margin
from condense.parts.labels import LearnedLabels
from condense.parts.ridge import KernelRidge, alike, most_alike, pieces, predictor, solve
from condense.parts.schedules import WarmCosine
from condense.recipe import Plan
from condense.rng import Rng
from condense.running import Limits, Step
from condense.task import Batch
from condense.testing import Raw, Still, Toy, ToyNet, toy_recipe, toy_run, toy_splits, toys
from condense_image.augment import mirrored

from .test_ridge import Gauss, numbers


def module_of(net=None, seed=1):
    return (net or ToyNet(dtype="float64")).make(toy_splits().task, Rng(seed))


def batch_of(n, seed=0):
    return Batch(numbers(n, 1, 8, 8, seed=seed), torch.arange(n) % 3)


def test_the_kernel_is_the_product_of_features_and_its_gradient_goes_to_examples_only():
    module, a, b = module_of(), batch_of(5), batch_of(4, seed=1)
    a.x.requires_grad_()
    phi, psi = (module.features(batch.x).detach().numpy() for batch in (a, b))
    got = FeatureKernel()(module, a, b)
    np.testing.assert_allclose(got.detach().numpy(), phi @ psi.T, rtol=1e-12)
    half = FeatureKernel(scale=2.0, shift=0.01, mean=True)(module, a, b)
    np.testing.assert_allclose(half.detach().numpy(), 2 * phi @ psi.T / phi.shape[1] + 0.01, rtol=1e-12)
    got.sum().backward()
    assert float(a.x.grad.abs().sum()) > 0
    assert all(p.grad is None for p in module.parameters())
    assert not features(module, b.x).requires_grad, "real examples are remembered by no tape"
    with pytest.raises(BadValue, match="lends no network"):
        FeatureKernel()(None, a, b)


def test_the_kernel_of_an_ensemble_is_the_mean_of_its_members_kernels():
    net = Ensemble(net=ToyNet(dtype="float64"), n=3)
    module, a, b = module_of(net), batch_of(5), batch_of(4, seed=1)
    kernel = FeatureKernel(scale=2.0, shift=0.01, mean=True)
    apart = torch.stack([kernel(member, a, b) for member in module.members])
    torch.testing.assert_close(kernel(module, a, b), apart.mean(dim=0))
    assert not torch.allclose(apart[0], apart[1])
    torch.testing.assert_close(module(a.x), torch.stack([member(a.x) for member in module.members]).mean(dim=0))


def test_predictions_do_not_depend_on_the_blocks_they_are_made_in(toy_task):
    module, support, new = module_of(), batch_of(6), batch_of(11, seed=2)
    whole = predictor(FeatureKernel(), module, support, 1e-3, toy_task)(new)
    torch.testing.assert_close(predictor(FeatureKernel(), module, support, 1e-3, toy_task, block=4)(new), whole)
    indexed = Batch(new.x, new.y, torch.arange(11))
    assert [part.index.tolist() for part in pieces(indexed, 4, toy_task)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_a_set_beside_its_mirror_images_has_a_symmetric_regression(toy_task):
    """What is regressed on both says the same of an image and of its mirror image, if the kernel is blind to sides."""
    objective = KernelRidge(kernel=Gauss(), ridge=1e-2, n=7, support=mirrored())
    run = toy_run(toy_recipe(objective=objective, preprocess=Raw(dtype="float64")))
    x = numbers(6, 1, 8, 8, seed=5).requires_grad_()
    step = Step(run, 0, Learner(None), TensorSampler(run.task, x, torch.arange(6) % 3))
    (term,) = objective(step)
    real = step.real.draw(7, None, run.rng.fold("ridge"), at=0)
    both = Batch(torch.cat([x, x.flip(3)]), torch.arange(6).repeat(2) % 3)
    expected = torch.nn.functional.cross_entropy(predictor(Gauss(), None, both, 1e-2, run.task)(real), real.y)
    torch.testing.assert_close(term.losses["ridge"], expected)
    alone = KernelRidge(kernel=Gauss(), ridge=1e-2, n=7)
    assert float(next(iter(alone(step))).losses["ridge"].detach()) != float(expected.detach())


def test_beside_doubles_a_batch_and_comes_back_from_its_state():
    batch = batch_of(4)
    warp = Beside(augment=Still()).sample(Rng(0), 4)
    doubled = warp(Batch(batch.x, batch.y, torch.arange(4)))
    assert torch.equal(doubled.x, torch.cat([batch.x, batch.x]))
    assert doubled.y.tolist() == [0, 1, 2, 0] * 2
    assert doubled.index.tolist() == [0, 1, 2, 3] * 2
    flip = mirrored()
    assert torch.equal(flip.replay(flip.sample(Rng(0), 4).state())(batch).x[4:], batch.x.flip(3))


@pytest.mark.parametrize(("scale", "wide"), [("one", 1.0), ("root", math.sqrt(0.3))])
def test_learned_labels_start_centred_and_move_in_their_own_role(scale, wide):
    labels = LearnedLabels(scale=scale)
    start = (torch.eye(3)[torch.tensor([0, 0, 1, 1, 2, 2])] - 1 / 3) / wide
    torch.testing.assert_close(labels.blank(torch.arange(3).repeat_interleave(2), toy_splits().task).detach(), start)
    groups = [{"role": "images", "rule": "sgd", "lr": 0.0}, {"role": "labels", "rule": "sgd", "lr": 0.5}]
    objective = KernelRidge(kernel=Gauss(), n=8, target_loss="centred-error")
    recipe = toy_recipe(objective=objective, labels=labels, pool="no-model", outer={"steps": 3, "groups": groups})
    syn = condense(toy_run(recipe))
    assert torch.equal(syn.freeze().x, condense(toy_run(recipe.with_(outer=recipe.outer.with_(steps=0)))).freeze().x)
    assert float((syn.y.detach() - start).abs().min(dim=1).values.max()) > 0
    assert syn.freeze().loss == labels.loss()
    assert syn.freeze().groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_margin_is_what_the_first_is_above_the_second_up_to_its_limit(toy_task):
    y = torch.tensor([[0.5, 0.3, 0.0], [0.1, 0.2, 0.9], [0.2, 0.2, 0.1]])
    assert margin(y, 1.0).tolist() == pytest.approx([0.2, 1 / 3, 0.0])
    assert margin(y, 0.5).tolist() == pytest.approx([1 / 6, 1 / 6, 0.0])
    with pytest.raises(BadValue, match="are classes, and have no margin"):
        LabelMargin().check(toy_recipe(), toy_task)
    LabelMargin().check(toy_recipe(labels="learned"), toy_task)


def test_the_rate_rises_and_falls():
    rate = WarmCosine(start=0.5, warm=0.25, to=0.1)
    values = [rate.value(p) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert values == pytest.approx([0.0, 0.25, 0.5, 0.3, 0.1])
    assert WarmCosine(start=0.5, warm=1.0).value(0.999) == pytest.approx(0.4995)
    assert WarmCosine(start=0.5, warm=0.0).value(0.0) == 0.5


# -- systems that cannot be solved ------------------------------------------------------------------------------------


def test_equal_items_without_a_ridge_are_singular_whatever_rounding_says():
    for seed in range(20):
        root = numbers(6, 9, seed=seed)
        root[4] = root[1]
        gram = root @ root.T
        assert solve(gram, numbers(6, 2), 0.0).isnan().all()
        assert solve(gram, numbers(6, 2), 1e-6).isfinite().all()
        pair, cosine = most_alike(gram)
        assert pair.tolist() == [1, 4]
        assert "items 1 and 4 of the set are equal" in alike(*pair.tolist(), float(cosine))
    assert alike(3, 3, 1.0) == "item 3 of the set and its augmented copy are equal under the kernel"
    assert "the most alike (cosine 0.5)" in alike(0, 2, 0.5)


def test_a_run_on_a_singular_system_stops_and_names_the_two_items(tmp_path):
    class Doubled(Gauss):
        """Items 2 and 5 look alike."""

        def __call__(self, model, a, b):
            gram = super().__call__(model, a, b)
            return gram if len(a) != 6 else gram[[0, 1, 2, 3, 4, 2]][:, [0, 1, 2, 3, 4, 2]]

    with toys(Doubled):
        objective = KernelRidge(kernel=Doubled(), ridge=0.0, n=7)
        recipe = toy_recipe(objective=objective, pool="no-model", outer={"steps": 3, "groups": [{"rule": "sgd"}]})
        told = r"since outer step 0: the ridge system of outer step 0 is singular: items 2 and 5 of the set are equal"
        with pytest.raises(Diverged, match=told):
            carry_out(Plan(method="toy", data=Toy(), recipe=recipe), tmp_path / "a", limits=Limits(steps=1))
