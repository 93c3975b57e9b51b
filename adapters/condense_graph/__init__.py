"""Graphs for condense: nodes of one graph and sets of graphs. What x is, where it comes from, and how it is judged.

The methods' mathematics is condense's own: an objective never learns what it matches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condense.hookspecs import hookimpl

if TYPE_CHECKING:
    from condense.component import Component

    from .export import to_pyg


@hookimpl
def condense_components() -> list[type[Component]]:
    from . import collections, concrete, gntk, graph, nets, ogbg, parameterizations, preprocess, protocols, sources, tu

    rooms = (graph, collections, nets, preprocess, protocols, sources, tu, ogbg, concrete, gntk, parameterizations)
    return [part for room in rooms for part in room.components()]


def __getattr__(name: str) -> Any:
    """`to_pyg`, imported when it is asked for: the help of `condense-graph` stays quick."""
    if name == "to_pyg":
        from .export import to_pyg

        return to_pyg
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["condense_components", "to_pyg"]
