"""KIDD: its low-rank storage against numpy, its loss against a slow version, its runs and published settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from condense.artifact import load, write_artifact
from condense.engine import condense
from condense.errors import BadValue
from condense.hookspecs import hookimpl
from condense.parts.labels import Hard
from condense.published import rows, settings_for
from condense.recipe import check_recipe
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.task import Batch
from condense.testing import check_method, toy_run, toy_splits, toys
from condense_graph.collections import SparseGraphs, starts
from condense_graph.gntk import LiteGNTK
from condense_graph.graph import Graph
from condense_graph.kidd import LowRankGraphs, RealEdges, factors, kidd, kidd_lr

from .test_gntk import slow
from .whole_graphs import two_kinds

SPLITS = two_kinds()
GROUPS = torch.tensor([0, 0, 1, 1])
METHODS = pytest.mark.parametrize("method", [kidd, kidd_lr], ids=["kidd", "kidd-lr"])


def small(method, steps=3, per_class=2, **settings):
    """A recipe whose mini-batches are smaller than the toy's 64 training graphs and its own 4; no set is selected."""
    recipe = method(per_class=per_class, iterations=steps).set("objective.objectives.0.n", 16).with_(selection=None)
    for i in (0, 1):
        recipe = recipe.set(f"objective.objectives.{i}.m", 3)
    for path, value in settings.items():
        recipe = recipe.set(path, value)
    return recipe


def filled(how, splits=SPLITS):
    syn = how.empty(splits.task, GROUPS, Hard())
    batch = splits.train.take(torch.cat([splits.train.ids(c)[:2] for c in range(2)]))
    syn.fill(batch)
    return syn, batch


# -- adjacencies of low rank ------------------------------------------------------------------------------------------


def adjacencies(count=3, n=8):
    g = torch.Generator().manual_seed(2)
    upper = (torch.rand(count, n, n, generator=g, dtype=torch.float64) < 0.4).double().triu(1)
    return upper + upper.mT


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_factors_are_those_of_the_singular_value_decomposition(rank):
    adj = adjacencies()
    left, right = factors(adj, rank)
    assert left.shape == (3, 8, rank)
    assert right.shape == (3, rank, 8)
    u, s, vt = np.linalg.svd(adj.numpy())
    for i in range(3):
        best = ((adj[i].numpy() - (u[i, :, :rank] * s[i, :rank]) @ vt[i, :rank]) ** 2).sum()
        assert float((adj[i] - left[i] @ right[i]).square().sum()) == pytest.approx(best, abs=1e-9)
    sizes = left.square().sum(dim=1)
    torch.testing.assert_close(sizes, torch.tensor(s[:, :rank]))
    torch.testing.assert_close(sizes, right.square().sum(dim=2))


def test_a_set_of_full_rank_is_released_as_it_was_filled():
    syn, batch = filled(LowRankGraphs(nodes=12, rank=12))
    expected, released, drawn = batch.x.dense(12), syn.decode(None, None), syn.decode(None, Rng(0))
    assert torch.equal(released.x.adj, expected.adj)
    assert torch.equal(released.x.x, expected.x)
    assert torch.equal(released.y, batch.y)
    torch.testing.assert_close(drawn.x.adj, expected.adj, atol=1e-5, rtol=0)


def test_a_set_of_low_rank_is_symmetric_without_loops_and_cut_at_one_half():
    syn, _ = filled(LowRankGraphs(nodes=12, rank=3))
    with torch.no_grad():
        syn.left.add_(0.3 * torch.randn(syn.left.shape, generator=torch.Generator().manual_seed(0)))
    learned, released = syn.decode(None, Rng(0)).x.adj.detach(), syn.decode(None, None).x.adj
    product = (syn.left @ syn.right).detach()
    for i in range(12):
        for j in range(12):
            mean = (product[:, i, j] + product[:, j, i]) / 2 if i != j else torch.zeros(4)
            torch.testing.assert_close(learned[:, i, j], mean)
            assert torch.equal(released[:, i, j], (mean > 0.5).float())
    assert 0 < int(released.sum()) < released.numel()


def test_parts_of_a_set_are_taken_with_their_labels():
    syn, _ = filled(LowRankGraphs(nodes=6))
    index, whole = torch.tensor([3, 0]), syn.decode(None, None)
    part = syn.take(index)
    assert torch.equal(part.x.adj, whole.x.adj[index])
    assert torch.equal(part.x.x, whole.x.x[index])
    assert part.y.tolist() == [1, 0]


def test_the_factors_are_the_structure():
    syn, _ = filled(LowRankGraphs(nodes=20, rank=5))
    roles = syn.roles()
    assert [tuple(p.shape) for p in roles["structure"]] == [(4, 20, 5), (4, 5, 20)]
    assert [tuple(p.shape) for p in roles["features"]] == [(4, 20, 3)]


