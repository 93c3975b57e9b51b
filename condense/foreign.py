"""Sets that somebody else made, opened for the judge: an image folder, or named arrays. Nothing is unpickled.

Image folder: one folder for each class, called as the class is (`folder_name`), of PNG, JPEG, BMP, TIFF or WebP files.
Arrays, in an .npz or .safetensors file: `images` or `x`, (N, C, H, W), (N, H, W, C) or, of one channel, (N, H, W);
`labels` or `y`, (N,) or (N, 1) integers or (N, K) floats; `classes`, if given, names the integers, which else number
the source's classes in order. Sets of another form than images: what `Form.arrays` says.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .axes import Transform
from .data import TensorSampler, check_examples
from .errors import BadData, BadValue, Damaged
from .files import REMEDY
from .task import Task

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # decoders that run no program
MODES = {1: "L", 3: "RGB"}
NETWORK_INPUT = "network input"  # the value of `scale` in an .npz whose floats need no encoding
SMALL, RATIO = 16 * 2**20, 100  # an .npz may expand to SMALL bytes, or RATIO times its compressed size


def open_foreign(
    path: str | Path, raw: Task, transform: Transform, *, normalised: bool = False, device: torch.device | str = "cpu"
) -> TensorSampler:
    """The set at `path` as networks are trained on it, its classes in the order of `raw`.

    raw: the task of the source's examples before `transform` (`splits.task`). uint8 images are 0..255 and floats lie in
    [0, 1]; both are encoded by `transform`. Floats outside [0, 1] are refused, unless they are `normalised`: the
    networks' own input scale, as in the .npz files of `condense export`, which say so themselves.
    device: where `transform` lies, and where the set will.
    Raises `BadData` for classes, sizes, channels and values that do not fit, `Damaged` for a file that is no such file.
    """
    path = Path(path)
    if raw.form.arrays:
        return _open_arrays(path, raw, transform, normalised, device)
    if len(raw.shape) != 3:
        raise BadValue("data", raw.shape, "is no data set of images", "Name the image data set that the set is of.")
    if path.is_dir():
        x, y = read_folder(path, raw)
    elif path.is_file():
        inputs = tuple(transform.encode(torch.zeros(1, *raw.shape, device=device)).shape[1:])
        x, y, encoded = read_npz(path, raw, inputs, transform.describe())
        normalised = normalised or encoded
    else:
        raise BadValue("path", str(path), "is neither a folder nor a file", "Give an image folder or an .npz file.")
    _check(x, y, raw, path)
    if not normalised:
        _check_range(x, path)
        x = transform.encode(x.to(device))
    elif not x.is_floating_point():
        raise BadData(str(path), str(x.dtype), "cannot be normalised", "Store floats, or leave out `normalised`.")
    task = raw.model_copy(update={"shape": tuple(x.shape[1:])})
    return TensorSampler(task, x.to(device), y.to(device))


def _open_arrays(
    path: Path, raw: Task, transform: Transform, normalised: bool, device: torch.device | str
) -> TensorSampler:
    """A set of another form than images, under the names that the form gives its arrays."""
    if path.suffix.lower() not in (".npz", ".safetensors") or not path.is_file():
        problem = f"is no file of {raw.form.noun}"
        raise BadValue("path", str(path), problem, f"Give .npz or .safetensors with {', '.join(raw.form.arrays)}.")
    arrays = read_arrays(path, (*raw.form.arrays, "classes", "scale", "preprocessing"))
    _check_preprocessing(arrays, transform.describe(), path)
    if not normalised and str(arrays.get("scale")) != NETWORK_INPUT:
        problem, remedy = "does not say that its values are the networks' own inputs", "If they are: --normalised."
        raise BadData(str(path), arrays.get("scale"), problem, remedy)
    tensors = {name: _tensor(arrays[name], name, path) for name in raw.form.arrays if name in arrays}
    x, y = raw.form.from_arrays(tensors, str(path))
    y = _labels(y.numpy(), arrays.get("classes"), raw, path)
    _check_present(raw.hard(y), raw, path)
    width = raw.form.pack(x)[raw.form.content].shape[-1]
    if width != raw.shape[-1]:
        problem = f"has other features than the data set, which has {raw.shape[-1]}"
        raise BadData(str(path), width, problem, "Name the data set that it is of.")
    return TensorSampler(raw, raw.form.to(x, device), y.to(device))


def _tensor(array: np.ndarray, name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise BadData(str(path), str(array.dtype), f"holds {name} that are no numbers", "Store numbers.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def folder_name(cls: str) -> str:
    """The name of a class as the name of a folder: what a path cannot hold is written %XX, as in an address."""
    name = re.sub(r'[\x00-\x1f/\\:*?"<>|%]', lambda m: quote(m[0], safe=""), cls)
    return re.sub(r"^[. ]|[. ]$", lambda m: f"%{ord(m[0]):02X}", name)


def _class_name(folder: str, task: Task) -> str:
    return folder if folder in task.classes else unquote(folder)


def _check(x: Tensor, y: Tensor, task: Task, path: Path) -> None:
    hard = task.hard(y)
    check_examples(x, hard, task.classes, str(path))
    _check_present(hard, task, path)


def _check_present(hard: Tensor, task: Task, path: Path) -> None:
    one = task.form.noun.removesuffix("s")
    problem = f"has no {one} of this class"
    for cls, count in zip(task.classes, torch.bincount(hard, minlength=task.groups).tolist(), strict=True):
        if count == 0:
            raise BadData(str(path), cls, problem, f"Give at least one {one} of each class.")


def _check_range(x: Tensor, path: Path) -> None:
    if not x.is_floating_point():
        return
    low, high = x.aminmax()
    if low < 0 or high > 1:
        remedy = "Store uint8 or floats in [0, 1]; or say that they are the networks' own inputs (normalised=True)."
        raise BadData(str(path), (float(low), float(high)), "holds floats outside [0, 1]", remedy)


def match_classes(names: Sequence[str], task: Task, path: Path) -> list[int]:
    """The task's number for each name; raises `BadData` where the names are not the task's, each exactly once."""
    missing = sorted(set(task.classes) - set(names))
    extra = sorted(set(names) - set(task.classes))
    if missing or extra or len(names) != len(task.classes):
        what = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(extra)}"] * bool(extra)
        problem = f"has other classes than the data set: it {' and '.join(what) or 'names one twice'}"
        raise BadData(str(path), list(names), problem, f"Name the classes {', '.join(task.classes)}.")
    return [task.classes.index(name) for name in names]


# -- image folders --------------------------------------------------------------------------------------------------


def read_folder(path: Path, raw: Task) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) uint8 and (N,) int64, class-major, files by name within a class. Hidden files are left out."""
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    stray = [entry for entry in entries if not entry.is_dir() and entry.suffix.lower() in Image.registered_extensions()]
    if stray:
        raise BadData(str(stray[0]), stray[0].name, "lies outside of the class folders", "Move it into one.")
    numbers = match_classes([_class_name(folder.name, raw) for folder in folders], raw, path)
    images: list[np.ndarray] = []
    labels: list[int] = []
    for number, folder in sorted(zip(numbers, folders, strict=True)):
        for file in sorted(file for file in folder.iterdir() if not file.name.startswith(".")):
            images.append(_read_image(file, raw.shape))
            labels.append(number)
    if not images:
        raise BadData(str(path), 0, "holds no images", "Put at least one image into each class folder.")
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _read_image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """One image, (C, H, W) uint8. Size and channels are looked at before anything is decoded."""
    channels, height, width = shape
    if path.is_symlink() or not path.is_file():
        raise Damaged(str(path), "a link or a folder", "must be a plain image file", "Copy the image here.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            mode = "RGB" if image.mode == "P" else image.mode
            if image.size != (width, height) or mode != MODES.get(channels):
                problem = f"must be {width} x {height} pixels of mode {MODES.get(channels)}"
                raise BadData(str(path), f"{image.size}, {image.mode}", problem, "Convert it to the data set's format.")
            pixels = np.asarray(image.convert(mode))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, BadData):
            raise
        raise Damaged(str(path), str(error), "is no image that can be read", REMEDY) from None
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))


