"""Condensed graphs for other programs: PyG objects, named arrays both ways, and the judging of somebody else's."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_geometric import utils as pyg_utils
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv
from typer.testing import CliRunner

import condense
import condense_graph
from condense import cli
from condense.artifact import load
from condense.component import named
from condense.data import Data as CondenseData
from condense.errors import BadData, BadValue, Damaged
from condense.export import export
from condense.foreign import open_foreign
from condense.task import Tensors
from condense_graph.arrays import of_graphs, to_graphs
from condense_graph.collections import Graphs
from condense_graph.graph import Graph, Nodes, NodeView

from .whole_graphs import graphs_of, some

FILES = ("graph.npz", "graph.safetensors")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """9 nodes of a block model, learned for 3 steps, with the edges that their generator gives them."""
    out = tmp_path_factory.mktemp("export") / "made"
    return condense.run("gcond", data="sbm", total=9, steps=3, out=out)


@pytest.fixture(params=FILES)
def written(request, artifact, tmp_path):
    return export(artifact, tmp_path / request.param)


def opened(path, artifact, **more):
    splits = artifact.plan.data.open()
    return open_foreign(path, splits.task, artifact.transform, **more)


def rewritten(path, tmp_path, **changes):
    """The arrays of an .npz with some of them changed, or (None) left out."""
    with np.load(path) as arrays:
        found = {**arrays, **changes}
    np.savez(tmp_path / "changed.npz", **{name: array for name, array in found.items() if array is not None})
    return tmp_path / "changed.npz"


# -- opening --------------------------------------------------------------------------------------------------------


def test_a_condensed_graph_opens_as_one_data_object(artifact):
    data = condense_graph.to_pyg(artifact.path)
    view = artifact.sampler().x
    assert isinstance(data, Data)
    assert data.validate()
    assert data.x.equal(view.graph.x)
    assert data.y.tolist() == artifact.sampler().y.tolist()
    assert data.classes == list(artifact.task.classes)
    assert data.train_mask.all()
    dense = torch.zeros(9, 9).index_put((data.edge_index[1], data.edge_index[0]), data.edge_weight)
    assert dense.equal(view.graph.adj), "adj[i, j] is the edge from j to i"
    assert data.is_undirected()
    conv = GCNConv(data.num_features, 4, bias=False)
    theirs = conv(data.x, data.edge_index, data.edge_weight)
    assert torch.allclose(theirs, view.graph.propagate(data.x @ conv.lin.weight.T), atol=1e-5)


def test_a_node_of_the_dataset_is_its_features_and_class(artifact):
    examples = load(artifact.path).dataset()
    data = condense_graph.to_pyg(artifact)
    assert len(examples) == 9
    for i in range(9):
        features, label = examples[i]
        assert features.equal(data.x[i])
        assert int(label) == int(data.y[i])


def test_each_graph_of_a_set_opens_as_a_data_object(artifact, monkeypatch):
    """Without a data set of graphs in reach: a set is put where the artifact decodes its own."""
    graphs, y = graphs_of(some(3)), torch.tensor([1, 0, 1])
    task = artifact.task.model_copy(update={"form": Graphs(), "shape": (4, 4)})
    sampler = type(artifact.sampler())(task, graphs, y)
    monkeypatch.setattr(type(artifact), "sampler", lambda _: sampler)
    found = condense_graph.to_pyg(replace(artifact, task=task))
    for data, graph, label in zip(found, some(3), y, strict=True):
        assert data.validate()
        assert data.x.equal(graph.x)
        assert sorted(data.edge_index.T.tolist()) == sorted(graph.edges.T.tolist())
        assert data.y.tolist() == [int(label)]


def test_a_set_of_images_is_no_graph(artifact):
    images = replace(artifact, task=artifact.task.model_copy(update={"form": Tensors()}))
    with pytest.raises(BadValue, match="holds images, no graphs"):
        condense_graph.to_pyg(images)


# -- arrays ---------------------------------------------------------------------------------------------------------


def test_files_hold_the_arrays_that_pyg_knows(written, artifact):
    data = condense_graph.to_pyg(artifact)
    arrays = (
        load_file(written)
        if written.suffix == ".safetensors"
        else {name: torch.from_numpy(array) for name, array in np.load(written).items() if array.dtype.kind != "U"}
    )
    assert {"x", "edge_index", "edge_weight", "y", "train_mask"} <= set(arrays)
    for name in ("x", "edge_index", "edge_weight", "y", "train_mask"):
        assert arrays[name].equal(data[name]), name
    again = export(artifact, written.with_name(f"again{written.suffix}"))
    assert again.read_bytes() == written.read_bytes()


def test_an_exported_graph_is_read_back_as_networks_are_trained_on_it(written, artifact):
    theirs, ours = opened(written, artifact), artifact.sampler()
    assert theirs.x.graph.x.equal(ours.x.graph.x)
    assert theirs.x.nodes.equal(ours.x.nodes)
    assert theirs.y.equal(ours.y)
    for by in ("gcn", "mean", "sum", "cheb"):
        a, b = (sampler.x.graph.propagate(ours.x.graph.x, by) for sampler in (theirs, ours))
        assert torch.allclose(a, b, atol=1e-6)


def test_named_classes_are_put_in_the_order_of_the_data_set(artifact, tmp_path):
    path = export(artifact, tmp_path / "graph.npz")
    names = np.load(path)["classes"]
    changed = rewritten(path, tmp_path, classes=names[[2, 0, 1]])
    numbers = torch.tensor([2, 0, 1])
    assert opened(changed, artifact).y.equal(numbers[artifact.sampler().y])


def test_an_exported_graph_with_test_nodes_is_data(artifact, tmp_path):
    path = export(artifact, tmp_path / "graph.npz")
    with pytest.raises(BadData, match="test_mask"):
        named(CondenseData, "pyg", path=str(path)).open()
    train = np.arange(9) % 3 < 2
    y = np.load(path)["y"]
    first = [np.flatnonzero(y == c)[0] for c in range(3)]
    train[first] = True
    test = ~train
    changed = rewritten(path, tmp_path, train_mask=train, test_mask=test)
    splits = named(CondenseData, "pyg", path=str(changed), features="none").open()
    assert splits.task.classes == artifact.task.classes
    assert splits.train.nodes.tolist() == np.flatnonzero(train).tolist()
    graph = splits.train.graph
    assert torch.allclose(graph.propagate(graph.x), artifact.sampler().x.graph.propagate(graph.x), atol=1e-6)


def test_a_graph_that_somebody_else_made_is_judged(artifact, tmp_path):
    path = export(artifact, tmp_path / "graph.npz")
    asked = ("eval", path, "--data", "sbm", "--repeats", "1", "--set", "protocol.steps=10", "--json")
    done = CliRunner().invoke(cli.app, [str(word) for word in asked])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["kind"], row["images"], row["protocol"]) == ("condensed", 9, "graph")


def said_of(arrays, read=Nodes):
    """What is read of a graph that somebody else made, and what is said of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x, _ = read().from_arrays(arrays, "theirs")
    return x.graph, [str(warning.message) for warning in caught]


