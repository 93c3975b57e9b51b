"""TUDataset: sets of graphs for graph classification (Morris et al., arXiv:2007.08663), read from their raw text files.

`NAME_A.txt` lists directed edges from 1, `NAME_graph_indicator.txt` the graph of each node, `NAME_graph_labels.txt` a
label for each graph; `NAME_node_labels.txt` and `NAME_node_attributes.txt` may be there. What is read equals PyG's
`TUDataset` on the same files (tested), without its cache: nothing is written beside the raw files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from condense.component import Component
from condense.data import Facts
from condense.downloads import Wanted, find_or_download
from condense.errors import BadData

from .collections import SparseGraphs
from .graph import Graph
from .needs import pyg
from .sets import Collected, GraphData, tenths
from .sources.cleaning import undirected

URL = "https://www.chrsmrrs.com/graphkerneldatasets"
NEEDED = ("A", "graph_indicator", "graph_labels")
OPTIONAL = ("node_labels", "node_attributes")
AGAIN = "Restore the file, or download the set again."
CITATION = (
    "C. Morris, N. M. Kriege, F. Bause, K. Kersting, P. Mutzel, M. Neumann: TUDataset: a collection of benchmark "
    "datasets for learning with graphs. arXiv:2007.08663, 2020."
)


class TUSet(GraphData):
    """Abstract: graphs of the TU collection, 80/10/10 by `seed` (see `tenths`).

    Features are the node labels, one-hot. attributes: with the continuous attributes in front of them, where there are
    any; without, as PyG does unless asked (`use_node_attr`; the code of DosCond and KIDD asks, which among their sets
    matters for PROTEINS alone; it also scales rows, which changes nothing for one-hot features). A set that has
    attributes and no labels (Synthie, FRANKENSTEIN) is read with these either way: there PyG, unasked, gives no
    features. Nodes that have neither get their degree, one number, as in the code of DosCond. Edges are undirected,
    without loops and doubles; their labels are not read.
    """

    attributes: bool = False
    seed: int = Field(default=0, ge=0)

    @property
    @abstractmethod
    def called(self) -> str:
        """The set's name in the collection."""

    def read(self) -> Collected:
        paths = find(self.called)
        graphs, y, classes = read_graphs(paths, self.called, self.attributes)
        parts = tenths(len(graphs), self.seed)
        how = f"80/10/10, permutation of seed {self.seed}"
        facts = Facts(f"{self.called} (TUDataset)", "none stated", CITATION, extra={"features": "none"})
        return Collected(graphs, y, *parts, classes, facts, f"TUDataset {self.called}", how)


@final
class TU(TUSet):
    """Any set of the collection by its name there: `tu:ENZYMES`."""

    name: ClassVar[str] = "tu"
    shorthand: ClassVar[str | None] = "of"
    of: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")

    @property
    def called(self) -> str:
        return self.of

    @property
    def label(self) -> str:
        return f"tu-{self.of.lower()}"

    @property
    def published_as(self) -> str:
        return f"tu:{self.of}"


class Named(TUSet):
    """Abstract: a set that has a name of its own here."""

    title: ClassVar[str]

    @property
    def called(self) -> str:
        return self.title


@final
class Mutag(Named):
    """MUTAG: 188 nitroaromatic compounds, 17.9 atoms of 7 kinds on average; mutagenic or not."""

    title: ClassVar[str] = "MUTAG"


@final
class PtcMr(Named):
    """PTC_MR: 344 compounds, 14.3 atoms of 18 kinds on average; carcinogenic to male rats or not."""

    title: ClassVar[str] = "PTC_MR"


@final
class Nci1(Named):
    """NCI1: 4,110 compounds, 29.9 atoms of 37 kinds on average; active against lung cancer cells or not."""

    name: ClassVar[str] = "nci1"
    title: ClassVar[str] = "NCI1"


@final
class Proteins(Named):
    """PROTEINS: 1,113 proteins, 39.1 secondary structure elements of 3 kinds on average; enzyme or not."""

    title: ClassVar[str] = "PROTEINS"


@final
class DD(Named):
    """DD: 1,178 proteins, 284.3 amino acids of 89 kinds on average (the largest has 5,748); enzyme or not."""

    name: ClassVar[str] = "dd"
    title: ClassVar[str] = "DD"


