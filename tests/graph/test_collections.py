"""Sets of whole graphs: taking, joining, padding, propagating and pooling against loops over single graphs."""

from __future__ import annotations

import itertools

import pytest
import torch

from condense.errors import BadData, BadValue
from condense.rng import Rng
from condense.task import Task
from condense_graph.collections import DenseGraphs, Graphs, SparseGraphs, dense_operator
from condense_graph.graph import Graph, Nodes
from condense_graph.nets.whole import GIN, GraphGCN

from .whole_graphs import graphs_of, some

FORM = Graphs()
TASK = Task(classes=("a", "b", "c"), shape=(6, 4), form=FORM)


def adjacency(graph: Graph) -> torch.Tensor:
    adj = torch.zeros(len(graph), len(graph))
    adj[graph.edges[1], graph.edges[0]] = 1
    return adj


def same(a: SparseGraphs, b: SparseGraphs) -> None:
    assert torch.equal(a.sizes, b.sizes)
    assert torch.equal(a.x, b.x)
    as_rows = [sorted(zip(*g.graph.listed()[0].tolist(), strict=True)) for g in (a, b)]
    assert as_rows[0] == as_rows[1]


def test_take_is_collating_the_chosen_graphs_one_by_one():
    single = some(9)
    graphs = graphs_of(single)
    index = torch.tensor([7, 0, 3, 3, 8])
    same(graphs.take(index), graphs_of([single[i] for i in index.tolist()]))
    same(graphs.take(slice(2, 5)), graphs_of(single[2:5]))


def test_take_sorts_edges_that_come_in_any_order():
    single = some(6)
    graphs = graphs_of(single)
    shuffled = graphs.graph.edges[:, Rng(1).permutation(graphs.graph.edges.shape[1])]
    index = torch.tensor([4, 2, 5])
    same(SparseGraphs(Graph(graphs.x, shuffled), graphs.sizes).take(index), graphs.take(index))


def test_weights_travel_with_their_edges():
    graphs = graphs_of(some(6))
    weights = torch.rand(graphs.graph.edges.shape[1], generator=torch.Generator().manual_seed(0))
    weighted = SparseGraphs(Graph(graphs.x, graphs.graph.edges, weights), graphs.sizes)
    index = torch.tensor([5, 1, 4])
    one = weighted.take(index)
    adj = weighted.dense(8).adj[index]
    torch.testing.assert_close(one.dense(8).adj, adj)
    torch.testing.assert_close(FORM.join([weighted.take(index[:1]), weighted.take(index[1:])]).dense(8).adj, adj)


def test_pack_and_unpack_are_inverse_and_join_undoes_take():
    graphs = graphs_of(some(6))
    same(FORM.unpack(FORM.pack(graphs)), graphs)
    same(FORM.join([graphs.take(slice(0, 2)), graphs.take(slice(2, 6))]), graphs)
    dense = graphs.dense(9)
    again = FORM.unpack(FORM.pack(dense))
    assert torch.equal(again.adj, dense.adj)
    assert torch.equal(again.mask, dense.mask)
    halves = FORM.join([FORM.take(dense, slice(0, 2)), FORM.take(dense, torch.arange(2, 6))])
    assert isinstance(halves, DenseGraphs)
    assert torch.equal(halves.x, dense.x)
    same(FORM.join([graphs.take(slice(0, 2)).dense(3), dense.take(slice(2, 6))]), graphs)


def test_padding_and_back_keeps_the_graphs_and_cutting_keeps_the_first_nodes():
    single = some(6)
    graphs = graphs_of(single)
    same(graphs.dense().sparse(), graphs)
    cut = graphs.dense(3)
    for i, graph in enumerate(single):
        n = min(3, len(graph))
        torch.testing.assert_close(cut.x[i, :n], graph.x[:n])
        torch.testing.assert_close(cut.adj[i, :n, :n], adjacency(graph)[:n, :n])
        assert int(cut.sizes[i]) == n
        assert not cut.x[i, n:].any()