def test_directed_and_repeated_edges_of_others_are_mended_and_said_to_be():
    x, y = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 3, 3, 3]])
    graph, said = said_of({"x": x, "y": y, "edge_index": edges})
    assert graph.edges.T.tolist() == [[1, 0], [0, 1], [2, 1], [1, 2], [3, 2], [2, 3]]
    assert said == [
        "theirs: 1 self-loops are left out: networks add their own.",
        "theirs: 1 repeated edges are merged.",
        "theirs: 2 edges have no reverse, which is added: networks take undirected graphs.",
    ]
    expected = pyg_utils.to_undirected(pyg_utils.remove_self_loops(edges)[0], num_nodes=4)
    assert {tuple(pair) for pair in graph.edges.T.tolist()} == {tuple(pair) for pair in expected.T.tolist()}
    owner = torch.zeros(4, dtype=torch.int64)
    again, said_again = said_of({"x": x, "y": y[:1], "edge_index": edges, "graph": owner}, Graphs)
    assert again.edges.equal(graph.edges)
    assert said_again == said


def test_uneven_weights_of_others_are_mended_and_said_to_be():
    x, y = torch.randn(3, 2), torch.tensor([0, 1, 0])
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    even = {"x": x, "y": y, "edge_index": edges, "edge_weight": torch.tensor([0.5, 0.5, 0.25, 0.25])}
    assert said_of(even)[1] == []
    graph, said = said_of({**even, "edge_weight": torch.tensor([0.5, 0.75, 0.25, 0.25])})
    assert graph.edges.T.tolist() == [[1, 0], [0, 1], [2, 1], [1, 2]]
    assert graph.weights.tolist() == [0.75, 0.75, 0.25, 0.25]
    assert said == ["theirs: 1 edges weigh less than their reverse or repetition, whose weight they are given."]


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_of_our_own_graphs_nothing_is_changed_or_said(artifact, tmp_path, ending):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = opened(export(artifact, tmp_path / f"graph{ending}"), artifact)
    own = artifact.sampler().x.graph
    for ours, theirs in zip(own.listed(), again.x.graph.listed(), strict=True):
        assert ours.equal(theirs)


