"""What is stored of a condensed graph: generators against plain ones, drawn edges, pieces of the real graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from condense.artifact import load, write_artifact
from condense.component import named
from condense.data import Data
from condense.engine import condense
from condense.errors import Damaged
from condense.parts.labels import Hard
from condense.plugins import registry
from condense.rng import Rng
from condense.store import load as load_tree
from condense.store import save
from condense.task import Batch
from condense.testing import toy_run
from condense_graph.graph import Graph, NodeView
from condense_graph.parameterizations import FreeNodes, StoredGraph
from condense_graph.sources.generated import SBM
from condense_graph.structures import PairMLP, SampledEdges, pair_scores

from .conftest import sbm


def filled(how, splits, groups=(0, 0, 1, 1, 2), seed=0):
    """Storage filled with random real nodes of these classes, and the batch that it was filled with."""
    groups = torch.tensor(groups)
    run = toy_run(registry().recipe("random", "nodes")(total=len(groups)), splits, seed=seed)
    batch = registry().parts["init"]["real"][0]()(run, groups)
    syn = how.empty(run.task, groups, Hard())
    syn.start(Rng(seed))
    syn.fill(batch)
    return syn, batch


# -- the generator --------------------------------------------------------------------------------------------------


def plain_scores(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """GCond's generator as its paper writes it: all pairs side by side, through three layers with biases."""
    n, h = len(x), len(weights["third"])
    pairs = torch.cat([x.repeat_interleave(n, 0), x.repeat(n, 1)], dim=1)
    first = torch.cat([weights["first"][:h], weights["first"][h:]], dim=1)
    layers = [nn.Linear(2 * x.shape[1], h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, h), nn.BatchNorm1d(h), nn.ReLU()]
    net = nn.Sequential(*layers).double()  # with the linear layers' biases, which the norms take away again
    own = dict(net.named_parameters())
    names = {"0.weight": first, "3.weight": weights["second"]}
    names |= {key: weights["norms"][i] for i, key in enumerate(("1.weight", "1.bias", "4.weight", "4.bias"))}
    hidden = torch.func.functional_call(net, {**own, **names}, (pairs,))
    return (hidden * weights["third"]).sum(dim=1).view(n, n)


def random_weights(features: int, hidden: int) -> dict:
    g = torch.Generator().manual_seed(1)
    shapes = {"first": (2 * hidden, features), "second": (hidden, hidden), "third": (hidden,)}
    made = {key: torch.randn(shape, generator=g, dtype=torch.float64) for key, shape in shapes.items()}
    norms = tuple(torch.randn(hidden, generator=g, dtype=torch.float64) for _ in range(4))
    return {**made, "norms": norms}


