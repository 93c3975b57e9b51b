"""One's own graphs: files and live objects, what is done to their edges, and what is refused."""

from __future__ import annotations

import os
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch_geometric.data import Data as PygData
from torch_geometric.data import HeteroData

from condense.api import open_run, plan
from condense.errors import BadData, BadValue, CondenseError
from condense.given import Given, as_data
from condense.running import Limits
from condense_graph.sources import GivenGraph, Pyg
from condense_graph.sources.base import make_splits
from condense_graph.sources.own_arrays import labelled


def arrays(**changes):
    """Six nodes in a path, both directions listed; two for each split. None leaves an array out."""
    ends = np.arange(5)
    held = {
        "x": np.linspace(-1, 1, 18, dtype=np.float32).reshape(6, 3),
        "edge_index": np.concatenate([np.stack([ends, ends + 1]), np.stack([ends + 1, ends])], axis=1),
        "y": np.array([0, 1, 1, 0, 0, 1]),
        "train_mask": np.arange(6) < 2,
        "val_mask": np.arange(6) // 2 == 1,
        "test_mask": np.arange(6) >= 4,
        **changes,
    }
    return {name: value for name, value in held.items() if value is not None}


def tensors(held):
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in held.items()}


def written(folder, ending, held):
    path = folder / f"graph{ending}"
    if ending == ".npz":
        np.savez(path, **held)
    elif ending == ".safetensors":
        save_file(tensors(held), path)
    else:
        torch.save(PygData(**tensors(held)), path)
    return path


def labelled_splits(held):
    return make_splits(labelled(held, "here"))


