"""The networks for nodes: equal to PyG's layers, alike on dense and sparse graphs, differentiable twice; refusals."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from condense.axes import Net, TaskLoss
from condense.errors import BadValue
from condense.parts.matching import Gradient
from condense.rng import Rng, seeded
from condense.task import Batch, Task
from condense_graph.graph import Graph, NodeView
from condense_graph.nets import APPNP, GAT, GCN, SGC, ChebNet, GraphSAGE, NodeMLP
from condense_graph.nets.base import Pass
from tests.graph.random_graphs import EMPTY, ISOLATED, both, nodes_task, random_adjacency, random_features

NETS: list[Net] = [
    SGC(),
    SGC(hops=3, layers=2, hidden=5),
    SGC(layers=3, hidden=5),
    GCN(hidden=5),
    GCN(depth=1),
    GCN(depth=3, hidden=5),
    GAT(hidden=3, heads=2),
    GAT(depth=1),
    GraphSAGE(hidden=5),
    GraphSAGE(depth=1),
    APPNP(hidden=5),
    ChebNet(hidden=5),
    ChebNet(order=1, hidden=5),
    ChebNet(order=4, hidden=5),
    NodeMLP(hidden=5),
]
NAMES = [f"{net.name}-{i}" for i, net in enumerate(NETS)]
each = pytest.mark.parametrize("net", NETS, ids=NAMES)


def made(net: Net, key: int = 0) -> nn.Module:
    return net.make(nodes_task(), Rng(key)).eval()


def close(a, b, tolerance=2e-6):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=tolerance)


# -- equal to PyG's layers --------------------------------------------------------------------------------------------


def pyg_layers(net):
    """PyG's layers in a row, the activation between them, and whether they take edge weights."""
    import torch_geometric.nn as pyg

    sizes = [6, *[getattr(net, "hidden", 0)] * (net.depth - 1), 4]
    steps = list(itertools.pairwise(sizes))
    match net:
        case GCN():
            return [pyg.GCNConv(a, b) for a, b in steps], F.relu, True
        case GraphSAGE():
            return [pyg.SAGEConv(a, b) for a, b in steps], F.relu, False
        case ChebNet():
            return [pyg.ChebConv(a, b, net.order) for a, b in steps], F.relu, True
        case GAT():
            wide = net.heads * net.hidden
            hidden = [pyg.GATConv(wide if i else 6, net.hidden, net.heads) for i in range(net.depth - 1)]
            return [*hidden, pyg.GATConv(wide if hidden else 6, 4, 1)], F.elu, False


def comparable(net, symmetric, weighted):
    """PyG's attention and means take no weights; its Laplacian of a directed graph counts edges where they start, ours
    where they end."""
    if weighted and isinstance(net, GraphSAGE | GAT):
        return False
    return isinstance(net, GCN | GraphSAGE | GAT) or (symmetric and isinstance(net, ChebNet))


CASES = [case for case in itertools.product(NETS, (True, False), (True, False)) if comparable(*case)]


@pytest.mark.parametrize(("net", "symmetric", "weighted"), CASES)
def test_layers_are_those_of_pyg(net, symmetric, weighted):
    """PyG's layers take our parameters by name, and say the same of every node, of sparse and of dense graphs."""
    layers, activation, takes_weights = pyg_layers(net)
    sparse, dense = both(symmetric=symmetric, weighted=weighted)
    module = made(net)
    reference = nn.ModuleList(layers)
    reference.load_state_dict(module.convs.state_dict())
    edges, weights = sparse.listed()
    h = sparse.x
    for i, layer in enumerate(reference):
        h = layer(h, edges, weights) if takes_weights else layer(h, edges)
        h = activation(h) if i < net.depth - 1 else h
    close(module(NodeView.whole(sparse)), h)
    close(module(NodeView.whole(dense)), h)


