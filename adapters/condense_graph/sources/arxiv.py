"""ogbn-arxiv, from its published text files."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from condense.data import Facts
from condense.downloads import Wanted, find_or_download, save
from condense.errors import BadData
from condense.places import cached

from ..graph import Graph
from .base import Labelled, NodeData
from .cleaning import undirected

URL = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
FILES = (
    *("raw/edge.csv.gz", "raw/node-feat.csv.gz", "raw/node-label.csv.gz"),
    *("split/time/train.csv.gz", "split/time/valid.csv.gz", "split/time/test.csv.gz"),
)
CLASSES = 40


@final
class OgbnArxiv(NodeData):
    """ogbn-arxiv: 169,343 papers on computer science, 1,166,243 citations, 128 features, 40 subjects; split by year.

    Citations are taken in both directions, and columns are standardised with training statistics (as in GCond). Read
    from the folder that the package `ogb` leaves (`ogbn_arxiv`), which is not needed for it.
    """

    def read(self) -> Labelled:
        wanted = Wanted(FILES, ("ogbn_arxiv", "ogb/ogbn_arxiv", "arxiv"))
        _, paths = find_or_download([wanted], self.name, [URL], _download)
        edges, x, y, *splits = (table(path, np.float32 if i == 1 else np.int64) for i, path in enumerate(paths))
        train, validation, test = (nodes.flatten() for nodes in splits)
        graph = Graph(x, undirected(edges.T, len(x)))
        names = tuple(str(c) for c in range(CLASSES))
        return Labelled(graph, y.flatten(), train, validation, test, names, ARXIV, str(paths[0].parents[1]))


ARXIV = Facts(
    "ogbn-arxiv",
    "ODC-BY",
    "W. Hu, M. Fey, M. Zitnik, Y. Dong, H. Ren, B. Liu, M. Catasta, J. Leskovec: Open graph benchmark. "
    "arXiv:2005.00687, 2020.",
    extra={"features": "columns"},
)


def table(path: Path, dtype: Any) -> Tensor:
    """The numbers of a .csv.gz without a heading, (rows, columns), kept in the cache folder by content."""
    key = f"{path.name}-{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}"

    def make() -> bytes:
        numbers = np.loadtxt(path, dtype=dtype, delimiter=",", ndmin=2)
        return np.int64(numbers.shape[1]).tobytes() + numbers.tobytes()

    try:
        raw = cached("tables", key, make)
    except (ValueError, OSError, EOFError) as error:
        raise BadData(str(path), str(error), "is no table of numbers", "Get the file again.") from None
    width = int(np.frombuffer(raw[:8], np.int64)[0])
    return torch.from_numpy(np.frombuffer(raw[8:], dtype).reshape(-1, width).copy())


def _download(folder: Path) -> None:
    archive = folder / "arxiv.zip"
    save(URL, archive)
    with zipfile.ZipFile(archive) as packed:
        for name in FILES:
            to = folder / "ogbn_arxiv" / name
            to.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(f"arxiv/{name}") as source, to.open("wb") as target:
                shutil.copyfileobj(source, target)
