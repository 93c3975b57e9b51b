"""Writing a condensed set for other programs: a folder of pictures, or arrays in an `.npz` or `.safetensors` file."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from . import files
from .artifact import Artifact
from .data import TensorSampler
from .errors import BadValue, InUse
from .foreign import MODES, NETWORK_INPUT, folder_name

Format = Literal["folder", "npz", "safetensors"]
PICKLED = (".pt", ".pth", ".pkl", ".pickle")  # endings of files that nobody should have to trust
FOREIGN = (".npy", ".zip", ".tar", ".gz", ".h5", ".hdf5", ".mat", ".csv", ".txt", ".json", ".png", ".jpg")


def export(artifact: Artifact, to: str | Path, format: Format | None = None) -> Path:
    """Write the set to `to`, whole or not at all; returns the path. `format` None: by the ending, else a folder.

    folder: one folder for each class (`foreign.folder_name`), PNG of 8 bits for each channel: the images brought back
    from network inputs to [0, 1], clamped and rounded, so values outside of the displayable range and steps finer than
    1/255 are lost, and of a soft label all but its largest class. `export.json` says what was done.
    npz, safetensors: what the form of the set calls its arrays (`Form.to_arrays`), or `images` (N, C, H, W) float32 and
    `labels`; exactly as networks are trained on them. With them `classes`, `scale`, and `mean` and `std` where the
    preprocessing has them; in a safetensors file as JSON under `condense` in its metadata.
    Only images are written as a folder. All are read back by `foreign.open_foreign`. Raises `InUse` where `to` holds
    something already, `NoRoom` or `BadValue` where it cannot be written.
    """
    target = Path(to)
    format = format or by_ending(target)
    if format not in ("folder", "npz", "safetensors"):
        raise BadValue("format", format, "is not known", "Use folder, npz or safetensors.")
    form = artifact.task.form
    if format == "folder" and form.arrays:
        problem = f"would be a folder of images, and this set holds {form.noun}"
        raise BadValue("to", str(target), problem, "Name a file that ends in .npz or .safetensors.")
    if target.is_symlink() or target.is_file() or (target.is_dir() and (format != "folder" or any(target.iterdir()))):
        raise InUse(str(target), "something already there", "is not empty", "Remove it first, or choose another name.")
    with files.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if format == "folder":
        _write_folder(artifact, target)
    else:
        files.write(target, npz_bytes(artifact) if format == "npz" else safetensors_bytes(artifact))
    return target


def by_ending(target: Path) -> Format:
    """The format that a name asks for. Raises `BadValue` for one that asks for a pickle, or another kind of file."""
    ending, remedy = target.suffix.lower(), "Use .npz or .safetensors, or a name without ending for a folder."
    if ending in PICKLED:
        raise BadValue("to", str(target), "would be a pickle, which can run anything when it is opened", remedy)
    if ending in FOREIGN:
        raise BadValue("to", str(target), f"asks for a {ending} file, which is not written", remedy)
    return "npz" if ending == ".npz" else "safetensors" if ending == ".safetensors" else "folder"


def npz_bytes(artifact: Artifact) -> bytes:
    """The `.npz` file of the set: equal sets give equal bytes. Labels are (N,) int64 or (N, K) float weights."""
    said = facts(artifact)
    arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors(artifact).items()}
    arrays |= {name: np.array(said[name]) for name in ("classes", "scale", "preprocessing")}
    arrays |= {name: np.array(said[name], dtype=np.float32) for name in ("mean", "std") if name in said}
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return raw.getvalue()


def safetensors_bytes(artifact: Artifact) -> bytes:
    """The `.safetensors` file of the set: equal sets give equal bytes."""
    contents = {name: tensor.cpu().contiguous() for name, tensor in tensors(artifact).items()}
    return save(contents, metadata={"condense": json.dumps(facts(artifact), sort_keys=True)})


def tensors(artifact: Artifact) -> dict[str, Tensor]:
    """The set under the names of its form; images under those of this module."""
    sampler = artifact.sampler()
    form = sampler.task.form
    if form.arrays:
        return form.to_arrays(sampler.x, sampler.y)
    return {"images": _packed(sampler).float(), "labels": sampler.y}


def facts(artifact: Artifact) -> dict[str, Any]:
    """What has to be known of the arrays: class names in order, the scale, and which preprocessing made it."""
    scale = artifact.preprocessing
    known = {name: scale[name] for name in ("mean", "std") if scale.get(name) is not None}
    made = {"scale": NETWORK_INPUT, "preprocessing": json.dumps(scale, sort_keys=True)}
    return {"classes": list(artifact.task.classes), **made, **known}


def _packed(sampler: TensorSampler) -> Tensor:
    form = sampler.task.form
    return form.pack(sampler.x)[form.content]


def _write_folder(artifact: Artifact, target: Path) -> None:
    temporary = files.temporary_beside(target)
    with files.writing(target):
        try:
            _fill_folder(artifact, temporary)
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        files.sync_folder(target.parent)


def _fill_folder(artifact: Artifact, folder: Path) -> None:
    sampler, task = artifact.sampler(), artifact.task
    pixels = to_uint8(artifact, sampler)
    labels = task.hard(sampler.y).tolist()
    for cls in task.classes:
        (folder / folder_name(cls)).mkdir(parents=True)
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        Image.fromarray(image).save(folder / folder_name(task.classes[label]) / f"{i:06d}.png")
    facts = {
        "made from": artifact.plan.digest(),
        "method": artifact.plan.method,
        "classes": list(task.classes),
        "preprocessing undone": artifact.preprocessing,
        "lost": "values outside [0, 1] (clamped), steps finer than 1/255, soft labels (the largest class is kept)",
    }
    files.write_json(folder / "export.json", facts)


def to_uint8(artifact: Artifact, sampler: TensorSampler) -> Any:
    """The images for the eye: (N, H, W) or (N, H, W, 3) uint8. Raises `BadValue` for other numbers of channels."""
    with torch.no_grad():
        x = artifact.transform.decode(_packed(sampler)).clamp(0, 1)
    if x.dim() != 4 or x.shape[1] not in MODES:
        raise BadValue("format", tuple(x.shape), "no PNG has this shape", "Export to .npz instead.")
    pixels = x.mul(255).round().to(torch.uint8).cpu().numpy()
    return pixels[:, 0] if x.shape[1] == 1 else pixels.transpose(0, 2, 3, 1)
