"""More seams that nothing here fills yet: each test is a later system in miniature, and fails if its seam is closed.

docs/architecture.md lists all of them, with what will need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import condense
from condense.api import carry_out
from condense.axes import (
    Attack,
    Distance,
    Evaluator,
    Kernel,
    Labels,
    Loss,
    Metric,
    Objective,
    Parameterization,
    Term,
)
from condense.component import Component, member
from condense.data import Data, Splits
from condense.engine import condense as condensed
from condense.errors import BadData, NotBuilt
from condense.evaluate import Protocol
from condense.plugins import registry
from condense.recipe import Plan, Reads, Recipe
from condense.rng import Rng
from condense.running import Run, Step
from condense.synthetic import Synthetic
from condense.task import Batch, Task
from condense.testing import Sealed, Toy, ToyNet, toy_recipe, toy_run, toy_splits, toys
from tests.contract.test_seams import BothSides, SidedData, Sides, Untouched


def groups(**rates: float) -> dict[str, Any]:
    """An outer loop of 3 steps in which each role has a rate of its own."""
    return {"steps": 3, "groups": [{"role": role, "rule": "sgd", "lr": lr} for role, lr in rates.items()]}


# -- x is opaque, for the judge too ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dc", "dm"])
def test_an_image_methods_objective_condenses_an_opaque_x_which_is_judged(method, tmp_path):
    """`gcond.objective is dc.objective`: neither engine nor artifact nor judge opens x."""
    with toys(Sides, BothSides, SidedData, Untouched):
        objective = registry().recipe(method)(per_class=2).objective
        recipe = toy_recipe(objective=objective, pool={"name": "fresh", "net": BothSides()}, preprocess=Untouched())
        judge = member(Protocol, {"name": "vico", "nets": ["both-sides"], "epochs": 2, "repeats": 2})
        plan = Plan(method="toy", data=SidedData(), recipe=recipe, protocol=judge)
        artifact = condense.judge(carry_out(plan, tmp_path / "made"), full=False)
        assert [row["kind"] for row in artifact.report["rows"]] == ["condensed", "random"]


# -- privacy: data that wraps data, and a source that only measures -------------------------------------------------


class Closed(Data):
    """A wrapper as `Private` will be: a Data around a Data, whose training split opens one door only."""

    inner: Data
    epsilon: float = 8.0

    def open(self, device: torch.device | str = "cpu") -> Splits:
        splits = self.inner.open(device)
        return Splits(Sealed(splits.train), splits.test, facts=splits.facts)


def test_data_that_wraps_data_is_a_value_of_the_plan_and_runs_on_measures_alone(tmp_path):
    with toys(Closed):
        plan = Plan(method="private", data=Closed(inner=Toy()), recipe=toy_recipe())
        assert Plan.model_validate(plan.model_dump(mode="json")) == plan
        artifact = carry_out(plan, tmp_path / "made")
        assert len(artifact.sampler()) == 6
        assert "counts" not in artifact.provenance["source"], "the source says itself what may be known"
        greedy = Plan(method="private", data=Closed(inner=Toy()), recipe=toy_recipe(init="real"))
        with pytest.raises(BadData, match="init real"):
            carry_out(greedy, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()


def test_all_that_a_step_asks_is_asked_at_once():
    """One call of `measure` is one release: with as many asks as classes, and one call for each step."""
    splits = toy_splits()
    run = toy_run(toy_recipe(), splits)
    sealed = Sealed(run.splits.train)
    run.splits = Splits(sealed, splits.test)
    condensed(run)
    assert sealed.releases == run.recipe.outer.steps


# -- labels that are given at the end -------------------------------------------------------------------------------


class Relabelled(Labels):
    """Soft targets that are given after the last step, by what the finished images say."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def blank(self, groups: Tensor, task: Task) -> Tensor:
        return F.one_hot(groups, task.outputs).float()

    def start(self, batch: Batch, run: Run) -> Tensor:
        return F.one_hot(batch.y, run.task.outputs).float()

    def finish(self, syn: Synthetic, run: Run) -> None:
        teacher = ToyNet().make(run.task, run.rng.fold("teacher"), run.device)
        with torch.no_grad():
            syn.y.copy_(teacher(syn.decode(None, None).x).softmax(dim=1))


def test_labels_may_be_given_after_the_last_step():
    with toys(Relabelled):
        run = toy_run(toy_recipe(labels=Relabelled()))
        found = condensed(run).freeze()
        teacher = ToyNet().make(run.task, run.rng.fold("teacher"))
        torch.testing.assert_close(found.y, teacher(found.x).softmax(dim=1).detach())


# -- storage: generators, step sizes --------------------------------------------------------------------------------


class Generator(Parameterization):
    """A distribution: a linear decoder of random codes, and no item that is stored."""

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Generator(task, groups, labels.blank(groups, task), labels.loss())


class _Generator(Synthetic):
    size = None

    def __init__(self, task: Task, groups: Tensor, y: Tensor, loss: Loss | None) -> None:
        super().__init__(task, groups, y, loss)
        self.size = None
        self.decoder = nn.Parameter(torch.ones(task.groups, 2, torch.Size(task.shape).numel()))

    def fill(self, batch: Batch) -> None:
        return

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"decoder": [self.decoder]}

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        index = torch.arange(len(self.item_groups)) if index is None else index
        g = (rng or Rng(0).fold("released")).generator()
        codes = torch.randn(len(self.item_groups), 2, generator=g)[index]
        x = torch.einsum("nk,nkp->np", codes, self.decoder[self.item_groups[index]])
        return Batch(x.view(-1, *self.task.shape), self.y[index], index)


