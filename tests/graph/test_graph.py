"""Graphs and views: operators against PyG and plain loops, sparse against dense, what is kept and what is not."""

from __future__ import annotations

import math

import pytest
import torch

from condense_graph.graph import Graph, Nodes, NodeView
from tests.graph.random_graphs import ISOLATED, both, nodes_task, random_adjacency, random_features

OPERATORS = ("gcn", "mean", "cheb", "sum")
directed = pytest.mark.parametrize("symmetric", [True, False], ids=["undirected", "directed"])


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def by_loops(adj, by):
    """The matrix of `propagate`, entry by entry."""
    n = len(adj)
    looped = [[float(adj[i, j]) + (1.0 if i == j and by == "gcn" else 0.0) for j in range(n)] for i in range(n)]
    degree = [sum(row) for row in looped]
    out = torch.zeros(n, n)
    for i in range(n):
        for j in range(n):
            match by:
                case "sum":
                    out[i, j] = looped[i][j]
                case "mean":
                    out[i, j] = looped[i][j] / degree[i] if degree[i] else 0
                case _:
                    scale = math.sqrt(degree[i] * degree[j])
                    out[i, j] = (-1 if by == "cheb" else 1) * looped[i][j] / scale if scale else 0
    return out


# -- operators --------------------------------------------------------------------------------------------------------


@directed
@pytest.mark.parametrize("by", OPERATORS)
def test_operators_are_what_loops_make(by, symmetric):
    sparse, dense = both(symmetric=symmetric)
    expected = by_loops(dense.adj, by)
    close(dense.operator(by), expected)
    close(sparse.operator(by).to_dense(), expected)
    h = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    close(sparse.propagate(h, by), expected @ h)
    close(dense.propagate(h, by), expected @ h)


@directed
def test_normalised_adjacency_is_that_of_pyg(symmetric):
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils import to_dense_adj

    sparse, dense = both(symmetric=symmetric)
    edges, weights = gcn_norm(*sparse.listed(), num_nodes=12)
    expected = to_dense_adj(edges, edge_attr=weights, max_num_nodes=12)[0].T  # PyG: row from, column to
    close(sparse.operator("gcn").to_dense(), expected)
    close(dense.operator("gcn"), expected)


def test_scaled_laplacian_is_that_of_pyg():
    from torch_geometric.utils import get_laplacian, to_dense_adj

    sparse, dense = both()
    edges, weights = get_laplacian(*sparse.listed(), normalization="sym", num_nodes=12)
    expected = to_dense_adj(edges, edge_attr=weights, max_num_nodes=12)[0] - torch.eye(12)
    close(sparse.operator("cheb").to_dense(), expected)
    close(dense.operator("cheb"), expected)


def test_mean_is_the_aggregation_of_pyg():
    from torch_geometric.nn import SimpleConv

    sparse, _ = both(weighted=False, symmetric=False)
    close(sparse.propagate(sparse.x, "mean"), SimpleConv(aggr="mean")(sparse.x, sparse.edges))


@pytest.mark.parametrize("by", OPERATORS)
def test_without_edges_nothing_arrives_but_from_a_node_itself(by):
    x = random_features(6)
    for graph in (Graph(x), Graph(x, torch.zeros(2, 0, dtype=torch.int64)), Graph(x, adj=torch.zeros(6, 6))):
        close(graph.propagate(x, by), x if by == "gcn" else torch.zeros_like(x))


def test_edges_listed_twice_weigh_twice():
    x = random_features(6)
    once = Graph(x, torch.tensor([[0, 1], [1, 0]]), torch.tensor([2.0, 2.0]))
    twice = Graph(x, torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]]))
    for by in OPERATORS:
        close(once.operator(by).to_dense(), twice.operator(by).to_dense())


@pytest.mark.parametrize("by", OPERATORS)
def test_gradients_of_the_adjacency_are_finite_and_right(by):
    adj = random_adjacency(7, share=0.9).double()  # with an isolated node
    h = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def total(adj):
        return (Graph(h, adj=adj).propagate(h, by) ** 2).sum()

    moving = adj.clone().requires_grad_()
    (grad,) = torch.autograd.grad(total(moving), moving)
    assert grad.isfinite().all()
    joined = (adj != 0).nonzero()
    for i, j in joined[::5].tolist():
        step = torch.zeros_like(adj)
        step[i, j] = 1e-6
        slope = (total(adj + step) - total(adj - step)) / 2e-6
        torch.testing.assert_close(grad[i, j], slope, rtol=1e-5, atol=1e-7)


# -- powers and projections -------------------------------------------------------------------------------------------