BAD = {
    "no scale": ({"scale": None}, "--normalised"),
    "no labels": ({"y": None}, "no array y"),
    "no features": ({"x": None}, "no array x"),
    "NaN": ({"x": np.full((9, 16), np.nan, np.float32)}, "NaN"),
    "other features": ({"x": np.ones((9, 7), np.float32)}, "other features than the data set, which has 16"),
    "labels of fewer nodes": ({"y": np.zeros(8, np.int64)}, "one label for each node"),
    "edges to nowhere": ({"edge_index": np.array([[0], [9]]), "edge_weight": None}, r"outside 0\.\.8"),
    "weights of fewer edges": (
        {"edge_index": np.array([[0, 1], [1, 0]]), "edge_weight": np.ones(1, np.float32)},
        "one weight for each",
    ),
    "weights of no edges": (
        {"edge_index": np.zeros((2, 0), np.int64), "edge_weight": np.ones(1, np.float32)},
        "one weight for each",
    ),
    "a mask of numbers": ({"train_mask": np.ones(9)}, "truth value"),
    "a class without nodes": ({"y": np.zeros(9, np.int64)}, "has no node of this class"),
    "texts": ({"x": np.array([["a"]])}, "no numbers"),
}


@pytest.mark.parametrize("case", BAD)
def test_graphs_that_cannot_be_judged_are_refused(case, artifact, tmp_path):
    changes, said = BAD[case]
    path = rewritten(export(artifact, tmp_path / "graph.npz"), tmp_path, **changes)
    with pytest.raises(BadData, match=said):
        opened(path, artifact)


def test_files_that_are_none_are_refused(artifact, tmp_path):
    for name in FILES:
        (tmp_path / name).write_bytes(b"not such a file")
        with pytest.raises(Damaged, match="can be read"):
            opened(tmp_path / name, artifact)
    with pytest.raises(BadValue, match=r"is no file of nodes.*edge_index"):
        opened(tmp_path, artifact)


def test_no_pickle_is_written_and_no_picture_of_nodes(artifact, tmp_path):
    with pytest.raises(BadValue, match=r"pickle.*Use \.npz or \.safetensors"):
        export(artifact, tmp_path / "graph.pt")
    for to in ("folder", "graph.foo"):
        with pytest.raises(BadValue, match=r"this set holds nodes .*ends in \.npz or \.safetensors") as error:
            export(artifact, tmp_path / to)
        assert "PNG" not in str(error.value)
    with pytest.raises(BadValue, match="this set holds nodes"):
        export(artifact, tmp_path / "graph.npz", "folder")
    assert list(tmp_path.iterdir()) == []


# -- forms ----------------------------------------------------------------------------------------------------------


def test_some_nodes_of_a_graph_keep_it_whole():
    edges = torch.tensor([[3, 4, 0, 1], [0, 1, 3, 4]])
    graph = Graph(torch.randn(5, 2), edges, torch.tensor([0.5, 2.0, 0.5, 2.0]))
    view, y = NodeView(graph, torch.tensor([3, 1])), torch.tensor([1, 0])
    arrays = Nodes().to_arrays(view, y)
    assert arrays["y"].tolist() == [-1, 0, -1, 1, -1]
    again, labels = Nodes().from_arrays(arrays, "here")
    assert again.nodes.tolist() == [1, 3]
    assert labels.tolist() == [0, 1]
    assert again.graph.digest() == graph.digest()
    soft = Nodes().to_arrays(view, torch.tensor([[0.2, 0.8], [0.6, 0.4]]))["y"]
    assert soft.sum(dim=1).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("dense", [False, True])
def test_sets_of_graphs_are_written_and_read(dense):
    graphs, y = graphs_of(some(5)), torch.arange(5) % 2
    arrays = of_graphs(graphs.dense() if dense else graphs, y)
    again, labels = Graphs().from_arrays(arrays, "here")
    assert labels.equal(y)
    assert again.sizes.equal(graphs.sizes)
    assert again.x.equal(graphs.x)
    assert torch.allclose(again.propagate(again.x), graphs.propagate(graphs.x))
    with pytest.raises(BadData, match="Sort the nodes"):
        to_graphs({**arrays, "graph": arrays["graph"].flip(0)}, "here")
    with pytest.raises(BadData, match="no array graph"):
        to_graphs({name: array for name, array in arrays.items() if name != "graph"}, "here")


def test_one_graph_of_a_set_is_an_example():
    single = some(4)
    example = Graphs().example(graphs_of(single), 2)
    assert example["x"].equal(single[2].x)
    assert sorted(example["edge_index"].T.tolist()) == sorted(single[2].edges.T.tolist())