def test_a_set_may_be_a_generator_that_decodes_anew_at_each_step():
    with toys(Generator):
        recipe = toy_recipe(parameterization=Generator(), outer=groups(decoder=1.0))
        syn = condensed(toy_run(recipe))
        assert syn.size is None
        assert not torch.equal(syn.decoder, torch.ones_like(syn.decoder)), "the decoder is what learns"
        one, other = (syn.decode(None, Rng(seed)).x for seed in (1, 2))
        assert not torch.equal(one, other)
        assert torch.equal(syn.freeze().x, syn.freeze().x), "the released form is fixed"


class Paced(Parameterization):
    """Examples that bring a learned step size for the networks that are trained on them (MTT)."""

    inner: Parameterization

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Paced(self.inner.empty(task, groups, labels))


class _Paced(Synthetic):
    def __init__(self, inner: Synthetic) -> None:
        super().__init__(inner.task, inner.item_groups, inner.y, inner.loss)
        self.inner, self.pace = inner, nn.Parameter(torch.tensor(0.5))

    def fill(self, batch: Batch) -> None:
        self.inner.fill(batch)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        return self.inner.decode(index, rng)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {**self.inner.roles(), "rate": [self.pace]}

    def rate(self, at: int) -> Tensor:
        return self.pace * 0.5**at


class PaceIs(Objective):
    """The step size of training step 1 should be 0.1, and the images small."""

    def __call__(self, step: Step) -> Iterable[Term]:
        rate = step.syn.rate(1)
        assert rate is not None
        yield Term({"pace": (rate - 0.1).square()}, role="rate")
        yield Term({"size": step.syn.x.square().mean()}, role="images")


def test_a_learned_step_size_reaches_objectives_and_moves_at_its_own_rate():
    with toys(Paced, PaceIs):
        recipe = toy_recipe(
            objective=PaceIs(), parameterization=Paced(inner="pixels"), outer=groups(rate=1.0, images=1.0)
        )
        syn = condensed(toy_run(recipe.set("outer.steps", 100)))
        assert syn.rate(1).item() == pytest.approx(0.1, abs=1e-3)
        frozen = syn.freeze()
        assert frozen.rate(0).item() == pytest.approx(0.2, abs=1e-3), "networks that are trained on the set find it"
        assert not frozen.rate(0).requires_grad


# -- objectives that wrap objectives, and axes without members ------------------------------------------------------


class Weighted(Objective):
    """An objective with its terms weighted."""

    inner: Objective
    weight: float = 1.0

    def __call__(self, step: Step) -> Iterable[Term]:
        for term in self.inner(step):
            yield Term(term.losses, term.role, term.cls, term.weight * self.weight, term.cotangents)


def test_objectives_wrap_objectives():
    with toys(Weighted):
        plain = toy_recipe()
        twice = plain.with_(objective=Weighted(inner=plain.objective, weight=2.0)).set("outer.groups.0.lr", 0.05)
        torch.testing.assert_close(condensed(toy_run(twice)).freeze().x, condensed(toy_run(plain)).freeze().x)


class Linear(Kernel):
    """Inner products."""

    def __call__(self, model: nn.Module | None, a: Batch, b: Batch) -> Tensor:
        return a.x.flatten(1) @ b.x.flatten(1).T


class Sign(Attack):
    """One step of the gradient's sign."""

    size: float = Field(default=0.1, gt=0)

    def __call__(self, predict: Callable[[Tensor], Tensor], raw: Tensor, y: Tensor, task: Task, rng: Rng) -> Tensor:
        grad = torch.func.grad(lambda x: task.losses(predict(x), y).sum())(raw)
        return (raw + self.size * grad.sign()).clamp(0, 1)


class Second(Metric):
    """The share of examples whose class is among the two highest scores."""

    def __call__(self, scores: Tensor, y: Tensor, task: Task) -> dict[str, float]:
        return {"second": (scores.topk(2).indices == y[:, None]).any(dim=1).float().mean().item()}


class Nothing(Evaluator):
    """Says nothing."""

    def __call__(self, artifact: Any, folder: Any, progress: Callable[[str], None] | None = None) -> None:
        return


@pytest.mark.parametrize(("axis", "kind"), [(Kernel, Linear), (Attack, Sign), (Metric, Second), (Evaluator, Nothing)])
def test_an_axis_without_members_takes_a_strangers(axis: type[Component], kind: type[Component]):
    with toys(kind):
        assert member(axis, kind.name) == kind()
        assert registry().members(axis)[kind.name] is kind


def test_a_protocol_takes_further_metrics(tmp_path):
    with toys(Second):
        judge = {"name": "vico", "nets": ["toy-net"], "epochs": 1, "repeats": 1, "metrics": ["accuracy", "second"]}
        plan = Plan(method="toy", data=Toy(), recipe=toy_recipe(), protocol=member(Protocol, judge))
        artifact = condense.judge(carry_out(plan, tmp_path / "made"), full=False, random=False)
        assert "second" in str(artifact.report["rows"][0])


class Spread(Distance):
    """A distance that needs more than means."""

    over = "rows"

    def __call__(self, real: Tensor, synthetic: Tensor) -> Tensor:
        return (real.std(dim=0) - synthetic.std(dim=0)).square().sum()


def test_a_distance_over_more_than_means_is_refused_by_name_until_matching_measures_it():
    with toys(Spread):
        recipe = toy_recipe().set("objective.distance", {"name": "spread"})
        with pytest.raises(NotBuilt, match=r"objective\.distance.*spread"):
            recipe.objective.check(recipe, toy_splits().task)
