"""Published sets whose raw files PyG's own classes process: none of these files is a pickle."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from condense.data import Facts
from condense.downloads import Wanted, find_or_download
from condense.errors import BadData
from condense.places import cache_folder
from condense.rng import Rng

from ..graph import Graph
from ..needs import pyg
from .base import Labelled, NodeData, Setting
from .cleaning import undirected

SHCHUR = "O. Shchur, M. Mumme, A. Bojchevski, S. Guennemann: Pitfalls of graph neural network evaluation. "
SHCHUR += "arXiv:1811.05868, 2018."


class ThroughPyg(NodeData):
    """Abstract: a set that a dataset class of PyG downloads and processes, in condense's cache folder.

    PyG writes `processed/` beside `raw/`: the raw files are linked (or copied) from where they are found, so that a
    data folder is never written to.
    """

    kind: ClassVar[str]  # the class in torch_geometric.datasets
    arguments: ClassVar[Mapping[str, str]] = {}
    inner: ClassVar[str] = ""  # the folder that PyG puts raw/ into, below the root that it is given
    files: ClassVar[tuple[str, ...]]
    url: ClassVar[str]
    known: ClassVar[Facts]

    def data(self) -> tuple[Any, str]:
        """PyG's `Data`, and the folder that the raw files lie in."""
        cls = getattr(pyg("datasets"), self.kind)
        places = [str(Path(self.kind, self.inner, "raw")), *([str(Path(self.inner, "raw"))] if self.inner else [])]
        wanted = Wanted(self.files, tuple(places))

        def get(folder: Path) -> None:
            made(cls, folder / self.kind, self.arguments)

        _, paths = find_or_download([wanted], self.name, [self.url], get)
        return processed(cls, self.arguments, self.inner, paths), str(paths[0].parent)


def processed(cls: Any, arguments: Mapping[str, str], inner: str, raw: Sequence[Path]) -> Any:
    """What PyG makes of raw files, kept in the cache folder by where they lie, their sizes and their dates.

    It is made in a folder of its own and moved when it is whole. Where the cache cannot be written, nothing is kept.
    Raises `BadData` for raw files that PyG cannot process.
    """
    home = cache_folder() / "pyg" / f"{cls.__name__}-{_key(raw)}"
    if home.is_dir():
        return made(cls, home, arguments)
    base: Path | None = home.parent
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        base = None
    with TemporaryDirectory(prefix=".making-", dir=base, ignore_cleanup_errors=True) as making:
        folder = Path(making) / "root"
        (folder / inner / "raw").mkdir(parents=True)
        for path in raw:
            _link(path, folder / inner / "raw" / path.name)
        try:
            data = made(cls, folder, arguments)
        except Exception as error:  # PyG, numpy and scipy raise nearly anything
            problem = f"cannot be processed by PyG: {type(error).__name__}: {error}"
            raise BadData(str(raw[0].parent), [path.name for path in raw], problem, "Get the files again.") from None
        with suppress(OSError):  # another process was first
            os.replace(folder, home)
    return data


def made(cls: Any, root: Path, arguments: Mapping[str, str]) -> Any:
    """The graph of PyG's dataset, without what it prints."""
    with redirect_stderr(io.StringIO()):
        return cls(str(root), **arguments)[0]


def _key(raw: Sequence[Path]) -> str:
    facts = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in raw]
    return hashlib.sha256(repr((pyg().__version__, facts)).encode()).hexdigest()[:16]


def _link(path: Path, to: Path) -> None:
    try:
        to.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, to)


# -- sets with a split of their own ---------------------------------------------------------------------------------


class Sampled(ThroughPyg):
    """Abstract: the large sets of GraphSAGE and GraphSAINT, learned inductively, columns standardised (as in GCond)."""

    setting: Setting = "inductive"

    def read(self) -> Labelled:
        data, where = self.data()
        splits = (mask.nonzero().flatten() for mask in (data.train_mask, data.val_mask, data.test_mask))
        edges = data.edge_index[:, data.edge_index[0] != data.edge_index[1]]  # both directions are listed as published
        names = tuple(str(c) for c in range(int(data.y.max()) + 1))
        train, validation, test = splits
        return Labelled(Graph(data.x, edges), data.y, train, validation, test, names, self.known, where)


@final
class Flickr(Sampled):
    """Flickr: 89,250 pictures joined where they share a property, 500 words, 7 classes; half of them to train on."""

    kind: ClassVar[str] = "Flickr"
    files: ClassVar[tuple[str, ...]] = ("adj_full.npz", "feats.npy", "class_map.json", "role.json")
    url: ClassVar[str] = "https://drive.usercontent.google.com"
    known: ClassVar[Facts] = Facts(
        "Flickr",
        "none stated",
        "H. Zeng, H. Zhou, A. Srivastava, R. Kannan, V. Prasanna: GraphSAINT. arXiv:1907.04931, 2020.",
        extra={"features": "columns"},
    )