ENDINGS = [".npz", ".safetensors", ".pt"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_gives_the_same_graph(ending, tmp_path):
    splits = as_data(f"pyg:{written(tmp_path, ending, arrays())}").open()
    assert splits.train.nodes.tolist() == [0, 1]
    assert splits.validation.nodes.tolist() == [2, 3]
    assert splits.test.y.tolist() == [0, 1]
    assert splits.task.classes == ("0", "1")
    assert splits.train.fingerprint == labelled_splits(arrays()).train.fingerprint


def test_what_torch_loads_elsewhere_is_as_before(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    as_data(f"pyg:{written(tmp_path, '.pt', arrays())}").open()
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_relative_path_becomes_absolute_and_names_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, ".npz", arrays())
    data = as_data("pyg:graph.npz")
    assert data == Pyg(path=str(tmp_path / "graph.npz"))
    assert data.label == "graph"


def test_numbers_of_any_width_labels_in_a_column_and_masks_of_zeros_and_ones_are_taken():
    held = arrays(y=np.array([[0], [1], [1], [0], [0], [1]], np.int16), train_mask=(np.arange(6) < 2).astype(np.uint8))
    held["edge_index"], held["x"] = held["edge_index"].astype(np.int32), held["x"].astype(np.float64)
    assert labelled_splits(held).train.fingerprint == labelled_splits(arrays()).train.fingerprint


def test_class_names_come_from_the_settings_or_the_file():
    named = arrays(classes=np.array(["cat", "dog"]))
    assert labelled(named, "here").classes == ("cat", "dog")
    assert labelled(named, "here", ("a", "b")).classes == ("a", "b")


def test_weights_are_kept_and_weights_of_one_are_none():
    weights = np.linspace(0.5, 2, 10, dtype=np.float32)
    uneven = "here: 5 edges weigh less than their reverse or repetition, whose weight they are given."
    with pytest.warns(RuntimeWarning, match=uneven):
        read = labelled(arrays(edge_weight=weights), "here")
    matrix = np.zeros((6, 6), np.float32)
    source, target = arrays()["edge_index"]
    np.maximum.at(matrix, (target, source), weights)
    matrix = np.maximum(matrix, matrix.T)
    np.testing.assert_array_equal(read.graph.weights, matrix[read.graph.edges[1], read.graph.edges[0]])
    assert labelled(arrays(edge_weight=np.ones(10)), "here").graph.weights is None
    with pytest.warns(RuntimeWarning, match=uneven):
        again = labelled(arrays(edge_attr=weights[:, None]), "here")
    assert again.graph.weights.equal(read.graph.weights)


def test_features_are_scaled_by_rows_where_they_look_like_counts():
    counts = np.zeros((6, 3))
    counts[:, 0] = 3
    assert labelled(arrays(x=counts), "here").facts.extra["features"] == "rows"
    assert labelled(arrays(), "here").facts.extra["features"] == "columns"
    assert labelled(arrays(), "here", features="none").facts.extra["features"] == "none"


def test_loops_repeated_and_one_way_edges_are_mended_with_a_sentence_each():
    edges = np.array([[0, 0, 0, 1, 2, 3], [1, 1, 0, 2, 1, 3]])
    with pytest.warns(RuntimeWarning) as caught:
        read = labelled(arrays(edge_index=edges), "mine")
    assert sorted(str(w.message) for w in caught) == [
        "mine: 1 edges have no reverse, which is added: networks take undirected graphs.",
        "mine: 1 repeated edges are merged.",
        "mine: 2 self-loops are left out: networks add their own.",
    ]
    assert sorted(read.graph.edges.T.tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]


def test_a_clean_graph_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labelled(arrays(), "mine")


def test_numbers_of_an_edge_that_no_network_takes_are_left_out_with_a_warning():
    with pytest.warns(RuntimeWarning, match="edge_attr has 4 numbers an edge"):
        assert labelled(arrays(edge_attr=np.ones((10, 4))), "mine").graph.weights is None


def nan():
    x = arrays()["x"].copy()
    x[4, 1] = np.nan
    return x


BAD = [
    ({"y": None}, "has no y"),
    ({"x": None}, "has no x"),
    ({"edge_index": None}, "has no edge_index"),
    ({"train_mask": None}, "has no train_mask"),
    ({"test_mask": None}, "has no test_mask"),
    ({"x": nan()}, "hold NaN or infinity (got 'node 4')"),
    ({"x": np.arange(6.0)}, "are no (N, D) matrix"),
    ({"x": np.array(["a"] * 6)}, "cannot become a tensor"),
    ({"y": np.array([0, 1, 1, 0, 0])}, "does not have one label for each of 6 nodes"),
    ({"y": np.array([0.0, 1, 1, 0, 0, 1])}, "one whole number for each node"),
    ({"y": np.eye(6, 2)}, "one whole number for each node"),
    ({"y": np.array([0, -1, 1, 0, 0, 1])}, "labels of the train split must lie in 0..1"),
    ({"y": np.full(6, -1)}, "label none of the 2 training nodes"),
    ({"y": np.array([-1, -1, 1, 0, 0, 1])}, "label none of the 2 training nodes"),
    ({"y": np.array([1, 1, 0, 0, 0, 1])}, "holds no example of 1 of its 2 classes"),
    ({"edge_index": np.array([[0, 6], [1, 0]])}, "name nodes outside 0..5"),
    ({"edge_index": np.array([[0, -1], [1, 0]])}, "name nodes outside 0..5"),
    ({"edge_index": np.array([[0.5], [1.0]])}, "are no (2, E) whole numbers"),
    ({"edge_index": np.array([[0, 1, 2], [1, 0, 2], [0, 0, 0]])}, "are no (2, E) whole numbers"),
    ({"edge_weight": np.ones(3)}, "do not have one weight for each of their 10"),
    ({"edge_weight": np.zeros(10)}, "have a weight that is not finite and above 0"),
    ({"train_mask": np.zeros(6, bool)}, "train: holds no nodes"),
    ({"test_mask": np.zeros(6, bool)}, "test: holds no nodes"),
    ({"val_mask": np.ones(6, bool)}, "in two of them: train and validation"),
    ({"train_mask": np.ones((6, 10), bool)}, "is not one mark for each of 6 nodes"),
    ({"train_mask": np.array([0, 1, 2, 3, 4, 5])}, "holds other values than true and false"),
    ({"classes": np.array(["one"])}, "must lie in 0..0"),
]


@pytest.mark.parametrize(("changes", "problem"), BAD, ids=[problem for _, problem in BAD])
def test_bad_input_is_refused_in_a_sentence(changes, problem, tmp_path):
    path = written(tmp_path, ".npz", arrays(**changes))
    with pytest.raises(BadData, match=re.escape(problem)) as caught:
        Pyg(path=str(path)).open()
    assert "graph.npz" in caught.value.field
    assert caught.value.remedy


def test_a_path_that_is_no_graph_is_refused(tmp_path):
    with pytest.raises(BadData, match="is no file"):
        Pyg(path=str(tmp_path / "graph.npz")).open()
    (tmp_path / "graph.csv").write_text("1,2\n")
    with pytest.raises(BadData, match=r"does not end in \.npz, \.safetensors, \.pt, \.pth"):
        Pyg(path=str(tmp_path / "graph.csv")).open()


@pytest.mark.parametrize("ending", ENDINGS)
def test_damaged_files_are_refused(ending, tmp_path):
    path = written(tmp_path, ending, arrays())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CondenseError) as caught:
        Pyg(path=str(path)).open()
    assert str(path) in str(caught.value)


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def evil_data():
    data = PygData(x=torch.zeros(2, 2))
    data.helper = Evil()
    return data


