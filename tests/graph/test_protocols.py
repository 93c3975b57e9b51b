"""graph, graphs, graphs-gin: constants as the official codes have them, and plain re-implementations of the loops."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import condense
from condense import baselines, plan
from condense.axes import Net
from condense.component import named
from condense.data import TensorSampler
from condense.errors import BadValue
from condense.evaluate import Candidate, evaluate, network_key
from condense.parts.rules import Adam
from condense.plugins import registry
from condense.protocol import Protocol
from condense.rng import Rng, seeded
from condense_graph.graph import Graph, NodeView
from condense_graph.protocols import OnGraphs, OnGraphsGIN, OnNodes, halfway
from condense_graph.sources.generated import SBM

from .whole_graphs import two_kinds

GCN = {"name": "gcn", "depth": 2, "hidden": 16, "dropout": 0.5}


def transformed(splits):
    """The features as they are."""
    from condense.testing import Raw

    return Raw().fit(splits.train, splits.facts)


def condensed(splits) -> Candidate:
    """A small dense graph: 4 labelled nodes of each class, and every pair of one class joined."""
    batch = splits.train.draw(4, "each", Rng(2))
    x = batch.x.graph.x[batch.x.nodes]
    adj = (batch.y[:, None] == batch.y[None, :]).float() * 0.3
    graph = Graph(x.clone(), adj=adj.fill_diagonal_(0))
    return Candidate(TensorSampler(splits.task, NodeView.whole(graph), batch.y), transformed(splits), "toy")


@pytest.fixture(scope="module")
def block():
    """A noisy stochastic block model of 120 nodes."""
    return SBM(sizes=(40, 40, 40), homophily=0.7, noise=0.5, seed=1).open()


def test_the_constants_of_the_judge_of_nodes(block):
    judge = named(Protocol, "graph")
    assert isinstance(judge, OnNodes)
    (net,) = judge.nets
    assert (net.name, net.depth, net.hidden, net.dropout) == ("gcn", 2, 256, 0.5)
    fit = judge.fit(block.train)
    assert (fit.steps, fit.epochs, fit.batch, fit.augment) == (600, None, None, None)
    assert fit.rule == Adam(weight_decay=5e-4)
    assert (fit.lr.start, fit.lr.at, fit.lr.factor, fit.lr.restart) == (0.01, (0.5,), 0.1, True)
    assert (judge.repeats, judge.keep, judge.look, judge.split, judge.whole) == (10, "best", 1, "test", True)


def test_the_constants_of_the_judges_of_whole_graphs():
    train = two_kinds(100).train
    judge = named(Protocol, "graphs")
    assert isinstance(judge, OnGraphs)
    (net,) = judge.nets
    assert (net.name, net.depth, net.hidden, net.pool) == ("graph-gcn", 3, 128, "mean")
    fit = judge.fit(train)
    assert (fit.steps, fit.epochs, fit.batch, fit.rule) == (None, 500, 128, Adam())
    assert (fit.lr.value(0.499), fit.lr.value(0.5)) == (1e-3, pytest.approx(1e-4))
    assert (judge.repeats, judge.keep, judge.whole) == (3, "best", True)
    judge = named(Protocol, "graphs-gin")
    assert isinstance(judge, OnGraphsGIN)
    assert [(net.name, net.depth, net.hidden) for net in judge.nets] == [("gin", 5, 64)]
    fit = judge.fit(train)
    assert (fit.epochs, fit.batch, fit.rule) == (200, 128, Adam(weight_decay=5e-4))
    assert (judge.repeats, judge.keep, judge.whole) == (3, "last", True)


@pytest.mark.parametrize("epochs", [1, 49, 50, 51, 120, 200])
def test_gin_rates_are_those_of_step_lr(epochs):
    train = two_kinds(100).train
    fit = OnGraphsGIN(epochs=epochs).fit(train)
    batches = fit.length(train) // epochs
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.001)
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, step_size=50, gamma=0.5)
    for epoch in range(epochs):
        for step in range(epoch * batches, (epoch + 1) * batches):
            assert fit.lr.value(step / (epochs * batches)) == pytest.approx(scheduler.get_last_lr()[0])
            assert not fit.lr.restarts((step - 1) / (epochs * batches), step / (epochs * batches))
        optimiser.step()
        scheduler.step()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 599, 600])
@pytest.mark.parametrize("batches", [1, 3])
def test_the_rate_falls_and_the_optimiser_is_new_in_the_middle(length, batches):
    lr, total = halfway(0.01, length), length * batches
    for step in range(total):
        late = step // batches >= length // 2
        assert lr.value(step / total) == pytest.approx(0.001 if late else 0.01)
        first = step == length // 2 * batches
        assert lr.restarts((step - 1) / total, step / total) == first


def official(module, candidate, splits, steps, key, lr=0.01):
    """`fit_with_val` and `test` of GCond's code: (test accuracy of the best weights, of the last, step of the best)."""
    optimiser = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=5e-4)
    best, weights, at = 0.0, None, 0

    def accuracy(source):
        module.eval()
        with torch.no_grad():
            said = module(NodeView.whole(source.graph))[source.nodes].argmax(1)
        return float((said == source.y).double().mean())

    for i in range(steps):
        if i == steps // 2:
            optimiser = torch.optim.Adam(module.parameters(), lr=lr * 0.1, weight_decay=5e-4)
        module.train()
        optimiser.zero_grad()
        with seeded(key.fold("global", i)):
            said = module(candidate.data.x)
        F.nll_loss(said.log_softmax(1), candidate.data.y).backward()
        optimiser.step()
        if accuracy(splits.validation) > best:
            best, weights, at = accuracy(splits.validation), copy.deepcopy(module.state_dict()), i + 1
    last = accuracy(splits.test)
    module.load_state_dict(weights)
    return accuracy(splits.test), last, at


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_nodes_are_judged_as_by_the_official_loop(setting):
    splits = SBM(sizes=(40, 40, 40), homophily=0.7, noise=0.5, seed=1, setting=setting).open()
    judge, set_ = OnNodes(nets=(GCN,), steps=40, repeats=3), condensed(splits)
    row = evaluate(set_, splits, judge, seed=5).rows[0]
    expected = []
    for i in range(3):
        key = network_key(5, judge.nets[0], i)
        module = judge.nets[0].make(splits.task, key.fold("make"))
        expected.append(official(module, set_, splits, 40, key.fold("train")))
    assert row.accuracies == pytest.approx([best for best, _, _ in expected])
    assert row.numbers["last-accuracy"] == pytest.approx([last for _, last, _ in expected])
    assert any(at < 40 for _, _, at in expected)
    assert row.mean > 0.45  # of three classes