@pytest.mark.parametrize("by", ["gcn", "sum", "mean"])
def test_operators_equal_those_of_each_graph_alone(by):
    single = some(6)
    graphs = graphs_of(single)
    dense = graphs.dense(9)
    sparse_values, dense_values = graphs.propagate(graphs.x, by), dense.propagate(dense.x, by)
    for i, rows in enumerate(sparse_values.split(graphs.sizes.tolist())):
        adj = adjacency(single[i])
        if by == "gcn":
            full = adj + torch.eye(len(adj))
            expected = torch.diag(full.sum(1) ** -0.5) @ full @ torch.diag(full.sum(1) ** -0.5)
        else:
            expected = adj if by == "sum" else adj / adj.sum(1, keepdim=True).clamp_min(1)
        torch.testing.assert_close(rows, expected @ single[i].x)
        torch.testing.assert_close(dense_values[i, : len(adj)], rows)


def test_transposed_operators_are_transposed():
    g = torch.Generator().manual_seed(3)
    adj, x = torch.rand(2, 5, 5, generator=g), torch.randn(2, 5, 3, generator=g)
    dense = DenseGraphs(x, adj)
    torch.testing.assert_close(dense.propagate(x, "sum", transposed=True), adj.mT @ x)
    sparse = dense.sparse()
    torch.testing.assert_close(
        sparse.propagate(sparse.x, "sum", transposed=True), dense.flat(dense.propagate(x, "sum", transposed=True))
    )


def test_pooling_equals_a_loop_and_padding_does_not_count():
    graphs = graphs_of(some(7))
    for by, rule in (("mean", torch.Tensor.mean), ("sum", torch.Tensor.sum)):
        expected = torch.stack([rule(rows, dim=0) for rows in graphs.x.split(graphs.sizes.tolist())])
        torch.testing.assert_close(graphs.pool(graphs.x, by), expected)
        dense = graphs.dense(12)
        torch.testing.assert_close(dense.pool(dense.x + ~dense.mask[..., None], by), expected)


def test_flat_and_shaped_values_are_inverse():
    dense = graphs_of(some(5)).dense(8)
    rows = dense.flat(dense.x)
    assert len(rows) == len(dense.owner) == int(dense.sizes.sum())
    torch.testing.assert_close(dense.shaped(rows), dense.x)
    torch.testing.assert_close(torch.zeros(5, 4).index_add(0, dense.owner, rows), dense.pool(dense.x, "sum"))


def test_gradients_are_finite_where_nothing_is_joined():
    adj = torch.zeros(1, 3, 3, requires_grad=True)
    for by in ("gcn", "mean", "sum"):
        grad = torch.autograd.grad(dense_operator(adj, by).square().sum(), adj)[0]
        assert torch.isfinite(grad).all()


def test_what_is_no_set_of_graphs_is_refused():
    graphs = graphs_of(some(3))
    with pytest.raises(BadData, match="add up"):
        SparseGraphs(graphs.graph, graphs.sizes[:-1]).checked("x")
    last = len(graphs.x) - 1
    with pytest.raises(BadData, match="joins two graphs"):
        SparseGraphs(Graph(graphs.x, torch.tensor([[0, last], [last, 0]])), graphs.sizes).checked("x")
    with pytest.raises(BadData, match="outside"):
        SparseGraphs(Graph(graphs.x, torch.tensor([[0], [last + 1]])), graphs.sizes).checked("x")


# -- networks -------------------------------------------------------------------------------------------------------


def pyg_model(net: GraphGCN | GIN, module: torch.nn.Module) -> torch.nn.Module:
    """The same layers from PyG, with the same weights."""
    import torch_geometric.nn as pyg

    widths = [4, *[net.hidden] * net.depth]
    if isinstance(net, GraphGCN):
        convs = [pyg.GCNConv(a, b) for a, b in itertools.pairwise(widths)]
    else:
        layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        convs = [pyg.GINConv(layer, train_eps=True) for layer in layers]
    twin = torch.nn.Module()
    twin.convs = torch.nn.ModuleList(convs)
    if isinstance(net, GIN):
        twin.norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(net.hidden) for _ in range(net.depth - 1))
    twin.head = torch.nn.Linear(net.hidden, 3)
    twin.double().load_state_dict(module.state_dict())
    return twin


def pyg_answers(net: GraphGCN | GIN, twin: torch.nn.Module, graphs: SparseGraphs) -> torch.Tensor:
    import torch_geometric.nn as pyg

    h = graphs.x
    for i, conv in enumerate(twin.convs):
        h = conv(h, graphs.graph.edges)
        if isinstance(net, GraphGCN):
            h = h.relu()
        elif i < net.depth - 1:
            h = twin.norms[i](h).relu()
    pool = pyg.global_mean_pool if net.pool == "mean" else pyg.global_add_pool
    return twin.head(pool(h, graphs.owner))


