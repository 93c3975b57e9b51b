"""Pictures of condensed graphs: the same bytes for the same graph, what is left out is said, numbers against loops."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from condense_graph import drawing
from condense_graph.collections import Graphs, SparseGraphs
from condense_graph.graph import Graph, Nodes, NodeView
from condense_graph.properties import properties, set_properties

CLASSES = ("theory", "practice", "$x_i$")


def joined(n, seed=0, share=0.3):
    """An undirected weighted graph of n nodes: edges (2, E), weights (E,), equal in both directions, and y (n,)."""
    g = torch.Generator().manual_seed(seed)
    upper = torch.triu(torch.rand(n, n, generator=g) < share, 1)
    weights = torch.triu(torch.rand(n, n, generator=g), 1) * upper
    matrix = weights + weights.T
    at = matrix.nonzero().T
    return at, matrix[at[0], at[1]], torch.arange(n) % 3


def opened(picture):
    image = Image.open(io.BytesIO(picture.png))
    image.load()
    return np.asarray(image.convert("RGB"))


def test_a_graph_is_drawn_by_edges_and_as_a_matrix_with_the_same_bytes_each_time():
    edges, weights, y = joined(20)
    x = torch.randn(20, 4)
    pictures, again = (drawing.of_nodes(x, edges, weights, y, CLASSES) for _ in range(2))
    assert [p.name for p in pictures] == ["graph", "adjacency"]
    assert [p.png for p in pictures] == [p.png for p in again]
    for picture in pictures:
        assert opened(picture).std() > 5, "something is drawn"
        assert picture.caption.endswith(".")
    other = drawing.of_nodes(x, edges, weights, y.flip(0), CLASSES)
    assert all(a.png != b.png for a, b in zip(pictures, other, strict=True))


def test_nodes_without_edges_lie_by_their_features():
    x = torch.cat([torch.randn(10, 5) + 9, torch.randn(10, 5) - 9])
    none = torch.zeros(2, 0, dtype=torch.int64)
    (picture,) = drawing.of_nodes(x, none, torch.zeros(0), torch.arange(20) // 10, ("a", "b"))
    assert picture.name == "nodes"
    assert "no edges" in picture.caption
    place = drawing.principal(x.numpy())
    assert np.abs(place).max() == pytest.approx(1)
    assert (np.sign(place[:10, 0]) == -np.sign(place[10:, 0])).all(), "what differs most is the first direction"
    turned = drawing.principal(x.numpy()[::-1])
    assert np.allclose(turned[::-1], place), "the order of the nodes does not turn the picture"


@pytest.mark.parametrize("rows", [1, 2])
def test_very_few_nodes_or_features_are_drawn_too(rows):
    none = torch.zeros(2, 0, dtype=torch.int64)
    (picture,) = drawing.of_nodes(torch.zeros(rows, 1), none, torch.zeros(0), torch.zeros(rows).long(), ("a",))
    assert opened(picture).shape[2] == 3


def test_each_pair_is_drawn_once_with_the_heavier_of_its_weights():
    edges, weights = np.array([[0, 1, 2, 2], [1, 0, 0, 1]]), np.array([0.2, 0.7, 0.5, 0.1])
    pairs, kept = drawing.undirected(edges, weights)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert kept.tolist() == [0.7, 0.5, 0.1]


def test_what_is_left_out_of_a_large_graph_is_said(monkeypatch):
    monkeypatch.setattr(drawing, "NODES", 12)
    monkeypatch.setattr(drawing, "EDGES", 1)
    monkeypatch.setattr(drawing, "FEW", 1)
    monkeypatch.setattr(drawing, "CELLS", 10)
    edges, weights, y = joined(30, share=0.6)
    graph, matrix = drawing.of_nodes(torch.zeros(30, 2), edges, weights, y, CLASSES)
    kept = drawing.most_joined(*drawing.undirected(edges.numpy(), weights.numpy()), 30, 12)
    total = torch.zeros(30).index_add(0, edges[0], weights)
    assert sorted(kept) == sorted(total.topk(12).indices.tolist())
    inside = [(a, b) for a, b in itertools.combinations(kept, 2) if ((edges[0] == a) & (edges[1] == b)).any()]
    assert "the 12 of 30 nodes" in graph.caption
    weight = {(int(a), int(b)): float(w) for a, b, w in zip(*edges, weights, strict=True)}
    most = {max((pair for pair in inside if a in pair), key=weight.__getitem__) for a in kept}
    assert f"Of {len(inside)} edges between them {len(most)} are drawn: the 1 heaviest of each node." in graph.caption
    assert "the mean over 3 x 3 pairs" in matrix.caption


def test_graphs_are_drawn_in_a_row_for_each_class():
    parts = [joined(n, seed=n, share=0.4) for n in (5, 9, 70, 6)]
    sizes = torch.tensor([5, 9, 70, 6])
    shift = sizes.cumsum(0) - sizes
    edges = torch.cat([e + s for (e, _, _), s in zip(parts, shift, strict=True)], dim=1)
    x = torch.eye(7)[torch.arange(90) % 7]
    y = torch.tensor([0, 1, 1, 0])
    how = (x, edges, torch.ones(edges.shape[1]), sizes, y, ("mutagenic", "not"))
    (picture,), (again,) = drawing.of_graphs(*how), drawing.of_graphs(*how)
    assert picture.png == again.png
    assert "more than 60 nodes" in picture.caption, "the third graph is too large to be shown whole"


# -- properties -----------------------------------------------------------------------------------------------------


def test_properties_against_loops():
    edges, weights, y = joined(15, share=0.2)
    graph = Graph(torch.zeros(15, 1), edges, weights)
    known = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 13])
    pairs = {(int(a), int(b)): float(w) for a, b, w in zip(*edges, weights, strict=True) if a < b}
    looked = {pair: w for pair, w in pairs.items() if set(pair) <= set(known.tolist())}
    found = properties(graph, y, known)
    assert found["nodes"] == 15
    assert found["edges"] == len(pairs)
    assert found["density"] == pytest.approx(len(pairs) / (15 * 14 / 2))
    assert found["mean degree"] == pytest.approx(2 * len(pairs) / 15)
    alike = sum(w for (a, b), w in looked.items() if y[a] == y[b])
    assert found["homophily"] == pytest.approx(alike / sum(looked.values()))
    assert found["isolated nodes"] == sum(all(i not in pair for pair in pairs) for i in range(15))


def test_labels_that_are_not_known_do_not_count():
    edges, weights, y = joined(15)
    known = torch.arange(6)
    other = y.clone()
    other[6:] = (other[6:] + 1) % 3
    graph = Graph(torch.zeros(15, 1), edges, weights)
    assert properties(graph, y, known) == properties(graph, other, known)
    assert properties(graph, y) != properties(graph, other)


def test_properties_of_a_dense_graph_are_those_of_its_edges():
    edges, weights, y = joined(9)
    dense = torch.zeros(9, 9)
    dense[edges[1], edges[0]] = weights
    sparse = properties(Graph(torch.zeros(9, 1), edges, weights), y)
    assert properties(Graph(torch.zeros(9, 1), adj=dense), y) == pytest.approx(sparse)


def test_nodes_without_edges_have_no_homophily():
    found = properties(Graph(torch.zeros(3, 1)), torch.arange(3))
    assert "homophily" not in found
    assert found["isolated nodes"] == 3


def test_properties_of_several_graphs_are_means_over_them():
    graph = Graph(torch.zeros(7, 1), torch.tensor([[0, 1, 1, 2, 3, 4], [1, 0, 2, 1, 4, 3]]))
    found = set_properties(graph, torch.tensor([3, 4]))
    assert found["nodes of a graph"] == 3.5
    assert found["edges of a graph"] == 1.5
    assert found["density"] == pytest.approx((2 / 3 + 1 / 6) / 2)
    assert found["isolated nodes"] == 2


# -- what a form draws ----------------------------------------------------------------------------------------------


def test_a_view_of_some_nodes_is_drawn_without_the_others():
    edges, weights, y = joined(12)
    graph, nodes = Graph(torch.randn(12, 3), edges, weights), torch.tensor([7, 2, 9, 4])
    shown = Nodes().pictures(NodeView(graph, nodes), y[nodes], CLASSES)
    alone = graph.induced(nodes)
    assert [p.png for p in shown] == [p.png for p in drawing.of_nodes(alone.x, *alone.listed(), y[nodes], CLASSES)]
    assert Nodes().properties(NodeView(graph, nodes), y[nodes]) == properties(graph, y, nodes)


def test_dense_and_sparse_graphs_look_alike():
    edges, weights, _ = joined(6)
    sparse = SparseGraphs(Graph(torch.eye(6), edges, weights), torch.tensor([6]))
    label = torch.tensor([0])
    pictures = [Graphs().pictures(x, label, ("a",))[0].png for x in (sparse, sparse.dense())]
    assert pictures[0] == pictures[1]
    first, second = (Graphs().properties(x, label) for x in (sparse, sparse.dense()))
    assert first == second
