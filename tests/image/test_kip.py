"""KIP and label solve: the settings of the notebook, the outer gradient, resume, and what they are for."""

from __future__ import annotations

import pytest
import torch

import condense as kit
from condense.axes import Learner
from condense.data import TensorSampler
from condense.engine import condense
from condense.errors import BadValue
from condense.parts.closed_form import Krr, Solved
from condense.parts.kernels import InfiniteConvNet, InfiniteMLP
from condense.parts.labels import LearnedLabels
from condense.parts.ridge import CentredError, KernelRidge
from condense.parts.rules import Adam
from condense.planning import plan
from condense.plugins import registry
from condense.recipe import Group, Outer
from condense.running import Limits, Paused, Step
from condense.testing import Raw, toy_run, toys


@pytest.fixture(autouse=True)
def _toys():
    with toys():
        yield


def method(name, **settings):
    return registry().recipe(name)(**settings)


# -- settings, written down a second time from the notebook and the papers -------------------------------------------


def test_kip_is_what_its_notebook_runs_with_learned_labels():
    recipe = method("kip", per_class=10)
    kernel = InfiniteMLP(depth=1, kind="ntk", weight_std=2**0.5, bias_std=0.1, dtype="float64")
    assert recipe.objective == KernelRidge(
        kernel=kernel, ridge=1e-6, n=500, draw="each", m=None, target_loss=CentredError()
    )
    assert recipe.outer == Outer(steps=1000, groups=(Group(rule=Adam(), lr=0.04),))
    assert recipe.labels == LearnedLabels(scale="one")
    assert (recipe.init.name, recipe.augment.name, recipe.preprocess.name) == ("real", "none", "normalise")


def test_label_solve_takes_no_step():
    recipe = method("label-solve", per_class=10)
    assert recipe.outer.steps == 0
    assert recipe.labels == Solved(kernel=InfiniteMLP(), ridge=1e-6)


@pytest.mark.parametrize(("name", "part"), [("kip-conv", "objective"), ("label-solve-conv", "labels")])
@pytest.mark.parametrize(("data", "preprocess"), [("cifar10", "zca-kip"), ("mnist", "normalise")])
def test_the_convolutional_methods_are_judged_by_their_own_kernel(name, part, data, preprocess):
    settled = plan(name, data=data, per_class=1)
    assert getattr(settled.recipe, part).kernel == InfiniteConvNet(depth=3, extra=True, pool="avg")
    assert settled.protocol == Krr(kernel=InfiniteConvNet())
    assert settled.recipe.preprocess.name == preprocess


@pytest.mark.parametrize(
    ("name", "settings", "judge"),
    [
        ("kip", {"objective.kernel": "infinite-conv-net"}, Krr(kernel=InfiniteConvNet())),
        ("kip", {"objective.ridge": 0.01}, Krr(ridge=0.01)),
        ("kip", {"objective.ridge": 0.01, "protocol.ridge": 0.1}, Krr(ridge=0.1)),
        ("kip-conv", {"objective.kernel.depth": 2}, Krr(kernel=InfiniteConvNet(depth=2))),
        ("label-solve", {"labels.ridge": 0.01}, Krr(ridge=0.01)),
        (*("rfad", {"objective.ridge": 0.1}), Krr(kernel=InfiniteConvNet(kind="nngp", extra=False), ridge=0.005)),
    ],
)
def test_the_judge_asks_the_kernel_that_a_set_is_made_with_unless_told_otherwise(name, settings, judge):
    assert plan(name, data="mnist", per_class=1, settings=settings).protocol == judge


def test_a_judge_that_is_given_whole_stays_as_it_is():
    assert plan("kip-conv", data="mnist", protocol=Krr()).protocol == Krr()
    assert plan("dm", data="mnist", protocol="as:kip-conv").protocol == Krr(kernel=InfiniteConvNet())


@pytest.mark.parametrize("name", ["kip", "rfad"])
def test_a_network_asked_for_by_name_is_refused_where_a_kernel_judges(name):
    with pytest.raises(BadValue, match=r"krr asks a kernel.*Set protocol\.kernel") as caught:
        plan(name, net="conv-net")
    assert (caught.value.field, caught.value.value) == ("net", "conv-net")


