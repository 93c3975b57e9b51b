"""Condensed graphs as PyG objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from condense.artifact import Artifact, load
from condense.errors import BadValue

from .needs import pyg

if TYPE_CHECKING:
    from torch_geometric.data import Data


def to_pyg(artifact: Artifact | str | Path) -> Data | list[Data]:
    """A condensed graph as one `Data`, a set of graphs as a list of them, one for each graph.

    artifact: a folder, or what `condense.load` opens. Each Data has x (n, D) in the networks' own input scale,
    edge_index (2, E) with both directions of an undirected edge, edge_weight (E,), y, and `classes`, their names in
    order; a condensed graph train_mask (n,), too. y: (n,) of nodes, (1,) of a graph, int64; or float weights (., K).
    Raises `BadValue` where the set holds neither nodes nor graphs, or torch_geometric is not installed.
    """
    opened = artifact if isinstance(artifact, Artifact) else load(artifact)
    sampler, form = opened.sampler(), opened.task.form
    classes = list(opened.task.classes)
    if form.name == "nodes":
        return _data(form.to_arrays(sampler.x, sampler.y), classes)
    if form.name == "graphs":
        one = [form.example(sampler.x, i) for i in range(len(sampler))]
        return [_data({**arrays, "y": sampler.y[i : i + 1]}, classes) for i, arrays in enumerate(one)]
    raise BadValue("artifact", str(opened.path), f"holds {form.noun}, no graphs", "Open it with condense.load.")


def _data(arrays: Mapping[str, Tensor], classes: list[str]) -> Any:
    return pyg("data").Data(**arrays, classes=classes)
