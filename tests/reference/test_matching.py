"""Statistics and the matching objective against plain re-implementations, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from condense.axes import Learner, Statistic, TaskLoss, Warp
from condense.data import Ask, TensorSampler, TensorSource
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.matching import ClassWise, Gradient, Joint, Matching, MeanFeature
from condense.recipe import Reads
from condense.rng import Rng
from condense.running import Step
from condense.task import Batch, Task
from condense.testing import Raw, ToyNet, check_statistic, toy_recipe, toy_run, toy_splits

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
DC = Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise(n=None))
DM = Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=None))


def double_net(task, key=0):
    return ToyNet(dtype="float64").make(task, Rng(3).fold(key))


def a_step(objective, x, y, module=None, index=0, **changes):
    """Outer step `index` of a run with this objective on the toy in float64; the synthetic set is (x, y)."""
    run = toy_run(toy_recipe(objective=objective, preprocess=Raw(dtype="float64")), **changes)
    return Step(run, index, Learner(module or double_net(run.task)), TensorSampler(run.task, x, y))


def a_set(groups=(0, 0, 1, 1, 2, 2)):
    """(x, y): random images, float64, that want gradients."""
    g = torch.Generator().manual_seed(5)
    return torch.randn(len(groups), 1, 8, 8, generator=g, dtype=torch.float64, requires_grad=True), torch.tensor(groups)


def value(objective, step):
    return sum(float(term.weight) * float(sum(term.losses.values()).detach()) for term in objective(step))


def outer_gradient(objective, step):
    """What the engine would send into the set: backward of the terms, or the cotangents that they bring."""
    x = step.syn.x
    x.grad = None
    for term in objective(step):
        if term.cotangents:
            drawn, grads = zip(*((t, g * term.weight) for t, g in term.cotangents), strict=True)
            torch.autograd.backward(drawn, grads, inputs=[x])
        else:
            (sum(term.losses.values()) * term.weight).backward(inputs=[x])
    return x.grad.clone()


# -- statistics -----------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits W x + b of flattened examples; its features are the examples."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3).double()

    def features(self, x):
        return x.flatten(1)

    def forward(self, x):
        return self.head(self.features(x))


def linear_case():
    g = torch.Generator().manual_seed(0)
    task = Task(classes=("a", "b", "c"), shape=(1, 2, 2))
    return Linear(), Batch(torch.randn(5, 1, 2, 2, generator=g).double(), torch.tensor([0, 2, 1, 1, 0])), task


def test_gradient_of_a_linear_softmax_has_its_closed_form():
    model, batch, task = linear_case()
    x, w, b = batch.x.flatten(1).numpy(), *(p.detach().numpy() for p in model.parameters())
    logits = x @ w.T + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    excess = p - np.eye(3)[batch.y.numpy()]
    for live in (False, True):
        ours = Gradient().mean(model, batch, task, live=live)
        np.testing.assert_allclose(ours["head.weight"].detach(), excess.T @ x / 5, rtol=1e-12)
        np.testing.assert_allclose(ours["head.bias"].detach(), excess.mean(0), rtol=1e-12)


def test_gradient_with_soft_labels_has_its_closed_form():
    model, batch, task = linear_case()
    soft = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).double()  # sums differ from 1
    x, w, b = batch.x.flatten(1).numpy(), *(p.detach().numpy() for p in model.parameters())
    logits = x @ w.T + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    excess = p * soft.numpy().sum(1, keepdims=True) - soft.numpy()
    ours = Gradient().mean(model, Batch(batch.x, soft), task, live=False)
    np.testing.assert_allclose(ours["head.weight"], excess.T @ x / 5, rtol=1e-12)


def test_task_loss_is_the_negative_logarithm_of_the_softmax():
    model, batch, task = linear_case()
    logits = model(batch.x).detach().numpy()
    slow = [-np.log(np.exp(row)[y] / np.exp(row).sum()) for row, y in zip(logits, batch.y, strict=True)]
    np.testing.assert_allclose(TaskLoss()(model, batch, task, Rng(0)).detach(), slow, rtol=1e-12)


def test_mean_feature_is_the_mean_in_front_of_the_head():
    model, batch, task = linear_case()
    for live in (False, True):
        ours = MeanFeature().mean(model, batch, task, live=live)["feature"]
        np.testing.assert_allclose(ours, batch.x.flatten(1).numpy().mean(0), rtol=1e-12)


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()])
def test_the_mean_of_the_rows_is_the_mean(statistic):
    task = toy_splits().task
    x, y = a_set()
    check_statistic(statistic, double_net(task), Batch(x.detach(), y), task, tolerance=1e-10)


class Neighbourly(Statistic):
    """Features less the batch's own mean: each row is about the others too."""

    def rows(self, model, batch, task):
        features = model.features(batch.x)
        return {"feature": features - features.mean(0) / 2}

    def mean(self, model, batch, task, *, live):
        mean = self.rows(model, batch, task)["feature"].mean(0)
        return {"feature": mean if live else mean.detach()}


