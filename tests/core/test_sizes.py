"""Forms and sizes: methods are found by the form of the data; sets of so many in all, or a share of what there is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from condense import api, docs, plugins, published, reproduced
from condense.baselines import random_images
from condense.cli import app
from condense.data import Data, TensorSource
from condense.errors import BadValue
from condense.parts.budgets import PerClass, Ratio, Total
from condense.planning import method_for
from condense.plugins import DISTRIBUTION, Plugin, Registry, registry, using
from condense.published import Row, settings_for, usual_size
from condense.recipe import Outer
from condense.recipe import published as marked
from condense.reproduced import Finished, Shelf, Target, lines, page, run_name, targets
from condense.reproduction import chosen
from condense.sizes import Size, arguments, asked_size, default_size, share, size_words
from condense.task import Tensors
from condense.testing import Raw, Still, Toy, ToyNet, toy_recipe, toy_run, toy_splits

ROOT = Path(__file__).parents[2]
JUDGED = {"nets": [{"name": "toy-net"}], "epochs": 2}
ROWS = {  # of the methods for meshes: settings for any data, and for one set at two sizes
    "published/meshes.toml": (
        Row(settings={"outer.steps": 5}),
        Row(data="toy-meshes", settings={"outer.steps": 3}, judging=JUDGED),
        Row(data="toy-meshes", total=7, accuracy=60.0, source="a test", settings={"outer.steps": 2}),
        Row(data="toy-meshes", total=9, accuracy=70.0, source="a test"),
    ),
    "published/random-meshes.toml": (Row(data="toy-meshes", judging=JUDGED),),
}


class Meshes(Tensors):
    """x is one tensor, but nobody would call its examples images."""

    noun = "meshes"


class Unlabelled(TensorSource):
    """A source that comes with as many examples again that have no label."""

    @property
    def population(self):
        return 2 * len(self)

    def encoded(self, transform):
        made = super().encoded(transform)
        return Unlabelled(made.task, made.x, made.y, made.transform)

    def provenance(self):
        return {**super().provenance(), "population": self.population}


class ToyMeshes(Data):
    """The toy splits as meshes: 60 to learn from, of 120."""

    form = "meshes"
    seed: int = 7

    def open(self, device="cpu"):
        splits = toy_splits(device, self.seed)
        task = splits.task.model_copy(update={"form": Meshes()})
        train, test = (kind(task, s.x, s.y) for kind, s in ((Unlabelled, splits.train), (TensorSource, splits.test)))
        return replace(splits, train=train, test=test)


def sized(total, ratio, of="train"):
    return Total(n=total or 6) if ratio is None else Ratio(r=ratio, of=of)


@marked(paper="p", title="Knit", form="meshes", settings="published/meshes.toml")
def knit(*, total: int | None = None, ratio: float | None = None, of: str = "train", loops: int = 9):
    return toy_recipe(budget=sized(total, ratio, of), outer={"steps": loops, "groups": [{"rule": "sgd"}]})


@marked(paper="p", title="Random meshes", form="meshes", settings="published/random-meshes.toml")
def random(*, total: int = 6, ratio: float | None = None):
    return toy_recipe(objective=None, pool="no-model", init="real", budget=sized(total, ratio), outer=Outer(steps=0))


@marked(paper="p", title="All meshes", form="meshes")
def everything():
    return random(ratio=1.0)


OURS = Plugin(
    "meshes",
    "tests.meshes",
    DISTRIBUTION,
    "0",
    object=type("module", (), {"__doc__": "Methods for meshes."}),
    parts=[ToyNet, Raw, Still, Toy, Meshes, ToyMeshes],
    recipes={"knit": knit, "random": random, "everything": everything},
)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty folder to work in, with methods for meshes, of which one is called as one for images is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    for module in (published, reproduced, docs):
        monkeypatch.setattr(module, "rows", lambda method: ROWS.get(method.settings, ()))
    now = registry()
    own = [plugin for plugin in now.plugins if not {recipe.form for recipe in plugin.recipes.values()} - {"tensors"}]
    with using(Registry([*own, OURS], now.manager)):
        yield tmp_path


def call(*arguments, code=0):
    found = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="condense")
    assert found.exit_code == code, found.output
    assert "Traceback" not in found.output
    return found


def plan(method="knit", data="toy-meshes", **asked):
    return api.plan(method, data=data, **asked)


# -- what is a size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"per_class": 1, "total": 2}, "per_class and total", "Give --per-class or --total"),
        ({"total": 0}, "total", "1 or more"),
        ({"total": 2.5}, "total", "1 or more"),
        ({"ratio": 0}, "ratio", "above 0, and 1 at most"),
        ({"ratio": 1.01}, "ratio", "above 0, and 1 at most"),
        ({"ratio": True}, "ratio", "above 0, and 1 at most"),
        ({"ratio": float("nan")}, "ratio", "above 0, and 1 at most"),
        ({"ratio": 0.1, "of": "test"}, "of", "train or all"),
        ({"total": 3, "of": "all"}, "of", "Give --ratio"),
    ],
)
def test_what_can_be_no_size_is_refused_by_its_name(asked, field, said):
    with pytest.raises(BadValue, match=said) as caught:
        plan(**asked)
    assert caught.value.field == field


def test_numbers_of_numpy_and_torch_are_numbers():
    settled = api.plan("dm", per_class=np.int64(3), seed=np.int32(2), steps=np.int64(4), device=torch.device("cpu"))
    assert settled == api.plan("dm", per_class=3, seed=2, steps=4, device="cpu")
    assert type(settled.seed) is int
    assert asked_size(None, torch.tensor(7), None, "train") == Size(total=7)


def test_a_size_is_said_alike_everywhere():
    sizes = [Size(per_class=10), Size(total=70), Size(ratio=0.5), Size(ratio=0.026, of="all"), Size()]
    assert [size.label for size in sizes] == ["10", "70", "0.5", "0.026-all", "set"]
    assert [size.told() for size in sizes[:4]] == [
        *("10 per class", "70 in all"),
        *("50 % of the training items", "2.6 % of all items"),
    ]
    assert [size.told("meshes") for size in sizes[:2]] == ["10 meshes per class", "70 meshes in all"]
    for budget in (PerClass(n=10), Total(n=70), Ratio(r=0.5), Ratio(r=0.026, of="all")):
        size = asked_size(**{"per_class": None, "total": None, "ratio": None, "of": "train", **budget.asked})
        assert size in sizes


def test_both_shares_are_said_where_not_all_are_labelled():
    assert size_words(70, 140, 2708, "nodes") == "70 nodes (2.6 % of all 2,708, 50 % of the 140 to learn from)"
    assert size_words(100, 1200, 1200, "images") == "100 images (8.3 % of the 1,200 to learn from)"
    assert size_words(4, 0, 0, "meshes") == "4 meshes"
    assert [share(part) for part in (1, 0.999, 0.5, 0.0263, 0.000512)] == ["100 %", "100 %", "50 %", "2.6 %", "0.051 %"]


def test_a_function_is_handed_the_size_that_was_asked_for_and_nothing_else():
    assert arguments("knit", knit.make, Size(total=7)) == {"total": 7}
    assert arguments("knit", knit.make, Size(ratio=0.1, of="all")) == {"ratio": 0.1, "of": "all"}
    assert arguments("random", random.make, Size(ratio=0.1)) == {"ratio": 0.1}, "it takes no `of`"
    assert arguments("any", lambda **asked: asked, Size(per_class=3)) == {"per_class": 3}
    for name, asked, said in (
        ("knit", {"per_class": 3}, "no size that knit takes: it takes total or ratio"),
        ("everything", {"total": 3}, "it takes none"),
    ):
        with pytest.raises(BadValue, match=said):
            plan(name, **asked)


def test_what_is_not_asked_for_is_the_methods_own_then_the_first_published_then_refused():
    assert default_size(random.make) == Size(total=6)
    assert default_size(lambda *, per_class: per_class) == Size(per_class=10)
    assert default_size(everything.make) == Size()
    assert plan("random").recipe.budget == Total(n=6)
    assert usual_size(knit, "toy-meshes") == Size(total=7)
    assert plan().recipe == plan(total=7).recipe
    with using(Registry([*registry().plugins, elsewhere()], registry().manager)):
        with pytest.raises(BadValue, match=r"no usual size for other-meshes.*'knit'.*--total or --ratio"):
            plan(data="other-meshes")
        assert plan(data="other-meshes", ratio=0.5).recipe.outer.steps == 5


def elsewhere():
    class OtherMeshes(ToyMeshes):
        """Of which nothing was published."""

    return Plugin("other", "other", "toys", "0", parts=[OtherMeshes])


# -- forms ----------------------------------------------------------------------------------------------------------


def test_a_method_is_found_by_the_form_of_the_data():
    assert plan("random").recipe.budget == Total(n=6)
    assert plan("random", "toy").recipe.budget == PerClass(n=10)
    assert set(registry().recipes("meshes")) == {"knit", "random", "everything"}
    assert {"random", "meshes:random", "knit", "dc"} <= set(registry().recipes())
    assert "knit" not in registry().recipes("tensors")
    assert (registry().noun("tensors"), registry().noun("meshes")) == ("images", "meshes")


def test_a_method_for_another_form_says_what_it_condenses_and_what_there_is():
    with pytest.raises(BadValue) as caught:
        plan(data="digits")
    assert "condenses meshes, and digits holds images (got 'knit')" in str(caught.value)
    assert "Methods for images: datm, dc, dd, dd-fixed, dm, " in str(caught.value)
    assert "Data sets of meshes: toy-meshes." in str(caught.value)
    with pytest.raises(BadValue, match="condenses images, and toy-meshes holds meshes"):
        plan("dm")
    with pytest.raises(BadValue, match=r"is not known \(got 'knti'\). Did you mean knit"):
        plan("knti")


def test_random_is_that_of_the_form_with_the_budget_and_the_preprocessing_of_the_run():
    recipe = knit(total=5)
    chosen_set = random_images(toy_run(recipe, ToyMeshes().open()))
    assert len(chosen_set.data) == 5
    assert chosen_set.data.task.form == Meshes()
    with pytest.raises(BadValue, match="is not known"):
        registry().recipe("random", "hulls")


# -- planning -------------------------------------------------------------------------------------------------------


def test_published_settings_are_looked_up_by_the_size_in_all():
    assert settings_for(knit, "toy-meshes", total=7).accuracy == 60.0
    assert settings_for(knit, "toy-meshes", 7).accuracy is None, "7 of each class is another size"
    assert [plan(**size).recipe.outer.steps for size in ({"total": 7}, {"total": 8}, {"ratio": 0.1})] == [2, 3, 3]


def test_a_plain_plan_leaves_out_the_settings_of_the_set_and_is_judged_alike():
    fitted, plain = plan(total=7), plan(total=7, published=False)
    assert (fitted.recipe.outer.steps, plain.recipe.outer.steps) == (2, 5), "what holds for any data stays"
    assert fitted.protocol == plain.protocol
    assert plain.protocol.epochs == 2
    assert settings_for(knit, "toy-meshes", total=7, plain=True).accuracy == 60.0


def test_the_data_can_be_set_like_any_part():
    assert plan(settings={"data.seed": 3}).data == ToyMeshes(seed=3)
    with pytest.raises(BadValue, match=r"has no field sed"):
        plan(settings={"data.sed": 3})
    with pytest.raises(BadValue, match=r"data.seed"):
        plan(settings={"data.seed": "x"})
    x, y = toy_splits().train.x, toy_splits().train.y
    assert plan("dm", (x, y), settings={"data.seed": 4}).data.live is not None, "what is live stays so"


def test_folders_are_named_by_the_size():
    found = [api.default_folder(plan(**asked)).name for asked in ({"total": 7}, {"ratio": 0.1}, {})]
    assert found == ["knit-toy-meshes-7-0", "knit-toy-meshes-0.1-0", "knit-toy-meshes-7-0"]
    assert api.default_folder(plan(ratio=0.1, of="all")).name == "knit-toy-meshes-0.1-all-0"
    made = [api.run("knit", data="toy-meshes", total=7, steps=0, published=asked).path.name for asked in (True, False)]
    assert made == ["knit-toy-meshes-7-0", "knit-toy-meshes-7-0-plain"]


# -- words ----------------------------------------------------------------------------------------------------------


def test_a_run_speaks_of_its_examples_by_their_name():
    made = call("run", "knit", "--data", "toy-meshes", "--ratio", 0.1, "--of", "all", "--repeats", 1, "--out", "made")
    first = made.stdout.splitlines()[0]
    assert first.startswith("knit on toy-meshes, 12 meshes (10 % of all 120, 20 % of the 60 to learn from), 3 steps")
    assert "Accuracy on the test meshes, protocol vico" in made.stdout
    assert all(name in made.stdout for name in ("condensed meshes", "random meshes"))
    assert "judging random meshes" in made.stderr
    report = json.loads(Path("made/report.json").read_text())
    assert {row["noun"] for row in report["rows"]} == {"meshes"}
    shown = re.sub(r"<style>.*?</style>|<details>.*?</details>", "", Path("made/report.html").read_text(), flags=re.S)
    assert "12 meshes instead of 120" in shown
    assert "of the test meshes right" in shown
    assert all(part in shown for part in ("10 % of all 120", "20 % of the 60 to learn from"))
    assert re.findall(r".{4}\bimages\b", re.sub(r"<[^>]*>", " ", shown)) == ["The images"], "which these toys are"
    assert "images" not in made.stdout.replace("pictures/images.png", "")


def test_lists_are_of_all_forms_or_of_some():
    whole, some = (json.loads(call("list", *more, "--json").stdout) for more in ((), ("--form", "meshes")))
    assert {(row["name"], row["form"]) for row in whole["methods"]} >= {("random", "tensors"), ("random", "meshes")}
    assert {row["name"] for row in some["methods"]} == {"knit", "random", "everything"}
    assert (some["data"], "digits" in whole["data"]) == (["toy-meshes"], True)
    assert "data (meshes): toy-meshes" in call("list").stdout
    assert "meshes, nodes, tensors" in call("list", "--form", "hulls", code=2).stderr


def test_show_is_of_the_size_that_is_asked_for_and_sets_what_it_prints():
    told = call("show", "knit", "--data", "toy-meshes", "--total", 9).stdout
    assert "on toy-meshes, 9 meshes in all:" in told
    assert "published: toy-meshes, 9 in all: 70 % (a test)" in told
    assert "  data.seed=7" in told
    plain = call("show", "knit", "--data", "toy-meshes", "--total", 9, "--plain", "--json")
    assert json.loads(plain.stdout)["recipe"]["outer"]["steps"] == 5
    assert "it takes total or ratio" in call("run", "knit", "--data", "toy-meshes", "--per-class", 1, code=2).stderr
    assert "is no argument of knit" in call("run", "knit", "--data", "toy-meshes", "--with", "total=3", code=2).stderr


def test_the_page_of_methods_is_grouped_by_what_they_condense():
    text = docs.methods(registry())
    images, meshes = text.index("## Methods for images"), text.index("## Methods for meshes")
    assert images < text.index("**`random`**") < meshes < text.index("**`meshes:random`**: Random meshes")
    assert meshes < text.index("**`knit`**")
    assert "| toy-meshes | 7 in all |" in text


# -- reproduced -----------------------------------------------------------------------------------------------------


def test_rows_in_all_are_targets_and_can_be_named():
    known = [target for target in targets(registry()) if target.data == "toy-meshes"]
    assert [target.key for target in known] == [("knit", "toy-meshes", f"{n} in all") for n in (7, 9)]
    assert [target.total for target in chosen("knit", None)] == [7, 9]
    assert [target.accuracy for target in chosen("knit", None, total=9)] == [70.0]
    assert chosen("knit", "toy-meshes", total=8) == [Target(method="knit", data="toy-meshes", total=8)]
    with pytest.raises(BadValue, match="matches no row"):
        chosen("knit", "toy-meshes", 1, 8)
    with pytest.raises(BadValue, match="condenses meshes"):
        chosen("knit", "digits", total=8)


def test_names_of_stored_rows_are_as_they_were():
    older = Target.model_validate({"method": "dc", "data": "mnist", "per_class": 1, "accuracy": 91.7})
    assert run_name(older, 0, 100, 1000) == "dc-mnist-1-0-100"
    assert (
        run_name(Target(method="knit", data="toy-meshes", total=7), 3, 5, 5, plain=True) == "knit-toy-meshes-7-3-plain"
    )
    for path in (ROOT / "docs" / "reproduced").glob("[!e]*.json"):
        assert Finished.model_validate_json(path.read_text()).name == path.stem


def reproduce(*arguments):
    row = ("--method", "knit", "--data", "toy-meshes", "--total", 7, "--repeats", 2)
    call("reproduce", *row, *arguments)
    return Shelf(Path("docs/reproduced")), Path("docs/reproduced.md").read_text()


def cells(text, *starts):
    split = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    return next(line for line in split if line[: len(starts)] == list(starts))


def test_several_seeds_are_one_line_over_all_networks():
    shelf, text = reproduce("--seeds", 3, "--seed", 1)
    rows = shelf.finished()
    assert [row.seed for row in rows] == [1, 2, 3]
    found = [100 * a for row in rows for a in row.condensed.accuracies]
    mean = sum(found) / 6
    deviation = (sum((a - mean) ** 2 for a in found) / 6) ** 0.5
    line = cells(text, "knit", "toy-meshes", "7 in all")
    assert line[3:7] == ["2", "vico", "3 x 2 (seeds 1 to 3)", f"{mean:.1f} +- {deviation:.1f}"]
    assert line[11] == f"{mean - 60:+.1f}"
    random = [100 * a for row in rows for a in row.random.accuracies]
    gain = mean - sum(random) / 6
    apart = abs(gain) > deviation + reproduced.pstdev(random)
    assert (line[8] == f"{gain:+.1f}", "not distinguishable" in line[8]) == (apart, not apart)
    made = text.partition("### How each was made")[2]
    for row in rows:
        assert cells(made, f"`{row.name}`")[1] == reproduced.spread(row.condensed.accuracies)
    assert "3 x 2, 2 steps" in call("reproduce", "--method", "knit", "--list").stdout


def test_a_plain_row_stands_apart_and_says_so():
    reproduce()
    shelf, text = reproduce("--plain")
    assert sorted((row.name, row.plain, row.steps) for row in shelf.finished()) == [
        ("knit-toy-meshes-7-0", False, 2),
        ("knit-toy-meshes-7-0-plain", True, 5),
    ]
    assert [cells(text, name, "toy-meshes", "7 in all")[3] for name in ("knit", "knit, plain")] == ["2", "5"]


def test_only_seeds_alike_in_all_else_share_a_line():
    reproduce()
    rows = Shelf(Path("docs/reproduced")).finished()
    other = rows[0].model_copy(update={"seed": 5})
    assert [line.seeds for line in lines([*rows, other])] == ["0, 5"]
    fewer = other.model_copy(update={"condensed": other.condensed.model_copy(update={"accuracies": (0.5,)})})
    for apart in (other.model_copy(update={"steps": 1}), other.model_copy(update={"plain": True}), fewer):
        assert [line.seeds for line in lines([*rows, apart])] == ["0", "5"]
    assert [line.seeds for line in lines(rows[0].model_copy(update={"seed": i}) for i in (4, 2, 3))] == ["2 to 4"]


def test_a_row_on_the_page_that_lies_within_the_noise_says_so(place):
    reproduce()
    row = Shelf(Path("docs/reproduced")).finished()[0]

    def judged(kind, *accuracies):
        return getattr(row, kind).model_copy(update={"accuracies": accuracies})

    near = row.model_copy(update={"condensed": judged("condensed", 0.6, 0.7), "random": judged("random", 0.55, 0.65)})
    far = near.model_copy(update={"random": judged("random", 0.4, 0.5)})
    for stored, said in ((near, "+5.0, not distinguishable"), (far, "+20.0")):
        shelf = Shelf(place / "shelf")
        shelf.add(stored)
        assert cells(page(shelf, ()), "knit", "toy-meshes", "7 in all")[8:10] == [said, ""]


def test_a_row_stands_beside_herding_of_the_same_size_by_the_same_rules(place):
    reproduce()
    row = Shelf(Path("docs/reproduced")).finished()[0]
    row = row.model_copy(update={"condensed": row.condensed.model_copy(update={"accuracies": (0.6, 0.7)})})
    low, shelf = row.condensed.model_copy(update={"accuracies": (0.4, 0.5)}), Shelf(place / "shelf")

    def herded(**target):
        made = {"target": row.target.model_copy(update={"method": "herding", **target}), "condensed": low}
        return row.model_copy(update=made)

    def over(shown):
        return cells(shown, "knit", "toy-meshes", "7 in all")[9]

    shelf.add(row)
    shelf.add(herded(total=8))
    shelf.add(herded(data="other"))
    assert over(page(shelf, ())) == ""
    shelf.add(herded())
    text = page(shelf, ())
    assert over(text) == "+20.0"
    assert cells(text, "herding", "toy-meshes", "7 in all")[9] == ""
    low = low.model_copy(update={"rules": "others"})
    shelf.add(herded())
    assert over(page(shelf, ())) == ""


# -- plugins --------------------------------------------------------------------------------------------------------


def test_a_recipe_of_an_adapter_names_the_adapters_extra():
    broken = [
        Plugin(name, module, dist, "0", error="ModuleNotFoundError: No module named 'absent'")
        for name, module, dist in (
            ("gcond", "condense_graph.gcond", DISTRIBUTION),
            ("graph", "condense_graph", DISTRIBUTION),
            ("dc", "condense_image.dc", DISTRIBUTION),
            ("parts", "condense.parts", DISTRIBUTION),
            ("gcond", "condense_graph.gcond", "stranger"),
        )
    ]
    hint = f" - pip install '{DISTRIBUTION}[graph]'."
    assert [plugins.install_hint(plugin) for plugin in broken] == [hint, hint, ".", ".", "."]


def test_a_published_method_may_take_no_size_and_a_plain_function_may_not():
    assert plugins.as_published("everything", everything) is everything
    assert plugins.as_published("sized", lambda *, ratio=0.5: None).title == "sized"
    with pytest.raises(TypeError, match="none of per_class, total, ratio"):
        plugins.as_published("unsized", lambda: None)


def test_method_for_finds_by_instance():
    assert method_for("knit", ToyMeshes()) is knit
