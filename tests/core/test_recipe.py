"""Recipes: settings by path, groups by role, what is read, what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from condense.errors import BadValue
from condense.fit import Fit
from condense.parts.inits import Real
from condense.parts.pools import Fresh, NoModel
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Cosine
from condense.recipe import Group, Outer, Published, Reads, Recipe, check_recipe, published
from condense.task import Task
from condense.testing import ToyNet, toy_recipe, toys


@pytest.fixture(autouse=True)
def _toys():
    with toys():
        yield


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("outer.steps", 7, lambda r: r.outer.steps),
        ("outer.steps", "7", lambda r: r.outer.steps),
        ("pool.net.width", 9, lambda r: r.pool.net.width),
        ("outer.groups.0.lr", 0.25, lambda r: r.outer.groups[0].lr),
        ("outer.groups.0.rule", "adam", lambda r: r.outer.groups[0].rule.name),
        ("outer.groups.0.rule.momentum", 0.5, lambda r: r.outer.groups[0].rule.momentum),
        ("init", "real", lambda r: r.init.name),
        ("objective.weights.head*", 0.5, lambda r: r.objective.weights.get("head*")),
    ],
)
def test_set_reaches_a_leaf_and_changes_nothing_else(path, value, read):
    recipe = toy_recipe()
    if path.startswith("objective.weights"):
        recipe = recipe.set("objective.weights", {"head*": 1.0, "*": 1.0})
    before = recipe.dump()
    changed = recipe.set(path, value)
    assert read(changed) == (7 if value == "7" else value)
    assert recipe.dump() == before
    assert changed != recipe
    assert Recipe.model_validate(changed.dump()) == changed


def test_a_part_that_is_not_there_is_set_whole():
    recipe = toy_recipe().set("pool.inner", {"name": "fit", "rule": "sgd", "steps": 3})
    assert recipe.pool.inner == Fit(rule=SGD(), steps=3)
    assert recipe.set("pool.inner", None).pool.inner is None
    assert recipe.set("pool.inner.lr", {"name": "cosine", "start": 1}).pool.inner.lr == Cosine(start=1)


@pytest.mark.parametrize(
    ("path", "value", "field", "text"),
    [
        ("pool.net.dept", 3, "recipe.pool.net", "toy-net has no field dept; it has dtype, width"),
        ("pool.nets", 3, "recipe.pool", "fresh has no field nets; it has calibrate, every, inner, net, on, turns"),
        ("steps", 3, "recipe", "recipe has no field steps; it has augment, budget"),
        ("", 3, "recipe", "recipe has no field ; it has augment"),
        ("outer.steps.more", 3, "recipe.outer.steps", "has no fields below it"),
        ("pool.inner.epochs", 3, "recipe.pool.inner", "has no fields below it"),
        ("outer.groups.1.lr", 3, "recipe.outer.groups.1", "is no position in recipe.outer.groups"),
        ("outer.groups.first.lr", 3, "recipe.outer.groups.first", "is no position in recipe.outer.groups"),
        (
            "objective.distance",
            "cosin",
            "recipe.objective.distance",
            "no distance named 'cosin'; known: relative-error, row-cosine",
        ),
        ("outer.groups.0.rule.momentum", 2, "recipe.outer.groups.0.rule.momentum", "should be less than 1"),
        ("outer.groups.0.lr", "fast", "recipe.outer.groups.0.lr", "no schedule named 'fast'; known: constant"),
        ("outer.groups.0.lr", float("nan"), "recipe.outer.groups.0.lr", "should be a finite number"),
        ("outer.steps", -1, "recipe.outer.steps", "should be greater than or equal to 0"),
        ("outer.steps", 1.5, "recipe.outer.steps", "should be a valid integer"),
        ("budget.n", 0, "recipe.budget.n", "should be greater than or equal to 1"),
        (
            "init",
            None,
            "recipe.init",
            "is no init: give an instance, a name, or a mapping with a name; known: fitting, herding",
        ),
    ],
)
def test_set_refuses_what_leads_nowhere_or_cannot_be(path, value, field, text):
    with pytest.raises(BadValue) as caught:
        toy_recipe().set(path, value)
    assert caught.value.field == field
    assert caught.value.problem.startswith(text)
    assert caught.value.remedy


def test_a_role_belongs_to_exactly_one_group():
    outer = Outer(steps=1, groups=(Group(role="im*", rule=SGD()), Group(role="labels", rule=Adam())))
    assert outer.group("images").rule == SGD()
    assert outer.group("labels").rule == Adam()
    with pytest.raises(BadValue, match=r"outer.groups: the role 'rate' is matched by 0 groups"):
        outer.group("rate")
    with pytest.raises(BadValue, match="matched by 2 groups"):
        Outer(steps=1, groups=(Group(rule=SGD()), Group(role="labels", rule=Adam()))).group("labels")


def test_reads_add_up_over_the_parts():
    assert Reads(once=1, per_step=2) + Reads(examples=True, per_step=1) == Reads(True, 1, 3)
    assert toy_recipe().total_reads() == Reads(examples=False, per_step=1)
    assert toy_recipe(init=Real()).total_reads().examples
    assert toy_recipe(pool=Fresh(net=ToyNet(), inner=Fit(rule=SGD(), steps=1), on="real")).total_reads().examples
    assert not toy_recipe(pool=Fresh(net=ToyNet(), inner=Fit(rule=SGD(), steps=1))).total_reads().examples
    assert toy_recipe(objective=None, pool=NoModel()).total_reads() == Reads()


def test_check_lets_every_part_refuse():
    class Picky(ToyNet):
        """Refuses everything."""

        def check(self, recipe, task):
            raise BadValue("pool.net", task.shape, "does not fit", "Use another.")

    with pytest.raises(BadValue, match=r"pool.net: does not fit"):
        check_recipe(toy_recipe(pool=Fresh(net=Picky())), Task(classes=("a",), shape=(1, 8, 8)))


def test_steps_of_a_method_that_takes_none_are_refused():
    still = toy_recipe(objective=None, pool=NoModel(), outer=Outer(steps=3))
    with pytest.raises(BadValue, match=r"^outer.steps: has nothing to follow.*Leave out --steps"):
        check_recipe(still, Task(classes=("a",), shape=(1, 8, 8)))
    check_recipe(still.set("outer.steps", 0), Task(classes=("a",), shape=(1, 8, 8)))


def test_a_published_recipe_turns_its_errors_into_ours():
    @published(paper="arXiv:0000.00000", title="A title")
    def made(*, per_class: int = 1) -> Recipe:
        return toy_recipe().with_(budget={"name": "per-class", "n": per_class})

    assert isinstance(made, Published)
    assert made(per_class=3).budget.n == 3
    with pytest.raises(BadValue, match=r"recipe.budget.n: should be greater than or equal to 1 \(got 0\)"):
        made(per_class=0)


def test_other_kinds_of_target_are_a_seam_that_says_so():
    with pytest.raises(NotImplementedError, match="a seam that nothing fills yet"):
        Task(classes=("a", "b"), shape=(1,), kind="multilabel")


def test_a_group_is_a_value_that_refuses_what_it_cannot_do():
    with pytest.raises(ValidationError):
        Group(rule=SGD(), every=0)
    with pytest.raises(ValidationError):
        Group(rule=SGD(), bounds=("low", 1))
    assert Group(rule="sgd").lr == 0.1