NETS = [
    *(GraphGCN(depth=3, hidden=8, pool=pool) for pool in ("mean", "sum")),
    GraphGCN(depth=1, hidden=3),
    *(GIN(depth=3, hidden=8, pool=pool) for pool in ("mean", "sum")),
]


def moved(net: GraphGCN | GIN) -> torch.nn.Module:
    """The network, away from the zeros that it starts with."""
    module = net.make(TASK, Rng(0)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return module


def doubled(graphs: SparseGraphs) -> SparseGraphs:
    return SparseGraphs(Graph(graphs.x.double(), graphs.graph.edges), graphs.sizes)


@pytest.mark.parametrize("net", NETS, ids=lambda net: f"{net.name}-{net.depth}-{net.pool}")
def test_networks_equal_pyg_on_sparse_and_padded_graphs_alike(net):
    graphs = doubled(graphs_of(some(9)))
    for x in (graphs, graphs.dense(), graphs.dense(14)):
        module = moved(net)
        twin = pyg_model(net, module)
        found, expected = module(x), pyg_answers(net, twin, graphs)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        expected.square().sum().backward()
        for name, parameter in twin.named_parameters():
            torch.testing.assert_close(dict(module.named_parameters())[name].grad, parameter.grad)
        for name, value in twin.named_buffers():
            torch.testing.assert_close(dict(module.named_buffers())[name], value)
        torch.testing.assert_close(module.eval()(x), pyg_answers(net, twin.eval(), graphs))


@pytest.mark.parametrize("net", NETS[::3], ids=lambda net: net.name)
def test_networks_see_no_order_of_nodes_and_have_features_in_front_of_their_head(net):
    module = net.make(TASK, Rng(0))
    dense = graphs_of(some(4, sizes=(5, 5, 5, 5))).dense()
    order = Rng(2).permutation(5)
    turned = DenseGraphs(dense.x[:, order], dense.adj[:, order][:, :, order])
    torch.testing.assert_close(module(turned), module(dense), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.head(module.features(dense)), module(dense), rtol=1e-4, atol=1e-5)


def test_networks_are_differentiable_twice_in_a_dense_adjacency():
    module = moved(GraphGCN(depth=2, hidden=3))
    dense = graphs_of(some(2, sizes=(3, 3))).dense()
    adj = (dense.adj.double() * 0.7).requires_grad_()

    def gap(adj: torch.Tensor) -> torch.Tensor:
        loss = module(DenseGraphs(dense.x.double(), adj)).square().sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()), create_graph=True)])

    assert torch.autograd.gradcheck(gap, adj, atol=1e-4)


def test_networks_refuse_what_is_no_set_of_graphs():
    with pytest.raises(BadValue, match="whole graphs"):
        GraphGCN().build(Task(classes=("a", "b"), shape=(4,), form=Nodes()))
    with torch.device("meta"):
        assert GIN().build(TASK)(FORM.blank(TASK, 2)).shape == (2, 3)


def test_what_a_part_cuts_out_of_the_whole_is_what_it_would_make_itself():
    graphs = graphs_of(some(9))
    one_way = graphs.graph.edges[:, graphs.graph.edges[0] < graphs.graph.edges[1]]
    index = torch.tensor([7, 0, 3, 8])
    for whole in (graphs, SparseGraphs(Graph(graphs.x, one_way), graphs.sizes)):
        part = whole.take(index).take(torch.tensor([2, 0, 1]))
        alone = SparseGraphs(part.graph, part.sizes)
        assert (part.matrices("sum")[0] is part.matrices("sum")[1]) == (whole is graphs)
        for by in ("gcn", "sum", "mean"):
            for transposed in (False, True):
                expected = alone.propagate(part.x, by, transposed)
                torch.testing.assert_close(part.propagate(part.x, by, transposed), expected)
        torch.testing.assert_close(part.spread_features(), alone.propagate(part.x))
        dense = alone.graph.operator("sum").to_dense()
        torch.testing.assert_close(part.propagate(part.x, "sum", transposed=True), dense.T @ part.x)
