"""The node recipes against what their papers' code runs, and against class-by-class, edge-by-edge versions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from condense.axes import Statistic
from condense.data import Ask, Source
from condense.engine import condense
from condense.errors import BadData, BadValue
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.budgets import Ratio, Total
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.inits import Herding, KCenter, Noise, Real
from condense.parts.matching import ClassWise, Gradient, Matching, MeanFeature
from condense.parts.pools import Fresh
from condense.parts.rules import Adam
from condense.parts.selections import OnValidation
from condense.plugins import registry
from condense.published import rows, settings_for
from condense.recipe import Recipe, check_recipe
from condense.rng import Rng
from condense.running import Paused, Step
from condense.testing import Sealed, check_method, toy_run
from condense_graph.dc_graph import EdgeFree
from condense_graph.graph import Graph
from condense_graph.nets import GCN, SGC
from condense_graph.parameterizations import FreeNodes, StoredGraph
from condense_graph.preprocess import NodeFeatures
from condense_graph.structures import PairMLP, SampledEdges

from .conftest import sbm

LEARNED = ["gcond", "gcond-x", "dc-graph", "doscond", "gcdm", "gcdm-x"]
CHOSEN = ["random", "herding", "k-center", "whole"]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


def method(name, **settings) -> Recipe:
    if name != "whole":
        settings = {"total": 7, **settings}
    return registry().recipe(name, "nodes")(**settings)


def settled(name, data, total) -> Recipe:
    """The recipe with its published settings for this data."""
    published = registry().recipe(name, "nodes")
    recipe = published(total=total)
    for path, value in settings_for(published, data, None, total).settings.items():
        recipe = recipe.set(path, value)
    return recipe


def small(name, steps=3, **settings) -> Recipe:
    """The method with narrow networks, few outer steps and two training steps wherever something is trained."""
    recipe = method(name, **settings)
    recipe = recipe.rewrite(GCN, lambda net: net.with_(hidden=8)).rewrite(PairMLP, lambda mlp: mlp.with_(hidden=8))
    recipe = recipe.rewrite(Fit, lambda fit: fit.with_(epochs=None, steps=2))
    outer = recipe.outer.with_(steps=min(steps, recipe.outer.steps))
    groups = tuple(group.with_(every=1, phase=0, span=1) for group in outer.groups)  # both move at every step
    return recipe.with_(outer=outer.with_(groups=groups), selection=None)


# -- what they are --------------------------------------------------------------------------------------------------


def test_gcond_matches_what_dc_matches_but_for_the_weights_of_classes():
    dc, gcond = registry().recipe("dc")().objective, method("gcond").objective
    assert gcond == dc.with_(pairing=dc.pairing.with_(weight="frequency"))
    assert type(gcond) is type(dc)
    assert method("gcond-x").objective == gcond


def test_gcond_is_what_its_code_runs():
    recipe = method("gcond")
    assert recipe.objective == Matching(
        statistic=Gradient(), distance=RowCosine(eps=1e-6), pairing=ClassWise(n=256, weight="frequency")
    )
    assert recipe.pool == Fresh(
        net=SGC(hops=2, layers=1), turns=20, inner=Fit(rule=Adam(weight_decay=0.0), lr=0.01, steps=15, batch=None)
    )
    assert recipe.parameterization.structure == PairMLP(hidden=128, threshold=0.05, start=-4.0)
    assert recipe.init == Real()


@pytest.mark.parametrize("data", ["cora", "citeseer"])
def test_published_settings_are_those_of_the_script(data):
    """--lr_feat=1e-4 --lr_adj=1e-4 --epoch=600, and the set after the last epoch."""
    recipe = settled("gcond", data, 70)
    rates = {group.role: group.lr for group in recipe.outer.groups}
    assert rates == {"features": 1e-4, "structure": 1e-4}
    assert (recipe.outer.steps, recipe.selection, recipe.parameterization.relative) == (600 * 20, None, False)
    assert recipe.parameterization.structure == PairMLP(hidden=128, threshold=0.05, start=0.0)


def test_the_default_releases_what_validation_likes_best():
    for name in LEARNED:
        assert method(name).selection == OnValidation(
            net=GCN(), fit=Fit(rule=Adam(weight_decay=5e-4), lr=0.01, steps=300, batch=None), times=5, repeats=2
        )
    assert all(method(name).selection is None for name in CHOSEN)


def test_structure_and_features_move_in_the_epochs_in_which_the_code_moves_them():
    outer = method("gcond").outer
    features, structure = outer.group("features"), outer.group("structure")
    for epoch in (0, 1, 9, 10, 11, 49, 50, 59, 60, 99, 100, 555):
        for step in (epoch * 20, epoch * 20 + 19):
            assert structure.moves(step) == (epoch % 50 < 10), (epoch, step)
            assert features.moves(step) == (epoch % 50 >= 10), (epoch, step)
    assert all(method("gcond-x").outer.group("features").moves(step) for step in range(1000))


def test_the_other_methods_differ_from_gcond_in_what_their_papers_say():
    gcond, gcond_x, dos = method("gcond"), method("gcond-x"), method("doscond")
    assert gcond_x == gcond.with_(parameterization=FreeNodes(), outer=gcond_x.outer)
    assert method("dc-graph") == gcond_x.rewrite(Statistic, lambda statistic: EdgeFree(statistic=statistic))
    assert (dos.pool.turns, dos.pool.inner, dos.objective.distance) == (1, None, SquaredError())
    assert dos.objective.with_(distance=RowCosine()) == gcond.objective
    assert method("doscond", edges="sampled").parameterization.structure == SampledEdges()
    with pytest.raises(BadValue, match="neither generated nor sampled"):
        method("doscond", edges="foo")
    assert [dos.outer.group("structure").moves(step) for step in range(0, 60, 10)] == [True, *[False] * 4, True]
    gcdm, gcdm_x = method("gcdm"), method("gcdm-x")
    assert gcdm.objective == Matching(
        statistic=MeanFeature(), distance=SquaredError(), pairing=ClassWise(n=None, weight="frequency")
    )
    assert gcdm.pool == Fresh(net=SGC(), turns=1, inner=None)
    assert gcdm_x == gcdm.with_(parameterization=FreeNodes(), outer=gcdm_x.outer)


def test_drawn_edges_can_turn_within_a_run_of_the_defaults():
    """Logits start at +-5: at the generator's rate they would end there."""
    recipe = method("doscond", edges="sampled")
    features, structure = recipe.outer.groups
    moves = sum(structure.moves(i) for i in range(recipe.outer.steps))
    assert structure.lr * moves > 2 * recipe.parameterization.structure.sure
    assert not any(features.moves(i) and structure.moves(i) for i in range(recipe.outer.steps))


