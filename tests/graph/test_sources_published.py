"""Published graphs: the real Planetoid files against PyG, and small files of the other sets' formats."""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch_geometric.datasets import Planetoid as PygPlanetoid

from condense import downloads
from condense.data import Facts
from condense.errors import BadData
from condense.places import data_root as read_from
from condense.rng import Rng
from condense_graph.sources import (
    AmazonComputers,
    AmazonPhoto,
    CiteSeer,
    CoauthorCS,
    CoauthorPhysics,
    Cora,
    Flickr,
    OgbnArxiv,
    PubMed,
    Reddit,
)
from condense_graph.sources.pickles import checksum, unpickled
from condense_graph.sources.planetoid import PARTS, assembled
from condense_graph.sources.through_pyg import split_per_class


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Folders of its own for every test, and no network."""
    monkeypatch.delenv("CONDENSE_DATA", raising=False)
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "reachable", lambda url: False)
    return tmp_path


# -- Planetoid --------------------------------------------------------------------------------------------------------

SIZES = {Cora: (2708, 10556, 1433, 7), CiteSeer: (3327, 9104, 3703, 6)}


@pytest.mark.parametrize("kind", SIZES)
def test_planetoid_is_what_pyg_makes_of_a_copy_of_the_files(kind, data_root, tmp_path):
    raw = data_root / "Planetoid" / kind.title / "raw"
    if not raw.is_dir():
        pytest.skip(f"no {kind.title} in {data_root}")
    shutil.copytree(raw, tmp_path / kind.title / "raw")
    expected = PygPlanetoid(str(tmp_path), kind.title)[0]
    with read_from(data_root):
        read, splits = kind().read(), kind().open()
    nodes, edges, features, classes = SIZES[kind]
    assert (read.graph.x.shape, read.graph.edges.shape) == ((nodes, features), (2, edges))
    assert torch.equal(read.graph.x, expected.x)
    assert torch.equal(read.graph.edges, expected.edge_index)
    assert torch.equal(read.y, expected.y)
    for found, mask in ((read.train, "train_mask"), (read.validation, "val_mask"), (read.test, "test_mask")):
        assert torch.equal(found, expected[mask].nonzero().flatten())
    assert splits.train.counts() == [20] * classes
    assert (len(splits.validation), len(splits.test)) == (500, 1000)
    assert splits.facts.extra["features"] == "rows"


def test_cora_is_called_by_its_subjects_in_the_published_order(data_root):
    """Sizes of the subjects as LINQS gives them: all different, so that the order cannot be another."""
    sizes = {"Theory": 351, "Reinforcement Learning": 217, "Genetic Algorithms": 418, "Neural Networks": 818}
    sizes |= {"Probabilistic Methods": 426, "Case Based": 298, "Rule Learning": 180}
    with read_from(data_root):
        read = Cora().read()
    assert dict(zip(read.classes, torch.bincount(read.y).tolist(), strict=True)) == sizes
    assert read.y[:4].tolist() == [3, 4, 4, 0]


def test_inductive_cora_hides_the_test_part(data_root):
    with read_from(data_root):
        whole, splits = Cora().read(), Cora(setting="inductive").open()
    assert (len(splits.train.raw), len(splits.test.raw)) == (140, 1000)
    assert splits.train.population == 2708
    among = torch.isin(whole.graph.edges, whole.test).all(dim=0)
    assert splits.test.raw.edges.shape[1] == int(among.sum())


def test_isolated_test_nodes_get_zero_features_and_test_rows_their_true_places():
    objects = {
        "x": sp.csr_matrix([[1.0, 0], [0, 1]]),
        "allx": sp.csr_matrix([[1.0, 0], [0, 1], [1, 1]]),
        "tx": sp.csr_matrix([[5.0, 5], [7, 7]]),
        "y": np.eye(2),
        "ally": np.array([[1, 0], [0, 1], [1, 0]]),
        "ty": np.array([[0, 1], [1, 0]]),
        "graph": {0: [1, 1, 0, 5], 1: [0], 2: [], 3: [], 4: [], 5: [0]},
    }
    read = assembled(objects, torch.tensor([5, 3]), ("a", "b"), Facts(), "here")
    assert read.graph.x.tolist() == [[1, 0], [0, 1], [1, 1], [7, 7], [0, 0], [5, 5]]
    assert read.y[[0, 1, 2, 3, 5]].tolist() == [0, 1, 0, 0, 1]
    assert sorted(read.graph.edges.T.tolist()) == [[0, 1], [0, 5], [1, 0], [5, 0]]
    assert (read.train.tolist(), read.test.tolist()) == ([0, 1], [3, 5])
    with pytest.raises(BadData, match="do not follow the others"):
        assembled(objects, torch.tensor([6, 4]), ("a", "b"), Facts(), "here")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


@pytest.mark.parametrize(
    "evil", [Evil(), {"x": Evil()}, collections.OrderedDict(), np.float64(1.0), sp.coo_matrix([[1]])]
)
def test_a_known_file_is_still_unpickled_into_arrays_only(evil, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(BadData, match="holds more than arrays"):
        unpickled(path, hashlib.sha256(path.read_bytes()).hexdigest())
    assert not (tmp_path / "evil-was-here").exists()


def test_nothing_of_a_file_that_is_not_the_published_one_is_unpickled(data_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data" / "Planetoid" / "Cora" / "raw"
    raw.mkdir(parents=True)
    for path in (data_root / "Planetoid" / "Cora" / "raw").iterdir():
        shutil.copyfile(path, raw / path.name)
    (raw / "ind.cora.ally").write_bytes(pickle.dumps(Evil(), protocol=2))
    with read_from(tmp_path / "data"), pytest.raises(BadData, match=r"ind.cora.ally.*is not the published file"):
        Cora().read()
    assert not (tmp_path / "evil-was-here").exists()


def test_checksums_are_sha256_or_the_names_that_git_gives():
    assert checksum(b"hello\n", "git:...") == "git:ce013625030ba8dba906f756967f9e9ca394464a"
    assert checksum(b"abc", "") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for kind in (Cora, CiteSeer, PubMed):
        assert sorted(kind.checksums) == sorted(PARTS)
        assert all(len(known.removeprefix("git:")) in (40, 64) for known in kind.checksums.values())


ELSEWHERE = [PubMed, AmazonPhoto, AmazonComputers, CoauthorCS, CoauthorPhysics, Flickr, Reddit, OgbnArxiv]


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_what_is_not_at_hand_is_named_with_the_folder_to_put_it_in(kind, tmp_path):
    with pytest.raises(BadData, match="is not on this machine") as caught:
        kind().open()
    assert str(tmp_path / "home" / "condense") in caught.value.remedy
    assert "no answer from" in caught.value.remedy
    assert kind.form == "nodes"


# -- through PyG ------------------------------------------------------------------------------------------------------


def shchur_file(path, n=240, seed=0):
    """An .npz of the format of gnn-benchmark: n nodes, 4 classes, directed edges with loops and repetitions."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 4
    x = sp.csr_matrix(rng.integers(0, 3, (n, 12)) * (rng.random((n, 12)) < 0.3), dtype=np.float32)
    adj = sp.csr_matrix((rng.random((n, n)) < 0.03).astype(np.float32))
    path.parent.mkdir(parents=True)
    parts = {f"adj_{k}": getattr(adj, k) for k in ("data", "indices", "indptr", "shape")}
    parts |= {f"attr_{k}": getattr(x, k) for k in ("data", "indices", "indptr", "shape")}
    np.savez(path, **parts, labels=y)
    return x.toarray(), adj.toarray(), y