@pytest.mark.parametrize("hops", [0, 1, 2, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_sgc_is_that_of_pyg(hops, symmetric):
    import torch_geometric.nn as pyg

    for graph in both(symmetric=symmetric):
        module = made(SGC(hops=hops))
        reference = pyg.SGConv(6, 4, K=hops)
        reference.load_state_dict({f"lin.{key[7:]}": value for key, value in module.state_dict().items()})
        close(module(NodeView.whole(graph)), reference(graph.x, *graph.listed()))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_appnp_is_that_of_pyg(alpha):
    import torch_geometric.nn as pyg

    for graph in both():
        module = made(APPNP(alpha=alpha, hidden=5))
        first, second = module.layers.convs
        logits = second.lin(first.lin(graph.x).relu())
        close(module(NodeView.whole(graph)), pyg.APPNP(10, alpha)(logits, *graph.listed()))


def test_sgc_of_two_layers_propagates_first_and_appnp_with_alpha_0_last():
    """Plain loops: what the two orders of GCond's `--sgc=2` are here."""
    sparse, dense = both()
    a = dense.adj + torch.eye(12)
    d = a.sum(1)
    hat = torch.tensor([[float(a[i, j]) / math.sqrt(d[i] * d[j]) for j in range(12)] for i in range(12)])
    first, second = (module := made(SGC(layers=2, hidden=5))).lins
    close(module(NodeView.whole(sparse)), second(first(hat @ hat @ sparse.x).relu()))
    one, two = (module := made(APPNP(hops=2, alpha=0, hidden=5))).layers.convs
    close(module(NodeView.whole(sparse)), hat @ hat @ two.lin(one.lin(sparse.x).relu()))


def test_perceptron_sees_no_edge():
    sparse, dense = both()
    module = made(NodeMLP(hidden=5))
    alone = module(NodeView.whole(Graph(sparse.x)))
    close(module(NodeView.whole(sparse)), alone)
    first, second = (conv.lin for conv in module.convs)
    close(alone, second(first(dense.x).relu()))


# -- dense and sparse, views, permutations ----------------------------------------------------------------------------


@each
def test_dense_and_sparse_agree_also_where_the_graph_waits_for_gradients(net):
    sparse, dense = both()
    module = made(net)
    expected = module(NodeView.whole(sparse))
    waiting = Graph(dense.x.clone().requires_grad_(), adj=dense.adj.clone().requires_grad_())
    for graph in (dense, waiting, Graph(waiting.x, sparse.edges, sparse.weights)):
        close(module(NodeView.whole(graph)), expected)
        close(module.features(NodeView.whole(graph)), module.features(NodeView.whole(sparse)))


@each
def test_no_edges_at_all_is_an_adjacency_of_zeros(net):
    x = random_features(7)
    module = made(net)
    none = torch.zeros(2, 0, dtype=torch.int64)
    expected = module(NodeView.whole(Graph(x, adj=torch.zeros(7, 7))))
    close(module(NodeView.whole(Graph(x))), expected)
    close(module(NodeView.whole(Graph(x, none))), expected)


@each
def test_a_view_says_the_same_of_its_nodes_as_the_whole(net):
    sparse, dense = both()
    nodes = torch.tensor([7, 2, 2, ISOLATED])
    module = made(net)
    for graph in (sparse, dense):
        close(module(NodeView(graph, nodes)), module(NodeView.whole(graph))[nodes])
        close(module.features(NodeView(graph, nodes)), module.features(NodeView.whole(graph))[nodes])


@each
def test_permuting_the_nodes_changes_nothing(net):
    sparse, dense = both(symmetric=False)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    module = made(net)
    for graph in (sparse, dense):
        close(module(NodeView.whole(graph.induced(order))), module(NodeView.whole(graph))[order])


@each
def test_an_equal_graph_gives_an_equal_gradient(net):
    """The synthetic graph equals the real one: nothing is left to match."""
    sparse, dense = both()
    nodes, y = torch.tensor([1, 4, 8]), torch.tensor([0, 3, 3])
    module = made(net)
    real = Gradient().mean(module, Batch(NodeView(sparse, nodes), y), nodes_task(), live=False)
    synthetic = Gradient().mean(module, Batch(NodeView(dense, nodes), y), nodes_task(), live=True)
    assert set(real) == {name for name, _ in module.named_parameters()}
    for name in real:
        close(synthetic[name], real[name])


def test_settled_graphs_propagate_features_once(monkeypatch):
    sparse, _ = both()
    module = made(SGC())
    expected = module(NodeView.whole(sparse))
    calls = []
    monkeypatch.setattr(Graph, "propagate", lambda *_: calls.append(1))
    close(module(NodeView(sparse, torch.tensor([4, 1]))), expected[[4, 1]])
    assert not calls
    monkeypatch.undo()
    moving = Graph(sparse.x.clone().requires_grad_(), sparse.edges, sparse.weights)
    close(module(NodeView.whole(moving)), expected)
    assert not moving._kept.keys() & {("power", 1), ("power", 2)}, "what waits for a gradient must not be kept"


# -- features ---------------------------------------------------------------------------------------------------------


@each
def test_the_last_layer_is_linear_in_the_features(net):
    """Logits are the head of the features. GAT's and APPNP's are not: attention, and a bias that propagates."""
    sparse, _ = both()
    view = NodeView(sparse, torch.tensor([0, ISOLATED, EMPTY]))
    module = made(net)
    features = module.features(view)
    match net:
        case SGC():
            expected = module.lins[-1](features)
        case GCN():
            expected = module.convs[-1].lin(features) + module.convs[-1].bias
        case GraphSAGE():
            last = module.convs[-1]
            expected = features @ torch.cat([last.lin_l.weight, last.lin_r.weight], dim=1).T + last.lin_l.bias
        case ChebNet():
            expected = features @ torch.cat([lin.weight for lin in module.convs[-1].lins], dim=1).T
        case NodeMLP():
            expected = module.convs[-1].lin(features)
        case APPNP():
            last = module.layers.convs[-1].lin
            spread = module.spread(Pass(sparse), torch.ones(12, 1))[view.nodes]
            expected = features @ last.weight.T + spread * last.bias
        case GAT():
            assert features.shape == (3, 6)
            return
    close(module(view), expected)


# -- gradients --------------------------------------------------------------------------------------------------------


def tiny(n=5):
    """A dense graph in float64, x and upper adjacency, without zero rows (where |x| has a kink)."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    adj = random_adjacency(n, 1, share=0.7).double() + 0.05 * (1 - torch.eye(n, dtype=torch.float64))
    return x.requires_grad_(), adj.requires_grad_()


@each
def test_gradient_matching_is_differentiable_in_features_and_adjacency(net):
    """The gap of parameter gradients against finite differences, in float64, through `functional_call` too."""
    task, module = nodes_task(), made(net).double()
    params = {name: value.detach().requires_grad_() for name, value in module.named_parameters()}
    y = torch.tensor([0, 2, 1])

    def gap(x, adj):
        batch = Batch(NodeView(Graph(x, adj=adj), torch.tensor([0, 3, 1])), y)
        loss = TaskLoss()(lambda view: functional_call(module, params, (view,)), batch, task, Rng(0)).mean()
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        return sum(((g - 0.1) ** 2).sum() for g in grads)

    assert torch.autograd.gradcheck(gap, tiny(), eps=1e-6, atol=1e-6)
    x, adj = tiny()
    total = lambda x: module(NodeView.whole(Graph(x, adj=adj))).sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(total)(x), torch.autograd.grad(total(x), x)[0])


@each
def test_gradients_are_finite_with_isolated_nodes_and_empty_rows(net):
    _, dense = both()
    x, adj = dense.x.clone().requires_grad_(), dense.adj.clone().requires_grad_()
    module = made(net)
    batch = Batch(NodeView.whole(Graph(x, adj=adj)), torch.arange(12) % 4)
    grads = Gradient().mean(module, batch, nodes_task(), live=True)
    found = torch.autograd.grad(sum((g**2).sum() for g in grads.values()), (x, adj), allow_unused=True)
    assert found[0].isfinite().all()
    assert found[0].abs().sum() > 0
    edges_matter = not isinstance(net, NodeMLP) and not (isinstance(net, ChebNet) and net.order == 1)
    assert (found[1] is not None) == edges_matter
    if edges_matter:
        assert found[1].isfinite().all()
        assert found[1].abs().sum() > 0


def test_sparse_graphs_with_moving_features_are_differentiable_twice():
    sparse, dense = both()
    module = made(GCN(hidden=5))
    found = []
    for make in (lambda x: Graph(x, sparse.edges, sparse.weights), lambda x: Graph(x, adj=dense.adj)):
        x = sparse.x.clone().requires_grad_()
        grads = Gradient().mean(module, Batch(NodeView.whole(make(x)), torch.arange(12) % 4), nodes_task(), live=True)
        found.append(torch.autograd.grad(sum((g**2).sum() for g in grads.values()), x)[0])
    close(*found)


# -- attention's weights ----------------------------------------------------------------------------------------------


def test_attention_weighs_an_edge_by_its_weight():
    """By loops: a_ij proportional to w_ij exp(e_ij), and 1 exp(e_ii) for a node itself."""
    sparse, dense = both()
    module = made(GAT(depth=1))
    layer = module.convs[0]
    values = layer.lin(dense.x)
    expected = torch.zeros(12, 4)
    for i in range(12):
        shares = torch.zeros(12)
        for j in range(12):
            score = (values[i] * layer.att_dst[0, 0]).sum() + (values[j] * layer.att_src[0, 0]).sum()
            weight = 1.0 if i == j else dense.adj[i, j]
            shares[j] = weight * F.leaky_relu(score, 0.2).exp()
        expected[i] = shares / shares.sum() @ values + layer.bias
    close(module(NodeView.whole(sparse)), expected)
    close(module(NodeView.whole(dense)), expected)


def test_attention_survives_scores_far_apart_and_an_edge_of_weight_0_is_none():
    x = torch.tensor([[1.0], [400.0], [-400.0]])
    task = nodes_task(features=1)
    module = GAT(depth=1).make(task, Rng(0)).eval()
    adj = torch.tensor([[0.0, 0, 1], [0, 0, 1], [1, 1, 0]], requires_grad=True)
    edges = torch.tensor([[2, 2, 0, 1, 1], [0, 1, 2, 2, 0]])
    sparse = Graph(x, edges, torch.tensor([1.0, 1, 1, 1, 0]))
    out = module(NodeView.whole(Graph(x, adj=adj)))
    close(module(NodeView.whole(sparse)), out)
    assert torch.autograd.grad(out.sum(), adj)[0].isfinite().all()


# -- training, construction, refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [GCN(hidden=5), GAT(hidden=3), SGC(layers=2, dropout=0.5), APPNP(hidden=5)])
def test_dropout_reads_the_global_generator_and_only_in_training(net):
    sparse, _ = both()
    view, module = NodeView.whole(sparse), made(net)
    assert torch.equal(module(view), module(view))
    module.train()
    with seeded(Rng(1)):
        once = module(view)
    with seeded(Rng(1)):
        again = module(view)
    with seeded(Rng(2)):
        other = module(view)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_without_dropout_training_and_evaluation_agree():
    sparse, _ = both()
    for net in (SGC(), GCN(hidden=5, dropout=0)):
        module = made(net)
        assert torch.equal(module.train()(NodeView.whole(sparse)), module.eval()(NodeView.whole(sparse)))


@each
def test_equal_keys_give_equal_networks_and_nothing_is_read_from_the_task_but_its_sizes(net):
    one, two, other = made(net), made(net), made(net, key=1)
    for (name, a), (_, b), (_, c) in zip(*(m.named_parameters() for m in (one, two, other)), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c) or not a.any(), name
    assert not list(one.buffers())
    assert one(NodeView.whole(both()[0])).shape == (12, 4)


@each
def test_it_is_made_and_run_on_the_meta_device(net):
    task = nodes_task()
    with torch.device("meta"):
        module = net.build(task)
        blank = task.form.to(task.form.blank(task, 3), "meta")
        assert module(blank).shape == (3, 4)
        assert module.features(blank).shape[0] == 3


def test_where_weights_start():
    """GCN and SGC as in GCond's code, +-1/sqrt(inputs); attention and polynomials in Glorot's range, as in PyG."""
    task = nodes_task(features=100, classes=50)
    for net in (GCN(hidden=64), SGC()):
        module = net.make(task, Rng(0))
        for name, value in module.named_parameters():
            bound = 1 / math.sqrt(100 if name.startswith(("convs.0", "lins.0")) else 64)
            assert 0.9 * bound < value.abs().max() <= bound, name
    layer = GAT(depth=1).make(task, Rng(0)).convs[0]
    assert 0.9 < layer.lin.weight.abs().max() / math.sqrt(6 / 150) <= 1
    assert 0.8 < layer.att_src.abs().max() / math.sqrt(6 / 51) <= 1
    assert not layer.bias.any()


def test_few_features_and_many_give_the_same():
    """Above 256 nodes the first product goes through the features that are not 0."""
    g = torch.Generator().manual_seed(0)
    x = torch.rand(300, 40, generator=g) * (torch.rand(300, 40, generator=g) < 0.05)
    edges = torch.randint(0, 300, (2, 900), generator=g)
    edges = edges[:, edges[0] != edges[1]]
    few = Graph(x, torch.cat([edges, edges.flip(0)], dim=1))
    assert few.few_features()
    waiting = few.with_x(x.clone().requires_grad_())
    for net in (GCN(hidden=8), GraphSAGE(hidden=8), APPNP(hidden=8), GAT(hidden=3, heads=2), ChebNet(hidden=8)):
        module = net.make(nodes_task(features=40), Rng(0)).eval()
        close(module(NodeView.whole(few)), module(NodeView.whole(waiting)))


@pytest.mark.parametrize("net", [type(net)() for net in NETS])
def test_other_forms_are_refused(net):
    images = Task(classes=("a", "b"), shape=(1, 8, 8))
    with pytest.raises(BadValue, match=f"{net.name} is a network for nodes of a graph, and these are images"):
        net.make(images, Rng(0))
    with pytest.raises(BadValue, match="one row of features"):
        net.build(nodes_task().model_copy(update={"shape": (3, 4)}))


def test_a_network_learns_the_blocks_of_a_block_model():
    g = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    adj = (torch.rand(60, 60, generator=g) < torch.where(y[:, None] == y[None, :], 0.3, 0.02)).float().triu(1)
    edges = (adj + adj.T).nonzero().T
    view = NodeView.whole(Graph(0.5 * F.one_hot(y, 6).float() + torch.randn(60, 6, generator=g), edges))
    for net in (SGC(), GCN(hidden=16), GAT(), GraphSAGE(hidden=16), APPNP(hidden=16), ChebNet(hidden=16)):
        module = net.make(nodes_task(classes=3), Rng(0))
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        with seeded(Rng(0)):
            for _ in range(30):
                optimizer.zero_grad()
                F.cross_entropy(module(view)[:30], y[:30]).backward()
                optimizer.step()
        right = (module.eval()(view)[30:].argmax(1) == y[30:]).float().mean()
        assert right > 0.6, net.name
