"""Writing a condensed set for other programs: a folder of pictures, or an `.npz` file."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import files
from .artifact import Artifact
from .data import TensorSampler
from .errors import BadValue, InUse
from .foreign import MODES, NETWORK_INPUT, folder_name

Format = Literal["folder", "npz"]


def export(artifact: Artifact, to: str | Path, format: Format | None = None) -> Path:
    """Write the set to `to`, whole or not at all; returns the path. `format` None: by the ending (.npz, else a folder).

    folder: one folder for each class (`foreign.folder_name`), PNG of 8 bits for each channel: the images brought back
    from network inputs to [0, 1], clamped and rounded, so values outside of the displayable range and steps finer than
    1/255 are lost, and of a soft label all but its largest class. `export.json` says what was done.
    npz: `images` (N, C, H, W) float32, exactly as networks are trained on them, `labels`, `classes`, `scale`, and
    `mean` and `std` where the preprocessing has them. Both are read back by `foreign.open_foreign`.
    Raises `InUse` where `to` holds something already, `NoRoom` or `BadValue` where it cannot be written.
    """
    target = Path(to)
    format = format or ("npz" if target.suffix == ".npz" else "folder")
    if format not in ("folder", "npz"):
        raise BadValue("format", format, "is not known", "Use folder or npz.")
    if target.is_symlink() or target.is_file() or (target.is_dir() and (format == "npz" or any(target.iterdir()))):
        raise InUse(str(target), "something already there", "is not empty", "Remove it first, or choose another name.")
    with files.writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if format == "npz":
        files.write(target, npz_bytes(artifact))
    else:
        _write_folder(artifact, target)
    return target


def npz_bytes(artifact: Artifact) -> bytes:
    """The `.npz` file of the set: equal sets give equal bytes. `labels` are (N,) int64 or (N, K) float weights."""
    sampler, facts = artifact.sampler(), artifact.preprocessing
    arrays = {
        "images": _packed(sampler).float().cpu().numpy(),
        "labels": sampler.y.cpu().numpy(),
        "classes": np.array(artifact.task.classes),
        "scale": np.array(NETWORK_INPUT),
        **{name: np.array(facts[name], dtype=np.float32) for name in ("mean", "std") if facts.get(name) is not None},
    }
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return raw.getvalue()


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