def test_a_read_only_data_folder_is_enough_and_stays_as_it_is(tmp_path, monkeypatch):
    root = tmp_path / "root"
    x, adj, y = shchur_file(root / "Amazon" / "Photo" / "raw" / "amazon_electronics_photo.npz")
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = sorted(root.rglob("*"))
    try:
        with read_from(root):
            read, splits = AmazonPhoto(seed=3).read(), AmazonPhoto(seed=3).open()
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted(root.rglob("*")) == before
    processed = list((tmp_path / "cache" / "pyg").glob("Amazon-*/Photo/processed/data.pt"))
    assert len(processed) == 1
    matrix = np.maximum(adj, adj.T) * (1 - np.eye(len(y)))
    assert sorted(map(tuple, read.graph.edges.T.tolist())) == list(zip(*np.nonzero(matrix), strict=True))
    np.testing.assert_array_equal(read.graph.x, x > 0)
    assert splits.train.counts() == [20] * 4
    assert splits.validation.counts() == [30] * 4
    assert splits.test.counts() == [10] * 4


def test_what_pyg_made_is_used_again_until_the_raw_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "root" / "Coauthor" / "CS" / "raw" / "ms_academic_cs.npz"
    shchur_file(path)
    with read_from(tmp_path / "root"):
        first = CoauthorCS().open()
        made = sorted((tmp_path / "cache" / "pyg").iterdir())
        assert CoauthorCS().open().train.fingerprint == first.train.fingerprint
        assert sorted((tmp_path / "cache" / "pyg").iterdir()) == made
        shutil.rmtree(path.parent)
        shchur_file(path, 280, seed=1)
        assert CoauthorCS().open().train.fingerprint != first.train.fingerprint
    assert len(list((tmp_path / "cache" / "pyg").iterdir())) == 2


def test_files_that_pyg_cannot_process_are_named(tmp_path):
    path = tmp_path / "root" / "Amazon" / "Computers" / "raw" / "amazon_electronics_computers.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no archive")
    with read_from(tmp_path / "root"), pytest.raises(BadData, match="cannot be processed by PyG"):
        AmazonComputers().open()
    assert not list((tmp_path / "cache" / "pyg").iterdir())