# -- files ----------------------------------------------------------------------------------------------------------


def find(name: str) -> dict[str, Path]:
    """The raw files of a set by their kind, downloaded where they are nowhere. Raises `BadData` where that fails."""
    folders = (f"TUDataset/{name}/raw", f"TUDataset/{name}", f"{name}/raw")
    kinds = [(*NEEDED, *some) for some in (OPTIONAL, OPTIONAL[:1], OPTIONAL[1:], ())]
    wanted = [Wanted(tuple(f"{name}_{kind}.txt" for kind in some), folders) for some in kinds]

    def get(folder: Path) -> None:
        pyg("datasets").TUDataset(str(folder / "TUDataset"), name)

    _, paths = find_or_download(wanted, f"TUDataset {name}", [f"{URL}/{name}.zip"], get)
    return {path.stem.removeprefix(f"{name}_"): path for path in paths}


def table(path: Path, dtype: type) -> np.ndarray:
    """The numbers of a text file, (lines, columns), separated by commas or blanks. Raises `BadData`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(str(path), str(error), "cannot be read as text", AGAIN) from None
    first = text.partition("\n")[0].replace(",", " ").split()
    try:
        values: np.ndarray = np.array(text.replace(",", " ").split(), dtype=dtype)
        return values.reshape(-1, max(1, len(first)))
    except (ValueError, OverflowError) as error:
        raise BadData(str(path), str(error)[:80], "holds no table of numbers", AGAIN) from None


# -- from tables to graphs ------------------------------------------------------------------------------------------


def read_graphs(paths: dict[str, Path], name: str, attributes: bool) -> tuple[SparseGraphs, Tensor, tuple[str, ...]]:
    """The graphs, y (G,) int64 and the names of the classes: the labels in the file, in ascending order."""
    owner = whole(paths["graph_indicator"])[:, 0] - 1
    labels = whole(paths["graph_labels"])[:, 0]
    sizes = torch.bincount(owner.clamp_min(0), minlength=len(labels))
    if bool((owner[1:] < owner[:-1]).any()) or int(owner[0]) < 0 or len(sizes) != len(labels):
        problem = f"does not number the nodes graph by graph, for {len(labels)} graphs"
        raise BadData(str(paths["graph_indicator"]), len(sizes), problem, AGAIN)
    listed, n = whole(paths["A"]).T.contiguous() - 1, len(owner)
    if listed.shape[0] != 2 or (listed.numel() and not 0 <= int(listed.min()) <= int(listed.max()) < n):
        raise BadData(str(paths["A"]), tuple(listed.shape), f"does not list pairs of nodes in 1..{n}", AGAIN)
    edges = undirected(listed, n)
    known, y = torch.unique(labels, return_inverse=True)
    x = features(paths, name, edges, n, attributes)
    return SparseGraphs(Graph(x, edges), sizes), y, tuple(str(int(label)) for label in known)


def whole(path: Path) -> Tensor:
    return torch.from_numpy(table(path, np.int64))


def features(paths: dict[str, Path], name: str, edges: Tensor, n: int, attributes: bool) -> Tensor:
    """(n, D) float32: attributes if they are asked for or stand alone, one-hot labels by column; else degrees."""
    columns: list[Tensor] = []
    if "node_attributes" in paths and (attributes or "node_labels" not in paths):
        columns.append(torch.from_numpy(table(paths["node_attributes"], np.float32)))
    if "node_labels" in paths:
        columns += one_hot(whole(paths["node_labels"]))
    if not columns:
        columns = [torch.bincount(edges[1], minlength=n).float()[:, None]]
    if any(len(column) != n for column in columns):
        found = [len(column) for column in columns]
        raise BadData(f"TUDataset {name} features", found, f"are not one row for each of {n} nodes", AGAIN)
    return torch.cat(columns, dim=1)


def one_hot(labels: Tensor) -> Sequence[Tensor]:
    """Each column of labels (n, C), counted from its smallest, as indicators (n, values)."""
    return [F.one_hot(column).float() for column in (labels - labels.min(dim=0).values).unbind(dim=1)]


def components() -> list[type[Component]]:
    return [TU, Mutag, PtcMr, Nci1, Proteins, DD]
