"""The manifest of a folder of files: size and SHA-256 of each, and its own. What it does not list is never read.

    {"files": {"plan.json": {"bytes": 812, "sha256": "..."}, ...}, "format": 1, "sha256": "..."}

While files are exchanged, an entry also admits what was there before (`was`; null: nothing was), so that a process
killed at any moment leaves a folder that opens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import files
from .errors import Damaged
from .files import REMEDY

MANIFEST = "manifest.json"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)?")  # a file, or a file in one folder
BLANK = b"0" * 64
SEAL = slice(-68, -4)  # where the manifest's own SHA-256 stands: its last value


def write(folder: Path, number: int, contents: Mapping[str, bytes]) -> None:
    """Fill `folder` with files and a manifest of format `number`.

    The old manifest goes first and the new one comes last: whatever a folder without one holds, it does not open.
    """
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    for name, data in contents.items():
        files.write(folder / name, data)
    _write(folder, number, {name: _entry(data) for name, data in contents.items()})


def exchange(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Add or replace files one by one; at every moment each of them is the old one or the new one, and verified."""
    manifest = read(folder)
    number, listed = manifest["format"], manifest["files"]
    coming = {name: _entry(data) for name, data in contents.items()}
    there = {name: _verify(folder, name, listed[name]) for name in coming if name in listed}
    was = {name: None if there.get(name) is None else _entry(there[name] or b"") for name in coming}
    _write(folder, number, {**listed, **{name: {**entry, "was": was[name]} for name, entry in coming.items()}})
    for name, data in contents.items():
        with files.writing(folder / name):
            (folder / name).parent.mkdir(exist_ok=True)
        files.write(folder / name, data)
    _write(folder, number, {**listed, **coming})


def read(folder: Path) -> dict[str, Any]:
    """The manifest, its seal found right. Raises `Damaged`. Seal and format number stand alike in every format."""
    path = folder / MANIFEST
    raw = files.read(path, files.JSON_LIMIT)
    manifest = files.parse_json(raw, path)
    if not isinstance(manifest, dict) or "format" not in manifest or not isinstance(manifest.get("files"), dict):
        raise Damaged(str(path), type(manifest).__name__, "is no manifest", REMEDY)
    if not raw[SEAL] == _seal(raw) == str(manifest.get("sha256")).encode():
        raise Damaged(str(path), manifest.get("sha256"), "is not as it was written: its SHA-256 is wrong", REMEDY)
    return manifest


def verified(folder: Path, listed: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of every listed file, by name; raises `Damaged` where one is missing or not as the manifest says."""
    found = {name: _verify(folder, name, entry) for name, entry in listed.items()}
    return {name: data for name, data in found.items() if data is not None}


def _verify(folder: Path, name: str, entry: Any) -> bytes | None:
    """The bytes of one file; None where it is not there yet, and was not before (an exchange was cut short)."""
    if not NAME.fullmatch(name) or not isinstance(entry, dict):
        raise Damaged(str(folder / MANIFEST), name, "lists a name that no file of condense has", REMEDY)
    path = folder / name
    if path.parent != folder and path.parent.is_symlink():
        raise Damaged(str(path.parent), "a link", "must be a plain folder", REMEDY)
    if "was" in entry and entry["was"] is None and not path.exists():
        return None
    data = files.read(path)
    if _entry(data) not in ({key: entry.get(key) for key in ("bytes", "sha256")}, entry.get("was")):
        raise Damaged(str(path), f"{len(data)} bytes", "is not as it was written: its SHA-256 is wrong", REMEDY)
    return data


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write(folder: Path, number: int, listed: Mapping[str, Any]) -> None:
    raw = bytearray(files.json_bytes({"files": listed, "format": number, "sha256": BLANK.decode()}))
    raw[SEAL] = _seal(bytes(raw))
    files.write(folder / MANIFEST, bytes(raw))


def _seal(raw: bytes) -> bytes:
    """SHA-256 of the manifest with its own 64 digits blanked."""
    return hashlib.sha256(raw[: SEAL.start] + BLANK + raw[SEAL.stop :]).hexdigest().encode()
