"""The caller's own network: any function, or class, that makes a module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, final

import torch
from pydantic import Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from condense.axes import Net
from condense.errors import BadValue, CondenseError
from condense.recipe import Recipe
from condense.rng import Rng, seeded
from condense.task import Task

from .functions import IMPORT_PATH, LOCAL, Maker, fingerprint, imported, path_of
from .tapped import Tapped, last_layer


@final
class Custom(Net):
    """`custom:package.module:function`, or `Custom(live=function)`: a function, or class, that makes a module.

    The rule: a function with one argument that has no default is called as f(task), one with none as f(). `task.shape`
    is the shape of one example, `task.outputs` the number of outputs. A module without a method `features` is given
    one: the flattened input of its last `nn.Linear`.

    path: what is imported; for a function that cannot be imported (a lambda, one of a notebook or of `__main__`)
        `<local>` and its qualified name: a run with it is resumed only by giving the function again.
    fingerprint: 16 hexadecimal digits over the function's own source and the plain values that it closes over, recorded
        where the live function was given, and compared when it is imported again. What the function calls is not
        covered.
    live: the function itself. No part of the value: neither stored nor compared.

    A path is imported when a network is built, never while a recipe is read. Raises `BadValue` (`net.path`, `net.live`,
    `net.fingerprint`) where the function cannot be found, is another one than was recorded, takes other arguments, or
    makes what does not give (2, K) outputs and (2, D) features for two blank examples.
    """

    name: ClassVar[str] = "custom"
    shorthand: ClassVar[str | None] = "path"
    path: str
    fingerprint: str | None = None
    live: SkipJsonSchema[Any] = Field(default=None, exclude=True, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _recorded(cls, data: Any) -> Any:
        """A live function brings its path and fingerprint; where they are given too, they must be its own."""
        if not isinstance(data, Mapping) or data.get("live") is None:
            return data
        live = data["live"]
        if isinstance(live, nn.Module) or not callable(live):
            context = {"live": type(live).__name__, "remedy": "Give a function, or class, that makes a fresh module."}
            raise PydanticCustomError("component", "every network is made afresh: {live} makes none", context)
        own = {"path": path_of(live), "fingerprint": fingerprint(live)}
        for key, value in own.items():
            if data.get(key) not in (None, value):
                asked = {"what": f"{key} {data[key]}", "own": value, "remedy": "Give the function of the first run."}
                raise PydanticCustomError("component", "was recorded with the {what}; this function has {own}", asked)
        return {**data, **own}

    @field_validator("path")
    @classmethod
    def _path(cls, path: str) -> str:
        if not path.startswith(LOCAL) and not IMPORT_PATH.fullmatch(path):
            context = {"path": repr(path), "remedy": "Write it as package.module:function."}
            raise PydanticCustomError("component", "{path} is no import path", context)
        return path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom) and (self.path, self.fingerprint) == (other.path, other.fingerprint)

    def __hash__(self) -> int:
        return hash((self.path, self.fingerprint))

    def check(self, recipe: Recipe, task: Task) -> None:
        """Builds it for real, on the CPU: a stranger's initialisation may need values."""
        try_out(self, task)

    def build(self, task: Task) -> nn.Module:
        try_out(self, task)
        return self.module(task)

    def module(self, task: Task) -> nn.Module:
        """A fresh module with `features`, not tried out."""
        module = called(self.function(), self.path, task)
        if inspect.ismethod(getattr(module, "features", None)):  # a submodule of that name gives maps, not features
            return module
        head = last_layer(module, nn.Linear)
        if head is None:
            remedy = "Define features(self, x) on the module: (N, D), the input of its head."
            raise BadValue("net.path", self.path, "makes a module with neither `features` nor an nn.Linear", remedy)
        return Tapped(module, head)

    def function(self) -> Maker:
        """The live function, or what `path` names."""
        if self.live is not None:
            found: Maker = self.live
            return found
        if self.path.startswith(LOCAL):
            remedy = "Give it again with the arguments of the first run, or move it into a module that can be imported."
            raise BadValue("net.path", self.path, "is a function of a session that is gone", remedy)
        found = imported(self.path)
        if self.fingerprint not in (None, fingerprint(found)):
            problem = f"{self.path} is not the function that was recorded; its fingerprint is {fingerprint(found)}"
            raise BadValue("net.fingerprint", self.fingerprint, problem, "Restore its source, or start another run.")
        return found


# -- calling it, and trying out what it makes -------------------------------------------------------------------------


def called(make: Maker, path: str, task: Task) -> nn.Module:
    """The module that the function makes: f(task) where one argument is required, f() where none is."""
    required = required_arguments(make)
    if required is None or len(required) > 1:
        takes = f"requires {', '.join(required)}" if required else "does not tell its arguments, or requires keywords"
        raise BadValue("net.path", path, takes, "Give a function of one argument, the task, or of none.")
    try:
        module: Any = make(task) if required else make()
    except CondenseError:
        raise
    except Exception as error:
        problem = f"raised {type(error).__name__}: {error}, called with {'the task' if required else 'no argument'}"
        raise BadValue("net.path", path, problem, f"It must make a module for examples of {task.shape}.") from error
    if not isinstance(module, nn.Module):
        raise BadValue("net.path", path, f"made a {type(module).__name__}", "It must return a torch.nn.Module.")
    return module


def required_arguments(make: Maker) -> list[str] | None:
    """The positional arguments without default; None where they cannot be told, or keywords are required."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return None
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters if p.default is p.empty and p.kind not in variable]
    if any(p.kind is p.KEYWORD_ONLY for p in required):
        return None
    return [p.name for p in required]


@functools.lru_cache(maxsize=256)
def try_out(net: Custom, task: Task) -> None:
    """Raise `BadValue` unless fresh modules give (2, K) outputs and (2, D) features for a blank batch."""
    with torch.device("cpu"), seeded(Rng(0)), torch.no_grad():
        module, other = net.module(task), net.module(task)
        if {id(p) for p in module.parameters()} & {id(p) for p in other.parameters()}:
            remedy = "Make the module inside the function: every network starts from weights of its own."
            raise BadValue("net.path", net.path, "gives the same module, or parameters, twice", remedy)
        x = task.form.blank(task, 2)
        try:
            outputs, features = module(x), module.features(x)  # type: ignore[operator]
        except Exception as error:
            problem = f"makes a module that fails on 2 examples of {task.shape}: {type(error).__name__}: {error}"
            raise BadValue("net.path", net.path, problem, "Build it for task.shape and task.outputs.") from error
    if size(outputs) != (2, task.outputs):
        problem = f"gives {size(outputs)} for 2 examples, not (2, {task.outputs})"
        raise BadValue("net.path", net.path, problem, f"It needs {task.outputs} outputs: task.outputs, one per class.")
    if len(size(features)) != 2 or len(features) != 2:
        problem = f"has `features` that give {size(features)} for 2 examples, not (2, D)"
        raise BadValue("net.path", net.path, problem, "Flatten them: one row for each example.")


def size(value: Any) -> tuple[int, ...]:
    """The shape of a tensor; () for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else ()
