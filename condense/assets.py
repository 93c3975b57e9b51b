"""Assets: expensive things made once, addressed by content, kept in the cache folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .axes import Asset
from .component import digest
from .errors import BadValue
from .places import cache_folder, writable_cache
from .plugins import versions

if TYPE_CHECKING:
    from .running import Run


class Assets:
    """The assets of one run: the same asset, source, preprocessing and versions of their packages: the same folder."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.used: dict[str, str] = {}  # digest -> name, for checkpoints and provenance

    def get(self, asset: Asset) -> Any:
        """Load the asset, after making it where the cache has none. An interrupted making is taken up."""
        self.used[self.key(asset)] = asset.name
        folder = self.folder(asset)
        if not asset.made(folder):
            self._make(asset, folder)
        return asset.load(folder, self.run)

    def _make(self, asset: Asset, folder: Path) -> None:
        if folder.is_dir():  # it holds some of its units
            asset.make(self.run, folder)
            return
        making = folder.with_suffix(".making")
        if writable_cache("assets") is None:
            remedy = "Set CONDENSE_CACHE to a folder that you may write."
            raise BadValue(
                "CONDENSE_CACHE", str(cache_folder()), f"cannot be written, and {asset.name} is kept there", remedy
            )
        making.mkdir(exist_ok=True)
        asset.make(self.run, making)
        try:
            os.rename(making, folder)
        except OSError:  # another process was first; its asset is the same
            shutil.rmtree(making, ignore_errors=True)

    def has(self, asset: Asset) -> bool:
        """Is it made already?"""
        return asset.made(self.folder(asset))

    def folder(self, asset: Asset) -> Path:
        return cache_folder() / "assets" / f"{asset.name}-{self.key(asset)}"

    def key(self, asset: Asset) -> str:
        run = self.run
        return digest(
            {
                **asset.address(run),
                "source": run.splits.train.provenance(),
                "preprocess": run.recipe.preprocess.dump(),
                "versions": versions([*asset.walk(), *run.recipe.preprocess.walk()]),
            }
        )
