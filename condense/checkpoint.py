"""Checkpoints of a run, and the lock that keeps two runs out of one folder. Both live in the private `DIR/.run`."""

from __future__ import annotations

import fcntl
import os
import re
import time
import warnings
from pathlib import Path
from typing import Any, Self

from . import files, store
from .errors import Damaged, InUse

KIND = "checkpoint"
PRIVATE = ".run"


def private_folder(folder: Path) -> Path:
    """`folder/.run`, made where it is missing, with mode 700: what only a resume needs. Raises `BadValue`, `NoRoom`."""
    private = folder / PRIVATE
    with files.writing(private):
        private.mkdir(parents=True, exist_ok=True)
        private.chmod(0o700)
    return private


class Checkpoints:
    """The checkpoints in a private folder; the newest `keep` stay. One writer at a time: hold a `Lock`."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, index: int, tree: Any) -> Path:
        """Write `checkpoint-<index>.safetensors`, whole or not at all; then drop all but the newest `keep` up to it.

        index: outer steps that are done. Raises `NoRoom` or `BadValue`; the checkpoints before survive.
        """
        with files.writing(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f"checkpoint-{index:06d}.safetensors"
        store.save(path, {"index": index, "tree": tree}, KIND)
        kept = [i for i in self._found() if i <= index][: self.keep]
        for i, other in self._found().items():
            if i not in kept:
                other.unlink(missing_ok=True)
        files.sweep(self.folder)
        return path

    def latest(self) -> tuple[int, Any] | None:
        """(index, tree) of the newest checkpoint, or None where there is none.

        Where the newest is damaged, a warning names it and the one before is taken; where all are, raises `Damaged`.
        """
        damage: Damaged | None = None
        for index, path in self._found().items():
            try:
                return index, self._read(index, path)
            except Damaged as error:
                warnings.warn(f"This checkpoint is passed over: {error}", RuntimeWarning, stacklevel=2)
                damage = damage or error
        if damage:
            raise damage
        return None

    def _read(self, index: int, path: Path) -> Any:
        saved = store.load(path, KIND)
        if not isinstance(saved, dict) or saved.get("index") != index:
            raise Damaged(str(path), index, "does not hold the step that its name says", "Remove it.")
        return saved["tree"]

    def _found(self) -> dict[int, Path]:
        """Checkpoints by index, the newest first; leftovers of killed writers are none."""
        found = {}
        for path in self.folder.glob("checkpoint-*.safetensors"):
            match = re.fullmatch(r"checkpoint-(\d+)\.safetensors", path.name)
            if match and path.is_file():
                found[int(match[1])] = path
        return dict(sorted(found.items(), reverse=True))


class Lock:
    """One writer for one folder. The kernel drops the lock when its process dies, so none is ever stale."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "lock"
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take the lock, noting process and start time in it; raises `InUse` where another run holds it."""
        with files.writing(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            remedy = "Wait for it, stop it, or give another folder with --out."
            raise InUse(str(self.path.parent), holder, "is being written by another run", remedy) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        self._handle = handle
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
