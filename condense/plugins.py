"""The tolerant loader and the registry: each entry point is loaded alone, and a broken one is kept with its reason."""

from __future__ import annotations

import contextvars
import functools
import importlib.metadata as metadata
import inspect
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pluggy
import torch

from . import hookspecs
from .component import Component
from .data import Data
from .errors import BadValue, listed, meant, nearest
from .program import hint
from .recipe import Published
from .sizes import SIZES, taken
from .task import Form

GROUP = "condense"
DISTRIBUTION = "condense-kit"
C = TypeVar("C", bound=Component)


@dataclass
class Plugin:
    """One entry point: what it brings, or why it did not load."""

    name: str
    module: str
    distribution: str
    version: str
    object: Any = None
    parts: list[type[Component]] = field(default_factory=list)
    recipes: dict[str, Published] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> str:
        """Its name among the plugins of all distributions."""
        return f"{self.distribution}:{self.name}"


@dataclass
class Registry:
    """What the loaded plugins bring, by axis and name. `manager` holds their hooks; each run copies it."""

    plugins: list[Plugin]
    manager: pluggy.PluginManager

    @functools.cached_property
    def parts(self) -> dict[str, dict[str, tuple[type[Component], Plugin]]]:
        table: dict[str, dict[str, tuple[type[Component], Plugin]]] = {}
        for plugin in self.plugins:
            for part in plugin.parts:
                table.setdefault(part.axis, {})[part.name] = (part, plugin)
        return table

    def members(self, axis: type[C]) -> dict[str, type[C]]:
        return {name: part for name, (part, _) in sorted(self.parts.get(axis.axis, {}).items())}  # type: ignore[misc]

    def lookup(self, axis: type[C], name: str) -> type[C]:
        """The member of `axis` called `name`; the error lists the known ones and the plugins that did not load."""
        from pydantic_core import PydanticCustomError

        members = self.members(axis)
        if name in members:
            return members[name]
        context = {"axis": axis.axis, "name": repr(name), "known": listed(members), "got": name}
        remedy = f"{meant(name, members)}{self.missing()}".strip()
        if not remedy and axis.axis in ("data", "net", "protocol"):
            remedy = f"See what there is: {hint('list')}."
        raise PydanticCustomError("component", "no {axis} named {name}; known: {known}", {**context, "remedy": remedy})

    def recipes(self, form: str | None = None) -> dict[str, tuple[Published, Plugin]]:
        """Recipes by name; of one form where it is given. See `key` for names that several forms share."""
        found = [
            (name if form else self.key(name, recipe.form), (recipe, plugin))
            for plugin in self.plugins
            for name, recipe in plugin.recipes.items()
            if form in (None, recipe.form)
        ]
        return dict(sorted(found, key=lambda pair: pair[0]))

    def forms(self, name: str) -> list[str]:
        """The forms of data that have a recipe called `name`."""
        return sorted(p.recipes[name].form for p in self.plugins if name in p.recipes)

    def all_forms(self) -> list[str]:
        """The forms of data that there are recipes or data sets for; tensors first."""
        found = {recipe.form for plugin in self.plugins for recipe in plugin.recipes.values()}
        found |= {data.form for data in self.members(Data).values()}
        return sorted(found, key=lambda form: (form != Data.form, form))

    def known_form(self, form: str) -> str:
        """`form`, if there is anything of it; raises `BadValue` where there is not."""
        if form not in self.all_forms():
            raise BadValue("form", form, "is not known", f"{nearest(form, self.all_forms())}{self.missing()}")
        return form

    def key(self, name: str, form: str) -> str:
        """A recipe's name among those of all forms: `form:name` where another form has it, too, but for tensors'."""
        return name if form == Data.form or self.forms(name) == [form] else f"{form}:{name}"

    def noun(self, form: str) -> str:
        """What several examples of a form are called."""
        part, _ = self.parts.get(Form.axis, {}).get(form, (None, None))
        return getattr(part, "noun", form)

    def protocol(self, form: str) -> str:
        """The name of the protocol by which sets of a form are judged where nothing names one."""
        part, _ = self.parts.get(Form.axis, {}).get(form, (None, None))
        return getattr(part, "protocol", Form.protocol)

    def recipe(self, name: str, form: str | None = None) -> Published:
        known = self.recipes(form)
        if name not in known:
            raise BadValue("recipe", name, "is not known", f"{nearest(name, known)}{self.missing()}")
        return known[name][0]

    def missing(self) -> str:
        """What might have brought an unknown name: the plugins that did not load, with the extra that installs each."""
        broken = [plugin for plugin in self.plugins if plugin.error]
        if not broken:
            return ""
        return " " + " ".join(f"{p.module} ({p.distribution}) did not load: {p.error}{install_hint(p)}" for p in broken)


