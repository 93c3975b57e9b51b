"""One's own graph in a file, without a plugin. Nothing that a file could bring along is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from pydantic import field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file

from condense.errors import BadData
from condense.foreign import read_arrays

from ..needs import pyg
from .base import Labelled, NodeData
from .own_arrays import NAMES, Features, labelled

AGAIN = "Write the file again, as .npz or .safetensors with the arrays x, edge_index, y, train_mask, test_mask."


@final
class Pyg(NodeData):
    """`pyg:PATH`: a graph in an .npz, a .safetensors, or a file in which `torch.save` put a `Data` object of PyG.

    It holds x (N, D), edge_index (2, E), y (N,), train_mask, test_mask and perhaps val_mask (N,), edge_weight or a
    one-dimensional edge_attr (E,), and in an .npz perhaps `classes`, their names in order. What follows from these is
    said at `condense_graph.sources.own_arrays.labelled`: also what `features` (the default scale) and `classes` mean.
    path is absolute in the value, so that a resume finds it from anywhere.
    """

    shorthand: ClassVar[str | None] = "path"
    path: str
    classes: tuple[str, ...] | None = None
    features: Features = "auto"

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return str(Path(path).expanduser().absolute())

    @property
    def label(self) -> str:
        return Path(self.path).stem or self.name

    def read(self) -> Labelled:
        path = Path(self.path)
        readers = {".npz": npz, ".safetensors": tensors, ".pt": saved, ".pth": saved}
        if not path.is_file():
            raise BadData("data.path", self.path, "is no file", "Name a file of a graph: .npz, .safetensors or .pt.")
        if path.suffix not in readers:
            raise BadData("data.path", self.path, f"does not end in {', '.join(readers)}", AGAIN)
        return labelled(readers[path.suffix](path), path.name, self.classes, self.features)


def npz(path: Path) -> Mapping[str, Any]:
    return read_arrays(path, NAMES)


def tensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadData(str(path), str(error), "cannot be read as a safetensors file", AGAIN) from None


def saved(path: Path) -> Mapping[str, Any]:
    """The tensors of a saved `Data`: only PyG's own classes for it are made, and no other code is run."""
    found = load_safely(path)
    if not isinstance(found, pyg("data").Data):
        raise BadData(str(path), type(found).__name__, "holds no Data object of PyG", AGAIN)
    held: Mapping[str, Any] = found.to_dict()
    return held


def load_safely(path: Path) -> Any:
    """`torch.load` that admits tensors, containers and PyG's classes. Raises `BadData`."""
    module = pyg("data.data")
    classes = [module.Data, module.DataEdgeAttr, module.DataTensorAttr, pyg("data.storage").GlobalStorage]
    listed = torch.serialization.get_safe_globals()  # PyG lists some itself, and torch would take them off at the end
    try:
        with torch.serialization.safe_globals([cls for cls in classes if cls not in listed]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the unpickler, the archive, or a class that was handed nonsense
        problem = "holds more than tensors and PyG's own classes, or is damaged"
        raise BadData(str(path), str(error).partition("\n")[0], problem, AGAIN) from None
