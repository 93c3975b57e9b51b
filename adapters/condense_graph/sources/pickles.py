"""Pickles that are published data sets: only known bytes are read, and only into arrays and containers.

Two fences, each of which would do: a file whose checksum is not the published one is not looked into; and nothing but
the types below is ever made, so that no program in a pickle is run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from condense.errors import BadData

GIT = "git:"


def checksum(raw: bytes, like: str) -> str:
    """SHA-256 in hexadecimal; or git's name of a file of these bytes (SHA-1), where `like` starts with `git:`."""
    if like.startswith(GIT):
        return GIT + hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()
    return hashlib.sha256(raw).hexdigest()


def known_bytes(path: Path, expected: str) -> bytes:
    """What the file holds, if it is what was published. Raises `BadData` otherwise."""
    raw = path.read_bytes()
    if checksum(raw, expected) != expected:
        problem = f"is not the published file, whose checksum is {expected}"
        raise BadData(str(path), checksum(raw, expected), problem, "Get the file again from its publisher.")
    return raw


def unpickled(path: Path, expected: str) -> Any:
    """The object in a pickle of known checksum. Raises `BadData` for other files and for types not admitted."""
    raw = known_bytes(path, expected)
    try:
        with warnings.catch_warnings():  # numpy and scipy on the age of the published pickles
            warnings.simplefilter("ignore")
            return Restricted(io.BytesIO(raw), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise BadData(str(path), str(error), "holds more than arrays", "Get the file again.") from None


class Restricted(pickle.Unpickler):
    """Numpy arrays, scipy's csr matrices, lists and dicts of lists; `UnpicklingError` for every other type."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return admitted()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def admitted() -> dict[tuple[str, str], Any]:
    """The types by the names that the published files, of Python 2, give them."""
    from scipy.sparse import csr_matrix

    return {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("scipy.sparse.csr", "csr_matrix"): csr_matrix,
        ("collections", "defaultdict"): defaultdict,
        ("__builtin__", "list"): list,
    }