# -- what should be small ---------------------------------------------------------------------------------------------


def regression(recipe):
    """(loss, orthogonality) of the first step, computed graph by graph in numpy."""
    run = toy_run(recipe, SPLITS)
    ridge, kernel = recipe.objective.objectives[0], recipe.objective.objectives[0].kernel
    how = {"depth": kernel.depth, "pooling": kernel.pooling, "gather": kernel.gather, "loops": kernel.loops}
    real = SPLITS.train.draw(ridge.n, None, run.rng.fold("ridge"), at=0)
    syn = recipe.parameterization.empty(SPLITS.task, recipe.budget.allot(SPLITS.train), Hard())
    syn.fill(recipe.init(run, syn.item_groups))
    step = run.rng.fold("step", 0)
    chosen = step.fold("synthetic").permutation(4)[: ridge.m]
    support = syn.decode(None, step.fold("decode")).x.take(chosen)
    mine = [as_arrays(support.take(torch.tensor([i]))) for i in range(len(support))]
    theirs = [as_arrays(real.x.take(torch.tensor([i]))) for i in range(len(real))]
    gram = np.array([[slow(*a, *b, **how) for b in mine] for a in mine])
    cross = np.array([[slow(*a, *b, **how) for b in mine] for a in theirs])
    targets = np.eye(2)[syn.y[chosen].numpy()]
    said = cross @ np.linalg.inv(gram + ridge.ridge * np.trace(gram) / len(gram) * np.eye(len(gram))) @ targets
    chances = np.exp(said) / np.exp(said).sum(axis=1, keepdims=True)
    scaled = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    loss = -np.log(chances[np.arange(len(real)), real.y.numpy()]).mean()
    return loss, 1e-3 * np.linalg.norm(scaled - np.eye(len(gram)))


def as_arrays(x):
    """Features and adjacency of the one graph of x, without padding."""
    dense = x.dense() if isinstance(x, SparseGraphs) else x
    n = int(dense.sizes[0])
    return dense.x[0, :n].detach().double().numpy(), dense.adj[0, :n, :n].detach().double().numpy()


def losses_of(recipe, splits=SPLITS):
    class Seen:
        def __init__(self):
            self.losses = []

        @hookimpl
        def condense_stepped(self, run, index, losses):
            self.losses.append({key: float(value) for key, value in losses.items()})

    seen = Seen()
    condense(toy_run(recipe, splits, observers=[seen]))
    return seen.losses


@METHODS
def test_the_losses_of_a_step_are_those_of_the_slow_version(method):
    recipe = small(method, steps=1)
    found, (ridge, orthogonal) = losses_of(recipe)[0], regression(recipe)
    assert found["ridge"] == pytest.approx(ridge, rel=2e-3)
    assert found["orthogonal"] == pytest.approx(orthogonal, rel=1e-3)


@METHODS
def test_the_order_of_the_nodes_of_real_graphs_does_not_matter(method):
    """Of those that the regression is about; a set starts from the same graphs either way."""
    source = SPLITS.train
    places = zip(source.graphs.sizes.tolist(), starts(source.graphs.sizes).tolist(), strict=True)
    order = torch.cat([torch.arange(n).flip(0) + at for n, at in places])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    graph = source.graphs.graph
    mixed = Batch(SparseGraphs(Graph(graph.x[order], place[graph.edges]), source.graphs.sizes), source.y)
    plain = Batch(source.graphs, source.y)
    kernel = method().objective.objectives[0].kernel
    torch.testing.assert_close(kernel(None, mixed, plain), kernel(None, plain, plain), rtol=2e-3, atol=1e-4)


# -- runs -----------------------------------------------------------------------------------------------------------


@METHODS
def test_it_keeps_the_contract_of_methods(method):
    check_method(small(method), SPLITS)


def test_regression_on_the_set_predicts_better_than_on_the_graphs_it_started_from():
    recipe = small(kidd, steps=60, per_class=1, **{"init": "real", "outer.groups.0.lr": 0.03})
    losses = [step["ridge"] for step in losses_of(recipe.set("objective.objectives.0.n", None))]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.mark.parametrize("storage", ["real-edges", {"name": "concrete-graphs", "share": 2.0}], ids=str)
def test_edges_stay_those_of_the_real_graphs_and_labels_stay(storage):
    recipe = small(kidd, steps=5, parameterization=storage)
    run = toy_run(recipe, SPLITS)
    start = recipe.init(run, recipe.budget.allot(SPLITS.train)).x
    syn = condense(run)
    room = recipe.parameterization.room(SPLITS.task)
    found = syn.decode(None, None).x.sparse().dense(room)
    assert torch.equal(found.adj, start.dense(room).adj)
    assert not torch.equal(found.x, start.dense(room).x)
    assert syn.y.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("nodes", [4, 30])
