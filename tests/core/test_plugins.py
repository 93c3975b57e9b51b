"""The tolerant loader: whatever one plugin does while it loads, it is reported with its reason and the others work."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import types
from pathlib import Path

import pytest

from condense import plugins
from condense.axes import Objective, Term
from condense.component import member
from condense.errors import BadValue
from condense.hookspecs import hookimpl
from condense.parts.rules import SGD
from condense.plugins import DISTRIBUTION, load, registry, run_manager, using
from condense.recipe import Recipe, published
from condense.testing import toy_recipe


class Nothing(Objective):
    """Asks for nothing."""

    def __call__(self, step):
        yield Term({"nothing": step.syn.x.sum() * 0})


class Dist:
    def __init__(self, name, version="1.0"):
        self.name, self.version = name, version


class Entry:
    """An entry point whose module is made by `load`."""

    def __init__(self, name, body, dist="stranger", module=None):
        self.name, self.body, self.dist, self.value = name, body, Dist(dist), module or f"{dist}_{name}"

    def load(self):
        return self.body()


def module(**members):
    """A module with these functions as hook implementations."""
    made = types.ModuleType("made")
    for name, function in members.items():
        setattr(made, name, hookimpl(function))
    return made


def toy_method(**settings):
    """A method of a stranger's."""
    return toy_recipe(objective=Nothing(), **settings)


def good():
    seen = []
    made = module(
        condense_components=lambda: [Nothing],
        condense_recipes=lambda: {"nothing": toy_method},
        condense_started=lambda run: seen.append(run),
    )
    made.seen = seen
    return made


def with_parts():
    """The core's parts, as ours come."""
    from condense import parts

    return Entry("parts", lambda: parts, DISTRIBUTION, "condense.parts")


def raises(error):
    def body():
        raise error

    return body


def half(part):
    """Registers a part and a hook, then fails."""
    return module(
        condense_components=lambda: [part],
        condense_recipes=raises(RuntimeError("no recipes today")),
        condense_started=lambda run: run.append("half"),
    )


def other_nothing():
    class Nothing(Objective):
        """Claims a name that is taken."""

        def __call__(self, step):
            yield Term({})

    return Nothing


def another_part():
    class Another(Objective):
        """Would be fine."""

        def __call__(self, step):
            yield Term({})

    return Another


