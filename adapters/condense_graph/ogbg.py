"""Molecules of the Open Graph Benchmark (Hu et al., arXiv:2005.00687), read from their raw files as ogb downloads them.

ogb itself is needed only to download them. The split is the published one, by scaffold; the published metric is
ROC-AUC. Features are the nine numbers of each atom as floats, as in the code of DosCond (arXiv:2206.07746); bonds are
undirected, and their features are not read.
"""

from __future__ import annotations

import gzip
import importlib
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from condense.component import Component
from condense.data import Facts
from condense.downloads import Wanted, find_or_download
from condense.errors import BadData, BadValue
from condense.plugins import extra_hint

from .collections import SparseGraphs, starts
from .graph import Graph
from .sets import Collected, GraphData
from .sources.cleaning import undirected

URL = "http://snap.stanford.edu/ogb/data/graphproppred/csv_mol_download"
RAW = tuple(f"raw/{kind}.csv.gz" for kind in ("edge", "node-feat", "num-node-list", "num-edge-list", "graph-label"))
SPLITS = tuple(f"split/scaffold/{part}.csv.gz" for part in ("train", "valid", "test"))
AGAIN = "Restore the file, or download the set again."
CITATION = (
    "W. Hu, M. Fey, M. Zitnik, Y. Dong, H. Ren, B. Liu, M. Catasta, J. Leskovec: Open Graph Benchmark: datasets for "
    "machine learning on graphs. NeurIPS 2020, arXiv:2005.00687."
)


class Molecules(GraphData):
    """Abstract: molecules with one binary label each."""

    title: ClassVar[str]

    @property
    def metric(self) -> str:
        return "roc-auc"

    def read(self) -> Collected:
        wanted = Wanted((*RAW, *SPLITS), (f"ogb/{self.title.replace('-', '_')}", self.title.replace("-", "_")))
        _, paths = find_or_download([wanted], self.title, [URL], self._get)
        edge, feature, nodes, edges, label, *parts = [numbers(path) for path in paths]
        train, validation, test = (part[:, 0] for part in parts)
        graphs = as_graphs(edge, feature.float(), nodes[:, 0], edges[:, 0], self.title)
        facts = Facts(self.title, "MIT", CITATION, extra={"features": "none", "metric": self.metric})
        y, how = label[:, 0], "scaffold, as published"
        return Collected(graphs, y, train, validation, test, ("0", "1"), facts, self.title, how)

    def _get(self, folder: Path) -> None:
        try:
            ogb = importlib.import_module("ogb.graphproppred")
        except ModuleNotFoundError as error:
            problem = f"is needed to download {self.title}, and cannot be imported: {error}"
            raise BadValue("ogb", None, problem, f"Install it{extra_hint('ogb')}") from None
        ogb.PygGraphPropPredDataset(self.title, root=str(folder / "ogb"))


def numbers(path: Path) -> Tensor:
    """The whole numbers of a packed csv file without header, (lines, columns). Raises `BadData`."""
    try:
        text = gzip.decompress(path.read_bytes()).decode("ascii").strip()
        width = text.partition("\n")[0].count(",") + 1
        values = np.array(text.replace(",", " ").split(), dtype=np.float64).reshape(-1, width)
    except (OSError, EOFError, ValueError) as error:
        raise BadData(str(path), str(error)[:80], "holds no packed table of numbers", AGAIN) from None
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise BadData(str(path), "a fraction", "should hold whole numbers", AGAIN)
    return torch.from_numpy(values.astype(np.int64))


def as_graphs(edge: Tensor, x: Tensor, nodes: Tensor, edges: Tensor, where: str) -> SparseGraphs:
    """Graphs from bonds (E, 2) numbered within each graph, and the numbers of nodes and bonds of each."""
    if edge.dim() != 2 or edge.shape[1] != 2 or int(edges.sum()) != len(edge):
        raise BadData(f"{where} edges", tuple(edge.shape), f"are not the {int(edges.sum())} pairs announced", AGAIN)
    shift = starts(nodes).repeat_interleave(edges)
    return SparseGraphs(Graph(x, undirected((edge + shift[:, None]).T.contiguous(), len(x))), nodes)


@final
class OgbgMolhiv(Molecules):
    """ogbg-molhiv: 41,127 molecules, 25.5 atoms on average; do they inhibit HIV replication?"""

    name: ClassVar[str] = "ogbg-molhiv"
    title: ClassVar[str] = "ogbg-molhiv"


@final
class OgbgMolbace(Molecules):
    """ogbg-molbace: 1,513 molecules, 34.1 atoms on average; do they inhibit human beta-secretase 1?"""

    name: ClassVar[str] = "ogbg-molbace"
    title: ClassVar[str] = "ogbg-molbace"


@final
class OgbgMolbbbp(Molecules):
    """ogbg-molbbbp: 2,039 molecules, 24.1 atoms on average; do they pass the blood-brain barrier?"""

    name: ClassVar[str] = "ogbg-molbbbp"
    title: ClassVar[str] = "ogbg-molbbbp"


def components() -> list[type[Component]]:
    return [OgbgMolhiv, OgbgMolbace, OgbgMolbbbp]
