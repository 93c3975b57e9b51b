"""The test kit finds what it is there to find, and errors say what they are asked to say."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest
import torch

from condense.axes import Objective, Rule, Term
from condense.errors import BadData, BadValue, CondenseError, Diverged, NotBuilt, listed, meant, nearest, shown
from condense.parts.inits import Real
from condense.parts.rules import SGD
from condense.rng import Rng
from condense.testing import Sealed, check_component, check_method, toy_recipe, toy_run, toy_splits, toys


class Twice(Rule):
    """Doubles parameters."""

    by: Any = 2.0

    def init(self, params):
        return {}

    def update(self, params, grads, state, lr):
        return {key: value * 2 for key, value in params.items()}, {}


class Undocumented(SGD):
    name: ClassVar[str] = "undocumented"


class Shouted(SGD):
    """Has a name that no command line can spell."""

    name: ClassVar[str] = "Shouted Rule"


class Forgetful(SGD):
    """Writes less than it is."""

    name: ClassVar[str] = "forgetful"

    def dump(self):
        return {"name": self.name}


class Open(SGD):
    """Can be changed in place."""

    name: ClassVar[str] = "open"
    model_config: ClassVar[dict] = {"frozen": False}


def test_a_part_that_keeps_the_contract_passes():
    with toys(Twice):
        check_component(Twice())
        check_component(Twice(by=0.5))


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (lambda: Undocumented(), "no docstring"),
        (lambda: Shouted(), "no name in lower case"),
        (lambda: Forgetful(momentum=0.5), "changes on its way through JSON"),
        (lambda: Open(), "can be changed in place"),
        (lambda: Twice(by=(1, 2)), "changes on its way through JSON"),
    ],
)
def test_a_part_that_breaks_the_contract_is_named(part, text):
    made = part()
    with toys(type(made)), pytest.raises(AssertionError, match=text) as caught:
        check_component(made)
    assert f"rule {made.name!r}" in str(caught.value)


class Dice(Objective):
    """Draws from Python's own generator: no two runs are alike."""

    def __call__(self, step):
        yield Term({"dice": (step.syn.x * random.random()).sum()})


class Explosive(Objective):
    """Divides by zero."""

    def __call__(self, step):
        yield Term({"boom": (step.syn.x / 0).sum()})


class Curious(Objective):
    """Reads examples, and says that it does not."""

    def reads(self, recipe):
        return toy_recipe(objective=None).total_reads()

    def __call__(self, step):
        real = step.real.draw(3, 0, step.rng).x
        yield Term({"gap": (step.syn.x.mean() - real.mean()).square()})


def test_a_method_that_keeps_the_contract_passes():
    with toys():
        check_method(toy_recipe())
        check_method(toy_recipe(init=Real()))


def test_a_method_that_draws_outside_of_its_keys_is_found():
    with toys(Dice), pytest.raises(AssertionError, match="two runs with one seed differ in x"):
        check_method(toy_recipe(objective=Dice()))


def test_a_method_that_explodes_is_found():
    with toys(Explosive), pytest.raises((AssertionError, Diverged)):
        check_method(toy_recipe(objective=Explosive()))


def test_a_method_that_reads_more_than_it_says_is_found():
    with toys(Curious), pytest.raises(BadData, match="sealed"):
        check_method(toy_recipe(objective=Curious()))


def test_a_sealed_source_gives_nothing_but_measures():
    source = Sealed(toy_splits().train)
    for ask in (
        lambda: source.draw(1, 0, Rng(0)),
        lambda: source.draw(1, 0, Rng(0), at=3),
        lambda: source.take(torch.tensor([0])),
        lambda: source.groups,
        lambda: source.counts(),
        lambda: source.ids(0),
        lambda: next(source.sweep(2)),
    ):
        with pytest.raises(BadData, match=r"does not give .* Use `measure` only"):
            ask()
    assert source.releases == 0
    with pytest.raises(BadData, match="gives no examples, which init real would read"):
        source.admit(toy_recipe(init=Real()))
    source.admit(toy_recipe())


def test_toy_runs_store_nothing():
    run = toy_run(toy_recipe())
    assert run.folder is None
    assert run.plan.recipe == toy_recipe()


# -- errors ---------------------------------------------------------------------------------------------------------


def test_an_error_names_field_value_problem_and_remedy():
    error = BadValue("per_class", 0, "must be 1 or more", "Try 10.")
    assert (error.field, error.value, error.problem, error.remedy) == ("per_class", 0, "must be 1 or more", "Try 10.")
    assert str(error) == "per_class: must be 1 or more (got 0). Try 10."
    assert isinstance(error, ValueError)
    assert isinstance(NotBuilt("x", 1, "y", "z"), NotImplementedError)


def kinds(cls=CondenseError):
    return [cls, *(kind for sub in cls.__subclasses__() for kind in kinds(sub))]


def test_every_kind_of_error_has_an_exit_code_of_its_own():
    public = [kind for kind in kinds() if not kind.__name__.startswith("_")]
    ours = [kind for kind in public if kind.__module__.startswith("condense")]
    assert len(ours) >= 9
    assert len({kind.exit_code for kind in ours}) == len(ours)
    assert all(kind.exit_code for kind in ours), "0 means success"


def test_long_values_are_cut():
    assert shown("a" * 200) == "'" + "a" * 116 + "..."
    assert shown(3) == "3"


def test_near_names_come_first():
    assert nearest("herdin", ["k-center", "herding"]) == "Did you mean herding? Known: herding, k-center."
    assert nearest("x", ["abc"]) == "Known: abc."
    assert nearest("x", []) == "Known: none."
    assert meant("x", ["abc"]) == ""
    assert listed(["b", "a"]) == "a, b"