BROKEN = {
    "a missing import": (
        raises(ModuleNotFoundError("No module named 'torch_geometric'")),
        "ModuleNotFoundError: No module named 'torch_geometric'",
    ),
    "a syntax error": (lambda: compile("def", "plugin.py", "exec"), "SyntaxError"),
    "sys.exit while it is imported": (raises(SystemExit(3)), "SystemExit: 3"),
    "a misspelt hook": (
        lambda: module(condense_recipe=lambda: {}),
        "BadValue: hook: is no hook of condense (got 'condense_recipe'). Did you mean condense_recipes",
    ),
    "a hook with arguments it has not": (lambda: module(condense_components=lambda run: []), "run"),
    "a part that is no component": (lambda: module(condense_components=lambda: [dict]), "<class 'dict'>"),
    "a part that is an instance": (lambda: module(condense_components=lambda: [SGD()]), "no component class"),
    "a part that is abstract": (
        lambda: module(condense_components=lambda: [Objective]),
        "Objective, which is abstract",
    ),
    "parts that are no list": (lambda: module(condense_components=lambda: 3), "TypeError"),
    "a name that is taken on its axis": (
        lambda: module(condense_components=lambda: [other_nothing()]),
        "(a_good) has it, stranger (stranger_bad) claims it",
    ),
    "one name twice": (lambda: module(condense_components=lambda: [another_part(), another_part()]), "'another'"),
    "a recipe's name that is taken": (
        lambda: module(condense_recipes=lambda: {"nothing": toy_method}),
        "recipe 'nothing'",
    ),
    "a recipe that cannot be called": (lambda: module(condense_recipes=lambda: {"x": 3}), "which cannot be called"),
    "recipes that fail after the parts": (lambda: half(another_part()), "RuntimeError: no recipes today"),
    "a name that its module has not": (raises(AttributeError("module 'x' has no attribute 'y'")), "AttributeError"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named_with_its_reason_and_stops_no_other(case):
    body, reason = BROKEN[case]
    first, last = Entry("good", good, "a", "a_good"), Entry("late", lambda: module(), "z")
    loaded = load([last, Entry("bad", body), first, with_parts()])
    by_name = {plugin.name: plugin for plugin in loaded.plugins}
    assert by_name["bad"].error
    assert reason in by_name["bad"].error
    assert (by_name["bad"].parts, by_name["bad"].recipes) == ([], {})
    assert [by_name[name].error for name in ("parts", "good", "late")] == [None, None, None]
    with using(loaded):
        assert member(Objective, "nothing") == Nothing()
        assert isinstance(loaded.recipe("nothing")(), Recipe)
    for manager in (loaded.manager, run_manager([], loaded)):
        assert {name for name, _ in manager.list_name_plugin()} == {"condense-kit:parts", "a:good", "z:late"}
        started = []
        manager.hook.condense_started(run=started)
        assert started == [], "a hook of the broken plugin is still called"


def test_all_kinds_of_broken_plugins_together_leave_the_good_ones():
    entries = [with_parts(), Entry("good", good, "a", "a_good")]
    entries += [Entry(f"bad{i}", body) for i, (body, _) in enumerate(BROKEN.values())]
    loaded = load(entries)
    broken = [plugin for plugin in loaded.plugins if plugin.error]
    print(f"{len(broken)} of {len(BROKEN)} broken plugins reported, 2 of 2 good ones work")
    assert len(broken) == len(BROKEN) >= 12
    assert "nothing" in loaded.recipes()


def test_ctrl_c_while_a_plugin_loads_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        load([Entry("slow", raises(KeyboardInterrupt()))])


def test_a_taken_name_names_both_distributions():
    loaded = load([Entry("one", good, "first-dist"), Entry("two", good, "second-dist")])
    error = loaded.plugins[1].error
    assert "first-dist (first-dist_one) has it, second-dist (second-dist_two) claims it" in error
    assert "Rename one of them" in error


def test_one_name_in_two_forms_is_allowed_and_both_can_be_asked_for():
    @published(paper="p", title="t", form="meshes")
    def other(*, per_class=10):
        return toy_method()

    loaded = load(
        [
            Entry("one", lambda: module(condense_recipes=lambda: {"nothing": toy_method})),
            Entry("two", lambda: module(condense_recipes=lambda: {"nothing": other})),
        ]
    )
    assert [plugin.error for plugin in loaded.plugins] == [None, None]
    assert loaded.recipe("nothing", form="meshes") is other
    assert loaded.recipe("nothing", form="tensors").title == "A method of a stranger's."
    assert set(loaded.recipes()) == {"nothing", "meshes:nothing"}


def test_the_same_module_under_two_names_keeps_its_first_hooks():
    shared = good()
    loaded = load([Entry("one", lambda: shared, "a"), Entry("two", lambda: shared, "b")])
    assert loaded.plugins[0].error is None
    assert "already registered" in loaded.plugins[1].error
    loaded.manager.hook.condense_started(run="run")
    assert shared.seen == ["run"]


def test_ours_come_first_then_by_distribution_and_name():
    entries = [
        Entry("b", good, "z"),
        Entry("a", module, "z"),
        Entry("x", module, "a"),
        Entry("dm", module, DISTRIBUTION),
    ]
    loaded = load([*entries, with_parts()])
    assert [plugin.name for plugin in loaded.plugins] == ["parts", "dm", "x", "a", "b"]


# -- hints ----------------------------------------------------------------------------------------------------------


def extras():
    return importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra")


def test_an_unknown_name_says_what_might_have_brought_it_and_how_to_install_that():
    assert "graph" in extras()
    missing = raises(ModuleNotFoundError("No module named 'torch_geometric'"))
    ours = Entry("graph", missing, DISTRIBUTION, "condense_graph")
    loaded = load([with_parts(), ours, Entry("graph", missing, "stranger", "theirs")])
    with using(loaded), pytest.raises(BadValue) as caught:
        loaded.recipe("gcond")
    text = str(caught.value)
    assert "condense_graph (condense-kit) did not load: ModuleNotFoundError: No module named 'torch_geometric'" in text
    assert f"pip install '{DISTRIBUTION}[graph]'" in text
    assert text.count("pip install") == 1, "a stranger's plugin is not installed by an extra of ours"
    with using(loaded), pytest.raises(BadValue, match=r"no objective named 'gcond'; known: .*torch_geometric"):
        toy_recipe(objective="gcond")


def test_a_hint_is_given_only_for_extras_that_exist():
    for extra in extras():
        assert f"pip install '{DISTRIBUTION}[{extra}]'" in plugins.extra_hint(extra)
    assert "pip" not in plugins.extra_hint("no-such-extra")


def test_hints_follow_the_name_of_the_distribution(monkeypatch):
    monkeypatch.setattr(plugins, "DISTRIBUTION", "renamed")
    real = importlib.metadata.metadata
    monkeypatch.setattr(plugins.metadata, "metadata", lambda name: real("condense-kit"))
    assert "'renamed[graph]'" in plugins.extra_hint("graph")


def texts():
    root = Path(__file__).parents[2]
    kinds = {".py", ".md", ".toml", ".html", ".txt", ".css", ".yml", ".yaml"}
    rooms = [root / name for name in ("condense", "plugins", "adapters", "docs", ".ci", "README.md", "CHANGELOG.md")]
    for room in rooms:
        for path in [room, *room.rglob("*")]:
            if path.is_file() and (path.suffix in kinds or path.parent.name == ".ci"):
                yield path


def test_no_text_tells_anyone_to_install_the_other_project_of_our_name():
    """`condense` on the package index is somebody else's; ours is condense-kit."""
    wrong = re.compile(r"(pip3?|pipx|uv) +(pip +)?(install|add)[^\n`]*?[ '\"]condense(?![-\w./])")
    assert wrong.search("pip install condense")
    assert wrong.search("pip install -q 'condense[graph]'")
    assert not wrong.search(["pip install 'condense-kit[graph]' ", " condense run dm"][0])
    found = [f"{path}: {m.group()}" for path in texts() for m in wrong.finditer(path.read_text().replace("&&", "\n"))]
    assert found == []


# -- what is installed ----------------------------------------------------------------------------------------------


def test_our_own_parts_and_methods_come_through_the_public_door():
    table = {
        entry.name for entry in importlib.metadata.entry_points(group="condense") if entry.dist.name == DISTRIBUTION
    }
    ours = {plugin.name: plugin for plugin in registry().plugins if plugin.distribution == DISTRIBUTION}
    assert set(ours) == table
    assert {name: plugin.error for name, plugin in ours.items() if plugin.error} == {}
    assert {"dc", "dsa", "dm", "random", "herding", "k-center"} <= set(registry().recipes())


def test_nothing_of_a_plugin_is_imported_by_the_core_alone():
    import subprocess

    code = "import condense.engine, condense.api, sys; print([m for m in sys.modules if m.startswith('condense_')])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_run_has_a_manager_of_its_own():
    seen = []

    class Observer:
        @hookimpl
        def condense_started(self, run):
            seen.append(run)

    first, second = run_manager([Observer()]), run_manager([])
    second.hook.condense_started(run=2)
    first.hook.condense_started(run=1)
    assert seen == [1]


def test_the_first_reason_to_stop_wins():
    class Wants:
        def __init__(self, reason):
            self.reason = reason

        @hookimpl
        def condense_stop(self, run, index):
            return self.reason

    run = types.SimpleNamespace(splits=types.SimpleNamespace(train=None))
    manager = run_manager([Wants("enough"), Wants(None)])
    assert manager.hook.condense_stop(run=run, index=0) == "enough"
    assert not run_manager([Wants(None)]).hook.condense_stop(run=run, index=0)