@final
class Reddit(Sampled):
    """Reddit: 232,965 posts joined where one user commented on both, 602 features, 41 communities."""

    kind: ClassVar[str] = "Reddit"
    files: ClassVar[tuple[str, ...]] = ("reddit_data.npz", "reddit_graph.npz")
    url: ClassVar[str] = "https://data.dgl.ai/dataset/reddit.zip"
    known: ClassVar[Facts] = Facts(
        "Reddit",
        "none stated",
        "W. Hamilton, R. Ying, J. Leskovec: Inductive representation learning on large graphs. arXiv:1706.02216, 2017.",
        extra={"features": "columns"},
    )


# -- sets without a split -------------------------------------------------------------------------------------------


class Shchur(ThroughPyg):
    """Abstract: Amazon and Coauthor graphs, which have no published split.

    By `seed`, `train` nodes of each class to train on and `validation` of each for validation, all others to test on:
    20 and 30 in Shchur et al. (arXiv:1811.05868), who also leave out all but the largest connected component; PyG and
    condense keep the others. Features are counted words; rows are normalised.
    """

    train: int = Field(default=20, ge=1)
    validation: int = Field(default=30, ge=0)
    seed: int = 0

    def read(self) -> Labelled:
        data, where = self.data()
        train, validation, test = split_per_class(data.y, self.train, self.validation, Rng(self.seed).fold("split"))
        names = tuple(str(c) for c in range(int(data.y.max()) + 1))
        graph = Graph(data.x, undirected(data.edge_index, len(data.x)))
        return Labelled(graph, data.y, train, validation, test, names, self.known, where)


def split_per_class(y: Tensor, train: int, validation: int, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of `train` and `validation` items of each class of y (N,), and of all others; ascending.

    Classes that are too small for it give train first, then validation.
    """
    part = torch.full_like(y, 2)
    for cls in torch.unique(y).tolist():
        ids = (y == cls).nonzero().flatten()
        order = ids[rng.fold(cls).permutation(len(ids))]
        part[order[:train]] = 0
        part[order[train : train + validation]] = 1
    return tuple((part == i).nonzero().flatten() for i in range(3))  # type: ignore[return-value]


class Amazon(Shchur):
    """Abstract: goods that are bought together."""

    kind: ClassVar[str] = "Amazon"
    url: ClassVar[str] = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz/"


@final
class AmazonPhoto(Amazon):
    """Amazon Photo: 7,650 goods, 119,081 joint purchases, 745 words, 8 categories."""

    arguments: ClassVar[Mapping[str, str]] = {"name": "Photo"}
    inner: ClassVar[str] = "Photo"
    files: ClassVar[tuple[str, ...]] = ("amazon_electronics_photo.npz",)
    known: ClassVar[Facts] = Facts("Amazon Photo", "MIT", SHCHUR, extra={"features": "rows"})


@final
class AmazonComputers(Amazon):
    """Amazon Computers: 13,752 goods, 245,861 joint purchases, 767 words, 10 categories."""

    arguments: ClassVar[Mapping[str, str]] = {"name": "Computers"}
    inner: ClassVar[str] = "Computers"
    files: ClassVar[tuple[str, ...]] = ("amazon_electronics_computers.npz",)
    known: ClassVar[Facts] = Facts("Amazon Computers", "MIT", SHCHUR, extra={"features": "rows"})


class Coauthor(Shchur):
    """Abstract: authors who wrote together."""

    kind: ClassVar[str] = "Coauthor"
    url: ClassVar[str] = "https://github.com/shchur/gnn-benchmark/raw/master/data/npz/"


@final
class CoauthorCS(Coauthor):
    """Coauthor CS: 18,333 authors, 81,894 pairs of coauthors, 6,805 words, 15 fields."""

    arguments: ClassVar[Mapping[str, str]] = {"name": "CS"}
    inner: ClassVar[str] = "CS"
    files: ClassVar[tuple[str, ...]] = ("ms_academic_cs.npz",)
    known: ClassVar[Facts] = Facts("Coauthor CS", "MIT", SHCHUR, extra={"features": "rows"})


@final
class CoauthorPhysics(Coauthor):
    """Coauthor Physics: 34,493 authors, 247,962 pairs of coauthors, 8,415 words, 5 fields."""

    arguments: ClassVar[Mapping[str, str]] = {"name": "Physics"}
    inner: ClassVar[str] = "Physics"
    files: ClassVar[tuple[str, ...]] = ("ms_academic_phy.npz",)
    known: ClassVar[Facts] = Facts("Coauthor Physics", "MIT", SHCHUR, extra={"features": "rows"})