def test_coresets_choose_by_a_network_trained_on_the_real_graph():
    inits = [method(name).init for name in CHOSEN]
    assert [type(init) for init in inits] == [Real, Herding, KCenter, Real]
    assert inits[1].scorer.net == GCN(depth=2, hidden=256, dropout=0.5)
    assert all(method(name).parameterization == StoredGraph(around=name == "whole") for name in CHOSEN)


def test_sizes_are_asked_for_in_all_or_as_a_share():
    assert method("gcond", total=70).budget == Total(n=70)
    make = registry().recipe("gcond", "nodes")
    assert make(ratio=0.026, of="all").budget == Ratio(r=0.026, of="all")
    assert make().budget == Ratio(r=0.5, of="train")
    with pytest.raises(BadValue, match="one of the two"):
        make(total=70, ratio=0.5)


FIGURES = {  # GCond's second table as CTRL and GDEM copy it, per cent
    ("cora", 35): (79.8, 63.6, 67.0, 64.0),
    ("cora", 70): (80.1, 72.8, 73.4, 73.2),
    ("cora", 140): (79.3, 76.8, 76.8, 76.7),
    ("citeseer", 30): (70.5, 54.4, 57.1, 52.4),
    ("citeseer", 60): (70.6, 64.2, 66.7, 64.3),
    ("citeseer", 120): (69.8, 69.1, 69.0, 69.1),
    ("ogbn-arxiv", 90): (59.2, 47.1, 52.4, 47.2),
    ("flickr", 44): (46.5, 41.8, 42.5, 42.0),
    ("reddit", 76): (88.0, 46.1, 53.1, 46.6),
}


@pytest.mark.parametrize(("data", "total"), FIGURES)
def test_figures_are_those_of_the_paper(data, total):
    names = ("gcond", "random", "herding", "k-center")
    found = [settings_for(registry().recipe(name, "nodes"), data, None, total) for name in names]
    assert tuple(row.accuracy for row in found) == FIGURES[data, total]
    assert all(row.source for row in found)


def test_published_rates_are_absolute_and_phases_follow_the_turns():
    for name in ("gcond", "doscond"):
        published = registry().recipe(name, "nodes")
        for data in {row.data for row in rows(published) if row.settings}:
            recipe, settings = settled(name, data, 70), settings_for(published, data, None, 70).settings
            assert recipe.parameterization.relative == ("outer.groups.0.lr" not in settings), data
            turns, outer = recipe.pool.turns, recipe.outer
            cycle = (outer.group("structure").every, outer.group("structure").span, outer.group("features").span)
            assert cycle == (50 * turns, 10 * turns, 40 * turns), data
            assert outer.group("features").phase == 10 * turns, data


# -- what they compute ----------------------------------------------------------------------------------------------


