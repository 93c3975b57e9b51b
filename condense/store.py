"""One file for one tree of tensors and plain values: safetensors whose metadata hold a sealed manifest.

The manifest carries a format number, the kind of file, the structure of the tree and the SHA-256 of each tensor; the
seal is the SHA-256 of the file's length field and whole header, itself blanked. So a changed bit is found anywhere.
What is read is never executed: no pickle, no names turned into paths.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import safetensors
import torch
from safetensors.torch import load as decode_tensors
from safetensors.torch import save as encode_tensors
from torch import Tensor

from . import files
from .errors import BadValue, Damaged
from .files import REMEDY
from .plugins import DISTRIBUTION

FORMAT = 1
HEADER_LIMIT = 32 * 2**20
PREFIX = b'{"__metadata__":{"condense":"'  # the first bytes of every header, in every format; the seal follows
BLANK = "0" * 64
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
R = TypeVar("R")


def save(path: Path, tree: Any, kind: str) -> None:
    """Write `tree` (nested dict / list of tensors and int, float, str, bool, None) to `path`, whole or not at all.

    An OrderedDict comes back as a dict, a parameter as a plain tensor; everything else comes back as it was, exactly.

    Raises TypeError naming the place of anything else, `NoRoom` or `BadValue` where the file cannot be written.
    """
    files.write(path, pack(tree, kind))


def load(path: Path, kind: str, *, finite: bool = False) -> Any:
    """The tree that `save` wrote, its tensors on the CPU. `finite`: refuse NaN and infinity in the tensors.

    Raises `Damaged`, naming the file, for whatever is not exactly as it was written, is of another kind, or is newer.
    """
    return unpack(files.read(path), kind, path, finite=finite)


# -- to bytes -------------------------------------------------------------------------------------------------------


def pack(tree: Any, kind: str) -> bytes:
    """The bytes of the file: equal trees (order of keys included) give equal bytes."""
    tensors: dict[str, Tensor] = {}
    manifest = {"format": FORMAT, "kind": kind, "tree": _encode(tree, (), tensors)}
    manifest["sha256"] = {name: _digest(tensor) for name, tensor in tensors.items()}
    text = json.dumps(manifest, separators=(",", ":"), allow_nan=False)
    raw = encode_tensors(tensors, {"condense": BLANK + text})
    end = 8 + int.from_bytes(raw[:8], "little")
    if end > HEADER_LIMIT:
        raise BadValue(kind, f"{end} bytes", "has too many plain values for one file", "Store long lists as tensors.")
    start = 8 + len(PREFIX)
    return b"".join([raw[:start], _seal(raw[:end]), raw[start + 64 :]])


def _encode(node: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """JSON of a node; tensors are put into `tensors` under the name of their place."""
    if isinstance(node, Tensor):
        name = "/".join(quote(part, safe=" .") for part in place)
        tensors[name] = _storable(node, name)
        return {"tensor": name}
    if isinstance(node, dict):
        wrong = [key for key in node if type(key) is not str]
        if wrong:
            raise TypeError(f"{_at(place)}: the key {wrong[0]!r} is no str, so it cannot be stored")
        return {"dict": {key: _encode(value, (*place, key), tensors) for key, value in node.items()}}
    if type(node) is list:
        return [_encode(value, (*place, str(i)), tensors) for i, value in enumerate(node)]
    if type(node) is float:
        return node if math.isfinite(node) else {"float": repr(node)}
    if node is None or type(node) in (bool, int, str):
        return node
    raise TypeError(f"{_at(place)}: a {type(node).__name__} cannot be stored (tensors and plain values can)")


def _storable(tensor: Tensor, name: str) -> Tensor:
    if tensor.dtype not in DTYPES or tensor.layout != torch.strided or tensor.is_meta or name == "__metadata__":
        what = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise TypeError(f"{name}: this tensor cannot be stored ({what})")
    return tensor.detach().to("cpu", copy=True).contiguous()


def _at(place: tuple[str, ...]) -> str:
    return ".".join(place) or "the tree"


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _seal(head: bytes) -> bytes:
    """SHA-256 of the length field and the header, with the 64 digits of the seal blanked."""
    start = 8 + len(PREFIX)
    if head[8:start] != PREFIX:
        raise ValueError("the header does not begin as condense's do")
    return hashlib.sha256(head[:start] + BLANK.encode() + head[start + 64 :]).hexdigest().encode()


# -- from bytes -----------------------------------------------------------------------------------------------------


def unpack(raw: bytes, kind: str, path: Path, *, finite: bool = False) -> Any:
    """The tree in `raw`; `path` is what errors name. Raises `Damaged`."""
    manifest = _manifest(raw, path)
    read = reader(READERS, manifest.get("format"), path)
    if manifest.get("kind") != kind:
        raise Damaged(str(path), manifest.get("kind"), f"is no file of the kind {kind!r}", "Name the right file.")
    try:
        return read(manifest, decode_tensors(raw), finite)
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(str(path), str(error), "is not as it was written", REMEDY) from None


def _manifest(raw: bytes, path: Path) -> Mapping[str, Any]:
    """The manifest, once its seal has been found right. Seal and format number stand alike in every format."""
    start, end = 8 + len(PREFIX), 8 + int.from_bytes(raw[:8], "little")
    if min(len(raw), end) < start + 64 or raw[8:start] != PREFIX:
        raise Damaged(str(path), raw[:16], "is no tensor file of condense", REMEDY)
    if end > min(len(raw), HEADER_LIMIT):
        raise Damaged(str(path), f"a header of {end} bytes", "is truncated, or its header is", REMEDY)
    if _seal(raw[:end]) != raw[start : start + 64]:
        raise Damaged(str(path), "a wrong SHA-256", "has a header that is not as it was written", REMEDY)
    header = files.parse_json(raw[8:end], path)
    manifest = files.parse_json(header["__metadata__"]["condense"][64:], path)
    if not isinstance(manifest, dict):
        raise Damaged(str(path), manifest, "has no manifest", REMEDY)
    return manifest


def reader(readers: Mapping[int, R], found: Any, path: Path) -> R:
    """The reader for format `found`; raises `Damaged` where it is newer than all of them, or no format at all."""
    newest = max(readers)
    if type(found) is int and found > newest:
        problem = f"is written by a newer condense (format {found}; this reads up to {newest})"
        raise Damaged(str(path), found, problem, f"Upgrade {DISTRIBUTION}: pip install --upgrade {DISTRIBUTION}")
    if type(found) is not int or found not in readers:
        raise Damaged(str(path), found, "has no format number that was ever given out", REMEDY)
    return readers[found]


def _read_1(manifest: Mapping[str, Any], tensors: dict[str, Tensor], finite: bool) -> Any:
    """Format 1. What does not fit together raises whatever it raises; `unpack` turns that into `Damaged`."""
    if manifest["sha256"].keys() != tensors.keys():
        raise ValueError(f"other tensors than listed: {sorted(manifest['sha256'].keys() ^ tensors.keys())}")
    for name, tensor in tensors.items():
        if _digest(tensor) != manifest["sha256"][name]:
            raise ValueError(f"the SHA-256 of tensor {name!r} is wrong")
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}")
        if finite and tensor.dtype in FLOATS and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} holds NaN or infinity")
    used: set[str] = set()
    tree = _decode(manifest["tree"], tensors, used)
    if used != tensors.keys():
        raise ValueError(f"tensors that belong nowhere: {sorted(tensors.keys() - used)}")
    return tree


def _decode(node: Any, tensors: Mapping[str, Tensor], used: set[str]) -> Any:
    if isinstance(node, list):
        return [_decode(item, tensors, used) for item in node]
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items()
    if tag == "dict":
        return {key: _decode(item, tensors, used) for key, item in value.items()}
    if tag == "float":
        return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[value]
    if tag != "tensor" or value in used:
        raise ValueError(f"a node {tag!r} of {value!r}")
    used.add(value)
    return tensors[value]


READERS: dict[int, Callable[[Mapping[str, Any], dict[str, Tensor], bool], Any]] = {1: _read_1}
