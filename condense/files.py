"""Files that are written whole or not at all, and read with suspicion. Every byte that condense stores passes here."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import BadValue, CondenseError, Damaged, NoRoom

REMEDY = "Restore it from a copy, or make it again."
JSON_LIMIT = 64 * 2**20  # bytes of one JSON file that a reader is willing to parse
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a temporary file beside it, synced, renamed, and the folder synced.

    Where that fails, the temporary file is removed and what stood there before survives. Raises `NoRoom` where the disk
    (or the limit on file sizes) does not suffice, `BadValue` where the folder cannot be written.
    """
    with writing(path):
        temporary = temporary_beside(path)
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON with sorted keys, by `write`. NaN and infinity are no JSON: they raise ValueError."""
    write(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def temporary_beside(path: Path) -> Path:
    """A name of its own in the same folder: writers of one path never share it, and leftovers end in `.tmp`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses while `path` is written into `NoRoom` or `BadValue`."""
    try:
        yield
    except OSError as error:
        raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> CondenseError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in NO_ROOM:
        problem = "could not be written, and is as it was before"
        return NoRoom(str(path), reason, problem, "Free space on this disk, or choose another folder.")
    return BadValue(str(path), reason, "could not be written", "Choose a folder that exists and that you may write.")


def read(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a plain file. Raises `Damaged` where it is missing, a link, no file, or longer than `limit`."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Damaged(str(path), "a link", "must be a plain file", REMEDY) from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise Damaged(str(path), "nothing", "is missing", REMEDY) from None
        raise BadValue(str(path), os.strerror(error.errno or 0), "cannot be read", "Allow reading it.") from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise Damaged(str(path), "no plain file", "must be a plain file", REMEDY)
        if limit is not None and facts.st_size > limit:
            raise Damaged(str(path), f"{facts.st_size} bytes", f"is longer than the {limit} bytes expected", REMEDY)
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def parse_json(raw: bytes | str, path: Path) -> Any:
    """Strict JSON: a key given twice, NaN, infinity, bad UTF-8 and bottomless nesting are refused as `Damaged`."""
    try:
        return json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(
            str(path), str(error), "holds no valid JSON", "Restore it from a copy, or make it again."
        ) from None


def read_json(path: Path) -> Any:
    return parse_json(read(path, JSON_LIMIT), path)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def sweep(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Call it only where nobody else writes."""
    for leftover in folder.glob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()
