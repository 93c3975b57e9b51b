"""DosCond on sets of graphs: its storage, its terms against a slow version, its runs, and the coresets beside it."""

from __future__ import annotations

import math

import pytest
import torch

from condense.artifact import load, write_artifact
from condense.engine import condense
from condense.errors import BadValue, Damaged
from condense.evaluate import Candidate, evaluate
from condense.hookspecs import hookimpl
from condense.parts.distances import SquaredError
from condense.parts.joined import Joined, RelativeError
from condense.parts.labels import Hard
from condense.parts.matching import Gradient
from condense.recipe import Recipe
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.task import Batch
from condense.testing import check_method, check_statistic, toy_run, toys
from condense_graph.collections import DenseGraphs, SparseGraphs
from condense_graph.concrete import ConcreteGraphs, Fitting, Sparsity, StoredGraphs
from condense_graph.doscond_graphs import doscond
from condense_graph.graph import Graph
from condense_graph.graphs_baselines import herding, k_center, random
from condense_graph.nets.whole import GraphGCN
from condense_graph.protocols import OnGraphs

from .whole_graphs import two_kinds

SPLITS = two_kinds()
SMALL = {"pool.net.hidden": 8, "parameterization.over": 4, "outer.groups.1.lr.start": 1.0, "selection": None}


def small(recipe: Recipe, **settings) -> Recipe:
    for path, value in {**SMALL, **settings}.items():
        recipe = recipe.set(path, value)
    return recipe


def filled(how: ConcreteGraphs | StoredGraphs, groups: torch.Tensor, splits=SPLITS):
    """A set of this storage, filled with the first training graphs of each class; and the batch."""
    syn = how.empty(splits.task, groups, Hard())
    first = [splits.train.ids(c)[: int((groups == c).sum())] for c in range(2)]
    batch = splits.train.take(torch.cat(first))
    syn.fill(batch)
    return syn, batch


GROUPS = torch.tensor([0, 0, 1, 1])