def install_hint(plugin: Plugin) -> str:
    """How to install what a broken plugin of our own misses: the extra called as its entry point, or as its package."""
    if plugin.distribution != DISTRIBUTION:
        return "."
    package = plugin.module.partition(":")[0].partition(".")[0]
    return extra_hint(plugin.name, package.removeprefix(f"{GROUP}_"))


def extra_hint(*extras: str) -> str:
    """How to install the first of these extras that is ours: ` - pip install '...[extra]'.`; else a full stop."""
    try:
        ours = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        ours = []
    return next((f" - pip install '{DISTRIBUTION}[{extra}]'." for extra in extras if extra in ours), ".")


def load(entry_points: Iterable[Any] | None = None) -> Registry:
    """Load every entry point of the group, ours first, then by distribution and name; a broken one stops no other."""
    if entry_points is None:
        entry_points = metadata.entry_points(group=GROUP)
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    registry = Registry([], manager)
    for entry in sorted(entry_points, key=_order):
        dist = getattr(entry, "dist", None)
        plugin = Plugin(entry.name, entry.value, dist.name if dist else "?", dist.version if dist else "?")
        registry.plugins.append(plugin)
        dtype = torch.get_default_dtype()
        try:
            _register(entry, plugin, registry)
            _refuse_other_dtype(dtype)
        except BaseException as error:  # a plugin may raise anything while it is imported, SystemExit included
            if isinstance(error, KeyboardInterrupt):
                raise
            plugin.error = f"{type(error).__name__}: {error}"
            plugin.parts, plugin.recipes = [], {}
            if plugin.object is not None and manager.get_plugin(plugin.key) is plugin.object:
                manager.unregister(name=plugin.key)
        finally:
            torch.set_default_dtype(dtype)
    registry.__dict__.pop("parts", None)
    return registry


def _order(entry: Any) -> tuple[bool, str, bool, str]:
    dist = getattr(entry, "dist", None)
    name = dist.name if dist else "?"
    return (name != DISTRIBUTION, name, entry.name != "parts", entry.name)


def _register(entry: Any, plugin: Plugin, registry: Registry) -> None:
    plugin.object = entry.load()
    unknown = [n for n in dir(plugin.object) if n.startswith("condense_") and _misspelt(plugin.object, n)]
    if unknown:
        raise BadValue("hook", unknown[0], "is no hook of condense", nearest(unknown[0], _hook_names()))
    registry.manager.register(plugin.object, name=plugin.key)
    registry.manager.check_pending()
    parts, recipes = _parts(plugin, registry), _recipes(plugin, registry)
    plugin.parts, plugin.recipes = parts, recipes


def _refuse_other_dtype(dtype: torch.dtype) -> None:
    found = torch.get_default_dtype()
    if found is not dtype:
        raise BadValue(
            "torch's default dtype", found, f"was {dtype}, and is put back", "Name the dtype of what you make."
        )


def _own(plugin: Plugin, registry: Registry, hook: str) -> Any:
    """What this plugin's implementation of a hook without arguments returns; None where it has none."""
    impls = getattr(registry.manager.hook, hook).get_hookimpls()
    return next((impl.function() for impl in impls if impl.plugin_name == plugin.key), None)


