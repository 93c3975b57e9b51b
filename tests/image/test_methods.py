"""Published settings and figures, written down a second time from READMEs and code: a changed one fails."""

from __future__ import annotations

import pytest

from condense.fit import Fit
from condense.parts.assets import Trained
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.inits import Herding, KCenter, Noise, Real
from condense.parts.labels import Hard
from condense.parts.matching import ClassWise, Gradient, Matching, MeanFeature
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh, NoModel
from condense.parts.rules import SGD
from condense.plugins import registry
from condense.published import rows, settings_for
from condense.recipe import Group, Outer
from condense_image.augment import DSA
from condense_image.nets.conv_net import ConvNet
from condense_image.preprocess import Normalise

NO_FLIP = "color_crop_cutout_scale_rotate"
WITH_FLIP = "color_crop_cutout_flip_scale_rotate"
MOMENTUM = SGD(momentum=0.5)


def method(name, **settings):
    return registry().recipe(name)(**settings)


def settled(name, data, per_class):
    """The recipe with its published settings for this data, and the row."""
    published = registry().recipe(name)
    row, recipe = settings_for(published, data, per_class), published(per_class=per_class)
    for path, value in row.settings.items():
        recipe = recipe.set(path, value)
    return recipe, row


def test_dc_is_what_its_code_runs():
    recipe = method("dc", per_class=10)
    assert recipe.objective == Matching(statistic=Gradient(), distance=RowCosine(eps=1e-6), pairing=ClassWise(n=256))
    assert recipe.pool == Fresh(
        net=ConvNet(depth=3, width=128, norm="instance", pooling="avg", activation="relu"),
        turns=10,
        inner=Fit(rule=SGD(momentum=0.0, weight_decay=0.0), lr=0.01, epochs=50, batch=256, augment="none"),
        on="synthetic",
        calibrate=16,
    )
    assert recipe.outer == Outer(steps=10_000, groups=(Group(rule=MOMENTUM, lr=0.1),), commit="step")
    parts = (recipe.parameterization, recipe.init, recipe.labels, recipe.augment.name, recipe.preprocess)
    assert parts == (Pixels(), Noise(), Hard(), "none", Normalise())


def test_dsa_is_dc_from_real_images_with_one_augmentation_everywhere():
    dc, dsa = method("dc", per_class=10), method("dsa", per_class=10)
    inner = dc.pool.inner.with_(augment=DSA())
    assert dsa == dc.with_(init=Real(), augment=DSA(), pool=dc.pool.with_(inner=inner))
    assert dsa.augment.strategy == WITH_FLIP
    assert dsa.objective == dc.objective


@pytest.mark.parametrize(("per_class", "rate"), [(1, 1.0), (10, 1.0), (50, 1.0), (99, 1.0), (100, 10.0), (1250, 10.0)])
def test_dm_is_what_its_code_runs(per_class, rate):
    recipe = method("dm", per_class=per_class)
    assert recipe.objective == Matching(
        statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=256, weight="uniform")
    )
    assert recipe.pool == Fresh(net=ConvNet(depth=3, width=128), turns=1, inner=None)
    assert recipe.outer == Outer(steps=20_000, groups=(Group(rule=MOMENTUM, lr=rate),))
    assert (recipe.init, recipe.augment, recipe.budget.n) == (Real(), DSA(), per_class)


@pytest.mark.parametrize(("name", "init"), [("herding", Herding), ("k-center", KCenter)])
def test_coresets_choose_by_a_trained_network(name, init):
    fit = Fit(rule=SGD(momentum=0.9, weight_decay=5e-4), lr=0.01, steps=1000)
    recipe = method(name)
    assert recipe.init == init(scorer=Trained(net=ConvNet(), fit=fit))
    assert (recipe.objective, recipe.pool, recipe.outer.steps) == (None, NoModel(), 0)
    assert method("random").init == Real()


@pytest.mark.parametrize("name", ["dsa", "dm"])
@pytest.mark.parametrize(("data", "strategy"), [("mnist", NO_FLIP), ("svhn", NO_FLIP), ("cifar10", WITH_FLIP)])
def test_digits_are_not_flipped_neither_in_matching_nor_in_training_nor_by_the_judge(name, data, strategy):
    recipe, row = settled(name, data, 10)
    assert recipe.augment.strategy == strategy
    assert {part.strategy for part in recipe.walk() if isinstance(part, DSA)} == {strategy}
    judged = registry().members(registry().parts["protocol"]["vico-dsa"][0])["vico-dsa"]()
    assert row.judging.get("augment.strategy", judged.augment.strategy) == strategy


def test_dc_is_judged_with_augmentation_on_mnist_only():
    assert settled("dc", "mnist", 1)[1].judging == {"augment": "dc-augment", "epochs": 1000}
    assert settled("dc", "fashion-mnist", 1)[1].judging == {}


FIGURES = {  # README of the official code (DC: Table 1, DSA: Table 2, DM), per cent
    ("dc", "mnist"): {1: 91.7, 10: 97.4, 50: 98.8},
    ("dc", "fashion-mnist"): {1: 70.5, 10: 82.3, 50: 83.6},
    ("dc", "svhn"): {1: 31.2, 10: 76.1, 50: 82.3},
    ("dc", "cifar10"): {1: 28.3, 10: 44.9, 50: 53.9},
    ("dc", "cifar100"): {1: 12.8, 10: 25.2},
    ("dsa", "mnist"): {1: 88.7, 10: 97.8, 50: 99.2},
    ("dsa", "fashion-mnist"): {1: 70.6, 10: 84.6, 50: 88.7},
    ("dsa", "svhn"): {1: 27.5, 10: 79.2, 50: 84.4},
    ("dsa", "cifar10"): {1: 28.8, 10: 52.1, 50: 60.6},
    ("dsa", "cifar100"): {1: 13.9, 10: 32.3},
    ("dm", "cifar10"): {1: 26.0, 10: 48.9, 50: 63.0, 100: 67.0, 200: 71.2, 500: 76.1, 1000: 79.8, 1250: 80.8},
    ("dm", "cifar100"): {1: 11.4, 10: 29.7, 50: 43.6},
}


@pytest.mark.parametrize("name", ["dc", "dsa", "dm"])
def test_the_figures_are_those_of_the_readme(name):
    found = {}
    for row in rows(registry().recipe(name)):
        if row.accuracy is not None:
            found.setdefault((name, row.data), {})[row.per_class] = row.accuracy
            assert row.source
    assert found == {key: figures for key, figures in FIGURES.items() if key[0] == name}


def test_later_rows_override_earlier_ones_setting_by_setting():
    """MNIST at 1 per class: the row of the set and the row of the figure, both."""
    row = settings_for(registry().recipe("dsa"), "mnist", 1)
    assert row.accuracy == 88.7
    assert row.settings["augment.strategy"] == NO_FLIP
    assert settings_for(registry().recipe("dsa"), "mnist", 7).accuracy is None
    assert settings_for(registry().recipe("dsa"), "unheard-of", 7).settings == {}


def test_the_embedded_default_is_marked_as_our_own():
    for name in ("dc", "dsa", "dm", "random", "herding", "k-center"):
        row = settings_for(registry().recipe(name), "digits", 10)
        assert row.embedded
        assert row.accuracy is None
        assert not any(other.embedded for other in rows(registry().recipe(name)) if other.data != "digits")
