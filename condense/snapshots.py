"""Weights along a training, on disk: a safetensors file for each network, snapshot after snapshot, mapped into memory.

A file holds tensors `<snapshot>/<parameter>`. It is written in place while the training goes on, under a name that no
reader looks for, and renamed when its last snapshot is complete; so never more than one snapshot is in memory. The
SHA-256 of each snapshot stands in an index beside the files, and is looked at when the snapshot is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import safetensors
import torch
from safetensors import safe_open
from torch import Tensor

from . import files
from .errors import Damaged
from .files import REMEDY

Dtype = Literal["float32", "bfloat16"]
NAMES = {"float32": "F32", "bfloat16": "BF16"}
Weights = Mapping[str, Tensor]


def name_of(index: int, parameter: str) -> str:
    return f"{index:04d}/{parameter}"


class Writer:
    """One file of `count` snapshots of weights shaped as `like`, each stored as `dtype`; `path` appears by `finish`."""

    def __init__(self, path: Path, like: Weights, count: int, dtype: Dtype) -> None:
        self.path, self.part, self.dtype = path, path.with_name(path.name + ".part"), dtype
        self.names = list(like)
        each = {name: value.numel() * getattr(torch, dtype).itemsize for name, value in like.items()}
        self.size, table, at = sum(each.values()), {}, 0
        for index in range(count):
            for name, length in each.items():
                place = {"dtype": NAMES[dtype], "shape": list(like[name].shape), "data_offsets": [at, at + length]}
                table[name_of(index, name)] = place
                at += length
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.head, self.total = len(text).to_bytes(8, "little") + text, at

    def put(self, index: int, weights: Weights) -> str:
        """Write snapshot `index`, on disk when this returns; gives its SHA-256. Raises `NoRoom`, `BadValue`."""
        rows = [_bytes(weights[name], self.dtype) for name in self.names]
        with files.writing(self.path):
            handle = os.open(self.part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                at = len(self.head) + index * self.size
                for row, place in ((self.head, 0), (b"".join(rows), at)):
                    _write_all(handle, row, place)
                os.fsync(handle)
            finally:
                os.close(handle)
        return hashlib.sha256(b"".join(rows)).hexdigest()

    def finish(self) -> None:
        """All snapshots are written: the file gets its name, if it has not got it already."""
        with files.writing(self.path):
            if self.part.exists() or not self.path.exists():
                os.replace(self.part, self.path)
            files.sync_folder(self.path.parent)


def _write_all(handle: int, data: bytes, at: int) -> None:
    """All of it: the system may write a part, and says why only when it is asked for the rest."""
    view = memoryview(data)
    while view:
        done = os.pwrite(handle, view, at)
        view, at = view[done:], at + done


def _bytes(tensor: Tensor, dtype: Dtype) -> bytes:
    stored = tensor.detach().to("cpu", getattr(torch, dtype)).contiguous()
    return bytes(stored.reshape(-1).view(torch.uint8).numpy().data)


class Reader:
    """The snapshots of one file. sums: their SHA-256, in order. The file is mapped: what is not asked for is not read.

    Raises `Damaged`, naming the file, where it is no such file, or a snapshot is not as it was written.
    """

    def __init__(self, path: Path, sums: Sequence[str]) -> None:
        self.path, self.sums = path, sums
        self.sound: set[int] = set()
        self._open: Any = None

    def __len__(self) -> int:
        return len(self.sums)

    def get(self, index: int, like: Weights) -> dict[str, Tensor]:
        """Snapshot `index`: a copy in the types and on the devices of `like`, whose names and shapes it must have."""
        try:
            found = {name: self._file().get_tensor(name_of(index, name)) for name in like}
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise Damaged(str(self.path), str(error), f"holds no snapshot {index} as it was written", REMEDY) from None
        for name, value in found.items():
            if value.shape != like[name].shape:
                problem = f"snapshot {index} has {name} of another shape than {tuple(like[name].shape)}"
                raise Damaged(str(self.path), tuple(value.shape), problem, REMEDY)
        if index not in self.sound:
            self._check(index, found)
        return {name: torch.empty_like(like[name]).copy_(value) for name, value in found.items()}

    def _file(self) -> Any:
        if self._open is None:
            if self.path.is_symlink() or not self.path.is_file():
                raise Damaged(str(self.path), "nothing", "is missing", REMEDY)
            self._open = safe_open(str(self.path), framework="pt")
        return self._open

    def _check(self, index: int, found: Weights) -> None:
        h = hashlib.sha256()
        for value in found.values():
            h.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        if h.hexdigest() != self.sums[index]:
            problem = f"snapshot {index} is not as it was written"
            raise Damaged(str(self.path), "a wrong SHA-256", problem, REMEDY)
        self.sound.add(index)
