"""Graphs for condense: nodes of one graph and sets of graphs. What x is, where it comes from, and how it is judged.

The methods' mathematics is condense's own: an objective never learns what it matches.
"""

from __future__ import annotations

from condense.component import Component
from condense.hookspecs import hookimpl

from . import collections, concrete, gntk, graph, nets, ogbg, parameterizations, preprocess, sources, tu


@hookimpl
def condense_components() -> list[type[Component]]:
    rooms = (graph, collections, nets, preprocess, sources, tu, ogbg, concrete, gntk, parameterizations)
    return [part for room in rooms for part in room.components()]
