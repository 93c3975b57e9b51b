"""Readers of files: idx, CIFAR's binary version, npz, images. Nothing is unpickled, nothing is written.

Every reader raises `BadData` (field = the file) for what is truncated, malformed or hostile, and takes no more
memory than the file can honestly hold.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageOps

from condense.errors import BadData
from condense.places import cached

CIFAR_PIXELS = 3 * 32 * 32
RATIO, FREE = 200, 64 * 2**20  # images compress 2 to 20 times; what is under FREE may be as empty as it likes
AGAIN = "Get the file again, and compare its checksum with the publisher's."
BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
GREY, COLOUR = ("1", "L"), ("RGB", "P")
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An idx file of unsigned bytes, plain or `.gz`, as an array of the shape that its header gives.

    Format: two zero bytes, the type (8), the number of sizes, each size as 4 bytes big-endian, the bytes.
    """
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            shape = _idx_shape(file, path)
            size = math.prod(shape)
            _honest(size, path.stat().st_size, path, AGAIN)
            raw = file.read(size + 1)
    except BROKEN as error:
        raise BadData(str(path), str(error), "cannot be read to its end", AGAIN) from None
    if len(raw) != size:
        problem = f"holds {'more' if len(raw) > size else 'fewer'} bytes than the {size} that its header {shape} gives"
        raise BadData(str(path), len(raw), problem, AGAIN)
    return np.frombuffer(raw, np.uint8).reshape(shape)


def _idx_shape(file: IO[bytes] | gzip.GzipFile, path: Path) -> tuple[int, ...]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
        raise BadData(str(path), magic, "is no idx file of unsigned bytes", AGAIN)
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise BadData(str(path), sizes, "ends within its header", AGAIN)
    return tuple(int(size) for size in np.frombuffer(sizes, ">u4"))


def _honest(expanded: int, stored: int, path: Path, remedy: str) -> None:
    """Refuse a file that says it expands further than images ever do, before it is expanded."""
    if expanded > max(FREE, RATIO * stored):
        problem = f"says it holds {expanded} bytes: {expanded // max(stored, 1)} times its own size"
        raise BadData(str(path), stored, problem, remedy)


def cifar(path: Path, rows: int = 10_000) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """(N, 3, 32, 32) uint8 and (N,) uint8 labels of one file of CIFAR-10's binary version, plain or `.xz`.

    A row is a label and 3 x 1024 pixels, red, green, blue. What .xz unpacks to is kept in the cache folder, by content.
    """
    size = rows * (1 + CIFAR_PIXELS)
    try:
        raw = _unpacked_xz(path, size) if path.suffix == ".xz" else _at_most(path.open("rb"), size)
    except BROKEN as error:
        raise BadData(str(path), str(error), "cannot be read to its end", AGAIN) from None
    if len(raw) != size:
        problem = f"should hold {rows} rows of {1 + CIFAR_PIXELS} bytes, {size} in all"
        raise BadData(str(path), f"{'more than ' * (len(raw) > size)}{min(len(raw), size)} bytes", problem, AGAIN)
    table = np.frombuffer(raw, np.uint8).reshape(rows, 1 + CIFAR_PIXELS)
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0]


def _unpacked_xz(path: Path, size: int) -> bytes:
    packed = path.read_bytes()
    key = f"{path.name}-{hashlib.blake2b(packed, digest_size=16).hexdigest()}-{size}"
    return cached("unpacked", key, lambda: _at_most(lzma.open(path), size))


def _at_most(file: IO[bytes] | lzma.LZMAFile, size: int) -> bytes:
    with file:
        return file.read(size + 1)


def npz(path: Path, wanted: Iterable[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays called `wanted` (None: all) that the archive holds, by name. Arrays of objects are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)
            names = entries if wanted is None else [name for name in wanted if name in entries]
            return {name: _member(archive, entries[name], path) for name in names}
    except (
        *BROKEN,
        RuntimeError,
        NotImplementedError,
        KeyError,
    ) as error:  # the latter: encrypted, unknown compression
        raise BadData(
            str(path), str(error), "cannot be read as an npz archive", "Write it again (numpy.savez)."
        ) from None


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    remedy = "If you trust it, store the arrays uncompressed (numpy.savez)."
    _honest(sum(info.file_size for info in infos), path.stat().st_size, path, remedy)
    entries = {info.filename.removesuffix(".npy"): info for info in infos}
    if len(entries) < len(infos):
        raise BadData(
            str(path), sorted(i.filename for i in infos), "holds a name twice", "Write it again (numpy.savez)."
        )
    return entries


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> np.ndarray[Any, Any]:
    where = f"{path}[{info.filename.removesuffix('.npy')}]"
    with archive.open(info) as file:
        try:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
            shape, fortran, dtype = read(file)
        except (ValueError, KeyError) as error:
            raise BadData(where, str(error), "has no readable header", "Write it again (numpy.savez).") from None
        if dtype.hasobject or dtype.names:
            problem = "holds Python objects, which only unpickling could read"
            raise BadData(where, str(dtype), problem, "Store plain arrays of numbers: one size, one type.")
        raw = file.read()
    if len(raw) != math.prod(shape) * dtype.itemsize:
        problem = f"holds {len(raw)} bytes where its header gives {shape} of {dtype}"
        raise BadData(where, len(raw), problem, "Write it again (numpy.savez).")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


def image(path: Path, size: int | None = None, channels: int | None = None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(C, H, W) uint8. size: centre-cropped to a square and resized to it; channels 1 or 3: converted to it.

    channels None: grey stays 1, RGB and palettes are 3, anything else is refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return pixels(picture, str(path), size, channels)
    except BadData:
        raise
    except Exception as error:  # the decoders of PIL raise nearly anything
        problem = "cannot be read as an image"
        raise BadData(str(path), f"{type(error).__name__}: {error}", problem, "Repair or remove it.") from None


def pixels(
    picture: Image.Image, where: str, size: int | None = None, channels: int | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of a PIL image by the rules of `image`: (C, H, W) uint8."""
    if picture.mode in DEEP:
        raise BadData(where, picture.mode, "has more than 8 bits a pixel", "Scale it to 8 bits.")
    if channels is None:
        if picture.mode not in GREY + COLOUR:
            raise BadData(where, picture.mode, "is neither grey nor RGB", "Give `channels` (1 or 3): it is converted.")
        channels = 1 if picture.mode in GREY else 3
    if picture.mode == "P":  # a palette may hold transparency, which PIL converts by way of RGBA only
        picture = picture.convert("RGBA")
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)
    array = np.asarray(picture, np.uint8)
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


def same_size(arrays: Iterable[tuple[str, np.ndarray[Any, Any]]], remedy: str) -> list[np.ndarray[Any, Any]]:
    """The arrays, all of one shape; raises `BadData` for the first that differs, by its name."""
    found: list[np.ndarray[Any, Any]] = []
    first = ""
    for name, array in arrays:
        if found and array.shape != found[0].shape:
            problem = f"is not of the size of {first}, which is {found[0].shape}"
            raise BadData(name, array.shape, problem, remedy)
        first = first or name
        found.append(array)
    return found