def test_whole_graphs_are_judged_with_a_look_after_every_epoch():
    splits = two_kinds(30)
    judge = OnGraphs(nets=({"name": "graph-gcn", "hidden": 8},), epochs=6, batch=20, lr=0.02, repeats=2)
    set_ = Candidate(splits.train, transformed(splits), "toy")
    row = evaluate(set_, splits, judge).rows[0]
    for i in range(2):
        key = network_key(0, judge.nets[0], i)
        module = judge.nets[0].make(splits.task, key.fold("make"))
        optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
        best, weights = 0.0, None
        for epoch in range(6):
            if epoch == 3:
                optimiser = torch.optim.Adam(module.parameters(), lr=0.002)
            for chunk in range(3):  # 48 graphs
                batch = splits.train.draw(20, None, key.fold("train", "batch"), at=3 * epoch + chunk)
                optimiser.zero_grad()
                F.cross_entropy(module(batch.x), batch.y).backward()
                optimiser.step()
            (seen,) = splits.validation.sweep(100)
            right = float((module(seen.x).argmax(1) == seen.y).float().mean())
            if right > best:
                best, weights = right, copy.deepcopy(module.state_dict())
        module.load_state_dict(weights)
        (seen,) = splits.test.sweep(100)
        assert row.accuracies[i] == pytest.approx(float((module(seen.x).argmax(1) == seen.y).float().mean()))


def test_networks_with_dropout_are_the_same_whatever_is_looked_at(block):
    set_ = condensed(block)
    judge = OnNodes(nets=(GCN,), steps=12, repeats=2)
    last = evaluate(set_, block, judge).rows[0].numbers["last-accuracy"]
    for other in (judge.with_(look=5), judge.with_(record=4), judge.with_(keep="last")):
        row = evaluate(set_, block, other).rows[0]
        assert row.numbers.get("last-accuracy", row.accuracies) == last


def test_one_view_of_the_graph_serves_each_look(block, monkeypatch):
    calls = []
    sweep = type(block.validation).sweep
    monkeypatch.setattr(type(block.validation), "sweep", lambda self, n: calls.append(len(self)) or sweep(self, n))
    judge = OnNodes(nets=(GCN,), steps=7, repeats=1)
    evaluate(condensed(block), block, judge)
    assert calls == [len(block.validation)] * 7 + [len(block.test)] * 2


