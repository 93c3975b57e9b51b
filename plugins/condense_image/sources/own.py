"""One's own images, without a plugin: a folder of pictures, or an archive of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from pydantic import Field, field_validator

from condense.data import Facts
from condense.errors import BadData
from condense.splits import Part, Parts, as_part, numbered

from .. import readers
from .base import Images

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class Own(Images):
    """Images at a path, absolute in the value, so that a resume finds them from anywhere.

    test: the share held out by `seed` where there is no test part. mirror: do mirrored images keep their meaning?
    """

    shorthand: ClassVar[str | None] = "path"
    path: str
    test: float = Field(default=0.2, gt=0, lt=1)
    mirror: bool = True

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: str) -> str:
        return str(Path(path).expanduser().absolute())

    @property
    def held_out(self) -> float:
        return self.test

    @property
    def label(self) -> str:
        return Path(self.path).stem or self.name

    def facts(self) -> Facts:
        return Facts(title=self.label, extra={"mirror": self.mirror})


@final
class Folder(Own):
    """`folder:PATH`: one folder of pictures per class, in train/ and test/ (and val/), or in PATH itself.

    Classes are the sorted names of the folders in train/, by code point (capitals before small letters); test/ and val/
    may lack some, and may have no others. Files whose ending is not a picture's are passed over.

    size: pictures are centre-cropped to a square and resized to it; None: all have one size already.
    channels: pictures are converted to 1 or 3; None: all are grey, or all are RGB.
    """

    size: int | None = Field(default=None, ge=1)
    channels: Literal[1, 3] | None = None

    def read(self) -> Parts:
        root = Path(self.path)
        if not root.is_dir():
            raise BadData(
                "data.path", self.path, "is no folder", "Name a folder with one folder of pictures per class."
            )
        train = root / "train" if (root / "train").is_dir() else root
        classes = tuple(sorted(folder.name for folder in train.iterdir() if _seen(folder) and folder.is_dir()))
        if not classes:
            raise BadData(
                str(train), [], "holds no folders", "Put the pictures of each class into a folder of its own."
            )
        parts = [
            self._part(folder, classes) for folder in (train, root / "test", root / "val")[: 3 if train != root else 1]
        ]
        test, validation = (*parts[1:], None, None)[:2]
        if parts[0] is None:
            raise BadData(str(train), list(classes), "holds no pictures", f"Known endings: {', '.join(ENDINGS)}.")
        return Parts(parts[0], test, classes, self.facts(), validation)

    def _part(self, folder: Path, classes: Sequence[str]) -> Part | None:
        """The pictures of all classes in one folder, in the order of class and file name; None where there are none."""
        if not folder.is_dir():
            return None
        other = sorted(p.name for p in folder.iterdir() if _seen(p) and p.is_dir() and p.name not in classes)
        if other:
            raise BadData(
                str(folder), other[:10], "holds classes that train lacks", "Add them to train, or remove them."
            )
        files = [(path, c) for c, name in enumerate(classes) for path in _pictures(folder / name)]
        if not files:
            return None
        remedy = "Give `size` (pictures are resized to it) and `channels` (1 or 3: they are converted)."
        arrays = ((str(path), readers.image(path, self.size, self.channels)) for path, _ in files)
        images = np.stack(readers.same_size(arrays, remedy))
        return Part(torch.from_numpy(images), torch.tensor([c for _, c in files]), str(folder))


def _seen(path: Path) -> bool:
    return not path.name.startswith(".")


def _pictures(folder: Path) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in files if _seen(path) and path.suffix.lower() in ENDINGS)


def _flat(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Labels that stand in one column as a row; others, and images, as they are."""
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


MEDMNIST = {
    f"{split}_{theirs}": f"{ours}_{split}"
    for split in ("train", "val", "test")
    for theirs, ours in (("images", "x"), ("labels", "y"))
}


@final
class Npz(Own):
    """`npz:PATH`: arrays x_train, y_train, x_test, y_test (and x_val, y_val), or x and y, which are split by `seed`.

    The names of MedMNIST's archives (train_images, train_labels, ...) are read as well, their labels as the one column
    that they are; several labels for each image are refused. Arrays are read as `condense.splits.as_examples` and
    `as_labels` say. classes: names in the order of the labels; None: the labels themselves.
    """

    classes: tuple[str, ...] | None = None

    def read(self) -> Parts:
        path = Path(self.path)
        if not path.is_file():
            raise BadData("data.path", self.path, "is no file", "Name an .npz archive.")
        pairs = ("x", "y"), ("x_train", "y_train"), ("x_test", "y_test"), ("x_val", "y_val")
        arrays = readers.npz(path, [*(name for pair in pairs for name in pair), *MEDMNIST])
        twice = [name for name, ours in MEDMNIST.items() if name in arrays and ours in arrays]
        if twice:
            problem = f"holds both {twice[0]} and {MEDMNIST[twice[0]]}"
            raise BadData(self.path, sorted(arrays), problem, "Store one of them.")
        arrays |= {ours: _flat(arrays.pop(name)) for name, ours in MEDMNIST.items() if name in arrays}
        whole, train, test, validation = (self._part(arrays, x, y) for x, y in pairs)
        if (whole is None) == (train is None):
            remedy = "Store x_train, y_train, x_test, y_test, or x and y."
            raise BadData(self.path, sorted(arrays), "holds neither or both of x_train and x", remedy)
        first = whole if train is None else train
        classes = self.classes or numbered(first, test, validation)
        return Parts(first, test, classes, self.facts(), validation)  # type: ignore[arg-type]

    def _part(self, arrays: dict[str, np.ndarray], x: str, y: str) -> Part | None:
        if (x in arrays) != (y in arrays):
            lacking = y if x in arrays else x
            raise BadData(self.path, sorted(arrays), f"lacks {lacking}", f"Store {x} and {y} together.")
        return as_part(arrays[x], arrays[y], f"{self.path}[{x}]") if x in arrays else None
