"""Faces: the command line of condense under another name, with the words, defaults and options of one domain.

A face has the commands of condense, and what it does `condense` does too: whatever its options say is turned into
arguments of these commands.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from .options import option
from .program import called

if TYPE_CHECKING:
    import typer

PLANNING = ("run", "show", "experts")  # commands that make a plan: they get a face's defaults and options
FORM = "form"  # the argument of the commands that can be told to speak of some forms only


@dataclass(frozen=True)
class Face:
    """What the program of one domain says otherwise than `condense`.

    forms: names of the forms that its lists are about. defaults: of arguments of the commands that make a plan
    (`PLANNING`). spelt: arguments under another option, wherever they stand: name -> `Annotated[type, option(...)]`.
    own: options that those commands have besides; `settle` turns their arguments, own ones included, into those of
    condense.
    """

    program: str
    help: str
    forms: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    spelt: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    settle: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def app(self) -> typer.Typer:
        """The program with all of its commands."""
        from . import cli

        found = [(c.name or c.callback.__name__, c.callback) for c in cli.app.registered_commands if c.callback]
        app = cli.program(self.program, self.help)
        for name, function in found:
            app.command(name=name)(self._worn(name, function, [name for name, _ in found]))
        return app

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The entry point of the program: never returns. Exit codes are those of condense."""
        self.app()(args=arguments, prog_name=self.program)

    def _worn(self, name: str, function: Callable[..., Any], verbs: Iterable[str]) -> Callable[..., Any]:
        """A command of condense as this program has it."""
        known, plans = inspect.signature(function).parameters, name in PLANNING
        silent = {FORM: list(self.forms)} if FORM in known else {}
        spelt = {argument: typing.get_args(kind)[1].default for argument, kind in self.spelt.items()}

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            with called(self.program, spelt):
                return function(**silent, **(self.settle(given) if plans else given))

        renamed = functools.partial(re.sub, rf"\bcondense (?={'|'.join(verbs)})", f"{self.program} ")
        parameters = [
            parameter.replace(annotation=_told(parameter.annotation, renamed))
            for parameter in self._parameters(function, plans)
            if parameter.name not in silent
        ]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = renamed(inspect.getdoc(function) or "")
        return command

    def _parameters(self, function: Callable[..., Any], plans: bool) -> Iterator[inspect.Parameter]:
        """Those of the command in this program's words; its own ones come after the data set."""
        hints, kind = typing.get_type_hints(function, include_extras=True), inspect.Parameter.KEYWORD_ONLY
        for name, parameter in inspect.signature(function).parameters.items():
            default = self.defaults.get(name, parameter.default) if plans else parameter.default
            yield inspect.Parameter(name, kind, default=default, annotation=self.spelt.get(name, hints[name]))
            if plans and name == "data":
                yield from (inspect.Parameter(n, kind, default=None, annotation=of) for n, of in self.own.items())


def _told(annotation: Any, renamed: Callable[[str], str]) -> Any:
    """The annotation of an option whose help names another program."""
    kind, *infos = typing.get_args(annotation)
    infos = [copy.copy(info) for info in infos]
    for info in infos:
        info.help = renamed(info.help or "")
    return Annotated[kind, *infos]


__all__ = ["Face", "option"]