# -- arrays ---------------------------------------------------------------------------------------------------------


def read_npz(
    path: Path, raw: Task, inputs: tuple[int, ...], preprocessing: Mapping[str, Any]
) -> tuple[Tensor, Tensor, bool]:
    """Images (N, C, H, W), labels, and whether the file says that its images are network inputs (of shape `inputs`).

    preprocessing: what the judge encodes by; inputs that were made by another are refused.
    """
    arrays = read_arrays(path, ("images", "x", "labels", "y", "classes", "scale", "preprocessing"))
    _check_preprocessing(arrays, preprocessing, path)
    images, labels = arrays.get("images", arrays.get("x")), arrays.get("labels", arrays.get("y"))
    if images is None or labels is None:
        remedy = "Call the arrays `images` and `labels`, or `x` and `y`."
        raise BadData(str(path), sorted(arrays), "holds no images with labels", remedy)
    encoded = "scale" in arrays and arrays["scale"].dtype.kind == "U" and str(arrays["scale"]) == NETWORK_INPUT
    x = _images(images, inputs if encoded else raw.shape, path)
    return x, _labels(labels, arrays.get("classes"), raw, path), encoded


def _check_preprocessing(arrays: Mapping[str, np.ndarray], judged: Mapping[str, Any], path: Path) -> None:
    """Refuse network inputs that were made by another preprocessing than the one that test examples go through."""
    said = arrays.get("preprocessing")
    if said is None or str(arrays.get("scale")) != NETWORK_INPUT:
        return
    try:
        made = json.loads(str(said))
        name = made["name"]
    except (ValueError, RecursionError, LookupError, TypeError):
        raise Damaged(str(path), str(said), "names its preprocessing in no JSON of ours", REMEDY) from None
    if made != json.loads(json.dumps(judged)):
        problem = f"holds inputs that another preprocessing made than test examples would go through ({judged['name']})"
        remedy = f"Judge it under its own: --set preprocess={name}, with the same constants."
        raise BadData(str(path), made, problem, remedy)


