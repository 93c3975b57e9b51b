"""What a plugin can do to a run, and what then happens: whose fault it was is said, and what is done is kept.

Code of a plugin is no sandbox: what it writes elsewhere, or does to other threads, cannot be prevented.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import pluggy
import torch
from torch import Tensor, nn

from . import hookspecs
from .axes import Net, Term
from .checkpoint import PRIVATE
from .component import Component
from .errors import BrokenPlugin, CondenseError, NoRoom
from .plugins import DISTRIBUTION, Plugin, registry
from .program import hint
from .recipe import Recipe
from .task import Batch, Task

ROOM = "Ask for a smaller set, smaller batches (objective.pairing.n), or a narrower network."
TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


# -- what it raises ---------------------------------------------------------------------------------------------------


@contextmanager
def blaming(folder: Path | None = None) -> Iterator[None]:
    """Turn what a stranger's part raises, SystemExit included, into `BrokenPlugin`, and lack of memory into `NoRoom`.

    folder: of the run, of which the remedy says what is kept. Our own errors, Ctrl-C, and what no plugin had a hand in
    pass through. Whatever happens, torch's default dtype is as before.
    """
    dtype = torch.get_default_dtype()
    try:
        yield
    except (CondenseError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise NoRoom("memory", _first_line(error), "does not suffice", f"{ROOM} {kept(folder)}") from error
        who = _culprit(error.__traceback__)
        if who is None:
            raise
        problem = f"raised {type(error).__name__}: {_first_line(error)}"
        raise BrokenPlugin("plugin", who, problem, f"Repair it, or uninstall it. {kept(folder)}") from error
    finally:
        torch.set_default_dtype(dtype)


def kept(folder: Path | None) -> str:
    """What of a run in `folder` is not lost, and how to go on."""
    if folder is not None and (folder / "manifest.json").is_file():
        return f"The set is complete in {folder}."
    if folder is not None and any((folder / PRIVATE).glob("checkpoint-*.safetensors")):
        return f"The last checkpoint is kept; go on with: {hint('resume', folder)}"
    return "Nothing was done yet that could be lost."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _culprit(trace: TracebackType | None) -> str | None:
    """The plugin in whose code, or in whose company, it was raised: the innermost frame that is a stranger's."""
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    found = (_stranger(frame.f_globals.get("__name__", "")) for frame in reversed(frames))
    return next((who for who in found if who), None)


def _stranger(module: str) -> str | None:
    """The plugin of another distribution that a module belongs to."""
    strangers = [plugin for plugin in registry().plugins if plugin.distribution != DISTRIBUTION and not _ours(module)]
    for plugin in strangers:
        homes = {plugin.module.partition(":")[0], *(part.__module__ for part in plugin.parts)}
        if any(module == home or module.startswith(f"{home}.") for home in homes):
            return named(plugin)
    return None


def _ours(module: str) -> bool:
    return module == "condense" or module.startswith("condense.")


def named(plugin: Plugin) -> str:
    return f"{plugin.distribution} {plugin.version} ({plugin.module})"


class Shield:
    """The hooks of one plugin or observer, each guarded."""


def tolerant(hooks: pluggy.PluginManager) -> pluggy.PluginManager:
    """A manager of the same hooks that sets a plugin or observer aside that raises, or changes the default dtype.

    Hooks watch: what they do must not end somebody else's run. A warning names who is set aside, for the rest of the
    run. Our own errors (a full disk, say) and Ctrl-C pass through. Wrappers in pluggy's sense are left as they are.
    """
    quiet = pluggy.PluginManager(hooks.project_name)
    quiet.add_hookspecs(hookspecs)
    known = {plugin.key: f"plugin {named(plugin)}" for plugin in registry().plugins}
    for name, plugin in hooks.list_name_plugin():
        shield, who = Shield(), known.get(name, f"observer {type(plugin).__qualname__}")
        for key in dir(plugin):
            options = hooks.parse_hookimpl_opts(plugin, key)
            if options is not None:
                bare = options["wrapper"] or options["hookwrapper"]
                setattr(shield, key, getattr(plugin, key) if bare else _guarded(getattr(plugin, key), shield, who))
        quiet.register(shield, name=name)
    return quiet


