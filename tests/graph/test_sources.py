"""Node sources: one graph looked at from three splits, encoded once; generated graphs, karate, edge-free training."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch_geometric.transforms import NormalizeFeatures

from condense.component import checked, member
from condense.data import Data, Facts, TensorSource
from condense.errors import BadData, BadValue
from condense.given import as_data
from condense.recipe import Reads
from condense.rng import Rng
from condense.task import Task
from condense.testing import toy_recipe
from condense_graph.graph import Graph, Nodes
from condense_graph.preprocess import NodeFeatures, Scaling, column_moments, row_normalised
from condense_graph.sources import SBM, EdgeFree, Karate
from condense_graph.sources.base import Encoding, Labelled, NodeSource, make_splits
from condense_graph.sources.cleaning import undirected, undirected_weighted
from condense_graph.sources.generated import block_edges

from .conftest import sbm


def dense(graph):
    """The adjacency matrix, (N, N), counted edge by edge: a repeated edge shows as 2."""
    matrix = torch.zeros(len(graph), len(graph))
    for source, target in graph.edges.T.tolist():
        matrix[target, source] += 1
    return matrix


def small(**changes):
    """Five nodes in a ring, the fifth of which is in no split."""
    edges = undirected(torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]), 5)
    parts = {
        "graph": Graph(torch.arange(10.0).reshape(5, 2), edges),
        "y": torch.tensor([0, 1, 1, 0, -7]),
        "train": torch.tensor([3, 1]),
        "validation": torch.tensor([0]),
        "test": torch.tensor([2]),
        "classes": ("left", "right"),
    }
    return Labelled(**{**parts, **changes})


# -- one graph, three splits ------------------------------------------------------------------------------------------


def test_transductive_splits_share_one_graph_and_differ_in_their_nodes():
    splits = make_splits(small())
    assert splits.train.graph is splits.validation.graph is splits.test.graph
    batch = splits.train.take(torch.tensor([1, 0, 1]))
    assert batch.x.nodes.tolist() == [1, 3, 1]
    assert batch.y.tolist() == [1, 0, 1]
    assert splits.train.population == 5
    assert splits.task == Task(classes=("left", "right"), shape=(2,), form=Nodes())
    assert splits.facts.extra["properties"]["nodes"] == 5


def test_inductive_splits_are_the_subgraphs_that_their_nodes_induce():
    read = SBM(setting="inductive").read()
    whole = dense(read.graph)
    splits = make_splits(read, "inductive")
    for source, nodes in ((splits.train, read.train), (splits.validation, read.validation), (splits.test, read.test)):
        assert torch.equal(dense(source.graph), whole[nodes][:, nodes])
        assert torch.equal(source.graph.x, read.graph.x[nodes])
        assert torch.equal(source.take(torch.arange(len(nodes))).y, read.y[nodes])
        assert source.population == len(read.graph)
    assert splits.facts.extra["properties"]["nodes"] == len(read.train)
    assert SBM(setting="inductive").open().train.fingerprint == splits.train.fingerprint


def test_a_sweep_is_one_view_of_all_nodes(block_splits):
    (batch,) = block_splits.test.sweep(2)
    assert torch.equal(batch.x.nodes, block_splits.test.nodes)
    assert torch.equal(batch.y, block_splits.test.y)


def test_a_class_restricted_draw_is_another_view_of_the_same_graph(block_splits):
    batch = block_splits.train.draw(4, 2, Rng(0))
    assert batch.x.graph is block_splits.train.graph
    assert batch.y.tolist() == [2] * 4
    assert torch.equal(SBM(sizes=(20, 20, 20)).read().y[batch.x.nodes], batch.y)


def test_labels_of_nodes_in_no_split_are_never_read():
    assert make_splits(small(y=torch.tensor([0, 1, 1, 0, 10**9]))).train.counts() == [1, 1]


def test_the_fingerprint_tells_apart_nodes_labels_edges_features_and_class_names():
    read, first = small(), make_splits(small())
    assert make_splits(small()).train.fingerprint == first.train.fingerprint
    others = [
        first.test,
        make_splits(small(train=torch.tensor([1, 3]))).train,
        make_splits(small(y=torch.tensor([0, 0, 1, 1, 0]))).train,
        make_splits(small(classes=("right", "left"))).train,
        make_splits(small(graph=Graph(read.graph.x + 1, read.graph.edges))).train,
        make_splits(small(graph=Graph(read.graph.x, read.graph.edges[:, 1:]))).train,
    ]
    found = [source.provenance()["fingerprint"] for source in (first.train, *others)]
    assert len(set(found)) == len(found)


def test_provenance_says_how_much_there_is(block_splits):
    facts = block_splits.train.provenance()
    assert facts["counts"] == [6, 6, 6]
    assert facts["population"] == 60
    assert facts["size"] == {"nodes": 60, "edges": block_splits.train.raw.edges.shape[1]}


# -- encoded once -----------------------------------------------------------------------------------------------------


class Counting(Scaling):
    """Doubles, and counts how often."""

    calls = 0

    def encode(self, raw):
        Counting.calls += 1
        return 2 * raw


def test_splits_of_a_graph_share_one_encoded_matrix_also_through_a_copy_of_the_transform(block_splits):
    transform = Counting("none", torch.zeros(16), torch.ones(16))
    Counting.calls = 0
    encoded = block_splits.map(lambda source: source.encoded(transform))
    assert encoded.train.graph is encoded.test.graph is encoded.validation.graph
    judged = block_splits.test.encoded(copy.deepcopy(transform))
    assert judged.graph is encoded.train.graph
    assert Counting.calls == 1
    assert torch.equal(judged.graph.x, 2 * block_splits.train.raw.x)


def test_another_transform_replaces_the_first_and_stacks_nothing(block_splits):
    rows, columns = (NodeFeatures(scale=s).fit(block_splits.train, block_splits.facts) for s in ("rows", "columns"))
    twice = block_splits.train.encoded(rows).encoded(columns)
    assert torch.equal(twice.graph.x, columns.encode(block_splits.train.raw.x))
    assert twice.fingerprint == block_splits.train.fingerprint
    assert Encoding(rows) != Encoding(columns)
    assert len({Encoding(rows), Encoding(copy.deepcopy(rows))}) == 1


def test_an_encoded_source_knows_its_width_and_keeps_its_population():
    source = SBM(setting="inductive").open().train

    class Half(Scaling):
        def encode(self, raw):
            return raw[:, :8]

    narrow = source.encoded(Half("none", torch.zeros(16), torch.ones(16)))
    assert narrow.task.shape == (8,)
    assert narrow.population == 180


# -- features ---------------------------------------------------------------------------------------------------------


def test_rows_are_normalised_as_pyg_does_where_nothing_is_negative():
    from torch_geometric.data import Data as PygData

    x = torch.rand(20, 7, generator=torch.Generator().manual_seed(0)).round(decimals=1) * 3
    x[4] = 0
    x[5:] += 1  # PyG subtracts the smallest value, here 0, and divides by at least 1
    expected = NormalizeFeatures()(PygData(x=x.clone())).x
    torch.testing.assert_close(row_normalised(x)[4:], expected[4:])
    torch.testing.assert_close(row_normalised(-x), -row_normalised(x))


def test_columns_are_standardised_as_scikit_learn_does():
    x = torch.randn(50, 130, generator=torch.Generator().manual_seed(0)) * 3 + 100
    x[:, 7] = 0.1
    scaler = StandardScaler().fit(x.double().numpy())
    mean, std = column_moments(x)
    np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(std, scaler.scale_, rtol=1e-9)


@pytest.mark.parametrize(
    ("scale", "said"), [("rows", "rows"), ("columns", "columns"), ("none", "none"), ("auto", "rows")]
)
def test_node_features_scale_as_asked_or_as_the_data_says(block_splits, scale, said):
    train = block_splits.train
    transform = NodeFeatures(scale=scale).fit(train, Facts(extra={"features": "rows"}))
    seen = train.raw.x[train.nodes].double()
    by_columns = (train.raw.x - seen.mean(0)) / seen.std(0, correction=0)
    expected = {
        "rows": train.raw.x / train.raw.x.abs().sum(1, keepdim=True),
        "columns": by_columns,
        "none": train.raw.x,
    }
    torch.testing.assert_close(transform.encode(train.raw.x), expected[said].float())
    assert transform.describe()["scale"] == said
    assert transform.origin == ("data" if said == "columns" else "public")
    assert NodeFeatures(scale=scale).reads(toy_recipe()) == Reads(examples=scale in ("auto", "columns"))


@pytest.mark.parametrize("scale", ["rows", "columns", "none"])
def test_a_stored_transform_comes_back_from_its_buffers_alone(block_splits, scale):
    fitted = NodeFeatures(scale=scale).fit(block_splits.train, block_splits.facts)
    blank = NodeFeatures(scale="auto").blank(block_splits.task)
    blank.load_state_dict(fitted.state_dict())
    x = block_splits.train.raw.x
    assert torch.equal(blank.encode(x), fitted.encode(x))
    assert blank.describe() == fitted.describe()
    if scale != "rows":
        torch.testing.assert_close(blank.decode(blank.encode(x)), x)


def test_columns_of_a_transductive_graph_are_those_of_its_training_nodes():
    splits = SBM(sizes=(40, 40), train=0.1).open()
    x = NodeFeatures(scale="columns").fit(splits.train, splits.facts).encode(splits.train.raw.x)
    assert x[splits.train.nodes].mean(0).abs().max() < 1e-5
    assert x.mean(0).abs().max() > 1e-2


# -- generated graphs -------------------------------------------------------------------------------------------------


def test_a_block_model_is_what_its_settings_say():
    data = SBM(sizes=(400, 200, 1000), homophily=0.7, degree=8, features=5, noise=0.1, train=0.25, validation=0.5)
    read, splits = data.read(), data.open()
    (source, target), y = read.graph.edges, read.y
    assert torch.bincount(y).tolist() == [400, 200, 1000]
    assert (source != target).all()
    assert {(s, t) for s, t in zip(source.tolist(), target.tolist(), strict=True)} == {
        (t, s) for s, t in zip(source.tolist(), target.tolist(), strict=True)
    }
    assert abs(float((y[source] == y[target]).float().mean()) - 0.7) < 0.03
    assert abs(len(source) / 1600 - 8) < 0.3
    assert splits.train.counts() == [100, 50, 250]
    assert splits.validation.counts() == [200, 100, 500]
    assert splits.test.counts() == [100, 50, 250]
    centres = torch.stack([read.graph.x[y == c].mean(0) for c in range(3)])
    torch.testing.assert_close(centres.norm(dim=1), torch.ones(3), atol=0.05, rtol=0)
    assert abs(float((read.graph.x - centres[y]).std()) - 0.1) < 0.01
    assert len({c for c in y[:30].tolist()}) == 3  # the numbers of nodes say nothing of their class


def test_a_block_model_is_a_function_of_its_settings():
    assert sbm().train.fingerprint == sbm().train.fingerprint
    assert sbm(seed=1).train.fingerprint != sbm().train.fingerprint
    assert SBM().label != SBM(seed=1).label
    assert sbm(classes=5, per_class=(40, 4)).train.counts() == [12, 1, 12, 1, 12]


@pytest.mark.parametrize("homophily", [0.0, 1.0])
def test_block_edges_keep_to_their_class_or_leave_it(homophily):
    y = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    source, target = block_edges(y, 500, homophily, Rng(0))
    assert ((y[source] == y[target]) == (homophily == 1)).all()
    assert len(target.unique()) == 7


def test_a_block_model_must_leave_something_to_test_on():
    with pytest.raises(BadValue, match="must leave a part of 1 for test"):
        checked(lambda: SBM(train=0.5, validation=0.5), "data")


def test_karate_has_one_labelled_node_a_class_and_splits_the_other_30_by_seed():
    splits, other = Karate().open(), Karate(seed=1).open()
    assert splits.train.counts() == [1, 1, 1, 1]
    assert (len(splits.validation), len(splits.test)) == (10, 20)
    nodes = torch.cat([source.nodes for source in (splits.train, splits.validation, splits.test)])
    assert nodes.sort().values.tolist() == list(range(34))
    assert splits.test.nodes.tolist() != other.test.nodes.tolist()
    assert splits.train.nodes.tolist() == other.train.nodes.tolist()
    assert splits.train.raw.edges.shape == (2, 156)
    assert torch.equal(splits.train.raw.x, torch.eye(34))
    assert Karate.embedded


# -- edges ------------------------------------------------------------------------------------------------------------


def test_undirected_edges_are_those_of_the_symmetric_matrix_without_its_diagonal():
    edges = torch.randint(9, (2, 60), generator=torch.Generator().manual_seed(3))
    weights = torch.rand(60, generator=torch.Generator().manual_seed(4)) + 0.1
    matrix = torch.zeros(9, 9)
    for (source, target), weight in zip(edges.T.tolist(), weights.tolist(), strict=True):
        if source != target:
            matrix[source, target] = max(matrix[source, target], torch.tensor(weight))
    matrix = torch.maximum(matrix, matrix.T)
    found, largest = undirected_weighted(edges, weights, 9)
    again = torch.zeros(9, 9)
    again[found[1], found[0]] = largest
    assert torch.equal(again, matrix)
    assert torch.equal(undirected(edges, 9), found)
    assert found.shape[1] == int((matrix > 0).sum())


def test_edge_free_data_trains_without_edges_and_tests_on_the_real_graph():
    data = checked(lambda: member(Data, {"name": "edge-free", "data": {"name": "sbm", "seed": 3}}), "data")
    plain, bare = SBM(seed=3).open(), data.open()
    assert bare.train.raw.edges is None
    assert torch.equal(bare.train.raw.x, plain.train.raw.x)
    assert torch.equal(bare.train.nodes, plain.train.nodes)
    assert bare.train.fingerprint != plain.train.fingerprint
    assert bare.test.fingerprint == plain.test.fingerprint
    assert bare.validation.fingerprint == plain.validation.fingerprint
    assert data.label == f"edge-free-{SBM(seed=3).label}"
    assert as_data("edge-free:karate") == EdgeFree(data=Karate())
    with pytest.raises(BadValue, match="digits is no data of nodes"):
        as_data("edge-free:digits")


def test_edge_free_splits_encode_like_any_others():
    splits = EdgeFree(data=Karate()).open()
    transform = NodeFeatures(scale="columns").fit(splits.train, splits.facts)
    encoded = splits.map(lambda source: source.encoded(transform))
    assert isinstance(encoded.train, NodeSource)
    assert torch.equal(encoded.train.graph.x, encoded.test.graph.x)
    assert encoded.train.graph.operator("gcn") is None


# -- what no method can use -------------------------------------------------------------------------------------------

X = small().graph.x
EDGES = small().graph.edges
BAD = {
    "no (N, D) matrix": {"graph": Graph(X[:, 0], EDGES)},
    "no floating numbers": {"graph": Graph(X.long(), EDGES)},
    "node 3.*NaN or infinity|NaN or infinity.*node 3": {"graph": Graph(X / (X - 6), EDGES)},
    "outside 0..4": {"graph": Graph(X, torch.tensor([[0], [5]]))},
    "no (2, E) whole numbers": {"graph": Graph(X, EDGES.float())},
    "one weight for each": {"graph": Graph(X, EDGES, torch.ones(3))},
    "not finite and above 0": {"graph": Graph(X, EDGES, -torch.ones(EDGES.shape[1]))},
    "train: holds no nodes": {"train": torch.zeros(0, dtype=torch.int64)},
    "test: holds no nodes": {"test": torch.zeros(0, dtype=torch.int64)},
    "two of them: train and test": {"test": torch.tensor([2, 3])},
    "split twice": {"train": torch.tensor([3, 1, 3])},
    "names nodes outside 0..4": {"test": torch.tensor([9])},
    "one whole number for each node": {"y": torch.tensor([0.0, 1, 1, 0, 0])},
    "labels of the test split must lie in 0..1": {"y": torch.tensor([0, 1, 2, 0, 0])},
    "no example of 1 of its 2 classes": {"train": torch.tensor([3])},
    "has one class only": {"classes": ("all",), "y": torch.zeros(5, dtype=torch.int64)},
}


@pytest.mark.parametrize("problem", BAD)
def test_bad_graphs_are_refused_in_a_sentence(problem):
    import re

    pattern = problem if "|" in problem else re.escape(problem)
    with pytest.raises(BadData, match=pattern) as caught:
        make_splits(small(**BAD[problem]))
    assert caught.value.remedy


def test_isolated_nodes_and_a_missing_validation_split_are_fine():
    splits = make_splits(small(graph=Graph(X), validation=torch.zeros(0, dtype=torch.int64)))
    assert splits.validation is None
    assert splits.train.graph.propagate(X) is X
    assert not isinstance(splits.train, TensorSource)