def test_without_validation_nodes_are_judged_by_their_last_weights_or_not_at_all():
    splits = SBM(sizes=(20, 20), validation=0.0).open()
    judge = OnNodes(nets=(GCN,), steps=3, repeats=1)
    with pytest.raises(BadValue, match="validation split, which this data set does not have"):
        evaluate(condensed(splits), splits, judge)
    assert evaluate(condensed(splits), splits, judge.with_(keep="last")).rows[0].n == 1


def test_a_network_for_other_examples_is_refused(block):
    with pytest.raises(BadValue, match="graph-gcn"):
        evaluate(condensed(block), block, OnNodes(nets=(named(Net, "graph-gcn"),), steps=3))


def test_the_whole_graph_is_judged_by_the_same_rules(block, tmp_path, monkeypatch):
    from condense.testing import toy_recipe, toy_run

    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path))
    run, judge = toy_run(toy_recipe(), block), OnNodes(nets=(GCN,), steps=40, repeats=2)
    row = baselines.full_data(run, judge).rows[0]
    assert (row.kind, row.images, row.protocol, row.rules) == ("full", 36, "graph", judge.rules_digest())
    expected = []
    for i in range(2):
        key = network_key(0, judge.nets[0], i)
        module = judge.nets[0].make(block.task, key.fold("make"))
        view = NodeView(block.train.graph, block.train.nodes)
        everything = Candidate(TensorSampler(block.task, view, block.train.y), transformed(block), "all")
        expected.append(official(module, everything, block, 40, key.fold("train"))[0])
    assert row.accuracies == pytest.approx(expected)
    assert row.mean > evaluate(condensed(block), block, judge).rows[0].mean - 0.1
    assert baselines.full_data_is_made(run, judge)


# -- the metric of the data -----------------------------------------------------------------------------------------

METHODS = ("random", "herding", "k-center", "doscond", "kidd", "kidd-lr")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("data", ["ogbg-molbace", "ogbg-molbbbp", "ogbg-molhiv"])
def test_molecules_are_judged_by_roc_auc_at_any_budget_and_by_any_judge(name, data):
    for size in (1, 2, 10, 37):
        assert metrics(plan(name, data=data, per_class=size)) == ["roc-auc"]
    assert metrics(plan(name, data=data, per_class=2, published=False)) == ["roc-auc"]
    for judge in ("graphs", "graphs-gin", OnGraphs(epochs=3), {"name": "graphs", "epochs": 3}):
        assert metrics(plan(name, data=data, per_class=2, protocol=judge)) == ["roc-auc"]


def test_metrics_that_are_named_win_over_those_of_the_data():
    asked = {"name": "graphs", "metrics": ["accuracy"]}
    assert metrics(plan("kidd", data="ogbg-molbace", per_class=2, protocol=asked)) == ["accuracy"]
    wanted = {"protocol.metrics": ["accuracy", "roc-auc"]}
    assert metrics(plan("kidd", data="ogbg-molbace", per_class=2, settings=wanted)) == ["accuracy", "roc-auc"]
    assert metrics(plan("kidd", data="mutag", per_class=2)) == ["accuracy"]


def test_data_around_molecules_is_judged_as_they_are():
    data = {"name": "private", "data": "ogbg-molbace", "epsilon": 8}
    assert metrics(plan("doscond", data=data, per_class=2)) == ["roc-auc"]


def metrics(settled):
    return [metric.name for metric in settled.protocol.metrics]


# -- a recipe that is handed over -----------------------------------------------------------------------------------

FORMS = [
    ("nodes", "gcond-x", "karate", "graph"),
    ("graphs", "kidd", "mutag", "graphs"),
    ("tensors", "dm", "digits", "vico"),
]


@pytest.mark.parametrize(("form", "name", "data", "judge"), FORMS)
def test_a_recipe_is_judged_as_its_form_is(form, name, data, judge):
    recipe = registry().recipe(name, form=form)(**({"total": 4} if form == "nodes" else {"per_class": 1}))
    assert plan(recipe, data=data).protocol == named(Protocol, judge)
    assert plan(recipe, data=data, settings={"protocol.repeats": 2}).protocol.repeats == 2
    assert plan(recipe, data=data, protocol="vico-dsa").protocol.name == "vico-dsa"


def test_a_recipe_that_is_handed_over_is_made_and_judged_on_nodes(tmp_path):
    recipe = registry().recipe("random", form="nodes")(total=4)
    settings = {"protocol.repeats": 1, "protocol.steps": 5}
    made = condense.run(recipe, data="karate", settings=settings, out=tmp_path / "made")
    (row,) = condense.judge(made, random=False, full=False).report["rows"]
    assert row["protocol"] == "graph"
