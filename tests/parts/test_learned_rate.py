"""A learned step size: stored with the set, read by those who train on it, watched while it is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import condense
from condense.api import carry_out
from condense.axes import Objective, Term
from condense.checkpoint import Checkpoints
from condense.component import member
from condense.data import Sampler
from condense.engine import condense as condensed
from condense.errors import BadValue, Diverged
from condense.evaluate import Candidate, Protocol, evaluate
from condense.fit import Fit
from condense.parts.parameterizations import Pixels, WithRate
from condense.parts.rules import SGD
from condense.parts.schedules import Drops, Learned
from condense.recipe import Plan
from condense.running import Limits, Step
from condense.testing import Toy, toy_recipe, toy_run, toy_splits, toys


class Towards(Objective):
    """The step size moves by `by` in each step of the outer rate; the images become small."""

    by: float = 1.0

    def __call__(self, step: Step) -> Iterable[Term]:
        rate = step.syn.rate(step.index)
        assert isinstance(rate, Tensor)
        yield Term({"rate": -self.by * rate, "size": step.syn.x.square().mean()})


class AtItsRate(Protocol):
    """Networks are trained at the set's own rate, and at 0.001 where it brings none."""

    def fit(self, data: Sampler) -> Fit:
        return Fit(rule=SGD(), lr=Learned(times=Drops(start=1.0, at=(0.5,)), otherwise=0.001), steps=10)


def recipe(by: float, steps: int = 4, **how):
    groups = [{"role": "images", "rule": "sgd", "lr": 0.1}, {"role": "rate", "rule": "sgd", "lr": 1.0}]
    outer = {"steps": steps, "groups": groups}
    return toy_recipe(objective=Towards(by=by), parameterization=WithRate(start=0.1, **how), outer=outer)


def test_it_moves_in_its_own_group_and_images_are_what_they_are_without_it():
    with toys(Towards):
        syn = condensed(toy_run(recipe(by=0.05)))
        assert syn.rate(0).item() == pytest.approx(0.1 + 4 * 0.05)
        assert syn.stored() == {**syn.inner.stored(), "rate": 4}
        plain = recipe(by=0.05).with_(parameterization=WithRate(start=0.7))
        assert torch.equal(condensed(toy_run(plain)).freeze().x, syn.freeze().x)
        assert set(syn.roles()) == {"images", "rate"}


def test_it_is_stored_and_the_judge_trains_by_it(tmp_path):
    with toys(Towards, AtItsRate):
        judge = AtItsRate(nets=["toy-net"], repeats=1)
        plan = Plan(method="toy", data=Toy(), recipe=recipe(by=0.05), protocol=judge)
        made = condense.load(carry_out(plan, tmp_path / "made").path)
        assert made.sampler().rate(0).item() == pytest.approx(0.3)
        own = Candidate.of(made)
        faster = replace(own, data=made.synthetic.sampler(made.synthetic.decode(None, None), live=False))
        assert faster.digest(10) == own.digest(10)
        with torch.no_grad():
            made.synthetic.pace.mul_(2)
        assert faster.digest(10) != own.digest(0), "the judge's own records are kept by the rate, too"
        splits = toy_splits()
        curves = []
        for rate in (0.001, None, 3.0):
            with torch.no_grad():
                made.synthetic.pace.fill_(rate or 0.5)
            data = made.sampler()
            data = type(data)(data.task, data.x, data.y) if rate is None else data
            row = evaluate(replace(own, data=data), splits, judge, device="cpu").rows[0]
            curves.append(row.curves)
        assert curves[0] == curves[1], "a set without a rate is trained on at the protocol's own"
        assert curves[0] != curves[2]


@pytest.mark.parametrize(("by", "words"), [(-0.03, "is not above 0 since outer step 3"), (0.5, r"is above 1 since")])
def test_a_rate_that_turns_negative_or_explodes_stops_the_run_with_the_last_good_checkpoint(by, words, tmp_path):
    with toys(Towards):
        run = toy_run(recipe(by, steps=20, explodes=10.0), folder=tmp_path, limits=Limits(steps=1))
        with pytest.raises(Diverged, match=rf"^rate: the learned step size {words}.*that after \d steps") as found:
            condensed(run)
        assert found.value.exit_code == 5
        index, tree = Checkpoints(tmp_path / ".run").latest()
        assert f"after {index} steps" in str(found.value)
        assert 0 < tree["set"]["pace"].item() <= 1
        assert index == {-0.03: 3, 0.5: 1}[by]


def test_it_is_seen_where_checkpoints_are_rare_and_at_the_end(tmp_path):
    with toys(Towards):
        for folder in (None, tmp_path):
            with pytest.raises(Diverged, match="since outer step 3"):
                condensed(toy_run(recipe(-0.03, steps=8), folder=folder))


def test_runs_with_a_rate_resume_bit_exactly(tmp_path):
    with toys(Towards):
        whole = condensed(toy_run(recipe(by=0.01, steps=6)))
        run = toy_run(recipe(by=0.01, steps=6), folder=tmp_path, limits=Limits(steps=3))
        run.interrupted.set()
        with pytest.raises(condense.errors.CondenseError):
            condensed(run)
        again = condensed(toy_run(recipe(by=0.01, steps=6), folder=tmp_path))
        for key, value in whole.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key


def test_rates_that_cannot_be_are_refused():
    for settings in ({"start": 0.0}, {"start": 0.01, "explodes": 1.0}):
        with pytest.raises(ValueError, match="greater than"):
            WithRate(**settings)
    assert member(condense.axes.Parameterization, {"name": "with-rate"}) == WithRate(inner=Pixels())
    with toys(Towards):
        one = recipe(by=1.0).with_(outer=toy_recipe().outer.with_(groups=[{"role": "images", "rule": "sgd"}]))
        with pytest.raises(BadValue, match="group"):
            condensed(toy_run(one))
