"""Image methods for condense: sources, networks, augmentation, preprocessing, judges; one file for each paper."""

from __future__ import annotations

from condense.component import Component
from condense.hookspecs import hookimpl

from . import augment, nets, preprocess, protocols, sources


@hookimpl
def condense_components() -> list[type[Component]]:
    return [part for room in (augment, nets, preprocess, protocols, sources) for part in room.components()]