def test_the_separated_generator_is_the_plain_one_in_value_and_in_every_gradient():
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weights = random_weights(5, 7)
    leaves = [x, weights["first"], weights["second"], weights["third"], *weights["norms"]]
    for leaf in leaves:
        leaf.requires_grad_()
    ours = pair_scores(x, weights["first"], weights["second"], weights["third"], weights["norms"])
    plain = plain_scores(x, weights)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    pulled = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(ours, leaves, pulled), torch.autograd.grad(plain, leaves, pulled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


def test_in_float32_they_agree_to_a_millionth():
    weights = random_weights(20, 16)
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    norms = tuple(norm.float() for norm in weights["norms"])
    three = [weights[key].float() / 4 for key in ("first", "second", "third")]
    ours = torch.sigmoid(pair_scores(x.float(), *three, norms) / 8)
    scaled = {**weights, **{key: weights[key] / 4 for key in ("first", "second", "third")}}
    torch.testing.assert_close(ours.double(), torch.sigmoid(plain_scores(x, scaled) / 8), rtol=0, atol=2e-6)


@pytest.mark.parametrize("structure", [PairMLP(hidden=8, threshold=0.3, start=0.0), SampledEdges()])
@pytest.mark.parametrize("rng", [Rng(5), None])
def test_edges_are_symmetric_between_0_and_1_and_no_loops(structure, rng):
    syn, _ = filled(FreeNodes(structure=structure), sbm(homophily=1.0, degree=15), (0,) * 5)
    adj = syn.decode(None, rng).x.graph.adj.detach()
    assert torch.equal(adj, adj.T)
    assert torch.equal(adj.diagonal(), torch.zeros(5))
    assert float(adj.min()) >= 0
    assert 0 < float(adj.max()) <= 1


def test_the_released_form_cuts_below_the_threshold_and_shifts_nothing():
    splits = sbm()
    syn, _ = filled(FreeNodes(structure=PairMLP(hidden=8)), splits)
    full = syn.decode(None, Rng(0)).x.graph.adj.detach()
    middle = float(full[full > 0].median())
    syn, _ = filled(FreeNodes(structure=PairMLP(hidden=8, threshold=middle)), splits)
    cut = syn.decode(None, None).x.graph.adj.detach()
    assert 0 < int((cut > 0).sum()) < int((full > 0).sum())
    assert torch.equal(cut, torch.where(full < middle, 0.0, full))


def test_the_order_of_nodes_does_not_matter_to_the_generator():
    edges = PairMLP(hidden=8).build(6, 4).double()
    edges.start(Rng(3))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    adj = edges.weights(x, Rng(0))
    torch.testing.assert_close(edges.weights(x[order], Rng(0)), adj[order][:, order])


def test_a_generator_starts_as_its_key_says():
    splits = sbm()
    how = FreeNodes(structure=PairMLP(hidden=8))
    one, same, other = (filled(how, splits, seed=seed)[0].edges.first.detach() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert float(one.abs().max()) <= 1 / (2 * 16) ** 0.5  # torch's own range for 2 D inputs
    assert float(one.std()) == pytest.approx(1 / (3 * 2 * 16) ** 0.5, rel=0.1)


# -- features and decoding ------------------------------------------------------------------------------------------


def test_relative_features_are_in_units_of_their_own_size():
    splits = sbm()
    for relative in (True, False):
        syn, batch = filled(FreeNodes(relative=relative), splits)
        x = batch.x.graph.x[batch.x.nodes]
        size = x.square().mean().sqrt() if relative else torch.ones(())
        torch.testing.assert_close(syn.features.detach(), x / size)
        torch.testing.assert_close(syn.decode(None, None).x.graph.x.detach(), x)


def test_features_of_zeros_stay_finite():
    syn, batch = filled(FreeNodes(), sbm())
    view = batch.x
    syn.fill(Batch(NodeView(Graph(torch.zeros_like(view.graph.x)), view.nodes), batch.y))
    assert torch.equal(syn.decode(None, None).x.graph.x, torch.zeros(5, 16))


def test_a_set_is_decoded_once_for_each_state_of_its_parameters(monkeypatch):
    syn, _ = filled(FreeNodes(structure=PairMLP(hidden=8)), sbm())
    made = []
    weights = type(syn.edges).weights
    monkeypatch.setattr(type(syn.edges), "weights", lambda self, x, rng: made.append(rng) or weights(self, x, rng))
    frozen = syn.freeze(Rng(1))
    live = syn.decode(None, Rng(2))
    assert len(made) == 1
    assert not frozen.x.graph.adj.requires_grad
    assert live.x.graph.adj.requires_grad
    assert torch.equal(frozen.x.graph.adj, live.x.graph.adj)
    with torch.no_grad():
        syn.features.add_(torch.randn(5, 16))
    moved = syn.freeze(Rng(1)).x.graph
    assert len(made) == 2
    assert not torch.equal(moved.adj, frozen.x.graph.adj)
    assert not torch.equal(moved.x, frozen.x.graph.x)
    syn.decode(None, None)
    assert made[-1] is None, "the released form is another one"


def test_gradients_reach_features_and_structure_through_a_kept_decoding():
    syn, _ = filled(FreeNodes(structure=PairMLP(hidden=8)), sbm())
    syn.freeze(Rng(1))
    graph = syn.decode(None, Rng(2)).x.graph
    (graph.propagate(graph.x).square().sum()).backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in (syn.features, syn.edges.first, syn.edges.third))


def test_a_generator_can_start_from_few_edges():
    sparse, half = (
        filled(FreeNodes(structure=PairMLP(hidden=8, start=start)), sbm())[0].decode(None, Rng(0)).x.graph.adj.detach()
        for start in (-4.0, 0.0)
    )
    torch.testing.assert_close(torch.logit(sparse[0, 1:]), torch.logit(half[0, 1:]) - 4)


def test_items_of_a_free_set_are_views_of_one_graph():
    syn, _ = filled(FreeNodes(structure=PairMLP(hidden=8)), sbm())
    some = syn.decode(torch.tensor([4, 1]), Rng(0))
    assert some.x.graph is syn.decode(None, Rng(0)).x.graph
    assert some.x.nodes.tolist() == [4, 1]
    assert some.y.tolist() == [2, 0]


# -- drawn edges ----------------------------------------------------------------------------------------------------


def test_drawn_edges_start_from_those_between_the_chosen_nodes():
    syn, batch = filled(FreeNodes(structure=SampledEdges()), sbm(homophily=1.0, degree=15), (0,) * 5)
    part = batch.x.graph.induced(batch.x.nodes)
    dense = torch.zeros(5, 5)
    for source, target in part.edges.T.tolist():
        dense[target, source] = 1
    assert 0 < int(dense.sum()) < 20
    assert torch.equal(syn.decode(None, None).x.graph.adj, dense)


def test_drawn_edges_follow_their_key_and_cool_down():
    syn, _ = filled(FreeNodes(structure=SampledEdges(over=10)), sbm())
    with torch.no_grad():
        syn.edges.logits.copy_(torch.randn(5, 5))
    adj = [syn.decode(None, Rng(seed)).x.graph.adj.detach() for seed in (1, 1, 2)]
    assert torch.equal(adj[0], adj[1])
    assert not torch.equal(adj[0], adj[2])
    for index in range(12):
        syn.project(index)
    assert float(syn.edges.heat) == pytest.approx(0.01)
    cold = syn.decode(None, Rng(1)).x.graph.adj.detach()
    assert torch.equal(cold.round(), adj[0].round()), "an edge is there or not whatever the temperature"
    assert float((cold - cold.round()).abs().mean()) < float((adj[0] - adj[0].round()).abs().mean())


def test_an_edge_is_drawn_as_often_as_its_chance_says():
    edges = SampledEdges().build(2, 1)
    with torch.no_grad():
        edges.logits.copy_(torch.tensor([[0.0, 1.0], [1.8, 0.0]]))  # their mean counts
    drawn = torch.stack([edges.weights(torch.zeros(2, 1), Rng(seed))[0, 1] for seed in range(2000)])
    chance = float(torch.sigmoid(torch.tensor(1.4)))
    assert float((drawn > 0.5).float().mean()) == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 2000) ** 0.5)