@directed
@pytest.mark.parametrize("hops", [0, 1, 2, 4])
def test_powers_are_those_of_pyg(hops, symmetric):
    from torch_geometric.nn import SGConv

    sparse, dense = both(symmetric=symmetric)
    conv = SGConv(6, 6, K=hops)
    conv.lin.weight.data, conv.lin.bias.data = torch.eye(6), torch.zeros(6)
    expected = conv(sparse.x, *sparse.listed()).detach()
    close(sparse.power(hops), expected)
    close(dense.power(hops), expected)


def test_projection_is_a_product_however_few_features_are_not_0():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(300, 50, generator=g) * (torch.rand(300, 50, generator=g) < 0.05)
    weight = torch.randn(7, 50, generator=g)
    up = torch.randn(300, 7, generator=g)
    many, few, small = torch.rand(300, 50, generator=g), x, x[:20]
    assert [Graph(each).few_features() for each in (many, few, small)] == [False, True, False]
    for each in (many, few, small):
        moving = weight.clone().requires_grad_()
        out = Graph(each).project(moving)
        close(out, each @ weight.T)
        close(torch.autograd.grad(out, moving, up[: len(each)])[0], up[: len(each)].T @ each)
    waiting = x.clone().requires_grad_()
    close(torch.autograd.grad(Graph(waiting).project(weight), waiting, up)[0], up @ weight)


def test_products_with_few_features_are_differentiable_any_number_of_times():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(300, 9, generator=g, dtype=torch.float64) * (torch.rand(300, 9, generator=g) < 0.05)
    graph = Graph(x)
    assert graph.few_features()
    weight = torch.randn(2, 9, generator=g, dtype=torch.float64).requires_grad_()

    def total(weight):
        return (graph.project(weight) ** 3).sum()

    assert torch.autograd.gradcheck(total, weight)
    assert torch.autograd.gradgradcheck(total, weight)
    plain = torch.func.hessian(lambda weight: ((x @ weight.T) ** 3).sum())(weight.detach())
    (slope,) = torch.autograd.grad(total(weight), weight, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), weight)
    torch.testing.assert_close(second, plain.sum((0, 1)))
    torch.testing.assert_close(torch.func.grad(total)(weight.detach()), slope.detach())


# -- what is kept -----------------------------------------------------------------------------------------------------


def test_what_follows_from_a_settled_graph_is_computed_once():
    for graph in both():
        assert graph.settled
        assert graph.power(2) is graph.power(2)
        assert graph.operator("gcn") is graph.operator("gcn")


def test_what_waits_for_a_gradient_is_never_kept():
    _, dense = both()
    moving = Graph(dense.x, adj=dense.adj.clone().requires_grad_())
    assert not moving.settled
    for _ in range(2):  # a second backward pass would fail on kept intermediates
        (grad,) = torch.autograd.grad(moving.power(2).sum(), moving.adj)
        assert grad.abs().sum() > 0
    features = Graph(dense.x.clone().requires_grad_(), adj=dense.adj)
    assert features.operator("gcn") is features.operator("gcn"), "the adjacency itself is settled"
    for _ in range(2):
        torch.autograd.grad(features.power(2).sum(), features.x)


def test_kept_results_carry_no_gradient_and_survive_no_grad():
    sparse, _ = both()
    with torch.no_grad():
        kept = sparse.power(1)
    assert not kept.requires_grad
    assert sparse.power(1) is kept


def test_other_features_share_operators_but_no_power():
    sparse, _ = both()
    sparse.power(1)
    other = sparse.with_x(2 * sparse.x)
    assert other.operator("gcn") is sparse.operator("gcn")
    close(other.power(1), 2 * sparse.power(1))


def test_encoding_is_shared_by_all_who_ask_with_the_same_transform():
    sparse, _ = both()
    calls = []

    def transform(x):
        calls.append(1)
        return x + 1

    first = sparse.encoded(transform)
    assert sparse.encoded(transform) is first
    assert len(calls) == 1
    close(first.x, sparse.x + 1)
    other = sparse.encoded(lambda x: x - 1)
    close(other.x, sparse.x - 1)
    close(first.operator("gcn").to_dense(), sparse.operator("gcn").to_dense())


# -- subgraphs, lists, digests ----------------------------------------------------------------------------------------


@directed
def test_induced_graphs_are_those_of_pyg(symmetric):
    from torch_geometric.utils import subgraph, to_dense_adj

    sparse, dense = both(symmetric=symmetric)
    nodes = torch.tensor([1, 4, 6, 7, 10])  # PyG numbers them in ascending order
    edges, weights = subgraph(nodes, *sparse.listed(), relabel_nodes=True, num_nodes=12)
    expected = to_dense_adj(edges, edge_attr=weights, max_num_nodes=5)[0].T
    close(dense.induced(nodes).adj, expected)
    found = sparse.induced(nodes)
    close(found.operator("sum").to_dense(), expected)
    close(found.x, sparse.x[nodes])
    assert Graph(sparse.x).induced(nodes).edges is None


