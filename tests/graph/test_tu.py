"""TUDataset and ogbg-mol from raw files: equal to PyG's reading, the published split, and what is refused."""

from __future__ import annotations

import gzip
import shutil
import sys

import pytest
import torch

from condense.axes import Transform
from condense.component import member
from condense.data import Data
from condense.errors import BadData, BadValue
from condense.places import data_root as reading_from
from condense_graph.ogbg import OgbgMolbace
from condense_graph.sets import GraphSource, tenths
from condense_graph.tu import DD, TU, Mutag, Nci1, Proteins, PtcMr, read_graphs, table

TINY = {  # two graphs: a triangle whose edge 1-2 stands twice, with a loop; and a single node beside a pair
    "A": "1, 2\n2, 1\n1, 2\n2, 3\n3, 2\n3, 3\n5, 6\n6, 5\n",
    "graph_indicator": "1\n1\n1\n2\n2\n2\n",
    "graph_labels": "1\n-1\n",
    "node_labels": "3\n4\n3\n7\n3\n4\n",
    "node_attributes": "0.5, 1\n0, 2\n0, 0\n1, 1\n2, 2\n-3, 3\n",
}


@pytest.fixture
def tiny(tmp_path):
    def write(without=(), **changes):
        folder = tmp_path / "TUDataset" / "TINY" / "raw"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for kind, text in {**TINY, **changes}.items():
            if kind not in without:
                (folder / f"TINY_{kind}.txt").write_text(text)
        return {path.stem.removeprefix("TINY_"): path for path in folder.iterdir()}

    return write


def test_labels_become_indicators_loops_and_doubles_go_and_classes_are_sorted(tiny):
    graphs, y, classes = read_graphs(tiny(), "TINY", attributes=False)
    assert classes == ("-1", "1")
    assert y.tolist() == [1, 0]
    assert graphs.sizes.tolist() == [3, 3]
    assert torch.equal(graphs.x, torch.eye(5)[[0, 1, 0, 4, 0, 1]])  # labels 3, 4, 3, 7, 3, 4
    assert sorted(zip(*graphs.graph.edges.tolist(), strict=True)) == [(0, 1), (1, 0), (1, 2), (2, 1), (4, 5), (5, 4)]