# -- pieces of the real graph ---------------------------------------------------------------------------------------


def real_rows(syn, splits, **by) -> Tensor:
    """For each synthetic node the one real training node that has its features; asserts that there is one."""
    train, view = splits.train, syn.freeze().x
    x = view.graph.x[view.nodes]
    same = (x[:, None, :] - train.graph.x[train.nodes][None]).abs().amax(dim=2) <= by.get("within", 0.0)
    assert torch.equal(same.sum(dim=1), torch.ones(len(x), dtype=torch.int64)), "not exactly one real node"
    return same.float().argmax(dim=1)


@pytest.mark.parametrize("how", [StoredGraph(), StoredGraph(around=True), FreeNodes(structure=SampledEdges())])
def test_features_labels_and_edges_of_a_node_belong_together(how):
    """GCond's own code puts features in the order of class numbers and labels in the order of class sizes."""
    splits = sbm(classes=4, per_class=(40, 12, 30, 20), homophily=0.6, degree=8)
    groups = (0, 0, 0, 0, 1, 2, 2, 2, 3, 3)
    syn, _ = filled(how, splits, groups)
    rows = real_rows(syn, splits, within=1e-6)
    frozen, train = syn.freeze(), splits.train
    assert torch.equal(train.y[rows], frozen.y)
    assert frozen.y.tolist() == list(groups)
    nodes = train.nodes[rows]
    ends, weights = frozen.x.graph.listed()
    keep = torch.isin(ends, frozen.x.nodes).all(dim=0) & (weights > 0)
    place = {int(node): i for i, node in enumerate(frozen.x.nodes)}
    ours = {(place[a], place[b]) for a, b in ends[:, keep].T.tolist()}
    real = set(map(tuple, train.graph.edges.T.tolist()))
    pairs = [(i, j) for i in range(len(nodes)) for j in range(len(nodes)) if i != j]
    assert ours == {(i, j) for i, j in pairs if (int(nodes[i]), int(nodes[j])) in real}
    assert ours, "no edge to look at"