# -- storage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_a_set_is_released_as_it_was_filled_binary_symmetric_and_without_loops(masked):
    syn, batch = filled(ConcreteGraphs(nodes=12, masked=masked), GROUPS)
    released = syn.decode(None, None).x
    expected = batch.x.dense(12)
    assert torch.equal(released.adj, expected.adj)
    assert torch.equal(released.x, expected.x)
    assert (released.mask is not None) == masked
    with torch.no_grad():
        syn.logits.copy_(torch.randn(syn.logits.shape, generator=torch.Generator().manual_seed(0)))
    released = syn.decode(None, None).x
    assert set(released.adj.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(released.adj, released.adj.mT)
    assert not released.adj.diagonal(dim1=1, dim2=2).any()
    if masked:
        assert not released.adj[~expected.mask].any()
        assert torch.equal(released.sizes, batch.x.sizes)


def test_room_is_the_mean_of_the_data_and_larger_graphs_lose_their_last_nodes():
    assert ConcreteGraphs().room(SPLITS.task) == SPLITS.task.shape[0]
    assert ConcreteGraphs(share=2).room(SPLITS.task) == 2 * SPLITS.task.shape[0]
    syn, batch = filled(ConcreteGraphs(nodes=4), GROUPS)
    torch.testing.assert_close(syn.decode(None, None).x.adj, batch.x.dense(12).adj[:, :4, :4])


def test_drawing_equals_a_loop_over_pairs():
    syn, _ = filled(ConcreteGraphs(nodes=5, hot=0.7), GROUPS)
    with torch.no_grad():
        syn.logits.copy_(torch.randn(syn.logits.shape, generator=torch.Generator().manual_seed(1)))
    rng = Rng(3)
    drawn = syn.decode(None, rng).x
    u, logits = torch.rand(4, 5, 5, generator=rng.generator()), syn.logits.detach()
    edges, chances = drawn.adj.detach(), drawn.chance.detach()
    for g in range(4):
        for i in range(5):
            for j in range(5):
                noise, logit = float(u[g, min(i, j), max(i, j)]), float((logits[g, i, j] + logits[g, j, i]) / 2)
                value = 1 / (1 + math.exp(-(math.log(noise) - math.log(1 - noise) + logit) / 0.7)) if i != j else 0.0
                assert float(edges[g, i, j]) == pytest.approx(value, abs=1e-5)
                chance = 1 / (1 + math.exp(-logit)) if i != j else 0.0
                assert float(chances[g, i, j]) == pytest.approx(chance, abs=1e-5)


def test_cold_draws_are_edges_with_their_own_probability():
    syn, _ = filled(ConcreteGraphs(nodes=2, hot=1e-4, cold=1e-4), GROUPS)
    with torch.no_grad():
        syn.logits.fill_(math.log(0.3 / 0.7))
    share = torch.stack([syn.decode(None, Rng(i)).x.adj[:, 0, 1] for i in range(500)]).detach().mean()
    assert float(share) == pytest.approx(0.3, abs=0.04)


def test_the_temperature_falls_geometrically_then_stays():
    syn, _ = filled(ConcreteGraphs(nodes=3), GROUPS)
    seen = []
    for index in range(250):
        seen.append(float(syn.heat))
        syn.project(index)
    assert seen[0] == 1
    assert seen[100] == pytest.approx(0.1, rel=1e-4)
    assert seen[200] == seen[249] == pytest.approx(0.01)


def test_parts_of_a_set_are_taken_with_their_labels():
    syn, _ = filled(ConcreteGraphs(nodes=6, masked=True), GROUPS)
    index = torch.tensor([3, 0])
    part, whole = syn.take(index), syn.decode(None, None)
    assert torch.equal(part.x.adj, whole.x.adj[index])
    assert torch.equal(part.x.x, whole.x.x[index])
    assert part.y.tolist() == [1, 0]


# -- what should agree ----------------------------------------------------------------------------------------------


def test_the_objective_is_0_where_the_set_equals_the_real_graphs():
    """All graphs of training, padded and masked, against themselves: every class's gradient is the real one."""
    counts = SPLITS.train.counts()
    groups = torch.arange(2).repeat_interleave(torch.tensor(counts))
    syn, _ = filled(ConcreteGraphs(nodes=12, masked=True), groups)
    recipe = small(doscond(per_class=1, iterations=1))
    matching = recipe.objective.objectives[0]
    module = recipe.pool.net.make(SPLITS.task, Rng(0)).double()
    frozen = syn.freeze()
    for c in range(2):
        real = SPLITS.train.take(SPLITS.train.ids(c))
        real = Batch(as_double(real.x), real.y)
        mine = frozen.take(frozen.ids(c))
        mine = Batch(as_double(mine.x), mine.y)
        gradients = [matching.statistic.mean(module, batch, SPLITS.task, live=True) for batch in (real, mine)]
        first, second = (matching.statistic.finish(gradient) for gradient in gradients)
        assert float(matching.distance(first["joined"], second["joined"]).detach()) < 1e-20


def as_double(x):
    if isinstance(x, DenseGraphs):
        return DenseGraphs(x.x.double(), x.adj.double(), x.mask)
    return SparseGraphs(Graph(x.x.double(), x.graph.edges), x.sizes)


def test_relative_error_is_of_all_parts_together():
    g = torch.Generator().manual_seed(0)
    real, mine = ({k: torch.randn(s, generator=g) for k, s in (("a", (3, 2)), ("b", (4,)))} for _ in range(2))
    joined = Joined(statistic=Gradient())
    found = RelativeError()(joined.finish(real)["joined"], joined.finish(mine)["joined"])
    apart = sum(SquaredError()(real[key], mine[key]) for key in real)
    torch.testing.assert_close(found, apart / sum(value.square().sum() for value in real.values()))
    assert torch.isfinite(RelativeError()(torch.zeros(3), torch.ones(3)))


def test_the_joined_gradient_keeps_the_contract_of_statistics():
    batch = SPLITS.train.take(torch.arange(4))
    module = GraphGCN(hidden=4, depth=2).make(SPLITS.task, Rng(0))
    check_statistic(Joined(statistic=Gradient()), module, batch, SPLITS.task)


def losses_of(recipe: Recipe) -> list[dict[str, float]]:
    """The losses of every step of a run."""

    class Seen:
        def __init__(self):
            self.losses = []

        @hookimpl
        def condense_stepped(self, run, index, losses):
            self.losses.append({key: float(value) for key, value in losses.items()})

    seen = Seen()
    condense(toy_run(recipe, SPLITS, observers=[seen]))
    return seen.losses


def test_sparsity_is_what_the_mean_probability_has_gained():
    recipe = small(doscond(per_class=2, iterations=3))
    losses = losses_of(recipe)
    run = toy_run(recipe, SPLITS)
    start = recipe.init(run, recipe.budget.allot(SPLITS.train))
    adj = start.x.dense(SPLITS.task.shape[0]).adj
    n = adj.shape[-1]
    inside = start.x.dense(n).mask
    pairs = inside[:, :, None] & inside[:, None, :] & ~torch.eye(n, dtype=torch.bool)
    chance = torch.where(adj > 0, 5.0, -5.0).sigmoid() * pairs
    assert losses[0]["sparsity"] == pytest.approx(0.1 * float((chance.mean() - adj.mean()).relu()), rel=1e-3)


def test_sparsity_is_refused_where_no_edge_is_drawn():
    recipe = doscond().with_(parameterization=StoredGraphs())
    with pytest.raises(BadValue, match="draws no edges"):
        Sparsity().check(recipe, SPLITS.task)


# -- runs -----------------------------------------------------------------------------------------------------------


def test_doscond_keeps_the_contract_of_methods():
    check_method(small(doscond(per_class=2, iterations=3)), SPLITS)


def test_edges_and_features_move_and_what_agrees_agrees_better():
    recipe = small(doscond(per_class=2, iterations=40), **{"parameterization.over": 30})
    losses = [step["matching"] for step in losses_of(recipe)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    run = toy_run(recipe, SPLITS)
    syn = condense(run)
    start = run.recipe.init(run, syn.groups).x.dense(SPLITS.task.shape[0])
    released = syn.freeze().x
    assert not torch.equal(released.adj, start.adj)
    assert float((released.x - start.x).abs().max()) > 0.05
    assert syn.stored()["edges"] == int(released.adj.sum()) * (2 * 8 + 4)


def test_rates_fall_to_a_tenth_after_the_step_numbered_400_of_1000():
    for group, rate in zip(doscond().outer.groups, (0.01, 0.1), strict=True):
        assert group.lr.value(400 / 1000) == rate
        assert group.lr.value(401 / 1000) == pytest.approx(rate / 10)
        assert [i for i in range(1, 1000) if group.lr.restarts((i - 1) / 1000, i / 1000)] == [401]


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    recipe = small(doscond(per_class=1, iterations=7))
    straight = condense(toy_run(recipe, SPLITS)).state_dict()
    with pytest.raises(Paused):
        condense(toy_run(recipe, SPLITS, folder=tmp_path, limits=Limits(steps=1, minutes=0)))
    resumed = condense(toy_run(recipe, SPLITS, folder=tmp_path)).state_dict()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name


def test_fitting_takes_small_graphs_first_and_cuts_the_smallest_of_the_others():
    recipe = doscond(per_class=20).set("parameterization.nodes", 7)
    run = toy_run(recipe, SPLITS)
    for c in range(2):
        sizes = SPLITS.train.take(SPLITS.train.ids(c)).x.sizes
        fit = int((sizes <= 7).sum())
        chosen = Fitting().choose(run, c, fit, Rng(0))
        assert int(SPLITS.train.take(chosen).x.sizes.max()) <= 7
        more = SPLITS.train.take(Fitting().choose(run, c, fit + 2, Rng(0))).x.sizes
        assert more[fit:].tolist() == sorted(sizes[sizes > 7].tolist())[:2]
    batch = run.recipe.init(run, recipe.budget.allot(SPLITS.train))
    place = {tuple(row): int(y) for row, y in zip(SPLITS.train.graphs.x.tolist(), labels_of_nodes(), strict=True)}
    owners = batch.y[batch.x.owner].tolist()
    assert [place[tuple(row)] for row in batch.x.x.tolist()] == owners  # features and labels belong together


def labels_of_nodes():
    return SPLITS.train.y[SPLITS.train.graphs.owner].tolist()


# -- coresets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [random, herding, k_center])
def test_coresets_are_real_graphs_of_their_class(make):
    recipe = make(per_class=3)
    if make is not random:
        recipe = recipe.set("init.scorer", None)
    check_method(recipe, SPLITS)
    syn = condense(toy_run(recipe, SPLITS))
    train = SPLITS.train.graphs
    rows = {
        tuple(graph.x.flatten().tolist()): i
        for i, graph in enumerate(train.take(torch.tensor([i])) for i in range(len(train)))
    }
    stored = syn.decode(None, None)
    chosen = [rows[tuple(stored.x.take(torch.tensor([i])).x.flatten().tolist())] for i in range(6)]
    assert len(set(chosen)) == 6
    assert SPLITS.train.y[torch.tensor(chosen)].tolist() == stored.y.tolist() == [0, 0, 0, 1, 1, 1]
    for i, position in enumerate(chosen):
        mine, real = (g.take(torch.tensor([k])) for g, k in ((stored.x, i), (train, position)))
        assert torch.equal(mine.dense().adj, real.dense().adj)


def features(graphs: SparseGraphs, i: int) -> tuple[float, ...]:
    return tuple(graphs.take(torch.tensor([i])).x.flatten().tolist())


def test_herding_by_a_trained_network():
    recipe = herding(per_class=2).set("init.scorer.fit.steps", 3).set("init.scorer.net.hidden", 4)
    assert len(condense(toy_run(recipe, SPLITS)).freeze()) == 4


def written(recipe: Recipe, folder):
    run = toy_run(recipe, SPLITS)
    return write_artifact(folder, run.plan, condense(run), run.transform, run.task, {})


@pytest.mark.parametrize("make", [random, lambda per_class: small(doscond(per_class=per_class, iterations=2))])
def test_artifacts_open_as_they_were_written(make, tmp_path):
    with toys():
        artifact = written(make(per_class=2), tmp_path / "set")
        again = load(tmp_path / "set")
    form = SPLITS.task.form
    first, second = (form.pack(a.sampler().x) for a in (artifact, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_stored_set_that_does_not_fit_together_is_damaged(tmp_path):
    with toys():
        run = toy_run(random(per_class=2), SPLITS)
        syn = condense(run)
        syn.sizes[0] += 1
        with pytest.raises(Damaged, match="add up"):
            write_artifact(tmp_path / "set", run.plan, syn, run.transform, run.task, {})


def test_the_judge_trains_on_sets_and_tells_the_two_kinds_apart():
    recipe = random(per_class=8)
    run = toy_run(recipe, SPLITS)
    protocol = OnGraphs(nets=(GraphGCN(hidden=16),), repeats=2, epochs=60, lr=0.01)
    candidate = Candidate(condense(run).freeze(), run.transform, "random", "random")
    row = evaluate(candidate, SPLITS, protocol).rows[0]
    assert min(row.accuracies) > 0.7
    assert evaluate(candidate, SPLITS, protocol).rows[0].accuracies == row.accuracies