def test_split_per_class_takes_so_many_of_each_and_leaves_the_rest():
    y = torch.tensor([0] * 100 + [1] * 60 + [2] * 25)[torch.randperm(185, generator=torch.Generator().manual_seed(0))]
    train, validation, test = split_per_class(y, 20, 30, Rng(1))
    assert torch.bincount(y[train]).tolist() == [20, 20, 20]
    assert torch.bincount(y[validation]).tolist() == [30, 30, 5]
    assert torch.bincount(y[test], minlength=3).tolist() == [50, 10, 0]
    assert torch.cat([train, validation, test]).sort().values.tolist() == list(range(185))
    assert not torch.equal(train, split_per_class(y, 20, 30, Rng(2))[0])


def test_flickr_is_inductive_and_standardised_by_columns(tmp_path):
    raw = tmp_path / "root" / "Flickr" / "raw"
    raw.mkdir(parents=True)
    n, rng = 12, np.random.default_rng(0)
    adj = sp.csr_matrix(np.ones((n, n)))  # also loops
    np.savez(raw / "adj_full.npz", **{k: getattr(adj, k) for k in ("data", "indices", "indptr", "shape")})
    np.save(raw / "feats.npy", rng.normal(size=(n, 3)))
    (raw / "class_map.json").write_text(json.dumps({str(i): i % 2 for i in range(n)}))
    (raw / "role.json").write_text(json.dumps({"tr": [0, 1, 2, 3, 4, 5], "va": [6, 7], "te": [8, 9, 10, 11]}))
    with read_from(tmp_path / "root"):
        splits = Flickr().open()
    assert (len(splits.train.raw), len(splits.validation.raw), len(splits.test.raw)) == (6, 2, 4)
    assert splits.train.raw.edges.shape[1] == 30
    assert splits.train.population == 12
    assert splits.facts.extra["features"] == "columns"


def test_reddit_is_read_from_its_two_archives(tmp_path):
    raw = tmp_path / "root" / "Reddit" / "raw"
    raw.mkdir(parents=True)
    kinds = np.array([1, 1, 2, 3, 3, 1])
    np.savez(raw / "reddit_data.npz", feature=np.eye(6), label=np.array([0, 1, 0, 1, 0, 1]), node_types=kinds)
    sp.save_npz(raw / "reddit_graph.npz", sp.coo_matrix(np.ones((6, 6)) - np.eye(6)))
    with read_from(tmp_path / "root"):
        inductive, whole = Reddit().open(), Reddit(setting="transductive").open()
    assert inductive.train.raw.edges.shape[1] == 6
    assert inductive.test.counts() == [1, 1]
    assert whole.train.raw.edges.shape[1] == 30
    assert whole.test.nodes.tolist() == [3, 4]


# -- ogbn-arxiv -------------------------------------------------------------------------------------------------------


def arxiv_files(root, n=120):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 40
    tables = {
        "raw/edge": rng.integers(0, n, (300, 2)),
        "raw/node-feat": rng.normal(size=(n, 5)).round(6),
        "raw/node-label": y[:, None],
        "split/time/train": np.arange(80)[:, None],
        "split/time/valid": np.arange(80, 100)[:, None],
        "split/time/test": np.arange(100, n)[:, None],
    }
    for name, table in tables.items():
        path = root / "ogbn_arxiv" / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            np.savetxt(file, table, delimiter=",", fmt="%g" if "feat" in name else "%d")
    return tables


def test_arxiv_is_read_from_its_text_files_and_taken_in_both_directions(tmp_path):
    tables = arxiv_files(tmp_path / "root")
    with read_from(tmp_path / "root"):
        read, again = OgbnArxiv().read(), OgbnArxiv().read()
    np.testing.assert_allclose(read.graph.x, tables["raw/node-feat"], rtol=1e-5)
    pairs = {(int(a), int(b)) for a, b in tables["raw/edge"] if a != b}
    assert set(map(tuple, read.graph.edges.T.tolist())) == pairs | {(b, a) for a, b in pairs}
    assert read.y.tolist() == tables["raw/node-label"].ravel().tolist()
    assert (read.train.tolist(), read.test.tolist()) == (list(range(80)), list(range(100, 120)))
    assert torch.equal(read.graph.x, again.graph.x)
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 6
    assert read.facts.extra["features"] == "columns"


def test_a_damaged_table_of_arxiv_is_named(tmp_path):
    arxiv_files(tmp_path / "root")
    with gzip.open(tmp_path / "root" / "ogbn_arxiv" / "raw" / "node-label.csv.gz", "wt") as file:
        file.write("one\ntwo\n")
    with read_from(tmp_path / "root"), pytest.raises(BadData, match=r"node-label.*is no table of numbers"):
        OgbnArxiv().read()


def test_files_are_downloaded_into_the_users_folder_and_checked_there(tmp_path, monkeypatch, data_root):
    """The publisher's server, played by the files at hand."""
    raw = data_root / "Planetoid" / "Cora" / "raw"
    asked = []

    def save(url, path):
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(raw / url.rpartition("/")[2], path)

    monkeypatch.setattr(downloads, "reachable", lambda url: True)
    monkeypatch.setattr("condense_graph.sources.planetoid.save", save)
    assert len(Cora().read().test) == 1000
    home = tmp_path / "home" / "condense" / "Planetoid" / "Cora" / "raw"
    assert sorted(path.name for path in home.iterdir()) == sorted(url.rpartition("/")[2] for url in asked)
