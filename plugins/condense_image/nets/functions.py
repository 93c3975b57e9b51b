"""Which function it is: import paths, and fingerprints of functions that a run was given."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from condense.errors import BadValue, nearest

Maker = Callable[..., nn.Module]
LOCAL = "<local>"
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
PLAIN = (str, bytes, int, float, complex, bool, type(None))


def imported(path: str) -> Maker:
    """The function at `package.module:qualified.name`."""
    name, _, qualname = path.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        problem = f"{name} cannot be imported: {type(error).__name__}: {error}"
        remedy = "Install its package, or put its folder on PYTHONPATH."
        raise BadValue("net.path", path, problem, remedy) from error
    for part in qualname.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
            raise BadValue("net.path", path, f"{name} has no {qualname}", nearest(part, known))
        found = getattr(found, part)
    if not callable(found):
        raise BadValue("net.path", path, "cannot be called", "Give a function, or class, that makes a module.")
    made: Maker = found
    return made


def path_of(make: Maker) -> str:
    """`module:qualname` where importing it gives this very function, else `<local>` and that."""
    kind = make if hasattr(make, "__qualname__") else type(make)
    module, qualname = make.__module__ or "", kind.__qualname__
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    path = f"{module}:{qualname}"
    importable = found is make and module != "__main__" and IMPORT_PATH.fullmatch(path)
    return path if importable else f"{LOCAL}{path}"


def fingerprint(make: Maker) -> str:
    return hashlib.sha256(described(make).encode()).hexdigest()[:16]


def described(value: Any) -> str:
    """A text that differs where two functions, or the plain values that they hold, do; the same in every process."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple | list):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, Mapping):
        return f"({', '.join(f'{key}={described(item)}' for key, item in value.items())})"
    if isinstance(value, functools.partial):
        return f"partial({described(value.func)}, {described(value.args)}, {described(value.keywords)})"
    if inspect.ismethod(value):
        return described(value.__func__)
    if inspect.isfunction(value):
        names, constants = (
            value.__code__.co_names,
            [item for item in value.__code__.co_consts if isinstance(item, PLAIN)],
        )
        return f"{source_text(value)} {names} {described(constants)} {described(held(value))}"
    if inspect.isclass(value):
        return source_text(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def held(function: Any) -> list[Any]:
    """A function's defaults and what it closes over; functions among them by their source (they may hold this one)."""
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()]
    values += [contents(cell) for cell in function.__closure__ or ()]
    return [source_text(value) if inspect.isfunction(value) else value for value in values]


def contents(cell: Any) -> Any:
    """What a cell of a closure holds; None where its name is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def source_text(kind: Any) -> str:
    """The source text; where there is none (an interactive session), the qualified name."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}"
