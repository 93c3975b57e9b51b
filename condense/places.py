"""Where data is read, where downloads are put, and where what is slow to make again is kept."""

from __future__ import annotations

import contextvars
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import CondenseError
from .files import write

_root: contextvars.ContextVar[Path | None] = contextvars.ContextVar("condense_data_root", default=None)
CHECKSUM = hashlib.sha256().digest_size


@contextmanager
def data_root(path: str | Path | None) -> Iterator[None]:
    """Read data from `path` for a while (`--data-root`); None leaves the choice to the environment."""
    token = _root.set(None if path is None else _plain(path))
    try:
        yield
    finally:
        _root.reset(token)


def data_folders() -> tuple[Path, ...]:
    """Where data is looked for, in this order: `data_root`, else `CONDENSE_DATA`; then the user's own data folder."""
    named = _root.get() or _from("CONDENSE_DATA")
    return tuple(dict.fromkeys(folder for folder in (named, user_data_folder()) if folder is not None))


def user_data_folder() -> Path:
    """Where downloads are put, never a named root: `$XDG_DATA_HOME` or ~/.local/share, and in it `condense`."""
    return (_from("XDG_DATA_HOME") or _plain("~/.local/share")) / "condense"


def cache_folder() -> Path:
    """`CONDENSE_CACHE`, else the user's cache folder (`$XDG_CACHE_HOME` or ~/.cache) and in it `condense`."""
    return _from("CONDENSE_CACHE") or (_from("XDG_CACHE_HOME") or _plain("~/.cache")) / "condense"


def writable_cache(kind: str) -> Path | None:
    """`kind` in the cache folder, made where it is missing; None, with a warning, where it cannot be written."""
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = "not allowed"
    except OSError as error:
        reason = str(error.strerror)
    text = f"{folder} cannot be written ({reason}), so nothing is kept there. Set CONDENSE_CACHE to a folder that can."
    warnings.warn(text, RuntimeWarning, stacklevel=2)
    return None


def cached(kind: str, key: str, make: Callable[[], bytes]) -> bytes:
    """What `make` gives, kept as `kind`/`key` in the cache folder behind its SHA-256.

    An entry that does not match its checksum is made again. Where the cache cannot be written nothing is kept.
    """
    path = cache_folder() / kind / key
    found = _verified(path)
    if found is None:
        found = make()
        with suppress(CondenseError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, hashlib.sha256(found).digest() + found)
    return found


def _verified(path: Path) -> bytes | None:
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    return stored[CHECKSUM:] if hashlib.sha256(memoryview(stored)[CHECKSUM:]).digest() == stored[:CHECKSUM] else None


def _from(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return _plain(value) if value else None


def _plain(path: str | Path) -> Path:
    return Path(path).expanduser().absolute()
