"""Cora, CiteSeer and PubMed in the split of Planetoid (Yang, Cohen, Salakhutdinov, arXiv:1603.08861)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from condense.data import Facts
from condense.downloads import Wanted, find_or_download, save
from condense.errors import BadData

from ..graph import Graph
from .base import Labelled, NodeData
from .cleaning import undirected
from .pickles import known_bytes, unpickled

URL = "https://github.com/kimiyoung/planetoid/raw/master/data"
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
VALIDATION = 500
CITATION = (
    "P. Sen, G. Namata, M. Bilgic, L. Getoor, B. Galligher, T. Eliassi-Rad: Collective classification in network data. "
    "AI Magazine 29, 2008; split: Z. Yang, W. Cohen, R. Salakhutdinov, arXiv:1603.08861."
)


class Planetoid(NodeData):
    """Abstract: papers that cite each other. 20 of each class to train on, 500 for validation, 1000 to test on.

    Read by condense itself: the files are pickles, of which only the published ones are opened (see `pickles`). The
    result is PyG's: rows of test nodes in their true order, self-loops and repeated edges removed, isolated test nodes
    (CiteSeer has 15, in no split) with zero features. Features are used row-normalised (GCond and most others).
    """

    title: ClassVar[str]  # as the folder is called
    checksums: ClassVar[Mapping[str, str]]
    classes: ClassVar[tuple[str, ...]]

    def read(self) -> Labelled:
        names = {part: f"ind.{self.name}.{part}" for part in PARTS}
        folders = (f"Planetoid/{self.title}/raw", f"{self.title}/raw")
        wanted = Wanted(tuple(names.values()), folders)
        urls = [f"{URL}/{name}" for name in names.values()]

        def get(folder: Path) -> None:
            for url in urls:
                save(url, folder / folders[0] / url.rpartition("/")[2])

        _, found = find_or_download([wanted], self.name, urls[:1], get)
        paths = dict(zip(PARTS, found, strict=True))
        objects = {part: unpickled(paths[part], self.checksums[part]) for part in PARTS[:-1]}
        text = known_bytes(paths["test.index"], self.checksums["test.index"])
        test = torch.from_numpy(np.loadtxt(io.BytesIO(text), dtype=np.int64, ndmin=1))
        facts = Facts(self.title, "none stated", CITATION, extra={"features": "rows"})
        return assembled(objects, test, self.classes, facts, str(found[0].parent))


def assembled(objects: Mapping[str, Any], test: Tensor, classes: tuple[str, ...], facts: Facts, where: str) -> Labelled:
    """The graph of Planetoid's parts: matrices x, tx, allx of features, y, ty, ally of one-hot labels, lists of edges.

    Nodes are those of allx, then those between the lowest and the highest number in `test`, which says where each row
    of tx belongs; numbers that it leaves out are isolated nodes without features.
    """
    low, high = int(test.min()), int(test.max())
    if low != objects["allx"].shape[0]:
        raise BadData(where, low, "has test nodes that do not follow the others", "Get the files again.")
    x, labels = (
        torch.cat([_dense(objects[all_]), _spread(_dense(objects[some]), test - low, high - low + 1)])
        for all_, some in (("allx", "tx"), ("ally", "ty"))
    )
    edges = undirected(torch.from_numpy(_pairs(objects["graph"])), len(x))
    train = torch.arange(objects["y"].shape[0])
    validation = torch.arange(len(train), len(train) + VALIDATION)
    return Labelled(Graph(x, edges), labels.argmax(dim=1), train, validation, test.sort().values, classes, facts, where)


def _dense(matrix: Any) -> Tensor:
    array = matrix.toarray() if hasattr(matrix, "toarray") else matrix
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def _spread(rows: Tensor, places: Tensor, n: int) -> Tensor:
    """(n, D) with row i at places[i], zeros elsewhere."""
    out = rows.new_zeros(n, rows.shape[1])
    out[places] = rows
    return out


def _pairs(neighbours: Mapping[int, list[int]]) -> Any:
    """(2, E) int64 of the lists of neighbours."""
    sources = np.repeat(list(neighbours), [len(targets) for targets in neighbours.values()])
    return np.stack([sources, np.concatenate(list(neighbours.values()))]).astype(np.int64)


@final
class Cora(Planetoid):
    """Cora: 2,708 papers on machine learning, 5,278 citations, 1,433 words, 7 subjects (as the LINQS files name them).

    The published test set is not sorted by class; training nodes 0 to 139 start with the classes 3, 4, 4, 0.
    """

    title: ClassVar[str] = "Cora"
    classes: ClassVar[tuple[str, ...]] = (
        *("Theory", "Reinforcement Learning", "Genetic Algorithms", "Neural Networks"),
        *("Probabilistic Methods", "Case Based", "Rule Learning"),
    )
    checksums: ClassVar[Mapping[str, str]] = {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    }


@final
class CiteSeer(Planetoid):
    """CiteSeer: 3,327 papers, 4,552 citations, 3,703 words, 6 areas of computer science; 48 papers cite none."""

    name: ClassVar[str] = "citeseer"
    title: ClassVar[str] = "CiteSeer"
    classes: ClassVar[tuple[str, ...]] = (
        *("Artificial Intelligence", "Machine Learning", "Information Retrieval"),
        *("Databases", "Agents", "Human-Computer Interaction"),
    )
    checksums: ClassVar[Mapping[str, str]] = {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    }


@final
class PubMed(Planetoid):
    """PubMed: 19,717 papers on diabetes, 44,324 citations, 500 words (tf-idf), 3 kinds of diabetes.

    Checksums as in the publisher's repository, of `allx` only the name that git gives it.
    """

    name: ClassVar[str] = "pubmed"
    title: ClassVar[str] = "PubMed"
    classes: ClassVar[tuple[str, ...]] = ("0", "1", "2")
    checksums: ClassVar[Mapping[str, str]] = {
        "x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
        "tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
        "allx": "git:3b86bccf08111c37c632a9dd8ab63db25ea76361",
        "y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        "ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
        "ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
        "graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
        "test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    }
