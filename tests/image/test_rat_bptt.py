"""RaT-BPTT: settings as its code has them, its start, its labels, resuming with the running norm, the judge `rat`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import condense
from condense.api import carry_out
from condense.axes import Net
from condense.checkpoint import Checkpoints
from condense.component import named
from condense.data import TensorSampler
from condense.engine import condense as condensed
from condense.errors import BadData, BadValue
from condense.evaluate import Candidate, evaluate, network_key
from condense.fit import Fit
from condense.parts.bilevel import Bilevel
from condense.parts.labels import Hard
from condense.parts.pools import Fresh
from condense.parts.rules import Adam, NormClipped
from condense.planning import plan
from condense.protocol import Protocol
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.testing import Sealed, ToyNet, toy_run, toy_splits, toys
from condense_image.augment import DSA
from condense_image.nets import ConvNet
from condense_image.preprocess import ZcaKip
from condense_image.rat_bptt import LearnedOneHot, Rat, UnitNoise, rat_bptt, windows

FLIP_ROTATE = DSA(strategy="flip_rotate")


@pytest.fixture(autouse=True)
def _toys():
    with toys():
        yield


def small(steps=4, labels="hard"):
    recipe = rat_bptt(per_class=2, iterations=steps).rewrite(Net, lambda _: ToyNet())
    recipe = recipe.set("objective.n", 20).set("preprocess", "raw").set("labels", labels)
    recipe = recipe.set("objective.window", 2).set("objective.least", 0).set("objective.fit.steps", 6)
    return recipe.set("objective.fit.lr", 0.05).set("outer.groups.0.lr", 0.02).set("outer.groups.1.lr", 0.02)


@pytest.mark.parametrize(
    ("per_class", "window", "total", "least", "lr"), [(1, 90, 130, 40, 3e-4), (10, 60, 200, 0, 1e-3)]
)
def test_rat_bptt_is_what_its_code_runs(per_class, window, total, least, lr):
    recipe = rat_bptt(per_class=per_class)
    inner = Fit(rule=Adam(), lr=1e-3, steps=total, batch=None, augment=FLIP_ROTATE)
    assert recipe.objective == Bilevel(fit=inner, n=5000, window=window, least=least, redraw="epoch")
    assert recipe.pool == Fresh(net=ConvNet(width=128, depth=3), turns=1, inner=None)
    images, labels = recipe.outer.groups
    assert (images.role, images.rule, images.lr) == ("images", NormClipped(rule=Adam(), times=2.0, decay=0.9), lr)
    assert (labels.role, labels.rule, labels.lr, labels.bounds) == ("labels", Adam(), lr, (0.0, None))
    assert (recipe.init, recipe.labels, recipe.augment) == (UnitNoise(), Hard(), FLIP_ROTATE)
    assert images.rule.rule.dump() == {"name": "adam", "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}


def test_windows_between_the_published_budgets_follow_the_rule():
    assert [windows(n) for n in (2, 9)] == [windows(1)] * 2
    assert [windows(n) for n in (11, 50)] == [windows(10)] * 2


def test_the_published_settings_of_the_cifars():
    ten, hundred = (plan("rat-bptt", data=data, per_class=1).recipe for data in ("cifar10", "cifar100"))
    assert (ten.preprocess, ten.labels) == (ZcaKip(), Hard())
    assert (hundred.preprocess, hundred.labels) == (ZcaKip(), LearnedOneHot())


# -- the start, and learned labels ----------------------------------------------------------------------------------


def test_images_start_as_noise_of_length_one():
    run = toy_run(small())
    batch = UnitNoise()(run, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(batch.x.flatten(1).norm(dim=1), torch.ones(3))
    assert abs(batch.x.mean().item()) < 0.03
    assert batch.x.flatten(1).corrcoef().triu(1).abs().max() < 0.5
    assert batch.y.tolist() == [0, 1, 2]


def test_learned_labels_start_as_one_hot_and_are_kept_at_zero_and_above(tmp_path):
    start, end = (condensed(toy_run(small(steps, "learned-one-hot"))) for steps in (0, 6))
    assert isinstance(start.y, nn.Parameter)
    assert torch.equal(start.y, torch.eye(3).repeat_interleave(2, 0))
    assert not torch.equal(end.y, start.y)
    assert end.y.min() == 0
    assert torch.equal(end.freeze().groups, torch.tensor([0, 0, 1, 1, 2, 2]))
    still = condensed(toy_run(small(6, "learned-one-hot").set("outer.groups.1.lr", 0.0)))
    assert torch.equal(still.y, start.y)


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["hard", "learned-one-hot"])
def test_a_run_resumes_bit_exactly_with_the_network_and_the_running_norm(labels, tmp_path):
    """Paused twice: within an epoch of real examples, whose window is held, and between two."""
    whole = condensed(toy_run(small(6, labels)))
    seen = []
    for minutes in (0.0, 0.0, None):
        try:
            again = condensed(toy_run(small(6, labels), folder=tmp_path, limits=Limits(minutes=minutes)))
        except Paused:
            seen.append(Checkpoints(tmp_path / ".run").latest()[1])
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    norms = [tree["updates"]["images"]["all/norm"].item() for tree in seen]
    assert len(set(norms)) == 2
    assert min(norms) > 0
    assert all("module" in tree["pool"] for tree in seen)


def test_a_forgotten_running_norm_would_be_noticed(tmp_path):
    """The resume above would differ if the norm were not restored: clipping depends on it."""
    whole = condensed(toy_run(small(6).set("outer.groups.0.rule.times", 0.5)))
    other = condensed(toy_run(small(6).set("outer.groups.0.rule", "adam")))
    assert not torch.equal(whole.freeze().x, other.freeze().x)


def test_private_data_are_refused_by_construction():
    splits = toy_splits()
    run = toy_run(small(), replace(splits, train=Sealed(splits.train)))
    with pytest.raises(BadData, match="gives no examples, which objective bilevel would read"):
        run.splits.train.admit(run.recipe)
    with pytest.raises(BadData, match="sealed"):
        condensed(run)
    with pytest.raises(BadValue, match=r"^objective: cannot be used on private data: it reads private examples itself"):
        condense.run("rat-bptt", data={"name": "private", "data": "digits", "epsilon": 8.0})


# -- the judge ------------------------------------------------------------------------------------------------------


def test_the_constants_of_the_judge_are_those_of_the_code():
    judge = named(Protocol, "rat")
    data = TensorSampler(toy_splits().task, torch.zeros(6, 1, 8, 8), torch.arange(6) % 3)
    fit = judge.fit(data)
    assert fit == Fit(rule=Adam(), lr=1e-3, steps=3000, batch=None, augment=FLIP_ROTATE)
    assert (judge.nets, judge.repeats, judge.record) == ((ConvNet(),), 8, (300, 600, 1000, 3000))
    assert judge.split == "test"


def test_the_judge_trains_by_adam_on_all_images_and_tests_after_the_steps_that_are_named():
    splits = toy_splits()
    batch = splits.train.draw(2, "each", Rng(5))
    data = TensorSampler(splits.task, batch.x, batch.y)
    judge = Rat(nets=(ToyNet(),), repeats=2, steps=12, record=(3, 6, 40), lr=0.01)
    candidate = Candidate(data, toy_run(small()).transform, "toy")
    row = evaluate(candidate, splits, judge, seed=5).rows[0]
    for i, (found, curve) in enumerate(zip(row.accuracies, row.curves, strict=True)):
        key = network_key(5, ToyNet(), i)
        module = ToyNet().make(splits.task, key.fold("make"))
        optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
        shares = []
        for t in range(12):
            warped = judge.augment.sample(key.fold("train", "warp", t), 6, t / 12)(batch)
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(warped.x), warped.y).backward()
            optimiser.step()
            shares.append((module(splits.test.x).argmax(1) == splits.test.y).float().mean().item())
        assert [step for step, _ in curve] == [3, 6, 12]
        assert [value for _, value in curve] == pytest.approx([shares[2], shares[5], shares[11]])
        assert found == pytest.approx(shares[-1])
        assert row.bests[i] == max(value for _, value in curve)


@pytest.mark.slow
def test_it_beats_random_images_on_digits(tmp_path):
    """At 1 image per class, judged by `rat` with 5 networks, with the embedded default's settings."""
    ours, random = (
        condense.load(carry_out(plan(name, data="digits", per_class=1), tmp_path / name).path)
        for name in ("rat-bptt", "random")
    )
    splits, judge = ours.plan.data.open(), ours.plan.protocol.with_(repeats=5)
    found, other = (evaluate(made, splits, judge).rows[0].accuracies for made in (ours, random))
    assert len(found) >= 3
    assert sum(found) > sum(other), (found, other)