def test_attributes_stand_in_front_and_degrees_where_there_is_nothing(tiny):
    graphs, _, _ = read_graphs(tiny(), "TINY", attributes=True)
    assert graphs.x.shape == (6, 7)
    assert graphs.x[5, :2].tolist() == [-3, 3]
    for asked in (True, False):
        graphs, _, _ = read_graphs(tiny(without=("node_labels",)), "TINY", attributes=asked)
        assert graphs.x.tolist() == [[0.5, 1], [0, 2], [0, 0], [1, 1], [2, 2], [-3, 3]], "they are all there is"
    graphs, _, _ = read_graphs(tiny(without=("node_labels", "node_attributes")), "TINY", attributes=True)
    assert graphs.x.flatten().tolist() == [1, 2, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"A": "1, 2\n7, 1\n"}, "pairs of nodes in 1..6"),
        ({"A": "1, 2\n3\n"}, "no table"),
        ({"graph_indicator": "1\n2\n1\n2\n2\n2\n"}, "graph by graph"),
        ({"graph_labels": "1\n"}, "graph by graph"),
        ({"node_labels": "1\n2\n"}, "not one row for each of 6"),
        ({"node_labels": "1\n2\nx\n1\n1\n1\n"}, "no table"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(tiny, changes, problem):
    with pytest.raises(BadData, match=problem):
        read_graphs(tiny(**changes), "TINY", attributes=False)


def test_a_whole_set_must_be_usable(tiny, tmp_path):
    tiny()
    with reading_from(tmp_path), pytest.raises(BadData, match="train"):  # two graphs: nothing is left to train on
        TU(of="TINY").open()
    tiny(A="1, 4\n4, 1\n")
    with reading_from(tmp_path), pytest.raises(BadData, match="joins two graphs"):
        TU(of="TINY").open()


def test_missing_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("condense.downloads.reachable", lambda url: False)
    with reading_from(tmp_path), pytest.raises(BadData, match="NOSUCH_graph_indicator"):
        TU(of="NOSUCH").open()


def test_names_and_shorthand():
    assert member(Data, "tu:ENZYMES") == TU(of="ENZYMES")
    assert [member(Data, name).called for name in ("mutag", "ptc-mr", "nci1", "proteins", "dd")] == [
        kind().called for kind in (Mutag, PtcMr, Nci1, Proteins, DD)
    ]
    assert TU(of="ENZYMES").label == "tu-enzymes"
    with pytest.raises(ValueError, match="of"):
        TU(of="../etc")


def test_a_table_has_columns(tmp_path):
    (tmp_path / "t.txt").write_text(" 1, 2.5\n3,4\n\n")
    assert table(tmp_path / "t.txt", float).tolist() == [[1, 2.5], [3, 4]]


def test_tenths_are_those_of_torch_s_own_generator():
    torch.manual_seed(0)
    order = torch.randperm(188)  # what the code of DosCond draws when PyG shuffles
    train, validation, test = tenths(188, 0)
    assert torch.equal(torch.cat([test, validation, train]), order)
    assert [len(part) for part in (train, validation, test)] == [150, 19, 19]


@pytest.mark.parametrize("kind", [Mutag, Proteins])
def test_what_is_read_equals_pyg_on_the_same_files(kind, data_root, tmp_path):
    pyg = pytest.importorskip("torch_geometric.datasets")
    name = kind().called
    raw = data_root / "TUDataset" / name / "raw"
    if not raw.is_dir():
        pytest.skip(f"no {raw}")
    shutil.copytree(raw, tmp_path / name / "raw", copy_function=shutil.copyfile)
    theirs = pyg.TUDataset(str(tmp_path), name, use_node_attr=True)
    with reading_from(data_root):
        read, plain = kind(attributes=True).read(), kind().read()
    assert torch.equal(plain.graphs.x, read.graphs.x[:, theirs.num_node_attributes :])
    assert len(read.graphs) == len(theirs)
    assert torch.equal(read.y, torch.tensor([data.y.item() for data in theirs]))
    for i in range(0, len(theirs), 7):
        mine, data = read.graphs.take(torch.tensor([i])), theirs[i]
        torch.testing.assert_close(mine.x, data.x)
        order = torch.argsort(mine.graph.edges[0] * len(mine.x) + mine.graph.edges[1])
        assert torch.equal(mine.graph.edges[:, order], data.edge_index)


def test_an_opened_set_is_divided_once_and_says_how(data_root):
    with reading_from(data_root):
        splits, again = Mutag().open(), Mutag().open()
    assert splits.task.shape == (18, 7)
    assert splits.task.form.name == Mutag.form
    record = splits.train.provenance()
    assert record == again.train.provenance()
    parts = [record["split"][name] for name in ("train", "validation", "test")]
    assert sorted(i for part in parts for i in part) == list(range(188))
    with reading_from(data_root):
        read = Mutag().read()
    y = [read.y[torch.tensor(part)] for part in parts]
    assert splits.validation is not None
    assert all(torch.equal(s.y, own) for s, own in zip((splits.train, splits.validation, splits.test), y, strict=True))
    with reading_from(data_root):
        assert Mutag(seed=1).open().train.provenance()["split"] != record["split"]


class Doubled(Transform):
    def encode(self, raw):
        return torch.cat([raw, raw], dim=1)

    def decode(self, x):
        return x[:, : x.shape[1] // 2]

    def describe(self):
        return {"name": "doubled"}


def test_a_source_encodes_features_and_sweeps_what_it_takes(data_root):
    with reading_from(data_root):
        source = Mutag().open().test
    assert isinstance(source, GraphSource)
    wide = source.encoded(Doubled())
    assert wide.task.shape == (18, 14)
    assert wide.encoded(Doubled()).task.shape == (18, 14)
    whole = source.take(torch.arange(len(source)))
    for _ in range(2):
        batches = list(wide.sweep(8))
        assert [len(batch) for batch in batches] == [8, 8, 3]
        assert torch.equal(torch.cat([batch.x.x for batch in batches])[:, 7:], whole.x.x)


# -- ogbg-mol -------------------------------------------------------------------------------------------------------


def molecules(root):
    """Ten molecules, each a chain of 2 + i % 3 atoms, as ogb lays them out."""
    sizes = [2 + i % 3 for i in range(10)]
    rows = {
        "raw/edge": "".join(f"{a},{a + 1}\n" for n in sizes for a in range(n - 1)),
        "raw/node-feat": "".join(f"{n},{a},0\n" for n in sizes for a in range(n)),
        "raw/num-node-list": "".join(f"{n}\n" for n in sizes),
        "raw/num-edge-list": "".join(f"{n - 1}\n" for n in sizes),
        "raw/graph-label": "".join(f"{i % 2}\n" for i in range(10)),
        "split/scaffold/train": "".join(f"{i}\n" for i in range(6)),
        "split/scaffold/valid": "6\n7\n",
        "split/scaffold/test": "8\n9\n",
    }
    for name, text in rows.items():
        path = root / "ogb" / "ogbg_molbace" / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    return root / "ogb" / "ogbg_molbace"


def test_molecules_are_read_without_ogb(tmp_path):
    molecules(tmp_path)
    with reading_from(tmp_path):
        splits = OgbgMolbace().open()
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [6, 2, 2]
    third = splits.train.take(torch.tensor([2])).x
    assert third.sizes.tolist() == [4]
    assert third.x.tolist() == [[4, a, 0] for a in range(4)]
    assert third.dense().adj[0].tolist() == [[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    assert splits.facts.extra["metric"] == "roc-auc"


def test_molecules_that_were_cut_short_are_refused(tmp_path):
    folder = molecules(tmp_path)
    (folder / "raw" / "edge.csv.gz").write_bytes(gzip.compress(b"0,1\n"))
    with reading_from(tmp_path), pytest.raises(BadData, match="announced"):
        OgbgMolbace().open()
    (folder / "raw" / "edge.csv.gz").write_bytes(b"no gzip")
    with reading_from(tmp_path), pytest.raises(BadData, match="packed table"):
        OgbgMolbace().open()


def test_downloading_molecules_says_that_ogb_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ogb.graphproppred", None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("condense.downloads.reachable", lambda url: True)
    with reading_from(tmp_path), pytest.raises(BadValue, match="ogb"):
        OgbgMolbace().open()
