"""Finding the files of a published set, and downloading what is nowhere."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .errors import BadData
from .places import data_folders, user_data_folder

PATIENCE = 10  # seconds that a server has to answer before we call ourselves offline


@dataclass(frozen=True)
class Wanted:
    """The files of a set: their `names` in any one of `folders` (relative to a data folder), as they are or packed."""

    names: tuple[str, ...]
    folders: tuple[str, ...]
    packed: tuple[str, ...] = ()

    def find(self) -> list[Path] | None:
        """All of them, in order, from the first folder that holds all; None where none does."""
        for folder in self.places():
            found = [self._one(folder, name) for name in self.names]
            if all(path is not None for path in found):
                return [path for path in found if path is not None]
        return None

    def places(self) -> list[Path]:
        return [root / folder for root in data_folders() for folder in self.folders]

    def _one(self, folder: Path, name: str) -> Path | None:
        candidates = [folder / (name + ending) for ending in ("", *self.packed)]
        return next((path for path in candidates if path.is_file()), None)

    def told(self) -> str:
        endings = f" (as it is or with {' or '.join(self.packed)})" if self.packed else ""
        return f"{', '.join(self.names)}{endings}"

    def lacking(self, folder: Path) -> str:
        """What of it is not in `folder`."""
        return ", ".join(name for name in self.names if self._one(folder, name) is None)


def find_or_download(
    alternatives: Sequence[Wanted], title: str, urls: Sequence[str], get: Callable[[Path], object]
) -> tuple[Wanted, list[Path]]:
    """The first of the alternatives whose files are found, and the files; `get(folder)` downloads one of them.

    Raises `BadData` where the files are missing and cannot be downloaded.
    """
    found = _first(alternatives)
    if found is None:
        reason = download(alternatives, urls, get)
        found = _first(alternatives)
    if found is None:
        first = alternatives[0]
        others = "".join(f" Or {wanted.told()} into {wanted.folders[0]}." for wanted in alternatives[1:])
        remedy = f"Put {first.told()} into {first.places()[0]}, or name the folder that holds {first.folders[0]} "
        remedy += f"(--data-root or CONDENSE_DATA).{others} Looked there: {looked(alternatives)}. {reason}."
        raise BadData("data", title, "is not on this machine", remedy)
    return found


def looked(alternatives: Sequence[Wanted]) -> str:
    """Every folder once: that it is none, or what of each alternative it lacks."""
    lacking: dict[Path, list[str]] = {}
    for wanted in alternatives:
        for folder in wanted.places():
            lacking.setdefault(folder, []).append(wanted.lacking(folder))
    return "; ".join(
        f"{folder} " + (f"lacks {', or '.join(names)}" if folder.is_dir() else "is no folder")
        for folder, names in lacking.items()
    )


def _first(alternatives: Sequence[Wanted]) -> tuple[Wanted, list[Path]] | None:
    tried = ((wanted, wanted.find()) for wanted in alternatives)
    return next(((wanted, paths) for wanted, paths in tried if paths is not None), None)


def download(wanted: Sequence[Wanted], urls: Sequence[str], get: Callable[[Path], object]) -> str:
    """Let `get` download into a folder of its own, then move what is wanted of it into the user's data folder.

    So nothing half-downloaded is ever found, and a named data root is never written. Says how it went.
    """
    if not any(reachable(url) for url in urls):
        return f"Downloading failed: no answer from {' or '.join(urls)}"
    home = user_data_folder()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=home) as making:
            get(Path(making))
            for name in (f"{folder}/{name}" for one in wanted for folder in one.folders for name in one.names):
                if (Path(making) / name).is_file():
                    (home / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(Path(making) / name, home / name)
    except (RuntimeError, OSError) as error:  # what torchvision raises: a wrong md5, and what the network says
        return f"Downloading into {home} failed: {error}"
    return f"The download into {home} did not bring them"


def reachable(url: str) -> bool:
    """Does a server answer within PATIENCE? Proxies named in the environment are used."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, if only with a refusal: S3 does so for a folder
    except (OSError, ValueError):
        return False


def save(url: str, path: Path) -> None:
    """Download one file. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