def test_a_set_of_real_edges_is_released_as_it_was_filled(nodes):
    syn, batch = filled(RealEdges(nodes=nodes))
    expected, released = batch.x.dense(nodes), syn.decode(None, None)
    assert released.x.sizes.tolist() == batch.x.sizes.clamp_max(nodes).tolist()
    assert torch.equal(released.x.dense(nodes).adj, expected.adj)
    assert torch.equal(released.x.dense(nodes).x, expected.x)
    assert syn.stored()["features"] == 4 * 3 * int(released.x.sizes.sum())
    part = syn.take(torch.tensor([3, 0]))
    assert torch.equal(part.x.dense(nodes).adj, expected.adj[[3, 0]])
    assert part.y.tolist() == [1, 0]


def test_factors_move_at_a_rate_of_their_own():
    recipe = small(kidd_lr, steps=5, **{"outer.groups.1.lr": 1e-2, "outer.groups.0.lr": 0.0})
    run = toy_run(recipe, SPLITS)
    room = recipe.parameterization.room(SPLITS.task)
    start = recipe.init(run, recipe.budget.allot(SPLITS.train)).x.dense(room)
    syn = condense(run)
    before = factors(start.adj, syn.left.shape[-1])[0]
    assert 1e-3 < float((syn.left.detach() - before).abs().max()) < 0.06
    assert torch.equal(syn.features.detach(), start.x)


@METHODS
def test_a_resumed_run_gives_the_same_bits(method, tmp_path):
    recipe = small(method, steps=6)
    whole = condense(toy_run(recipe, SPLITS)).state_dict()
    with pytest.raises(Paused):
        condense(toy_run(recipe, SPLITS, folder=tmp_path, limits=Limits(steps=1, minutes=0.0)))
    resumed = condense(toy_run(recipe, SPLITS, folder=tmp_path)).state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


@METHODS
def test_a_set_is_stored_and_read_back(method, tmp_path):
    run = toy_run(small(method), SPLITS)
    syn = condense(run)
    with toys():
        write_artifact(tmp_path / "made", run.plan, syn, run.transform, SPLITS.task, {"machine": "toy"})
        again = load(tmp_path / "made").sampler()
    ours, theirs = (SPLITS.task.form.pack(x) for x in (syn.decode(None, None).x, again.x))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@METHODS
def test_tensors_are_refused(method):
    with pytest.raises(BadValue, match="and these are"):
        check_recipe(method(), toy_splits().task)


# -- published settings ---------------------------------------------------------------------------------------------


@METHODS
def test_published_settings_fit_the_recipe(method):
    found = rows(method)
    assert {row.data for row in found} == {
        *("ogbg-molbace", "ogbg-molbbbp", "ogbg-molhiv", "dd", "proteins", "nci1", "tu:NCI109"),
    }
    for row in found:
        recipe = method(per_class=row.per_class or 10)
        for path, value in row.settings.items():
            recipe = recipe.set(path, None if value == "null" else value)
        assert recipe.outer.groups[0].lr == row.settings["outer.groups.0.lr"]
        assert recipe.parameterization.nodes >= 34
        assert recipe.objective.objectives[0].m == recipe.objective.objectives[1].m


def test_published_recipes_are_the_papers():
    dense, low = (published_for(method, "nci1", 10) for method in (kidd, kidd_lr))
    assert dense.outer.steps == low.outer.steps == 300
    for recipe in (dense, low):
        ridge, orthogonal = recipe.objective.objectives
        assert (ridge.ridge, ridge.n, ridge.m, orthogonal.weight) == (1e-6, 128, 16, 1e-3)
        assert ridge.kernel == orthogonal.kernel
        assert recipe.selection is None
        assert recipe.parameterization.nodes == 90
        assert not recipe.parameterization.masked
    assert dense.parameterization.name == "concrete-graphs"
    assert dense.objective.objectives[0].kernel == LiteGNTK(depth=5, pooling="mean", loops=1e-4)
    assert low.objective.objectives[0].kernel == LiteGNTK(depth=3, pooling="sum", gather=False, loops=1e-4)
    assert low.parameterization.rank == 24
    assert published_for(kidd, "dd", 50).parameterization.nodes == 3 * 285
    assert published_for(kidd, "dd", 1).objective.objectives[0].n == 8


def published_for(method, data, per_class):
    recipe = method(per_class=per_class)
    for path, value in settings_for(method, data, per_class).settings.items():
        recipe = recipe.set(path, None if value == "null" else value)
    return recipe


def test_the_released_set_is_the_one_networks_do_best_on():
    recipe = small(kidd, steps=4).with_(selection=kidd().selection.with_(times=2, repeats=1))
    fit = recipe.selection.fit.with_(epochs=2)
    run = toy_run(recipe.with_(selection=recipe.selection.with_(fit=fit)), SPLITS)
    condense(run)
    assert set(run.notes["selected"]["scores"]) == {"0", "2", "4"}