def test_induced_graphs_follow_the_order_of_the_nodes():
    order = torch.tensor([10, 1, 7, 4])
    for graph in both(symmetric=False):
        found = graph.induced(order)
        close(found.x, graph.x[order])
        matrix = graph.operator("sum")
        matrix = matrix.to_dense() if matrix.is_sparse else matrix
        out = found.operator("sum")
        close(out.to_dense() if out.is_sparse else out, matrix[order][:, order])


def test_lists_say_from_where_to_where():
    adj = torch.zeros(3, 3)
    adj[2, 0] = 0.5  # from node 0 to node 2
    edges, weights = Graph(torch.eye(3), adj=adj).listed()
    assert edges.tolist() == [[0], [2]]
    assert weights.tolist() == [0.5]
    assert Graph(torch.eye(3), edges, weights).propagate(torch.eye(3), "sum")[2, 0] == 0.5
    unweighted = Graph(torch.eye(3), edges).listed()[1]
    assert unweighted.tolist() == [1.0]
    moving = adj.clone().requires_grad_()
    (grad,) = torch.autograd.grad(Graph(torch.eye(3), adj=moving).listed()[1].sum(), moving)
    assert grad[2, 0] == 1
    assert grad.sum() == 1


def test_digests_tell_graphs_apart():
    sparse, dense = both()
    same = Graph(sparse.x.clone(), sparse.edges.clone(), sparse.weights.clone())
    other_x, other_w = sparse.with_x(sparse.x + 1), Graph(sparse.x, sparse.edges, sparse.weights * 2)
    assert sparse.digest() == same.digest() == dense.digest()
    assert len({graph.digest() for graph in (sparse, other_x, other_w, Graph(sparse.x, sparse.edges))}) == 4


# -- the form ---------------------------------------------------------------------------------------------------------


def test_packing_and_unpacking_gives_the_same_view():
    sparse, dense = both()
    for graph, names in (
        (sparse, {"x", "edges", "weights", "nodes"}),
        (dense, {"x", "adj", "nodes"}),
        (Graph(sparse.x), {"x", "nodes"}),
        (Graph(sparse.x, sparse.edges), {"x", "edges", "nodes"}),
    ):
        view = NodeView(graph, torch.tensor([3, 1]))
        packed = Nodes().pack(view)
        assert set(packed) == names
        again = Nodes().unpack(packed)
        assert again.graph.digest() == graph.digest()
        assert again.nodes.tolist() == [3, 1]


def test_leaves_require_gradients_and_edges_do_not():
    sparse, dense = both()
    leaf = Nodes().leaf(NodeView.whole(dense))
    assert leaf.graph.x.requires_grad
    assert leaf.graph.adj.requires_grad
    leaf = Nodes().leaf(NodeView.whole(sparse))
    assert not leaf.graph.edges.requires_grad
    assert not Nodes().detach(leaf).graph.x.requires_grad


def test_taking_leaves_the_graph_alone():
    sparse, _ = both()
    view = NodeView(sparse, torch.tensor([9, 3, 5, 0]))
    assert Nodes().take(view, slice(1, 3)).nodes.tolist() == [3, 5]
    taken = Nodes().take(view, torch.tensor([3, 0]))
    assert taken.graph is sparse
    assert taken.nodes.tolist() == [0, 9]
    assert len(taken) == 2
    close(Nodes().flat(taken), sparse.x[[0, 9]])


def test_joining_views_of_one_graph_keeps_it_and_of_several_makes_their_disjoint_union():
    sparse, dense = both()
    one, two = NodeView(sparse, torch.tensor([1, 2])), NodeView(sparse, torch.tensor([0]))
    joined = Nodes().join([one, two])
    assert joined.graph is sparse
    assert joined.nodes.tolist() == [1, 2, 0]
    apart = Nodes().join([one, NodeView(dense, torch.tensor([4]))])
    assert apart.nodes.tolist() == [1, 2, 16]
    expected = torch.block_diag(sparse.operator("gcn").to_dense(), dense.operator("gcn"))
    close(apart.graph.operator("gcn").to_dense(), expected)
    close(Nodes().flat(apart), dense.x[[1, 2, 4]])


def test_blank_nodes_are_alone():
    blank = Nodes().blank(nodes_task(), 3)
    assert len(blank) == 3
    assert blank.graph.x.shape == (3, 6)
    assert blank.graph.operator("gcn") is None


@directed
def test_permuting_the_nodes_permutes_what_is_propagated(symmetric):
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    for graph in both(symmetric=symmetric):
        for by in OPERATORS:
            moved = graph.induced(order)
            close(moved.propagate(moved.x, by), graph.propagate(graph.x, by)[order])
    assert graph.propagate(graph.x, "mean")[ISOLATED].abs().sum() == 0