def _guarded(hook: Callable[..., Any], shield: Shield, who: str) -> Callable[..., Any]:
    @functools.wraps(hook)
    def call(*arguments: Any) -> Any:
        if vars(shield).get("aside"):
            return None
        dtype = torch.get_default_dtype()
        try:
            given = hook(*arguments)
            if torch.get_default_dtype() is dtype:
                return given
            problem = f"changed torch's default dtype to {torch.get_default_dtype()}"
        except (CondenseError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit, too
            problem = f"raised {type(error).__name__}: {_first_line(error)}"
        torch.set_default_dtype(dtype)
        vars(shield)["aside"] = True
        text = f"{who} is set aside for the rest of this run: its {hook.__name__} {problem}"
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return None

    return call


# -- what it gives back -----------------------------------------------------------------------------------------------


def breach(part: Component, value: Any, problem: str) -> BrokenPlugin:
    """A part that did not keep the contract of its axis, with the plugin that it comes from."""
    _, plugin = registry().parts.get(part.axis, {}).get(part.name, (None, None))
    owner = f"It comes from {named(plugin)}: repair or uninstall that." if plugin else "Repair it."
    return BrokenPlugin(f"{part.axis} {part.name}", value, problem, owner)


def check_term(term: Any, objective: Component) -> None:
    """Refuse what `Objective` must not yield: losses that are no 0-d floats, cotangents unlike their tensors."""
    if not isinstance(term, Term):
        raise breach(objective, type(term).__name__, "yields what is no Term")
    for name, value in term.losses.items():
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise breach(objective, _described(value), f"gives a loss {name!r} that is no 0-d tensor of floats")
    for drawn, gradient in term.cotangents:
        if _described(drawn) != _described(gradient):
            raise breach(objective, _described(gradient), f"gives a cotangent for a {_described(drawn)}")


def check_start(init: Component, batch: Batch, task: Task, n: int) -> None:
    """Refuse what `Init` must not give: other than n examples of the task, or other than one label for each."""
    expected = {key: tuple(t.shape) for key, t in task.form.pack(task.form.blank(task, n)).items()}
    found = {key: tuple(t.shape) for key, t in task.form.pack(batch.x).items()}
    if task.form.in_rows and found != expected:
        raise breach(init, found, f"gives examples of other shapes than {expected}")
    if len(batch.y) != n:
        raise breach(init, len(batch.y), f"gives another number of labels than {n}")


def check_net(net: Net, task: Task) -> None:
    """Refuse a network of other outputs than (N, K), or without features (N, D), where it can be tried without data."""
    try:
        with torch.device("meta"):
            module, x = net.build(task), task.form.blank(task, 2)
        if not callable(getattr(module, "features", None)):
            raise breach(net, type(module).__name__, "makes a module without `features`")
        outputs, features = module(x), module.features(x)  # type: ignore[operator]
    except (NotImplementedError, RuntimeError, TypeError):
        return
    for what, value, expected in (("outputs", outputs, (2, task.outputs)), ("features", features, (2, "D"))):
        shape = tuple(getattr(value, "shape", ()))
        fits = len(shape) == 2 and all(b in (a, "D") for a, b in zip(shape, expected, strict=True))
        if task.form.independent and not fits:
            raise breach(net, shape, f"gives {what} of another shape than {expected}, for 2 examples")


def _described(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


# -- what it leaves behind --------------------------------------------------------------------------------------------


@contextmanager
def bare(module: nn.Module | None) -> Iterator[None]:
    """Takes off, afterwards, the hooks that a step has hung on the network it was lent, in whatever way it ended."""
    tables = [getattr(part, name) for part in (module.modules() if module else ()) for name in TABLES]
    before = [(table, set(table)) for table in tables]
    try:
        yield
    finally:
        for table, own in before:
            for key in [key for key in table if key not in own]:
                del table[key]


def check_dtype(dtype: torch.dtype, recipe: Recipe) -> None:
    """Refuse to go on where torch's default dtype is another one by now; names every stranger's part in the recipe."""
    found = torch.get_default_dtype()
    if found is not dtype:
        problem = f"torch's default dtype was {dtype} and is now {found}; it is put back"
        remedy = "Repair or uninstall it: a part names the dtype of what it makes."
        raise BrokenPlugin("plugin", ", ".join(_parts(recipe)) or recipe.name, problem, remedy)


def _parts(recipe: Recipe) -> list[str]:
    """The parts of a recipe that come from other distributions, each with its plugin."""
    known, parts = registry().parts, [part for part in recipe.walk() if hasattr(part, "axis")]
    owned = [(part, known.get(part.axis, {}).get(part.name, (None, None))[1]) for part in parts]
    return [f"{part.axis} {part.name} of {named(p)}" for part, p in owned if p and p.distribution != DISTRIBUTION]