@pytest.mark.parametrize("make", [Evil, evil_data, lambda: {"x": Evil()}], ids=["plain", "in Data", "in a dict"])
def test_no_code_in_a_torch_file_is_run(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(make(), tmp_path / "graph.pt")
    with pytest.raises(BadData, match="holds more than tensors and PyG's own classes"):
        Pyg(path=str(tmp_path / "graph.pt")).open()
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("other", [{"x": torch.zeros(2)}, torch.zeros(3), HeteroData()], ids=lambda o: type(o).__name__)
def test_a_torch_file_of_anything_but_one_graph_is_refused(other, tmp_path):
    torch.save(other, tmp_path / "graph.pt")
    with pytest.raises(BadData, match=r"holds no Data object of PyG|holds more than"):
        Pyg(path=str(tmp_path / "graph.pt")).open()


def test_an_npz_of_objects_is_not_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = arrays()
    np.savez(tmp_path / "graph.npz", **{**held, "y": np.array([Evil()] * 6, dtype=object)})
    with pytest.raises(CondenseError, match=r"graph\.npz"):
        Pyg(path=str(tmp_path / "graph.npz")).open()
    assert not (tmp_path / "evil-was-here").exists()


# -- live -------------------------------------------------------------------------------------------------------------


def test_a_live_graph_is_known_by_its_fingerprint():
    data = as_data(PygData(**tensors(arrays())))
    assert isinstance(data, GivenGraph)
    assert data.open().train.fingerprint == labelled_splits(arrays()).train.fingerprint
    again = as_data(data.dump())
    assert again == data
    assert hash(again) == hash(data)
    with pytest.raises(BadValue, match="only its fingerprint is recorded"):
        again.open()
    other = as_data(PygData(**tensors(arrays(y=np.array([1, 0, 1, 0, 0, 1])))))
    assert other != data
    with pytest.raises(ValueError, match="is not the one that is recorded"):
        GivenGraph(fingerprint=other.fingerprint, live=data.live)


def test_live_images_are_still_taken_as_before():
    assert isinstance(as_data((torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))), Given)


def test_a_live_graph_is_not_changed_by_what_is_done_to_it_later():
    graph = PygData(**tensors(arrays()))
    data = as_data(graph)
    before = data.open().train.fingerprint
    graph.x += 1
    assert data.open().train.fingerprint == before


# -- without a validation mask --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "gcond"])
def test_one_refusal_says_all_that_is_to_be_done_without_a_validation_mask(tmp_path, name):
    path = written(tmp_path, ".npz", arrays(val_mask=None))
    with pytest.raises(CondenseError, match="validation split") as error:
        opened(name, path)
    assert "`val_mask`" in error.value.remedy
    said = dict(re.findall(r"--set (protocol.keep|selection)=(\w+)", error.value.remedy))
    opened(name, path, settings={key: None if value == "null" else value for key, value in said.items()})
    opened(name, written(tmp_path, ".npz", arrays()))


def opened(name, path, **asked):
    open_run(plan(name, data=f"pyg:{path}", total=2, **asked), None, (), Limits())