def _parts(plugin: Plugin, registry: Registry) -> list[type[Component]]:
    parts: list[type[Component]] = []
    taken = {(part.axis, part.name): p for p in registry.plugins for part in p.parts}
    for part in _own(plugin, registry, "condense_components") or ():
        if not (isinstance(part, type) and issubclass(part, Component) and hasattr(part, "axis")):
            raise TypeError(f"condense_components gave {part!r}, which is no component class")
        if part.is_axis() or inspect.isabstract(part):
            raise TypeError(f"condense_components gave {part.__name__}, which is abstract")
        if (part.axis, part.name) in taken:
            _refuse(f"{part.axis} {part.name!r}", plugin, taken[part.axis, part.name])
        taken[part.axis, part.name] = plugin
        parts.append(part)
    return parts


def _recipes(plugin: Plugin, registry: Registry) -> dict[str, Published]:
    made = _own(plugin, registry, "condense_recipes") or {}
    recipes = {name: as_published(name, make) for name, make in made.items()}
    taken = {(recipe.form, name): p for p in registry.plugins for name, recipe in p.recipes.items()}
    for name, recipe in recipes.items():
        if (recipe.form, name) in taken:
            _refuse(f"recipe {name!r}", plugin, taken[recipe.form, name])
    return recipes


def _refuse(what: str, plugin: Plugin, owner: Plugin) -> None:
    who = f"{owner.distribution} ({owner.module}) has it, {plugin.distribution} ({plugin.module}) claims it"
    raise BadValue("plugin", what, f"is taken: {who}", "Rename one of them")


def _hook_names() -> list[str]:
    return [name for name in dir(hookspecs) if name.startswith("condense_")]


def _misspelt(plugin: Any, name: str) -> bool:
    return hasattr(getattr(plugin, name), "condense_impl") and name not in _hook_names()


def as_published(name: str, make: Callable[..., Any]) -> Published:
    """A plain recipe function of a stranger's, described by its docstring. It is told a size; a published one may do
    without, where the set is as large as it is."""
    if isinstance(make, Published):
        return make
    if not callable(make):
        raise TypeError(f"the recipe {name!r} is {make!r}, which cannot be called")
    if not taken(make):
        raise TypeError(f"the recipe {name!r} takes none of {', '.join(SIZES)}: it cannot be told how large a set is")
    return Published(make, paper="", title=(make.__doc__ or name).strip().splitlines()[0])


_current: contextvars.ContextVar[Registry | None] = contextvars.ContextVar("condense_registry", default=None)


@functools.cache
def _installed() -> Registry:
    return load()


def registry() -> Registry:
    """The registry in force: the one of `using`, else the installed plugins', loaded at first use."""
    return _current.get() or _installed()


@contextmanager
def using(other: Registry) -> Iterator[Registry]:
    """Another registry for a while (tests, embedding)."""
    token = _current.set(other)
    try:
        yield other
    finally:
        _current.reset(token)


def run_manager(observers: Iterable[Any], plugins: Registry | None = None) -> pluggy.PluginManager:
    """A fresh manager over the same plugin objects plus one run's observers: no global mutable state."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    for plugin in (plugins or registry()).plugins:
        if plugin.error is None:
            manager.register(plugin.object, name=plugin.key)
    for observer in observers:
        manager.register(observer)
    return manager


def versions(parts: Iterable[Component] | None = None) -> dict[str, str]:
    """Distribution -> version of every plugin that loaded; of `parts`: of those that one of these parts is of."""
    loaded = [plugin for plugin in registry().plugins if plugin.error is None]
    kinds = None if parts is None else {type(part) for part in parts}
    return {plugin.distribution: plugin.version for plugin in loaded if kinds is None or kinds & set(plugin.parts)}


def software() -> dict[str, str]:
    """`versions`, and those of torch and of Python: for provenance."""
    return {**versions(), "torch": torch.__version__, "python": platform.python_version()}