@pytest.mark.parametrize(
    ("name", "data", "per_class", "figure"),
    [
        *(("kip", "mnist", n, figure) for n, figure in ((1, 85.5), (10, 97.2), (50, 98.4))),
        *(("kip", "cifar10", n, figure) for n, figure in ((1, 40.5), (10, 53.1), (50, 58.6))),
        *(("kip-conv", "cifar10", n, figure) for n, figure in ((1, 63.4), (10, 75.5), (50, 79.7))),
        *(("label-solve-conv", "fashion-mnist", n, figure) for n, figure in ((1, 65.3), (10, 80.8), (50, 86.9))),
    ],
)
def test_the_figures_are_the_published_ones(name, data, per_class, figure):
    from condense.published import settings_for

    assert settings_for(registry().recipe(name), data, per_class).accuracy == figure


# -- mathematics ----------------------------------------------------------------------------------------------------

KERNELS = [InfiniteMLP(depth=2), InfiniteConvNet(depth=2)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("of", ["images", "labels"])
def test_the_outer_gradient_equals_finite_differences(kernel, of):
    """Three coordinates drawn by seed among the top tenth, in float64, of what the recipe's objective says.

    No image is a real one: there the kernel has a kink.
    """
    recipe = method("kip", per_class=2).with_(preprocess=Raw(dtype="float64"))
    recipe = recipe.with_(objective=recipe.objective.with_(kernel=kernel, n=4))
    run = toy_run(recipe)
    start = {
        "images": torch.randn(6, *run.task.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64),
        "labels": torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    }

    def loss(value):
        given = {**start, of: value}
        step = Step(run, 0, Learner(None), TensorSampler(run.task, given["images"], given["labels"]))
        (term,) = recipe.objective(step)
        return term.losses["ridge"]

    value = start[of].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(value), value)
    largest = gradient.abs().flatten().topk(max(3, gradient.numel() // 10)).indices
    for coordinate in largest[torch.randperm(len(largest), generator=torch.Generator().manual_seed(0))[:3]].tolist():
        ends = []
        for h in (1e-5, -1e-5):
            moved = start[of].clone()
            moved.view(-1)[coordinate] += h
            ends.append(float(loss(moved)))
        assert float(gradient.flatten()[coordinate]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_a_run_that_is_resumed_ends_with_the_same_bits(tmp_path):
    recipe = method("kip", per_class=2, iterations=6).with_(preprocess=Raw())
    whole = condense(toy_run(recipe)).freeze()
    with pytest.raises(Paused):
        condense(toy_run(recipe, folder=tmp_path, limits=Limits(steps=1, minutes=0.0)))
    again = condense(toy_run(recipe, folder=tmp_path)).freeze()
    assert torch.equal(whole.x, again.x)
    assert torch.equal(whole.y, again.y)
    assert not torch.equal(whole.y, condense(toy_run(recipe.set("outer.steps", 0))).freeze().y)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("kip-conv", "label-solve-conv")]


@pytest.mark.parametrize("name", ["kip", "label-solve", *SLOW])
def test_at_one_image_of_each_class_of_digits_it_beats_random_images(name, tmp_path):
    """Three seeds, each judged by krr beside as many random images."""
    steps = {"steps": 40} if name == "kip" else {}
    found = {"condensed": [], "random": []}
    for seed in range(3):
        made = kit.run(name, data="digits", per_class=1, seed=seed, out=tmp_path / str(seed), device="cpu", **steps)
        for row in kit.judge(made, full=False).report["rows"]:
            found[row["kind"]] += row["accuracies"]
    assert len(found["random"]) == 3
    assert min(found["condensed"]) > max(found["random"])


@pytest.mark.parametrize("name", ["kip", "label-solve", "kip-conv", "label-solve-conv"])
def test_private_data_are_refused_by_construction(name, tmp_path):
    with pytest.raises(BadValue, match="cannot be used on private data"):
        kit.run(name, data={"name": "private", "data": "digits", "epsilon": 8.0}, per_class=1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
