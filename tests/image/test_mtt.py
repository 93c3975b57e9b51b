"""MTT as published: its parts, its table, its judge, its command; and that it beats random images."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import condense
from condense.cli import app
from condense.data import TensorSampler
from condense.fit import Fit
from condense.parts.experts import Experts, Trajectories
from condense.parts.inits import Real
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels, WithRate
from condense.parts.rules import SGD
from condense.parts.schedules import Drops, Learned
from condense.parts.trajectory import Trajectory
from condense.planning import plan
from condense.plugins import registry
from condense.recipe import Group, Outer
from condense.task import Task
from condense_image.augment import DSA
from condense_image.mtt import AtLearnedRate
from condense_image.nets.conv_net import ConvNet


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


def test_it_is_what_its_code_runs():
    recipe = registry().recipe("mtt")(per_class=10)
    assert recipe.objective == Trajectory(
        fit=Fit(rule=SGD(momentum=0.0), lr=Learned(), steps=20, batch=None, augment=DSA()), segment=None
    )
    trained = Fit(rule=SGD(momentum=0.0, weight_decay=0.0), lr=0.01, epochs=50, batch=256, augment=DSA())
    experts = Trajectories(net=ConvNet(depth=3, width=128, norm="instance"), fit=trained, count=100)
    assert recipe.pool == Experts(experts=experts, first=0, below=25, span=3)
    momentum = SGD(momentum=0.5)
    groups = (Group(role="images", rule=momentum, lr=1000.0), Group(role="rate", rule=momentum, lr=1e-5))
    assert recipe.outer == Outer(steps=5000, groups=groups)
    assert recipe.parameterization == WithRate(inner=Pixels(), start=0.01)
    assert (recipe.init, recipe.labels, recipe.augment.name) == (Real(), Hard(), "none")
    assert registry().recipe("mtt")(per_class=10, segment=5).objective.segment == 5


TABLE = {  # DC-BENCH: N, M, starts before, rates of images and of the rate, its start, batch, ZCA, figure
    ("cifar10", 1): (50, 2, 2, 100, 1e-7, 0.01, None, True, 46.3),
    ("cifar10", 10): (30, 2, 20, 100, 1e-5, 0.001, None, True, 65.3),
    ("cifar10", 50): (30, 2, 40, 1000, 1e-5, 0.001, None, False, 71.6),
    ("cifar100", 1): (20, 3, 20, 1000, 1e-5, 0.01, None, True, 24.3),
    ("cifar100", 10): (20, 2, 20, 1000, 1e-5, 0.01, None, False, 40.1),
    ("cifar100", 50): (80, 2, 40, 1000, 1e-5, 0.01, 125, True, 47.7),
}


@pytest.mark.parametrize(("data", "per_class"), TABLE)
def test_the_table_is_the_authors(data, per_class):
    from condense.published import settings_for

    recipe = plan("mtt", data=data, per_class=per_class).recipe
    fit, pool, (images, rate) = recipe.objective.fit, recipe.pool, recipe.outer.groups
    zca = {"zca-kornia": True, "normalise": False}[recipe.preprocess.name]
    figure = settings_for(registry().recipe("mtt"), data, per_class).accuracy
    found = (
        fit.steps,
        pool.span,
        pool.below,
        images.lr,
        rate.lr,
        recipe.parameterization.start,
        fit.batch,
        zca,
        figure,
    )
    assert found == TABLE[data, per_class]
    assert pool.below - 1 + pool.span <= pool.experts.epochs == 50


@pytest.mark.parametrize(("epochs", "falls"), [(3, True), (1000, True), (0, False)])
def test_the_judge_trains_at_the_rate_of_the_set(epochs, falls):
    judge = AtLearnedRate(epochs=epochs)
    assert (judge.name, AtLearnedRate().epochs, judge.augment, judge.repeats) == ("mtt", 1000, DSA(), 5)
    task = Task(classes=("a", "b"), shape=(1, 8, 8))
    rated = TensorSampler(task, torch.zeros(2, 1, 8, 8), torch.arange(2), rate=lambda at: torch.tensor(0.25))
    fit = judge.fit(rated)
    assert fit.rule == SGD(momentum=0.9, weight_decay=5e-4)
    assert (fit.epochs, fit.batch, fit.augment) == (epochs + 1, 256, DSA())
    steps = [float(fit.lr.rate(t / fit.epochs, rated, t)) for t in range(fit.epochs)]
    full = min(epochs // 2 + 2, epochs + 1)
    assert steps == pytest.approx([0.25] * full + [0.025] * (epochs + 1 - full))
    assert fit.lr.restarts((full - 1) / fit.epochs, full / fit.epochs) == falls
    bare = TensorSampler(task, rated.x, rated.y)
    assert judge.fit(bare).lr.rate(0.0, bare, 0) == 0.01
    assert not falls or judge.fit(bare).lr.times == Drops(start=1.0, at=(full / (epochs + 1),), restart=True)


SMALL = {
    "pool.experts.net.width": 8,
    "pool.experts.fit.epochs": 2,
    "pool.experts.count": 2,
    "pool.below": 1,
    "objective.fit.steps": 2,
    "protocol.nets.0.width": 8,
    "protocol.epochs": 2,
    "protocol.repeats": 1,
}
SETTINGS = [text for path, value in SMALL.items() for text in ("--set", f"{path}={value}")]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="condense")


def test_experts_are_trained_by_a_command_found_by_a_run_and_refused_by_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ("mtt", "--per-class", "1", *SETTINGS)
    first = call("experts", "train", *asked, "--json")
    assert first.exit_code == 0, first.output
    assert "expert 1 of 2, epoch 1 of 2" in first.stderr
    found = json.loads(first.stdout)
    assert (found["experts"], found["epochs"]) == (2, 2)
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "cache").rglob("expert-*.safetensors"))
    again = call("experts", "train", *asked)
    assert "expert 1 of 2, epoch" not in again.stderr
    assert again.stdout.splitlines() == [
        f"experts   2, 2 epochs each, {found['bytes'] / 2**20:,.1f} MiB: {found['folder']}"
    ]
    run = call("run", *asked, "--steps", "2", "--no-full", "--out", "made")
    assert run.exit_code == 0, run.output
    assert "epoch 1 of 2" not in run.stderr
    assert condense.load("made").sampler().rate(0) > 0
    beside = call("experts", "train", *asked, "--count", "1", "--out", "beside")
    assert beside.stdout.rstrip().endswith("MiB: beside")
    own = call("run", *asked, "--set", "pool.folder=beside", "--steps", "1", "--no-eval", "--out", "own")
    assert own.exit_code == 0, own.output
    other = ("--set", "pool.folder=beside", "--set", "pool.experts.net.width=9", "--steps", "1", "--out", "other")
    refused = call("run", *asked, *other)
    assert refused.exit_code == 2
    assert "experts in beside: are of another network than the run's" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for asked, text in [
        (("train", "dm"), "recipe: has no experts (got 'dm')"),
        (("test", "mtt"), "action: is nothing that can be done with experts (got 'test'). Try condense experts train"),
        (("train", "mtt", "--set", "pool.below=60"), "pool.below: leads to epoch"),
        (
            ("train", "mtt", "--data", "private:digits", "--set", "data.epsilon=8"),
            "pool: cannot be used on private data: it trains networks",
        ),
    ]:
        found = call("experts", *asked)
        assert found.exit_code in (2, 3), found.output
        assert text in found.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtt", "datm", "esp"])
def test_it_beats_random_images_on_digits_under_its_own_judge(name, tmp_path):
    """One image per class, the embedded default's settings, 5 networks each. About half a minute of one core."""
    artifact = condense.run(name, data="digits", per_class=1, out=tmp_path / "made")
    artifact = condense.judge(artifact, full=False)
    found = {row["kind"]: row["accuracies"] for row in artifact.report["rows"]}
    mean = {kind: sum(values) / len(values) for kind, values in found.items()}
    assert len(found["condensed"]) == len(found["random"]) == 5
    assert mean["condensed"] > mean["random"] + 0.05, found