def test_a_statistic_that_looks_at_neighbours_is_found_out():
    task = toy_splits().task
    x, y = a_set()
    with pytest.raises(AssertionError):
        check_statistic(Neighbourly(), double_net(task), Batch(x.detach(), y), task)


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature()])
def test_a_statistic_does_not_depend_on_the_order_of_examples(statistic):
    task = toy_splits().task
    x, y = a_set()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    first = statistic.mean(double_net(task), Batch(x, y), task, live=False)
    other = statistic.mean(double_net(task), Batch(x[order], y[order]), task, live=False)
    for part, mean in first.items():
        torch.testing.assert_close(mean, other[part], **CLOSE)


class Times(Warp):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, batch):
        return batch.with_x(batch.x * self.factor)

    def state(self):
        return {}


class Squared(MeanFeature):
    """Of what `finish` sees; must come after the average over warps."""

    name = "squared-feature"

    def finish(self, mean):
        return {part: value.square() for part, value in mean.items()}


def test_measure_averages_over_warps_before_it_finishes():
    source = toy_splits().train.encoded(Raw(dtype="float64").fit(None, None))
    net, rng = double_net(source.task), Rng(1)
    asks = [Ask(1, 4, (Times(1.0), Times(3.0))), Ask(None, None)]
    found = list(source.measure(Squared(), net, asks, rng))
    batch = source.draw(4, 1, rng.fold(0))
    slow = (net.features(batch.x).mean(0) + net.features(3 * batch.x).mean(0)) / 2
    torch.testing.assert_close(found[0]["feature"], slow.detach().square(), **CLOSE)
    everything = net.features(source.x.double()).mean(0).square().detach()
    torch.testing.assert_close(found[1]["feature"], everything, **CLOSE)


# -- the whole objective --------------------------------------------------------------------------------------------


def plain_dc(net, real_x, real_y, x, y):
    """DC's loss of one network: for each class the distance of two gradients, layer by layer, row by row."""
    total = 0.0
    for c in range(3):
        goal = torch.autograd.grad(F.cross_entropy(net(real_x[real_y == c]), real_y[real_y == c]), net.parameters())
        loss = F.cross_entropy(net(x[y == c]), y[y == c])
        for real, mine in zip(goal, torch.autograd.grad(loss, net.parameters(), create_graph=True), strict=True):
            if real.dim() > 1:
                a, b = real.detach().reshape(len(real), -1), mine.reshape(len(mine), -1)
                for i in range(len(a)):
                    total = total + 1 - (a[i] @ b[i]) / (a[i].norm() * b[i].norm() + 1e-6)
    return total


def plain_dm(net, real_x, real_y, x, y):
    total = 0.0
    for c in range(3):
        goal, mine = net.features(real_x[real_y == c]).mean(0).detach(), net.features(x[y == c]).mean(0)
        total = total + ((goal - mine) ** 2).sum()
    return total


@pytest.mark.parametrize(("objective", "plain"), [(DC, plain_dc), (DM, plain_dm)])
def test_the_objective_and_its_gradient_equal_a_plain_loop(objective, plain):
    x, y = a_set()
    step = a_step(objective, x, y)
    real = step.real
    slow = plain(step.model, real.x.double(), real.y, x, y)
    assert value(objective, step) == pytest.approx(float(slow.detach()), rel=1e-10)
    torch.testing.assert_close(outer_gradient(objective, step), torch.autograd.grad(slow, x)[0], **CLOSE)


@pytest.mark.parametrize("objective", [DC, DM])
def test_the_outer_gradient_equals_finite_differences(objective):
    """Central differences in float64, at 3 coordinates drawn among the tenth with the largest gradients."""
    x, y = a_set()
    step = a_step(objective, x, y)
    gradient = outer_gradient(objective, step).flatten()
    top = gradient.abs().argsort(descending=True)[: len(gradient) // 10]
    for at in top[Rng(0).fold("coordinates").permutation(len(top))[:3]].tolist():
        ends = []
        for h in (1e-5, -1e-5):
            moved = x.detach().clone()
            moved.view(-1)[at] += h
            ends.append(value(objective, a_step(objective, moved.requires_grad_(), y)))
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(gradient[at]), rel=1e-5)


@pytest.mark.parametrize("objective", [DC, DM])
def test_the_objective_is_zero_where_the_set_is_the_data(objective):
    """Each class holds all of its real examples; with n=None nothing is left to chance."""
    x, y = a_set()
    if objective is DC:
        objective = DC.with_(distance=RowCosine(eps=1e-20))  # a larger one counts: rows of 1e-3 come to 0.5 each
    real = a_step(objective, x, y).real
    same = a_step(objective, real.x.double().requires_grad_(), real.y)
    assert value(objective, same) == pytest.approx(0, abs=1e-9)
    assert value(objective, a_step(objective, x, y)) > 0.01


