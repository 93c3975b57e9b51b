"""FRePo, RCIG and RFAD: their recipes, network, augmentation, whitening and judges, written down a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import condense
from condense import api
from condense.data import Facts, TensorSampler, TensorSource
from condense.engine import condense as condensed
from condense.errors import BadValue
from condense.fit import Fit
from condense.parts.augment import Beside, Then
from condense.parts.features import Ensemble, FeatureKernel, LabelMargin
from condense.parts.implicit import Implicit
from condense.parts.inits import Real
from condense.parts.labels import LearnedLabels
from condense.parts.parameterizations import Averaged, Preconditioned
from condense.parts.pools import Fresh, Online
from condense.parts.ridge import CentredError, KernelRidge
from condense.parts.rules import LAMB, AdaBelief, Adam
from condense.parts.schedules import Cosine
from condense.parts.sums import Sum
from condense.plugins import registry
from condense.recipe import Group, Outer
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.task import Batch, Task
from condense.testing import toy_run
from condense_image.augment import DSA, FRePoAugment
from condense_image.nets.kernel_conv_net import KernelConvNet
from condense_image.preprocess import Normalise, ZcaFRePo
from condense_image.protocols import RCIG, FRePo

MIRRORED = Beside(augment=DSA(strategy="flip", prob_flip=1.0))
RGB, GREY = Task(classes=tuple("0123456789"), shape=(3, 32, 32)), Task(classes=tuple("0123456789"), shape=(1, 28, 28))


# -- recipes ----------------------------------------------------------------------------------------------------------


def test_frepo_is_what_its_code_runs():
    recipe = registry().recipe("frepo")(per_class=10)
    ridge = KernelRidge(
        kernel=FeatureKernel(scale=1, shift=0, mean=False),
        ridge=1e-6,
        n=1024,
        m=None,
        target_loss=CentredError(),
        support=MIRRORED,
        scaled=False,
    )
    assert recipe.objective == Sum(objectives=(ridge, LabelMargin(limit=1.0)))
    net = KernelConvNet(depth=3, width=128, growth=2, norm="before", activation="relu", init="lecun")
    inner = Fit(rule=Adam(), lr=3e-4, steps=1, batch=1000)
    assert recipe.pool == Online(net=net, inner=inner, size=10, max_age=100, most=None, staggered=True)
    groups = (Group(role="*", rule=LAMB(), lr=Cosine(start=3e-4, to=3e-5)),)
    assert recipe.outer == Outer(steps=500_000, groups=groups)
    assert (recipe.init, recipe.labels) == (Real(), LearnedLabels(scale="root"))
    assert (recipe.augment.name, recipe.preprocess) == ("none", Normalise())


def test_rcig_is_what_its_code_runs():
    recipe = registry().recipe("rcig")(per_class=10)
    assert recipe.objective == Implicit(
        n=1024, decay=5e-4, rule=Adam(), inner=20, inverse=20, clip=True, margin=0.5, support=MIRRORED
    )
    net = KernelConvNet(depth=3, width=128, growth=2, norm="none", activation="softplus", beta=60, init="lecun")
    inner = Fit(rule=Adam(), lr=5e-5, steps=1, batch=None, augment=MIRRORED)
    assert recipe.pool == Online(net=net, inner=inner, size=30, max_age=100, most=15, staggered=False)
    assert recipe.parameterization == Averaged(decay=0.99)
    rates = {role: recipe.outer.group(role) for role in ("images", "labels", "aux")}
    assert {role: group.lr for role, group in rates.items()} == {"images": 3e-3, "labels": 3e-3, "aux": 0.03}
    assert all(group.rule == AdaBelief() for group in rates.values())
    assert (recipe.labels, recipe.outer.steps) == (LearnedLabels(scale="one"), 10_000)


def test_rfad_is_what_its_code_runs():
    recipe = registry().recipe("rfad")(per_class=10)
    kernel = FeatureKernel(scale=2.0, shift=0.01, mean=True)
    assert recipe.objective == KernelRidge(kernel=kernel, ridge=5e-3, n=5120, scaled=True)
    net = KernelConvNet(depth=3, width=256, growth=1, norm="none", activation="relu", init="gaussian", pad=1)
    assert recipe.pool == Fresh(net=Ensemble(net=net, n=8), turns=1, inner=None)
    rates = {role: recipe.outer.group(role).lr for role in ("images", "labels", "decoder", "aux")}
    assert rates == {"images": 1e-3, "labels": 1e-3, "decoder": 5e-5, "aux": 1e-2}
    assert (recipe.parameterization, recipe.preprocess) == (Preconditioned(), Normalise())


@pytest.mark.parametrize("name", ["frepo", "rcig", "rfad"])
def test_grey_images_are_neither_mirrored_nor_whitened(name):
    plan = api.plan(name, data="fashion-mnist", per_class=1)
    assert plan.recipe.preprocess == Normalise()
    assert "flip" not in str(plan.recipe.dump())
    assert "flip" not in str(plan.protocol.dump())
    kept = api.plan(name, data="cifar10", per_class=1).recipe
    assert name == "rfad" or "flip" in str(kept.dump())
    assert kept.preprocess == ZcaFRePo(reg=0.1, centred=name != "rfad")


# -- the network ------------------------------------------------------------------------------------------------------


def test_widths_double_and_norms_stand_where_the_code_has_them():
    def layers(net, task=RGB):
        return [layer for layer in net.make(task, Rng(0)).trunk if not isinstance(layer, nn.ReLU | nn.AvgPool2d)]

    assert [layer.out_channels for layer in layers(KernelConvNet())] == [128, 256, 512]
    kinds = [type(layer).__name__ for layer in layers(KernelConvNet(norm="before"))]
    assert kinds == ["Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "Conv2d"]
    kinds = [type(layer).__name__ for layer in layers(KernelConvNet(norm="after", depth=2))]
    assert kinds == ["Conv2d", "BatchNorm2d"] * 2
    assert [layer.padding for layer in layers(KernelConvNet(), GREY)] == [(3, 3), (1, 1), (1, 1)]
    assert KernelConvNet(width=2).make(GREY, Rng(0)).features(torch.zeros(2, 1, 28, 28)).shape == (2, 8 * 16)
    with pytest.raises(BadValue, match=r"net\.depth"):
        KernelConvNet(depth=5, width=2).build(Task(classes=("a", "b"), shape=(1, 8, 8)))


@pytest.mark.parametrize(("init", "variance", "bias"), [("lecun", 1.0, 0.0), ("gaussian", 2.0, 0.1)])
def test_weights_have_the_variance_that_the_kernel_assumes(init, variance, bias):
    module = KernelConvNet(depth=2, width=64, growth=1, init=init).make(RGB, Rng(0))
    for layer in (module.trunk[3], module.head):
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().var()) * fan_in == pytest.approx(variance, rel=0.05)
        assert float(layer.bias.detach().std()) == pytest.approx(bias, rel=0.5)
    if init == "lecun":
        width = 2 / 0.8796256610342398 / math.sqrt(fan_in)
        assert float(module.head.weight.detach().abs().max()) <= width * 1.001


def test_softplus_units_near_relu():
    x = torch.randn(2, 3, 32, 32, generator=Rng(1).generator())
    soft, hard = (KernelConvNet(width=4, activation=a).make(RGB, Rng(0))(x) for a in ("softplus", "relu"))
    assert 0 < float((soft - hard).detach().abs().max()) < 0.1


# -- augmentation and whitening ---------------------------------------------------------------------------------------


def warped(family, x, u, **how):
    return FRePoAugment(strategy=family, **how).replay({family: torch.tensor(u)})(Batch(x, torch.zeros(len(x)))).x


def test_each_family_does_what_it_says():
    x = torch.randn(2, 3, 8, 8, generator=Rng(0).generator())
    moved = warped("translate", x, [[0.75, 0.5]], translate=0.25)  # half of 0.25 of 8 pixels: one, along the rows
    torch.testing.assert_close(moved[..., :-1], x[..., 1:])
    torch.testing.assert_close(moved[..., -1], x[..., -1])
    torch.testing.assert_close(warped("rotate", x, [[1.0]], rotate=90.0), x.rot90(1, (2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(warped("crop", x, [[0.5, 0.9, 0.1]]), x, atol=1e-5, rtol=1e-5)
    zoomed = warped("crop", x, [[1.0, 0.5, 0.5]], zoom=2.0)
    torch.testing.assert_close(zoomed[..., 3:5, 3:5].mean((2, 3)), x[..., 3:5, 3:5].mean((2, 3)))
    assert not torch.allclose(zoomed, x)
    holed = warped("cutout", x, [[0.99, 0.0]])
    assert torch.equal(holed == 0, (torch.arange(8)[:, None] >= 6) & (torch.arange(8) < 2) & torch.ones_like(x).bool())
    assert torch.equal(warped("flip", x, [[0.4]]), x.flip(3))
    assert torch.equal(warped("flip", x, [[0.6]]), x)


def test_colour_is_brightness_then_contrast_then_saturation():
    x = torch.randn(1, 3, 4, 4, generator=Rng(0).generator())
    want = x.numpy() + 0.25 * 0.6
    want = (want - want.mean()) * np.exp(0.25 * -0.4) + want.mean()
    want = (want - want.mean(1, keepdims=True)) * np.exp(0.25 * 0.2) + want.mean(1, keepdims=True)
    np.testing.assert_allclose(warped("color", x, [[0.8, 0.3, 0.6]]).numpy(), want, rtol=1e-5, atol=1e-6)


def test_one_family_a_call_with_numbers_for_each_image():
    families = {next(iter(FRePoAugment().sample(Rng(i), 3).state())) for i in range(60)}
    assert families == {"flip", "color", "crop", "rotate", "translate", "cutout"}
    (u,) = FRePoAugment(strategy="crop").sample(Rng(0), 3).state().values()
    assert u.shape == (3, 3)
    for state in ({"flip": u}, {"crop": u, "which": torch.zeros(3)}, {}):
        with pytest.raises(BadValue, match="is no draw of crop"):
            FRePoAugment(strategy="crop").replay(state)


def test_rcigs_code_draws_a_family_for_each_image():
    x = torch.randn(64, 3, 8, 8, generator=Rng(0).generator())
    augment = FRePoAugment(each=True)
    state = augment.sample(Rng(1), 64).state()
    out = augment.replay(state)(Batch(x, torch.zeros(64))).x
    assert len(state["which"].unique()) == 6
    for family, place in (("flip", 0), ("cutout", 5)):
        own = state["which"] == place
        alone = FRePoAugment(strategy=family).replay({family: state[family][own]})(
            Batch(x[own], torch.zeros(own.sum()))
        )
        assert torch.equal(out[own], alone.x)
    with pytest.raises(BadValue, match="is no draw of"):
        augment.replay({"flip": state["flip"]})


@pytest.mark.parametrize("centred", [True, False])
def test_whitening_is_that_of_the_code(centred):
    raw = torch.rand(40, 1, 3, 3, generator=Rng(0).generator())
    source = TensorSource(Task(classes=("a", "b"), shape=(1, 3, 3)), raw, torch.arange(40) % 2)
    transform = ZcaFRePo(reg=0.1, centred=centred).fit(source, Facts(mean=(0.4,), std=(0.3,)))
    rows = raw.double().numpy().reshape(40, 9)
    rows = (rows - rows.mean()) / rows.std()  # whatever is published with the data
    shift = rows.mean(0) if centred else 0.0
    covariance = (rows - shift).T @ (rows - shift) / 40
    values, vectors = np.linalg.eigh(covariance + 0.1 * np.trace(covariance) / 9 * np.eye(9))
    want = (rows - shift) @ (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(transform.encode(raw).numpy().reshape(40, 9), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(transform.decode(transform.encode(raw)), raw, rtol=1e-4, atol=1e-5)
    blank = ZcaFRePo().blank(source.task)
    blank.load_state_dict(transform.state_dict())
    assert torch.equal(blank.encode(raw), transform.encode(raw))


# -- judges -----------------------------------------------------------------------------------------------------------


def a_set(size, soft=True):
    task = Task(classes=tuple("0123456789"), shape=(1, 8, 8))
    y = torch.arange(size) % 10
    x = torch.randn(size, 1, 8, 8, generator=Rng(0).generator())
    return TensorSampler(task, x, nn.functional.one_hot(y, 10).float() - 0.1 if soft else y)


@pytest.mark.parametrize(("judge", "peak"), [(FRePo(), 3e-4), (RCIG(), 1e-4)])
@pytest.mark.parametrize("size", [10, 100])
def test_the_rate_is_that_of_the_code_at_every_step(judge, peak, size):
    fit = judge.fit(a_set(size))
    assert fit.steps == {10: 1000, 100: 2000}[size]
    for step in range(0, fit.steps, 7):
        late = (step - 500) / (fit.steps - 500)
        want = peak * step / 500 if step < 500 else peak * (0.99 * 0.5 * (1 + math.cos(math.pi * late)) + 0.01)
        assert fit.lr.value(step / fit.steps) == pytest.approx(want, abs=1e-12)
    assert (fit.rule, fit.loss, fit.batch) == (Adam(), CentredError(), 500 if isinstance(judge, FRePo) else 256)


@pytest.mark.parametrize(
    ("size", "steps"), [(1, 1000), (20, 1000), (50, 2000), (150, 20_000), (500, 5000), (900, 10_000), (9000, 40_000)]
)
def test_other_sizes_take_the_steps_of_the_nearest_listed_one(size, steps):
    assert FRePo().length(size) == steps


def test_the_judges_train_hard_and_learned_labels_by_the_same_loss():
    """So that random real images are judged as the set is: by the distance to centred targets."""
    for judge in (FRePo(nets=(KernelConvNet(depth=2, width=4),), steps=3, augment="none", warm=0),):
        weights = []
        for soft in (True, False):
            data = a_set(10, soft)
            module = judge.nets[0].make(data.task, Rng(0))
            judge.fit(data).begin(module, Rng(1)).advance(data, 3)
            weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
        torch.testing.assert_close(*weights)
        module = judge.nets[0].make(data.task, Rng(0))
        optimizer, x, y = torch.optim.Adam(module.parameters(), lr=3e-4), a_set(10).x, a_set(10).y
        for step in range(3):
            optimizer.param_groups[0]["lr"] = judge.fit(data).lr.value(step / 3)
            optimizer.zero_grad()
            (0.5 * (module(x) - y).square().sum(1)).mean().backward()
            optimizer.step()
        theirs = torch.cat([p.detach().flatten() for p in module.parameters()])
        torch.testing.assert_close(weights[0], theirs, rtol=1e-4, atol=1e-6)


def test_rcigs_judge_sees_mirror_images_too():
    assert RCIG().augment == Then(augments=(FRePoAugment(each=True), MIRRORED))
    batch = Batch(torch.rand(4, 3, 8, 8, generator=Rng(1).generator()), torch.zeros(4, 10))
    seen = RCIG().augment.sample(Rng(0), 4)(batch)
    assert torch.equal(seen.x[4:], seen.x[:4].flip(3))
    assert len(seen.y) == 8


# -- runs on digits ---------------------------------------------------------------------------------------------------


def tiny(name):
    """The embedded default, for a few steps."""
    plan = api.plan(name, data="digits", per_class=1, settings={"outer.steps": 5})
    recipe = plan.recipe
    if name == "rcig":
        recipe = recipe.set("objective.inner_rate", 0.01).set("objective.inverse_rate", 1.0).set("objective.inner", 3)
    return plan.model_copy(update={"recipe": recipe})


def in_pieces(recipe, splits, folder):
    """A run that stops after each step: the set, the last run, and how often it stopped."""
    for paused in range(9):
        run = toy_run(recipe, splits, folder=folder, limits=Limits(minutes=0.0))
        try:
            return condensed(run).freeze(), run, paused
        except Paused:
            continue
    raise AssertionError("it never ends")


@pytest.mark.parametrize("name", ["frepo", "rcig", "rfad"])
def test_a_paused_run_gives_the_bits_of_one_that_was_not(name, tmp_path):
    plan = tiny(name)
    splits = plan.data.open()
    whole = condensed(toy_run(plan.recipe, splits)).freeze()
    again, _, paused = in_pieces(plan.recipe, splits, tmp_path)
    assert paused == 4, "it stopped after each step but the last"
    assert torch.equal(again.x, whole.x)
    assert torch.equal(again.y, whole.y)
    assert torch.isfinite(whole.x).all()


def test_the_rates_that_rcig_searches_for_survive_a_pause(tmp_path, monkeypatch):
    """They are found in the first step, and change every so often: here every two steps."""
    monkeypatch.setattr("condense.parts.implicit.EVERY", 2)
    plan = tiny("rcig")
    recipe = plan.recipe.set("objective.inner_rate", None).set("objective.inverse_rate", None)
    splits = plan.data.open()
    run = toy_run(recipe, splits)
    whole = condensed(run).freeze()
    again, other, _ = in_pieces(recipe, splits, tmp_path)
    assert torch.equal(again.x, whole.x)
    kept, found = (next(iter(each.states.values())).state_dict() for each in (run, other))
    assert all(torch.equal(kept[key], found[key]) for key in kept)
    assert float(kept["rates"][0]) > 1e-5, "where the search starts"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frepo", "rcig", "rfad"])
def test_the_embedded_default_beats_random_images_under_its_judge(name, tmp_path):
    """Three sets of three seeds, each beside as many random images, judged by three networks (krr has one answer)."""
    gains = []
    for seed in range(3):
        repeats = 1 if name == "rfad" else 3
        settings = {"protocol.repeats": repeats}
        plan = api.plan(name, data="digits", per_class=1, seed=seed, settings=settings)
        made = condense.judging.judge(api.carry_out(plan, tmp_path / str(seed)), full=False)
        mean = {row["kind"]: np.mean(row["accuracies"]) for row in made.report["rows"]}
        gains.append(mean["condensed"] - mean["random"])
    assert min(gains) > 0.05, gains
