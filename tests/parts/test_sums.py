"""Sums of objectives: weights, what is merged, what is declared, and what cannot be."""

from __future__ import annotations

import pytest
import torch

from condense.axes import Learner, Objective, Term
from condense.component import checked
from condense.data import TensorSampler
from condense.engine import condense
from condense.errors import BadValue, NotBuilt
from condense.parts.distances import SquaredError
from condense.parts.matching import ClassWise, Matching, MeanFeature
from condense.parts.sums import Sum
from condense.recipe import Reads, check_recipe
from condense.running import Step
from condense.testing import ToyNet, toy_recipe, toy_run, toy_splits


class PerClass(Objective):
    """One term for each class: its squared norm, times `weight` in the term."""

    called: str = "norm"
    weight: float = 1.0
    role: str = "*"
    cotangents: bool = False

    def reads(self, recipe):
        return Reads()

    def __call__(self, step):
        for c in range(2):
            x = step.syn.draw(None, c, step.rng).x
            given = [(x, 2 * x.detach())] if self.cotangents else []
            yield Term({self.called: x.square().sum()}, self.role, c, self.weight, given)


class Whole(Objective):
    """One term about no class."""

    def __call__(self, step):
        yield Term({"whole": step.syn.x.sum()})


def a_step():
    run = toy_run(toy_recipe())
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2).contiguous().requires_grad_()
    return Step(run, 0, Learner(None), TensorSampler(run.task, x, torch.tensor([0, 0, 1, 1])))


def terms(objective):
    return list(objective(a_step()))


def told(found):
    return [(t.role, t.cls, t.weight, {k: float(v.detach()) for k, v in t.losses.items()}) for t in found]


def test_terms_about_the_same_class_become_one_and_carry_their_weights():
    both = Sum(objectives=(PerClass(weight=2.0), PerClass(called="other"), Whole()), weights=(1.0, 0.5, 10.0))
    assert told(terms(both)) == [
        ("*", 0, 1.0, {"norm": 8.0, "other": 2.0}),
        ("*", None, 1.0, {"whole": 240.0}),
        ("*", 1, 1.0, {"norm": 104.0, "other": 26.0}),
    ]


def test_losses_of_one_name_add_up_and_roles_stay_apart():
    found = terms(Sum(objectives=(PerClass(), PerClass(), PerClass(role="structure"))))
    assert [(t.role, t.cls, float(t.losses["norm"].detach())) for t in found] == [
        ("*", 0, 8.0),
        ("structure", 0, 4.0),
        ("*", 1, 104.0),
        ("structure", 1, 52.0),
    ]


def test_cotangents_are_weighted_and_kept_apart_from_losses():
    found = terms(Sum(objectives=(PerClass(cotangents=True, weight=2.0), PerClass()), weights=(3.0, 1.0)))
    with_, without = found[:2]
    ((drawn, gradient),) = with_.cotangents
    torch.testing.assert_close(gradient, 6 * 2 * drawn.detach())
    assert not without.cotangents
    assert float(without.losses["norm"].detach()) == 4.0


def test_terms_are_made_as_they_are_asked_for():
    class Counted(PerClass):
        def __call__(self, step):
            for term in super().__call__(step):
                made.append(term.cls)
                yield term

    made = []
    first = iter(Sum(objectives=(Counted(), Counted(called="other")))(a_step()))
    next(first)
    assert made == [0, 0]


def test_a_sum_of_one_matching_is_that_matching_and_twice_half_of_it_too():
    matching = Matching(statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=None))
    sets = []
    for objective in (matching, Sum(objectives=(matching,)), Sum(objectives=(matching, matching), weights=(0.5, 0.5))):
        pool = {"name": "fresh", "net": ToyNet()}
        outer = {"steps": 3, "groups": [{"rule": "sgd", "lr": 1.0}]}
        sets.append(condense(toy_run(toy_recipe(objective=objective, pool=pool, outer=outer))).decode(None, None).x)
    torch.testing.assert_close(sets[1], sets[0])
    torch.testing.assert_close(sets[2], sets[0])


def test_a_sum_reads_what_its_parts_read():
    silent = toy_recipe(objective=Sum(objectives=(PerClass(), PerClass())), init="noise")
    assert not silent.total_reads().examples
    assert toy_recipe(objective=Sum(objectives=(PerClass(), Whole())), init="noise").total_reads().examples


def test_bad_sums_are_refused():
    with pytest.raises(BadValue, match="2 objectives and 1 weights"):
        checked(lambda: Sum(objectives=(PerClass(), Whole()), weights=(1.0,)), "objective")
    recipe = toy_recipe(objective=Sum(objectives=(Whole(),)), outer={"steps": 1, "commit": "term"})
    with pytest.raises(NotBuilt, match="made together"):
        check_recipe(recipe, toy_splits().task)
