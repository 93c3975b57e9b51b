"""Components as values: names, ways of writing them, errors, JSON, digests, tree maps."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import pytest
from pydantic import Field, ValidationError

from condense.axes import Loss, Net, Objective, OwnLoss, Rule, Schedule, TaskLoss
from condense.component import Component, checked, kebab, member, named
from condense.errors import BadValue
from condense.fit import Constant, Fit
from condense.parts.augment import NoAugment, Then
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.matching import ClassWise, Gradient, Matching
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Cosine, Drops
from condense.recipe import Group, Outer, Recipe
from condense.testing import ToyNet, toy_recipe, toys


class Tree(Component):
    """An axis of its own."""

    axis: ClassVar[str] = "tree"

    @abstractmethod
    def height(self) -> float: ...


class OakTree(Tree):
    """A member with every kind of field."""

    shorthand: ClassVar[str] = "place"

    tall: float = Field(default=1.0, gt=0)
    place: str = "here"
    beside: Tree | None = None
    row: tuple[Tree, ...] = ()
    by_name: Mapping[str, Tree] = {}
    grows: float | Schedule = 0.5

    def height(self) -> float:
        return self.tall


class Bonsai(Tree):
    """A member under a name of its own."""

    name: ClassVar[str] = "small"

    def height(self) -> float:
        return 0.1


@pytest.fixture(autouse=True)
def _trees():
    with toys(OakTree, Bonsai):
        yield


def problem(make, where=""):
    with pytest.raises(BadValue) as caught:
        checked(make, where)
    return caught.value


def read(data):
    return lambda: member(Tree, data)


# -- names and axes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("KCenter", "k-center"),
        ("SGD", "sgd"),
        ("DCAugment", "dc-augment"),
        ("PerClass", "per-class"),
        ("ConvNet3D", "conv-net3-d"),
        ("X", "x"),
    ],
)
def test_kebab(written, name):
    assert kebab(written) == name


def test_a_class_is_an_axis_only_where_it_says_so():
    assert Tree.is_axis()
    assert not OakTree.is_axis()
    assert (OakTree.axis, OakTree.name) == ("tree", "oak-tree")
    assert Bonsai.name == "small"


def test_an_axis_itself_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Tree()


# -- ways of writing ------------------------------------------------------------------------------------------------


def test_an_instance_a_name_a_shorthand_and_a_mapping_mean_the_same():
    oak = OakTree(place="there")
    assert member(Tree, oak) is oak
    assert member(Tree, "oak-tree:there") == oak
    assert member(Tree, {"name": "oak-tree", "place": "there"}) == oak
    assert named(Tree, "oak-tree", place="there") == oak
    assert member(Tree, "oak-tree") == OakTree()


def test_everything_after_the_first_colon_is_the_argument():
    assert member(Tree, "oak-tree:C:/a:b").place == "C:/a:b"


def test_fields_take_members_in_every_way_at_any_depth():
    oak = OakTree(beside="small", row=["small", {"name": "oak-tree", "tall": 2}], by_name={"a": Bonsai()})
    assert oak.beside == Bonsai()
    assert oak.row == (Bonsai(), OakTree(tall=2))
    assert oak.by_name == {"a": Bonsai()}


def test_a_number_or_a_schedule():
    assert OakTree(grows=1).grows == 1.0
    assert OakTree(grows={"name": "cosine", "start": 0.3}).grows == Cosine(start=0.3)
    assert OakTree(grows=Drops(start=1, at=(0.5,))).grows == Drops(start=1, at=(0.5,))
    assert OakTree(grows="0.25").grows == 0.25  # as `--set` gives it


def test_other_axes_members_are_no_members():
    error = problem(read(SGD()), "tree")
    assert error.field == "tree"
    assert error.problem == "is no tree: give an instance, a name, or a mapping with a name; known: oak-tree, small"
    assert error.value == SGD()


def test_an_unknown_name_at_the_top_is_refused_like_one_below():
    error = problem(read("oak"), "tree")
    assert str(error) == "tree: no tree named 'oak'; known: oak-tree, small (got 'oak'). Did you mean oak-tree?"
    with pytest.raises(BadValue, match=r"^net: no net named 'conv'; known: .* Did you mean conv-net"):
        named(Net, "conv")


# -- errors ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_lists_the_known_and_the_nearest_as_the_design_says():
    recipe = {**toy_recipe().dump(), "objective": {**toy_recipe().objective.dump(), "distance": "cosin"}}
    error = problem(lambda: Recipe.model_validate(recipe), "recipe")
    assert str(error).startswith(
        "recipe.objective.distance: no distance named 'cosin'; "
        "known: relative-error, row-cosine, squared-error (got 'cosin')."
    )
    assert error.remedy == "Did you mean row-cosine?"
    assert (error.field, error.value, error.exit_code) == ("recipe.objective.distance", "cosin", 2)


def test_an_unknown_field_lists_the_fields_there_are():
    recipe = {**toy_recipe().dump(), "pool": {"name": "fresh", "net": {"name": "toy-net", "widht": 3}}}
    error = problem(lambda: Recipe.model_validate(recipe), "recipe")
    assert str(error).startswith("recipe.pool.net: toy-net has no field widht; it has dtype, width (got 'widht').")
    assert error.remedy == "Did you mean width?"


def test_a_network_of_the_registry_is_named_with_its_fields():
    error = problem(lambda: Recipe.model_validate({**toy_recipe().dump(), "pool": {"name": "fresh", "net": "conv"}}))
    assert error.problem.startswith("no net named 'conv'; known: ")
    assert "conv-net" in error.remedy
    with pytest.raises(
        BadValue, match=r"^net: conv-net has no field dept; it has .*depth.*norm.*width.* \(got 'dept'\)"
    ):
        named(Net, "conv-net", dept=3)


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        (
            {"beside": {"name": "oak-tree", "beside": "elm"}},
            "tree.beside.beside",
            "no tree named 'elm'; known: oak-tree",
        ),
        ({"row": ["small", "elm"]}, "tree.row.1", "no tree named 'elm'"),
        ({"by_name": {"a": "elm"}}, "tree.by_name.a", "no tree named 'elm'"),
        ({"tall": 0}, "tree.tall", "should be greater than 0"),
        ({"tall": "high"}, "tree.tall", "should be a valid number"),
        ({"tall": float("nan")}, "tree.tall", "should be a finite number"),
        ({"tall": float("inf")}, "tree.tall", "should be a finite number"),
        ({"grows": "cosin"}, "tree.grows", "no schedule named 'cosin'; known: constant, cosine, drops"),
        ({"grows": {"name": "cosine"}}, "tree.grows.start", "is required"),
        ({"grows": {"name": "cosine", "strt": 1}}, "tree.grows", "cosine has no field strt; it has start, to"),
        ({"grows": float("nan")}, "tree.grows", "should be a finite number"),
        ({"grows": [1]}, "tree.grows", "is no schedule"),
        ({"beside": 3}, "tree.beside", "is no tree"),
        ({"beside": "small:3"}, "tree.beside", "small takes no argument after a colon"),
        ({"beside": {"tall": 3}}, "tree.beside", "is no tree: give an instance, a name, or a mapping with a name"),
        ({"beside": {"name": 3}}, "tree.beside", "is no tree"),
    ],
)
def test_errors_name_the_whole_path_and_the_problem(change, field, text):
    error = problem(read({"name": "oak-tree", **change}), "tree")
    assert error.field == field
    assert error.problem.startswith(text)
    assert error.remedy.endswith((".", "?"))
    assert str(error) == f"{field}: {error.problem} (got {error.value!r}). {error.remedy}"


def test_further_errors_are_counted():
    error = problem(read({"name": "oak-tree", "tall": -1, "beside": "elm", "grows": "cosin"}), "tree")
    assert error.remedy.endswith("(2 more at fault.)")


def test_a_validator_of_a_class_speaks_for_itself():
    error = problem(lambda: Fit.model_validate({"rule": "sgd"}), "fit")
    assert error.problem == "give either epochs or steps"


def test_a_setting_cannot_be_changed_in_place():
    with pytest.raises(ValidationError, match="frozen"):
        OakTree().tall = 3.0
    with pytest.raises(ValidationError):
        OakTree(hight=3)


# -- values ---------------------------------------------------------------------------------------------------------

FOREST = OakTree(
    tall=0.1,
    beside=Bonsai(),
    row=(Bonsai(), OakTree(grows=Cosine(start=1 / 3))),
    by_name={"b": OakTree(), "a": Bonsai()},
    grows=1e-20,
)


def test_json_gives_the_same_value_back():
    text = json.dumps(FOREST.dump(), allow_nan=False)
    again = member(Tree, json.loads(text))
    assert again == FOREST
    assert again.dump() == FOREST.dump()
    assert hash(again) == hash(FOREST)
    assert json.loads(text)["row"][1]["grows"] == {"name": "cosine", "start": 1 / 3, "to": 0.0}


def test_equality_is_of_class_and_settings():
    assert SGD() == SGD()
    assert SGD() != SGD(momentum=0.1)
    assert RowCosine() != SquaredError()
    assert Constant(at=1) != Cosine(start=1)
    assert len({SGD(), SGD(momentum=0.0), SGD(momentum=0.5)}) == 2


def test_values_with_mappings_in_them_can_be_keys():
    matching = Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise())
    assert {matching: 1}[Matching(statistic="gradient", distance="row-cosine", pairing="class-wise")] == 1


def test_the_digest_of_a_value_never_changes():
    """Caches and checkpoints are addressed by it."""
    assert SGD(momentum=0.5).digest() == "b1073126bdc0007c"
    assert SGD(momentum=0.5).digest() == member(Rule, {"momentum": 0.5, "name": "sgd"}).digest()
    assert (
        OakTree(by_name={"a": Bonsai(), "b": OakTree()}).digest()
        == OakTree(by_name={"b": OakTree(), "a": Bonsai()}).digest()
    )


def test_the_digest_is_the_same_in_another_process():
    code = "from condense.parts.rules import SGD; print(SGD(momentum=0.5).digest())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == SGD(momentum=0.5).digest()


def test_every_setting_counts_in_the_digest():
    values = [SGD(), Adam(), SGD(momentum=0.1), SGD(weight_decay=0.1), Constant(at=0), Fit(rule=SGD(), steps=1)]
    assert len({value.digest() for value in values}) == len(values)


def test_with_validates_again():
    assert SGD(momentum=0.5).with_(weight_decay=0.1) == SGD(momentum=0.5, weight_decay=0.1)
    with pytest.raises(ValidationError):
        SGD().with_(momentum=3)
    with pytest.raises(ValidationError):
        SGD().with_(momentun=0.3)


def test_walk_finds_all_parts_depth_first():
    names = [part.name for part in FOREST.walk()]
    assert names == ["oak-tree", "small", "small", "oak-tree", "cosine", "oak-tree", "small"]


# -- tree maps ------------------------------------------------------------------------------------------------------


class Wrapped(Tree):
    """Wraps by the same type."""

    inner: Tree

    def height(self) -> float:
        return self.inner.height() + 1


def test_rewrite_replaces_the_topmost_of_a_kind_in_fields_tuples_and_mappings():
    with toys(OakTree, Bonsai, Wrapped):
        changed = FOREST.rewrite(Tree, lambda tree: Wrapped(inner=tree))
        assert changed.beside == Wrapped(inner=Bonsai())
        assert changed.row == tuple(Wrapped(inner=tree) for tree in FOREST.row)  # not inside of what was wrapped
        assert changed.by_name["b"] == Wrapped(inner=OakTree())
        assert FOREST.beside == Bonsai(), "a value was changed in place"


def test_rewrite_of_a_field_leaves_the_others():
    changed = FOREST.rewrite(Tree, lambda tree: OakTree(tall=9), field="beside")
    assert changed == FOREST.with_(beside=OakTree(tall=9))
    deep = Then(augments=(NoAugment(), Then(augments=(NoAugment(),))))
    assert deep.rewrite(NoAugment, lambda _: Then(augments=(NoAugment(),))).augments[0] == Then(augments=(NoAugment(),))


def test_rewrite_reaches_a_kind_anywhere():
    recipe = toy_recipe(
        outer=Outer(steps=1, groups=(Group(rule=SGD()), Group(role="x", rule=Adam(), lr=Cosine(start=1))))
    )
    changed = recipe.rewrite(Rule, lambda rule: SGD(momentum=0.7))
    assert [group.rule for group in changed.outer.groups] == [SGD(momentum=0.7)] * 2
    assert changed.rewrite(Net, lambda _: ToyNet(width=7)).pool.net.width == 7
    assert recipe.rewrite(Objective, lambda _: None).objective is None


def test_losses_are_found_by_the_field_named_loss():
    fit = Fit(rule=SGD(), steps=1)
    assert fit.loss == OwnLoss()
    assert fit.rewrite(Loss, lambda _: TaskLoss(), field="loss").loss == TaskLoss()
    assert fit.rewrite(Loss, lambda _: TaskLoss(), field="other") == fit
