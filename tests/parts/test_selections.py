"""Selections: the best set that was looked at is released, by validation examples alone, and resume changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from condense.axes import Selection
from condense.engine import condense
from condense.errors import BadData
from condense.fit import Fit
from condense.parts.rules import SGD
from condense.parts.selections import OnValidation
from condense.running import Limits, Paused
from condense.testing import Sealed, ToyNet, toy_recipe, toy_run, toy_splits, toys

FIT = Fit(rule=SGD(momentum=0.9), lr=0.1, steps=4, batch=None)


def splits(shift: int = 0):
    """The toy with a validation split; `shift`: the classes of the test split are renamed."""
    made = toy_splits()
    test = type(made.test)(made.test.task, made.test.x, (made.test.y + shift) % 3)
    return replace(made, validation=toy_splits(seed=7).test, test=test)


class Distance(Selection):
    """How close the first stored pixel is to a goal."""

    goal: float

    def looks(self, done: int, steps: int) -> bool:
        return done < steps

    def score(self, run, syn) -> float:
        return -abs(float(syn.freeze().x.flatten()[0]) - self.goal)


@pytest.fixture(autouse=True)
def _toys():
    with toys(Distance):
        yield


def path(recipe) -> list[float]:
    """The first pixel after 0, 1, 2 ... steps, by runs of that many steps."""
    longest = recipe.outer.steps
    return [
        float(condense(toy_run(recipe.set("outer.steps", n), splits())).freeze().x.flatten()[0])
        for n in range(longest + 1)
    ]


@pytest.mark.parametrize("at", [0, 2, 4])
def test_the_best_set_is_released_wherever_it_is(at):
    plain = toy_recipe().set("outer.steps", 4)
    passed = path(plain)
    run = toy_run(plain.with_(selection=Distance(goal=passed[at])), splits())
    released = condense(run)
    assert float(released.freeze().x.flatten()[0]) == passed[at]
    assert run.notes["selected"]["after"] == at
    assert sorted(map(int, run.notes["selected"]["scores"])) == [0, 1, 2, 3, 4]


def test_looks_are_even_and_begin_with_the_first_set():
    selection = OnValidation(net=ToyNet(), fit=FIT, times=4)
    assert [done for done in range(13) if selection.looks(done, 12)] == [0, 3, 6, 9]
    assert [done for done in range(11) if selection.looks(done, 10)] == [0, 3, 5, 8]
    assert [done for done in range(3) if selection.looks(done, 2)] == [0, 1]


def test_scores_are_validation_accuracies_of_networks_trained_on_the_released_form(device):
    selection = OnValidation(net=ToyNet(), fit=FIT, times=1, repeats=3)
    run = toy_run(toy_recipe(selection=selection).set("outer.steps", 0), splits())
    syn = condense(run)
    expected = []
    for i in range(3):
        key = run.rng.fold("selection", i)
        module = ToyNet().make(run.task, key.fold("make"))
        data = syn.freeze()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(4):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(module(data.x), data.y).backward()
            optimiser.step()
        valid = run.splits.validation
        expected.append(float((module(valid.x).argmax(dim=1) == valid.y).float().mean()))
    assert run.notes["selected"] == {"after": 0, "scores": {"0": pytest.approx(sum(expected) / 3)}}


def test_the_test_split_has_no_say():
    selection = OnValidation(net=ToyNet(), fit=FIT, times=3)
    sets = [condense(toy_run(toy_recipe(selection=selection), splits(shift))).freeze().x for shift in (0, 1)]
    assert torch.equal(*sets)


def test_a_stopped_run_selects_as_one_that_was_not(tmp_path):
    selection = OnValidation(net=ToyNet(), fit=FIT, times=3)
    recipe = toy_recipe(selection=selection).set("outer.steps", 6)
    whole = condense(toy_run(recipe, splits()))
    pausing = toy_run(recipe, splits(), folder=tmp_path, limits=Limits(steps=1, minutes=1e-9))
    with pytest.raises(Paused):
        condense(pausing)
    for _ in range(10):
        again = toy_run(recipe, splits(), folder=tmp_path, limits=Limits(steps=1, minutes=1e-9))
        try:
            resumed = condense(again)
            break
        except Paused:
            continue
    assert torch.equal(whole.freeze().x, resumed.freeze().x)


def test_without_a_validation_split_it_refuses_and_says_how_to_go_on():
    with pytest.raises(BadData, match=r"no validation split, by which.*selection=null"):
        OnValidation(net=ToyNet(), fit=FIT).admit(toy_splits())


def test_it_reads_examples_so_that_a_private_source_refuses():
    recipe = toy_recipe(selection=OnValidation(net=ToyNet(), fit=FIT))
    assert recipe.total_reads().examples
    with pytest.raises(BadData, match="on-validation"):
        Sealed(toy_splits().train).admit(recipe)
