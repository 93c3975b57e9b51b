"""Every registered method keeps the contract of recipes, on a toy of its domain."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from condense.axes import Net
from condense.data import Facts
from condense.engine import condense
from condense.errors import BadData
from condense.fit import Fit
from condense.parts.experts import Experts
from condense.parts.inits import Noise
from condense.plugins import registry
from condense.recipe import Recipe, check_recipe
from condense.running import Run
from condense.sizes import taken
from condense.testing import Sealed, ToyNet, check_method, toy_run, toy_splits, toys

METHODS = {
    name: method for name, (method, plugin) in registry().recipes().items() if plugin.distribution == "condense-kit"
}
OF_TENSORS = [name for name, method in METHODS.items() if method.form == "tensors"]
PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture(autouse=True)
def _toys(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    with toys():
        yield


def small(name, per_class=2) -> Recipe:
    """The method with toy networks, two outer steps and two training steps wherever something is trained."""
    recipe = METHODS[name](per_class=per_class)
    recipe = recipe.rewrite(Net, lambda _: ToyNet()).rewrite(Experts, few)
    recipe = recipe.rewrite(Fit, lambda fit: fit if fit.steps is None else fit.with_(steps=2))  # experts have epochs
    recipe = recipe.rewrite(Fit, lambda fit: fit.with_(epochs=None, steps=2), field="inner")
    return recipe.with_(outer=recipe.outer.with_(steps=min(2, recipe.outer.steps)))


def few(pool) -> Experts:
    """Two experts of two epochs, of which the first is lent. They move enough for the published rates to be sane."""
    experts = pool.experts.with_(count=2, fit=pool.experts.fit.with_(epochs=2, lr=0.5, batch=16))
    return pool.with_(experts=experts, first=0, below=1, span=1)


def public():
    """The toy with published constants, so that no preprocessing has to measure the data."""
    return replace(toy_splits(), facts=Facts(title="toy", mean=(0.1,), std=(0.9,)))


def test_the_methods_are_there():
    assert {"dc", "dsa", "dm", "mtt", "datm", "esp", "random", "herding", "k-center"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_where_it_comes_from(name):
    method = METHODS[name]
    assert re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d+/\S+|openreview:\w+", method.paper)
    assert method.title
    assert not method.title.endswith(".")
    assert method.protocol in registry().parts["protocol"]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_place_in_the_documentation(name):
    if not PAGE.is_file():
        pytest.skip("docs/methods.md is not generated yet")
    page = PAGE.read_text()
    assert f"`{name}`" in page
    assert METHODS[name].paper.partition(":")[2] in page


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n", [1, 10, 50])
def test_a_method_is_a_value_that_survives_json(name, n):
    method, kinds = METHODS[name], taken(METHODS[name].make)
    asked, more = [{kind: size for kind in kinds[:1]} for size in (n, n + 1)]
    recipe = method(**asked)
    again = Recipe.model_validate(recipe.dump())
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert recipe == method(**asked)
    assert not kinds or recipe != method(**more)
    assert not kinds or recipe.budget.asked == asked


@pytest.mark.parametrize("name", METHODS)
def test_a_method_can_be_made_without_a_word(name):
    """So that its page can be written, and a random set of any size be made."""
    assert isinstance(METHODS[name](), Recipe)


@pytest.mark.parametrize("name", OF_TENSORS)
def test_a_method_keeps_the_contract_on_a_toy(name):
    recipe = small(name)
    check_recipe(recipe, toy_splits().task)
    check_method(recipe, public())


@pytest.mark.parametrize("name", OF_TENSORS)
def test_a_method_moves_the_set_where_it_takes_steps(name):
    recipe = small(name)
    if recipe.outer.steps == 0:
        pytest.skip(f"{name} takes no steps: its init does the work")
    start = condense(toy_run(recipe.with_(outer=recipe.outer.with_(steps=0)), public())).freeze().x
    end = condense(toy_run(recipe, public())).freeze().x
    assert float((end - start).abs().flatten(1).amax(1).min()) > 0, "an image did not move"


def sealed(recipe) -> Run:
    """A run on a source that answers `measure` only, as a private one does."""
    splits = public()
    return toy_run(recipe, replace(splits, train=Sealed(splits.train)))


@pytest.mark.parametrize("name", OF_TENSORS)
def test_a_method_is_refused_by_a_sealed_source_or_runs_on_measures_alone(name):
    """The privacy seam: what reads examples says so, and what says that it does not, does not."""
    for recipe in (small(name), small(name).with_(init=Noise())):
        run = sealed(recipe)
        if recipe.total_reads().examples:
            with pytest.raises(BadData, match=r"gives no examples, which \w+ .* would read"):
                run.splits.train.admit(recipe)
            with pytest.raises(BadData, match="sealed"):
                condense(run)
        else:
            run.splits.train.admit(recipe)
            condense(run)
            reads = recipe.total_reads()
            billed = reads.once + reads.per_step * recipe.outer.steps
            assert run.splits.train.releases == billed, "as many releases as the recipe says"


def test_with_noise_the_matching_methods_run_on_measures_alone():
    assert [name for name in OF_TENSORS if not small(name).with_(init=Noise()).total_reads().examples] == [
        *("dc", "dm", "dp-dm", "dp-merf", "dp-random", "dsa"),
        *("herding", "k-center", "ldpdc"),
        *("psg", "psg-prior", "random"),
    ]
    private = ["dp-dm", "dp-merf", "dp-random", "ldpdc", "psg", "psg-prior"]
    assert [name for name in OF_TENSORS if not small(name).total_reads().examples] == ["dc", *private]


@pytest.mark.parametrize("name", ["dc", "dm", "dsa"])
def test_what_a_sealed_source_measures_gives_the_same_set_as_the_open_one(name):
    recipe = small(name).with_(init=Noise())
    there, here = condense(sealed(recipe)).freeze().x, condense(toy_run(recipe, public())).freeze().x
    assert there.equal(here)


@pytest.mark.parametrize("name", METHODS)
def test_the_published_rows_can_be_set_and_run(name):
    from condense.published import rows, settings_for

    method = METHODS[name]
    for row in rows(method):
        recipe = method(**row.size.given)
        for path, value in settings_for(method, row.data or "digits", row.per_class, row.total).settings.items():
            recipe = recipe.set(path, value)
        assert row.embedded or row.accuracy is None or row.source, "a figure without the place where it stands"