def test_on_cora_too(data_root, monkeypatch):
    monkeypatch.setenv("CONDENSE_DATA", str(data_root))
    splits = named(Data, "cora").open()
    run = toy_run(registry().recipe("gcond", "nodes")(total=70), splits)
    run = toy_run(run.recipe.with_(outer=run.recipe.outer.with_(steps=0)), splits)
    syn = condense(run)
    rows = real_rows(syn, run.splits, within=1e-7)
    assert torch.equal(run.splits.train.y[rows], syn.y)
    assert torch.bincount(syn.y).tolist() == [10] * 7


def test_the_whole_graph_is_stored_around_the_chosen_nodes():
    splits = sbm()
    syn, batch = filled(StoredGraph(around=True), splits)
    graph = syn.decode(None, None).x.graph
    assert torch.equal(graph.x, batch.x.graph.x)
    assert torch.equal(graph.edges, batch.x.graph.edges)
    assert torch.equal(syn.decode(None, None).x.nodes, batch.x.nodes)


# -- stored and opened ----------------------------------------------------------------------------------------------

HOWS = [FreeNodes(), FreeNodes(structure=PairMLP(hidden=8)), FreeNodes(structure=SampledEdges()), StoredGraph()]


@pytest.mark.parametrize("how", [*HOWS, StoredGraph(around=True)])
def test_an_artifact_opens_from_its_plan_alone(how, tmp_path):
    data = SBM(sizes=(20, 20, 20))
    recipe = registry().recipe("random", "nodes")(total=6).with_(parameterization=how)
    run = toy_run(recipe, data.open())
    run.plan = run.plan.model_copy(update={"data": data})
    syn = condense(run)
    made = write_artifact(tmp_path / "set", run.plan, syn, run.transform, run.task, {})
    form, again = run.task.form, load(tmp_path / "set").sampler()
    for key, value in form.pack(syn.freeze().x).items():
        assert torch.equal(form.pack(again.x)[key], value), key
    assert torch.equal(again.y, syn.y)
    assert made.stored == syn.stored()


def test_bytes_are_those_of_what_is_released():
    splits = sbm()
    labels, features = 5 * 8, 5 * 16 * 4
    syn, _ = filled(FreeNodes(), splits)
    assert syn.stored() == {"features": features, "edges": 0, "labels": labels}
    syn, _ = filled(FreeNodes(structure=PairMLP(hidden=8, threshold=0.3, start=0.0)), splits)
    edges = int((syn.decode(None, None).x.graph.adj > 0).sum())
    generator = 4 * (2 * 8 * 16 + 8 * 8 + 8 + 1 + 4 * 8)
    assert syn.stored() == {"features": features, "edges": edges * 20, "labels": labels, "generator": generator}
    syn, batch = filled(StoredGraph(), splits)
    edges = len(batch.x.graph.induced(batch.x.nodes).edges.T)
    assert syn.stored() == {"features": features, "edges": edges * 20, "labels": labels}


@pytest.mark.parametrize(
    ("name", "bad", "said"),
    [
        ("edges", torch.tensor([[0, 7], [1, 2]]), "a node is named that is not among the 5 there are"),
        ("nodes", torch.tensor([0, 1, 2, 3, -1]), "a node is named"),
        ("weights", torch.ones(3), "weights"),
        ("x", torch.zeros(5, 3), "shape"),
        ("x", torch.zeros(2, 16), "a node is named"),
    ],
)
def test_a_stored_graph_that_does_not_fit_together_is_refused(name, bad, said):
    syn, _ = filled(StoredGraph(), sbm(degree=20))
    state = {**syn.state_dict(), "edges": torch.tensor([[0, 1], [1, 2]]), "weights": torch.ones(2), name: bad}
    other = StoredGraph().empty(syn.task, syn.item_groups, Hard())
    with pytest.raises(RuntimeError, match=said):
        other.load_state_dict(state)


def test_an_artifact_whose_edges_are_of_another_type_is_damaged(tmp_path):
    from condense.artifact import _filled

    syn, _ = filled(StoredGraph(), sbm())
    path = tmp_path / "tensors"
    save(path, {"set": {**syn.state_dict(), "edges": torch.zeros(2, 1)}}, "artifact")
    tree = load_tree(path, "artifact")
    with pytest.raises(Damaged, match=r"set.edges should be torch.int64 of 2 dimensions"):
        _filled(lambda: StoredGraph().empty(syn.task, syn.item_groups, Hard()), tree, "set", path)
