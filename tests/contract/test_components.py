"""Every registered class keeps the contract of components; one without tests of its own fails the suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from condense.axes import HandedTheSource
from condense.component import checked, member
from condense.errors import BadValue
from condense.plugins import registry
from condense.recipe import Reads
from condense.testing import check_component, toy_recipe

from .examples import EXAMPLES

CLASSES = {(axis, name): cls for axis, members in registry().parts.items() for name, (cls, _) in members.items()}


def example(axis, name):
    cls = CLASSES[axis, name]
    return checked(lambda: cls.model_validate(EXAMPLES.get((axis, name), {})), axis)


def base(cls):
    """The axis of a class: the base that declares it."""
    return next(kind for kind in cls.__mro__ if "axis" in kind.__dict__)


@pytest.mark.parametrize("key", CLASSES, ids=" ".join)
def test_a_registered_class_keeps_the_contract(key):
    check_component(example(*key))


@pytest.mark.parametrize("key", CLASSES, ids=" ".join)
def test_a_registered_class_refuses_fields_it_has_not(key):
    settings = EXAMPLES.get(key, {})
    with pytest.raises(BadValue, match=f"{key[1]} has no field no_such_field; it has"):
        checked(lambda: member(base(CLASSES[key]), {**settings, "name": key[1], "no_such_field": 1}), key[0])


@pytest.mark.parametrize("key", CLASSES, ids=" ".join)
def test_examples_stand_only_where_fields_are_required(key):
    if key in EXAMPLES:
        with pytest.raises((ValidationError, BadValue)):
            CLASSES[key]()


def test_examples_are_of_classes_that_exist():
    assert set(EXAMPLES) <= set(CLASSES)


@pytest.mark.parametrize("key", CLASSES, ids=" ".join)
def test_a_registered_class_says_what_it_reads(key):
    """The axes that are handed the data default to the worst, so that forgetting to declare never leaks."""
    part = example(*key)
    reads = part.reads(toy_recipe())
    assert isinstance(reads, Reads)
    if type(part).reads is HandedTheSource.reads:
        assert reads.examples


def files():
    here = Path(__file__).parents[1]
    return {path: path.read_text() for path in here.rglob("*.py") if path.name != "examples.py"}


def untested(classes, texts):
    """The classes that no test file names."""
    text = "\n".join(texts.values())
    return [cls for cls in classes if not re.search(rf"\b{cls.__name__}\b|[\"':]{cls.name}[\"':]", text)]


def test_every_registered_class_is_named_in_a_test():
    """The meta-test: a part without a reference or a test of its own fails the suite."""
    ours = [cls for cls in CLASSES.values() if cls.__module__.partition(".")[0].startswith("condense")]
    missing = [f"{cls.axis} {cls.name} ({cls.__module__}.{cls.__name__})" for cls in untested(ours, files())]
    assert missing == [], "write a test that names each of these: an independent slow version where it computes"


def test_the_meta_test_would_find_an_untested_class():
    class Forgotten(HandedTheSource):
        """Nobody tests it."""

    made = type("Untes" + "ted", (Forgotten,), {"__doc__": "No test names it.", "__module__": "condense.parts"})
    assert untested([made], files()) == [made]