def step_of(recipe, splits, syn=None, seed=0) -> Step:
    run = toy_run(recipe, splits, seed=seed)
    syn = syn or condense(toy_run(recipe.with_(outer=recipe.outer.with_(steps=0)), splits)).freeze()
    learner = recipe.pool.learners(run, syn).next(0)
    return Step(run, 0, learner, syn)


@pytest.mark.parametrize("name", LEARNED)
def test_a_synthetic_graph_that_equals_the_real_one_has_objective_0(name):
    splits = sbm(classes=3, per_class=(40, 20, 20))
    recipe = small(name)
    every = recipe.objective.pairing.with_(n=None)
    recipe = recipe.with_(
        objective=recipe.objective.with_(pairing=every),
        parameterization=StoredGraph(around=True),
        budget=Ratio(r=1.0),
        pool=Fresh(net=recipe.pool.net),
    )
    recipe = recipe.rewrite(RowCosine, lambda cosine: cosine.with_(eps=1e-12))
    step = step_of(recipe, splits)
    size = sum(float(v.abs().sum()) for row in asked(step) for v in row.values())
    (term,) = recipe.objective(step)
    assert float(term.losses["matching"].detach()) == pytest.approx(0, abs=1e-5)
    assert size > 0.1, "nothing is matched"
    view = step.syn.x
    moved = step.run.task.form.unpack({**step.run.task.form.pack(view), "x": view.graph.x.flip(0)})
    step.syn.x = moved
    (term,) = recipe.objective(step)
    assert float(term.losses["matching"].detach()) > 1e-3, "another graph looks the same"


def asked(step):
    pairs = list(step.run.recipe.objective.pairing.pairs(step))
    return list(step.real.measure(step.run.recipe.objective.statistic, step.model, [p.real for p in pairs], Rng(0)))


@pytest.mark.parametrize("name", ["gcond", "dc-graph", "gcdm", "doscond"])
def test_one_pass_over_all_classes_equals_one_for_each(name):
    """The objective, its gradient in features and edges, and what the source measures; `commit=term`: one by one."""
    splits = sbm(classes=4, per_class=(40, 12, 30, 20))
    recipe = small(name, total=12)
    values, grads = [], []
    for commit in ("step", "term"):
        changed = recipe.with_(outer=recipe.outer.with_(commit=commit))
        run = toy_run(changed, splits)
        syn = condense(toy_run(recipe.with_(outer=recipe.outer.with_(steps=0)), splits))
        batch = syn.decode(None, Rng(0))
        leaf = run.task.form.leaf(batch.x)
        step = step_of(changed, splits, syn.sampler(replace(batch, x=leaf)))
        terms = list(recipe.objective(step))
        assert len(terms) == (1 if commit == "step" else 4)
        total = sum(term.weight * term.losses["matching"] for term in terms)
        leaves = [t for t in run.task.form.pack(leaf).values() if t.requires_grad]
        values.append(total.detach())
        grads.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-6)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert float(grads[0][0].abs().sum()) > 0


@pytest.mark.parametrize("statistic", [Gradient(), MeanFeature(), EdgeFree(statistic=Gradient())])
def test_a_source_of_nodes_measures_what_any_source_measures(statistic):
    splits = sbm(classes=4, per_class=(40, 12, 30, 20))
    run = toy_run(small("gcond"), splits)
    source, net = run.splits.train, GCN(hidden=8, dropout=0.0).make(run.task, Rng(1))
    asks = [Ask(0, 5), Ask(2, None), Ask(None, 4)]
    ours = list(source.measure(statistic, net, asks, Rng(3)))
    plain = list(Source.measure(source, statistic, net, asks, Rng(3)))
    for mine, other in zip(ours, plain, strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, other[key])
            assert not value.requires_grad


def test_dc_graph_does_not_see_edges_and_gcond_x_does():
    with_edges = sbm()
    train = with_edges.train
    bare = replace(with_edges, train=type(train)(train.task, Graph(train.raw.x), train.nodes, train.y))
    for name, same in (("dc-graph", True), ("gcond-x", False)):
        syn = condense(toy_run(small(name, steps=0), with_edges)).freeze()
        losses = [next(iter(small(name).objective(step_of(small(name), s, syn)))).losses for s in (with_edges, bare)]
        assert torch.allclose(losses[0]["matching"], losses[1]["matching"]) is same, name


@pytest.mark.parametrize("name", ["gcond-x", "dc-graph", "gcdm-x"])
def test_methods_without_structure_store_no_edges(name):
    graph = condense(toy_run(small(name), sbm())).freeze().x.graph
    assert graph.adj is None
    assert graph.edges is None


# -- that they run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LEARNED, *CHOSEN])
def test_a_method_keeps_the_contract_on_a_block_model(name):
    splits = sbm(classes=3, per_class=(40, 20, 20))
    recipe = small(name)
    check_recipe(recipe, splits.task)
    check_method(recipe, splits)