def _images(images: np.ndarray, shape: tuple[int, ...], path: Path) -> Tensor:
    channels, height, width = shape
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise BadData(str(path), str(images.dtype), "must hold images as uint8 or floats", "Convert them.")
    if images.shape[1:] == (height, width) and channels == 1:
        images = images[:, None]
    elif images.shape[1:] == (height, width, channels) and images.shape[1:] != shape:
        images = images.transpose(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1:] != shape:
        raise BadData(
            str(path), images.shape, f"must hold images of shape (N, {channels}, {height}, {width})", "Resize."
        )
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


def _labels(labels: np.ndarray, names: np.ndarray | None, task: Task, path: Path) -> Tensor:
    """Labels in the task's own numbering: (N,) int64, or (N, K) float32 weights whose columns are put in its order."""
    order = list(range(len(task.classes)))
    if names is not None:
        order = match_classes([str(name) for name in names.reshape(-1)], task, path)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "iu" and labels.ndim == 1:
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(order)):
            found = (int(labels.min()), int(labels.max()))
            raise BadData(str(path), found, f"labels must lie in 0..{len(order) - 1}", "Number the classes from 0.")
        return torch.tensor(order)[torch.from_numpy(labels.astype(np.int64))]
    soft = torch.from_numpy(labels.astype(np.float64)).float() if labels.dtype.kind == "f" else torch.empty(0)
    if soft.shape[1:] == (len(order),) and bool(torch.isfinite(soft).all()):
        return soft[:, torch.argsort(torch.tensor(order))]
    problem = f"labels must be (N,) integers or finite (N, {len(order)}) floats"
    raise BadData(str(path), (labels.shape, str(labels.dtype)), problem, "Store one class for each image.")


def read_arrays(path: Path, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
    """The arrays that are wanted, of an .npz or .safetensors file. Directory and headers are checked before anything
    expands.

    Raises `Damaged` for pickles, object arrays, names that are paths, names given twice, and files that expand too far.
    """
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path, wanted)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            return {name: _read_array(archive, members[name]) for name in wanted if name in members}
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise Damaged(str(path), str(error), "is no .npz file that can be read", REMEDY) from None


def _read_safetensors(path: Path, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
    """Its tensors, and of what its metadata says under `condense` (see condense.export) what is wanted."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get("condense", "{}"))
            said = {name: np.array(facts[name]) for name in wanted if name in facts}
            known = set(file.keys())
            return {**said, **{name: file.get_tensor(name) for name in wanted if name in known}}
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(str(path), str(error), "is no .safetensors file that can be read", REMEDY) from None


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    size, packed = sum(info.file_size for info in infos), path.stat().st_size
    if size > max(SMALL, RATIO * packed):
        problem = f"expands to {size} bytes, more than {RATIO} times its size"
        raise Damaged(str(path), f"{packed} bytes", problem, "Store it uncompressed, if it is meant so.")
    names = [info.filename for info in infos]
    for name in names:
        if names.count(name) > 1 or not re.fullmatch(r"[\w-]+\.npy", name):
            raise Damaged(str(path), name, "holds a member that no .npz has, or one twice", REMEDY)
    return {info.filename.removesuffix(".npy"): info for info in infos}


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array, never unpickled; raises ValueError where header and size disagree."""
    with archive.open(info) as file:
        version = npy.read_magic(file)
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if header is None:
            raise ValueError(f"{info.filename} is of npy version {version}")
        shape, _, dtype = header(file)
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if dtype.hasobject or file.tell() + count * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} holds Python objects, or another size than it says")
    with archive.open(info) as file:
        array: Any = npy.read_array(file, allow_pickle=False)
    return np.asarray(array)