@pytest.mark.parametrize("objective", [DC, DM])
def test_the_objective_does_not_depend_on_the_order_of_real_examples(objective):
    x, y = a_set()
    splits = toy_splits()
    order = Rng(4).permutation(60)
    shuffled = TensorSource(splits.task, splits.train.x[order], splits.train.y[order])
    other = a_step(objective, x, y, splits=replace(splits, train=shuffled))
    assert value(objective, other) == pytest.approx(value(objective, a_step(objective, x, y)), rel=1e-10)


@pytest.mark.parametrize("objective", [DC, DM])
def test_the_objective_follows_the_classes_of_the_set_not_their_places(objective):
    x, y = a_set()
    order = torch.tensor([4, 0, 3, 5, 1, 2])
    mixed = a_step(objective, x.detach()[order].requires_grad_(), y[order])
    assert value(objective, mixed) == pytest.approx(value(objective, a_step(objective, x, y)), rel=1e-10)
    swapped = a_step(objective, x, (y + 1) % 3)
    assert value(objective, swapped) != pytest.approx(value(objective, a_step(objective, x, y)), rel=1e-5)


def test_joint_pairs_compare_one_gradient_of_all_classes():
    """Against autograd on both whole sets: one term, about no class; with n, that many real examples of any class."""
    x, y = a_set()
    joint = DC.with_(pairing=Joint(n=None))
    step = a_step(joint, x, y)
    net, real = step.model, step.real

    def of(x, y, live):
        return torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()), create_graph=live)

    slow = sum(
        1 - (a @ b) / (a.norm() * b.norm() + 1e-6)
        for g, h in zip(of(real.x.double(), real.y, False), of(x, y, True), strict=True)
        if g.dim() > 1
        for a, b in zip(g.flatten(1), h.flatten(1), strict=True)
    )
    assert [term.cls for term in joint(step)] == [None]
    assert value(joint, step) == pytest.approx(float(slow.detach()), rel=1e-10)
    torch.testing.assert_close(outer_gradient(joint, step), torch.autograd.grad(slow, x)[0], **CLOSE)
    (pair,) = Joint(n=7).pairs(step)
    assert (pair.real.cls, pair.real.n, pair.synthetic.cls, pair.synthetic.n) == (None, 7, None, None)
    assert pair.real.warps == pair.synthetic.warps, "both sides go through one warp"
    assert Joint(n=7).reads(step.run.recipe) == Reads(), "pairing reads nothing itself"


def test_real_draws_are_keyed_by_step_and_class():
    sampled = DM.with_(pairing=ClassWise(n=4))
    x, y = a_set()
    step = a_step(sampled, x, y, index=7)
    slow = 0.0
    for c in range(3):
        batch = step.real.draw(4, c, Rng(0).fold("step", 7, "real", c))
        assert (batch.y == c).all()
        assert len(batch) == 4
        goal, mine = step.model.features(batch.x).mean(0), step.model.features(x[y == c]).mean(0)
        slow = slow + float((goal - mine).detach().square().sum())
    assert value(sampled, step) == pytest.approx(slow, rel=1e-10)
    assert value(sampled, a_step(sampled, x, y, index=8)) != pytest.approx(slow, rel=1e-6)


def test_frequency_weighs_each_class_by_its_share_of_the_set():
    x, y = a_set((0, 1, 1, 2, 2, 2))
    uniform = [float(sum(t.losses.values()).detach()) for t in DM(a_step(DM, x, y))]
    by_share = DM.with_(pairing=ClassWise(n=None, weight="frequency"))
    terms = list(by_share(a_step(by_share, x, y)))
    assert [float(term.weight) for term in terms] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert [term.cls for term in terms] == [0, 1, 2]
    assert value(by_share, a_step(by_share, x, y)) == pytest.approx(
        uniform[0] / 3 + 2 * uniform[1] / 3 + uniform[2], rel=1e-10
    )


def test_a_class_without_items_is_left_out():
    x, y = a_set((0, 0, 2, 2))
    assert [term.cls for term in DM(a_step(DM, x, y))] == [0, 2]


def test_weights_choose_layers_by_name():
    x, y = a_set()
    net = double_net(a_step(DC, x, y).run.task)

    def of(weights):
        objective = DC.with_(distance=SquaredError(), weights=weights)
        return value(objective, a_step(objective, x, y, net))

    whole, head = of({"*": 1.0}), of({"head.*": 1.0})
    assert of({"head.*": 0.0, "*": 1.0}) == pytest.approx(whole - head, rel=1e-9)
    assert of({"head.*": 3.0, "*": 1.0}) == pytest.approx(whole + 2 * head, rel=1e-9)
    assert 0 < head < whole


def test_the_real_side_is_a_constant():
    """No gradient reaches the network: not through the real side, not through the synthetic one."""
    x, y = a_set()
    step = a_step(DC, x, y)
    outer_gradient(DC, step)
    assert all(p.grad is None for p in step.model.parameters())