@pytest.mark.parametrize("name", [*LEARNED, "doscond-sampled"])
def test_a_method_moves_features_and_structure(name):
    made = small("doscond", edges="sampled") if name == "doscond-sampled" else small(name)
    start, end = (condense(toy_run(r, sbm())) for r in (made.with_(outer=made.outer.with_(steps=0)), made))
    moved = {
        role: max(float((p - q).detach().abs().max()) for p, q in zip(ps, end.roles()[role], strict=True))
        for role, ps in start.roles().items()
    }
    assert set(moved) == ({"features"} if name in ("gcond-x", "dc-graph", "gcdm-x") else {"features", "structure"})
    assert min(moved.values()) > 0
    assert all(bool(torch.isfinite(p).all()) for ps in end.roles().values() for p in ps)


def test_features_stand_still_while_it_is_the_turn_of_the_structure():
    recipe = small("gcond")
    groups = tuple(group.with_(every=4, phase=2 * (group.role == "features"), span=2) for group in recipe.outer.groups)
    for steps, still in ((2, True), (3, False)):
        made = recipe.with_(outer=recipe.outer.with_(steps=steps, groups=groups))
        start, end = (condense(toy_run(r, sbm())) for r in (made.with_(outer=made.outer.with_(steps=0)), made))
        assert torch.equal(start.features, end.features) is still


@pytest.mark.parametrize("name", [*LEARNED, *CHOSEN])
def test_a_method_is_refused_by_a_sealed_source_or_runs_on_measures_alone(name):
    splits = sbm(classes=3, per_class=(40, 20, 20))
    sealed = replace(splits, train=Sealed(splits.train))
    recipe = small(name)
    assert recipe.total_reads().examples
    with pytest.raises(BadData, match=r"gives no examples, which .*(init|budget)"):
        sealed.train.admit(recipe)
    run = toy_run(recipe, splits)
    run.splits = sealed
    with pytest.raises(BadData, match="sealed"):
        condense(run)
    if name in LEARNED:
        blind = recipe.with_(init=Noise(), budget=Total(n=6, split="equal"), preprocess=NodeFeatures(scale="rows"))
        assert not blind.total_reads().examples
        run = toy_run(blind, splits)
        run.splits = replace(run.splits, train=Sealed(run.splits.train))
        condense(run)
        assert run.splits.train.releases == blind.outer.steps, "one step is one release"


@pytest.mark.parametrize("name", ["gcond", "gcond-x", "gcdm", "doscond-sampled"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_that_was_stopped_ends_with_the_same_bits(name, stop, tmp_path):
    made = small("doscond", steps=6, edges="sampled") if name == "doscond-sampled" else small(name, steps=6)
    made = made.with_(pool=made.pool.with_(turns=min(3, made.pool.turns)))
    (tmp_path / ".run").mkdir()

    class Stopper:
        @hookimpl
        def condense_stepped(self, run, index, losses):
            if index == stop - 1:
                run.interrupted.set()

    with pytest.raises(Paused, match=f"{stop} of 6"):
        condense(toy_run(made, sbm(), folder=tmp_path, observers=[Stopper()]))
    resumed, unbroken = condense(toy_run(made, sbm(), folder=tmp_path)), condense(toy_run(made, sbm()))
    assert resumed.state_dict().keys() == unbroken.state_dict().keys()
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_networks_train_on_the_graph_as_it_is_now_and_not_after_their_last_turn(monkeypatch):
    """20 turns, training between them: 19 times 15 steps for each network, on a set without gradients."""
    seen = []
    advance = Fit.begin.__globals__["Training"].advance

    def spy(self, data, steps, of=None):
        seen.append((steps, data.x.graph.adj.clone()))
        assert not data.x.graph.adj.requires_grad
        return advance(self, data, steps, of)

    monkeypatch.setattr(Fit.begin.__globals__["Training"], "advance", spy)
    recipe = method("gcond").rewrite(PairMLP, lambda mlp: mlp.with_(hidden=8))
    condense(toy_run(recipe.with_(outer=recipe.outer.with_(steps=40), selection=None), sbm()))
    assert [steps for steps, _ in seen] == [15] * 38
    assert not torch.equal(seen[0][1], seen[1][1])


def test_any_objective_of_images_runs_on_a_graph_parameterization():
    """DC's and DM's objectives, as they are, on nodes: no class of their own is needed."""
    for other in ("dc", "dm"):
        objective = registry().recipe(other)().objective
        recipe = small("gcond").with_(objective=objective)
        check_recipe(recipe, sbm().task)
        syn = condense(toy_run(recipe, sbm()))
        assert bool(torch.isfinite(syn.freeze().x.graph.x).all())
