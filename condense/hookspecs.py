"""The whole contract between condense and its plugins.

A hook that raises while a run goes on is set aside for the rest of that run, with a warning that names its plugin: it
watches, and must not end what others do. A part that raises ends the run, by its plugin's name; see condense.isolation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from .component import Component
    from .recipe import Recipe
    from .running import Run

hookspec = pluggy.HookspecMarker("condense")
hookimpl = pluggy.HookimplMarker("condense")


@hookspec
def condense_components() -> Iterable[type[Component]]:  # type: ignore[empty-body]
    """The parts that this plugin adds, on any axis.

    Fires once, when the plugin loads. All plugins' lists are joined; a name taken on its axis is refused.
    """


@hookspec
def condense_recipes() -> Mapping[str, Callable[..., Recipe]]:  # type: ignore[empty-body]
    """The named methods that this plugin adds; keyword-only arguments of a function become options.

    Fires once, when the plugin loads. All plugins' mappings are joined; a name taken within its form is refused.
    """


@hookspec
def condense_commands(add: Callable[[str, Callable[..., Any]], None]) -> None:
    """Add sub-commands to the command line: `add("name", function)`, typed as typer expects.

    Fires when the command line starts. The return value is ignored.
    """


@hookspec
def condense_pages() -> Mapping[str, Callable[[], str]]:  # type: ignore[empty-body]
    """Pages of documentation that are computed from this plugin: name of the file -> function that gives its Markdown.

    Fires when `python -m condense.docs` writes the pages of condense's own packages. All plugins' mappings are joined.
    """


@hookspec
def condense_started(run: Run) -> None:
    """Fires before the first step of a run, also of a resumed one. The return value is ignored."""


@hookspec
def condense_made(run: Run, text: str) -> None:
    """Fires while an asset is made, each time a part of it is on disk; `text` says how far it is, for people.

    The return value is ignored.
    """


@hookspec
def condense_stepped(run: Run, index: int, losses: Mapping[str, Tensor]) -> None:
    """Fires after outer step `index`. `losses` are detached 0-d tensors: reading one waits for the device.

    The return value is ignored.
    """


@hookspec(firstresult=True)
def condense_stop(run: Run, index: int) -> str | None:
    """Fires after each outer step. The first reason returned ends the run early; it is recorded in the artifact."""


@hookspec
def condense_finished(run: Run, artifact: Any) -> None:
    """Fires when the artifact is complete on disk. The return value is ignored."""


@hookspec
def condense_evaluated(artifact: Any, report: Any) -> None:
    """Fires when a report is complete. The return value is ignored."""
