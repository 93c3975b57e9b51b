"""The private methods: what they release, how often, and what becomes of it, against slow computations of their own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from condense.axes import Net
from condense.checkpoint import Lock
from condense.component import named
from condense.data import Data, Facts, TensorSource
from condense.engine import condense
from condense.errors import BadValue, InUse
from condense.fit import Fit, schedule
from condense.hookspecs import hookimpl
from condense.parts.inits import Noise
from condense.parts.rules import SGD
from condense.plugins import registry
from condense.recipe import Recipe, check_recipe
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.task import Batch
from condense.testing import Still, ToyNet, check_statistic, toy_run, toy_splits, toys
from condense_private import accounting, noise
from condense_private.account import Account
from condense_private.dp_dm import ClippedFeature
from condense_private.dp_merf import RandomFourier, Released
from condense_private.dp_sgd import dp_sgd, train
from condense_private.noisy_means import Example, NoisyMeans
from condense_private.page import page_of_privacy, yardsticks
from condense_private.private import Private, PrivateSource
from condense_private.psg import LOOPS, loops
from condense_private.psg_prior import Deconvolved

METHODS = ["psg", "psg-prior", "dp-dm", "dp-merf", "dp-random", "ldpdc"]
QUIET = 1e-12  # a noise multiplier under which a release is what it says
PUBLIC = Facts(title="toy", mean=(0.5,), std=(0.5,))
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _toys():
    with toys():
        yield


def small(name, steps=3, per_class=2, n=6, net=None, **settings) -> Recipe:
    """The method with a toy network, asks of n for each class (of 3), few steps, and training of two steps."""
    recipe = registry().recipes()[name][0](per_class=per_class).with_(augment=Still())
    if net is not None or name != "dp-merf":
        recipe = recipe.rewrite(Net, lambda _: net or ToyNet())
    recipe = recipe.rewrite(Fit, lambda fit: fit.with_(epochs=None, steps=2))
    asked = {"psg": {"objective.pairing.n": 3 * n}, "psg-prior": {"objective.pairing.n": 3 * n}}
    asked |= {"dp-dm": {"objective.pairing.n": n}, "dp-merf": {"objective.net.features": 8} if net is None else {}}
    for path, value in {**asked.get(name, {"init.group": n}), **settings}.items():
        recipe = recipe.set(path, value)
    return recipe.with_(outer=recipe.outer.with_(steps=min(steps, recipe.outer.steps)))


def private_run(recipe, *, inner=None, folder=None, limits=None, seed=0, **terms):
    """A run on the toy as private data, in the public scale; with quiet noise unless `terms` say otherwise."""
    terms = {"noise_multiplier": QUIET, "noise_seed": 3, **terms}
    source = PrivateSource(inner or toy_splits().train, Account(Private(data=named(Data, "digits"), **terms)))
    run = toy_run(recipe, replace(toy_splits(), train=source, facts=PUBLIC), folder=folder, limits=limits, seed=seed)
    run.splits.train.admit(recipe)
    check_recipe(recipe, run.task)
    return run


def made(run):
    """The set, and the entries that the run was billed."""
    run.splits.train.begin(run.folder)
    return condense(run).freeze(), run.splits.train.account.ledger.entries


def images():
    """The toy as images in [0, 1], whose public scale is [-1, 1]."""
    train = toy_splits().train
    return TensorSource(train.task, train.x.sigmoid(), train.y)


def records(run):
    """All private examples in the network's scale, and their classes: for the slow side of a test."""
    inner = run.splits.train.inner
    return inner.take(torch.arange(len(inner))).x, inner.y


def start(run, per_class=2):
    return Noise()(run, torch.arange(3).repeat_interleave(per_class)).x


def first_network(run):
    return run.recipe.pool.net.make(run.task, run.rng.fold("pool", 0))


# -- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_method_bills_as_many_releases_as_it_says_and_no_request_twice(name):
    recipe = small(name, steps=5)
    run = private_run(recipe, noise_multiplier=1.0)
    done, entries = made(run)
    reads = recipe.total_reads()
    expected = {"psg": 5, "psg-prior": 5, "dp-dm": 5, "dp-merf": 1, "dp-random": 2, "ldpdc": 2}[name]
    assert len(entries) == len({entry.request for entry in entries}) == expected
    assert reads.once + reads.per_step * recipe.outer.steps == expected == run.splits.train.account.measures
    assert not reads.examples
    assert bool(torch.isfinite(done.x).all())
    assert {entry.q for entry in entries} == {1.0 if name == "dp-merf" else 18 / 60}
    bound = {"psg": 0.1, "psg-prior": 0.1, "dp-dm": 1.0, "dp-merf": 1.0}.get(name, 8.0)
    assert {entry.bound for entry in entries} == {bound}


@pytest.mark.parametrize("name", METHODS)
def test_noise_changes_the_set_and_another_seed_of_the_run_changes_no_noise_of_an_init(name):
    recipe = small(name)
    quiet, loud = (made(private_run(recipe, noise_multiplier=s))[0].x for s in (QUIET, 2.0))
    assert not quiet.equal(loud)
    assert quiet.equal(made(private_run(recipe))[0].x), "a run is a function of its seeds"
    if name in ("dp-random", "ldpdc"):
        assert loud.equal(made(private_run(recipe, noise_multiplier=2.0, seed=9))[0].x)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_goes_on_after_a_pause_with_the_same_bits_and_the_same_bill(name, tmp_path):
    recipe, sets = small(name, steps=4), []
    for folder, pauses in (("whole", 0), ("parts", 2)):
        (tmp_path / folder / ".run").mkdir(parents=True)
        for at in range(pauses + 1):
            limits = Limits(minutes=0.0) if at < pauses else None
            run = private_run(recipe, folder=tmp_path / folder, limits=limits, noise_multiplier=1.0)
            run.splits.train.begin(tmp_path / folder / ".run")
            try:
                sets.append(condense(run).freeze().x)
                entries = run.splits.train.account.ledger.entries
            except Paused:
                continue
        reads = recipe.total_reads()
        assert len(entries) == reads.once + reads.per_step * recipe.outer.steps
    assert sets[0].equal(sets[-1])


# -- PSG ------------------------------------------------------------------------------------------------------------


def test_a_step_of_psg_equals_a_slow_one():
    """All 60 records are in (18 per class expected would not be): each gradient alone, clipped, added, over 60."""
    run = private_run(small("psg", steps=1, n=20))
    done, (entry,) = made(run)
    assert entry.q == 1.0
    net, (real, labels) = first_network(run), records(run)
    params = list(net.parameters())
    total = [torch.zeros_like(p) for p in params]
    shortened = 0
    for x, y in zip(real, labels, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), params)
        length = math.sqrt(sum(float(g.square().sum()) for g in grads))
        shortened += length > 0.1
        total = [t + g * min(1.0, 0.1 / length) for t, g in zip(total, grads, strict=True)]
    assert shortened > 10, "clipping does something here"
    x, y = start(run).requires_grad_(), torch.arange(3).repeat_interleave(2)
    mine = torch.autograd.grad(F.cross_entropy(net(x), y), params, create_graph=True)
    gap = torch.zeros(())
    for t, g in zip(total, mine, strict=True):
        for a, b in zip(t.flatten(1), g.flatten(1), strict=True) if t.dim() > 1 else ():
            gap = gap + 1 - (a / 60 @ b) / ((a / 60).norm() * b.norm() + 1e-6)
    torch.testing.assert_close(done.x, (x - 0.1 * torch.autograd.grad(gap, x)[0]).detach(), **CLOSE)


def test_psg_trains_its_network_after_ten_steps_of_the_images():
    for per_class in (1, 10, 50, 100):
        recipe = registry().recipes()["psg"][0](per_class=per_class, iterations=3)
        outer, inner = LOOPS[per_class]
        assert (recipe.pool.turns, recipe.pool.every, recipe.pool.inner.epochs) == (10 * outer, 10, inner)
        assert recipe.outer.steps == 3 * 10 * outer, "as many as are billed: not one iteration more"
    assert loops(5) == (5, 50)
    assert loops(25) == (25, 20)
    assert loops(200) == (50, 10)


# -- its variant with a generator -----------------------------------------------------------------------------------


def generated(shape=(1, 28, 28), groups=(0, 1, 1, 2), **settings):
    task = toy_splits().task.model_copy(update={"shape": shape})
    recipe = small("psg-prior")
    syn = Deconvolved(**settings).empty(task, torch.tensor(groups), recipe.labels)
    syn.start(Rng(4))
    return syn


def test_the_generator_is_that_of_the_paper_in_layers_and_sizes():
    syn = generated()
    shapes = [tuple(p.shape) for p in syn.decoder.parameters()]
    assert shapes == [(4096, 13), (4096,), (256, 128, 5, 5), (128,), (128, 64, 5, 5), (64,), (64, 1, 8, 8), (1,)]
    code = torch.cat([syn.codes[:1], torch.tensor([[1.0, 0.0, 0.0]])], dim=1)
    spread, first, second, last = syn.decoder.spread, *syn.decoder.up, syn.decoder.last

    def even(x):
        return x / (x.relu().square().mean(1, keepdim=True) + 1e-8).sqrt() * (x > 0)

    x = first(even(spread(code).view(1, 256, 4, 4)))
    assert x.shape[2:] == (8, 8)
    x = second(even(x[:, :, :7, :7]))
    assert x.shape[2:] == (11, 11)
    torch.testing.assert_close(syn.decode(torch.tensor([0]), None).x, last(even(x)))
    assert generated((3, 32, 32)).decode(None, None).x.shape == (4, 3, 32, 32)


def test_generated_images_depend_on_code_and_class_and_not_on_what_init_gave():
    syn = generated()
    before = syn.decode(None, None).x.detach().clone()
    syn.fill(Batch(torch.randn(4, 1, 28, 28), syn.y.clone()))
    assert syn.decode(None, None).x.equal(before)
    assert not torch.allclose(before[1], before[2]), "two codes of one class"
    torch.testing.assert_close(syn.decode(torch.tensor([2, 0]), None).x.detach(), before[[2, 0]])
    again = generated()
    again.load_state_dict(syn.state_dict())
    assert again.decode(None, None).x.equal(before)
    assert syn.stored()["decoder"] == 4 * (sum(p.numel() for p in syn.decoder.parameters()) + 40)


def test_the_generator_is_what_moves():
    run = private_run(small("psg-prior", steps=2))
    run.splits.train.begin(None)
    moved = condense(run)
    fresh = run.recipe.parameterization.empty(run.task, moved.item_groups, run.recipe.labels)
    fresh.start(run.rng.fold("start"))
    assert moved.codes.equal(fresh.codes)
    pairs = list(zip(moved.decoder.parameters(), fresh.decoder.parameters(), strict=True))
    assert all(not a.equal(b) for a, b in pairs)
    assert max(float((a - b).detach().abs().max()) for a, b in pairs) < 2 * 0.011, "two steps of Adam at 0.01"


# -- DP-DM ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [False, True])
def test_clipped_feature_keeps_the_contract_and_equals_a_loop(labelled):
    splits = toy_splits()
    task, net = splits.task, ToyNet().make(splits.task, Rng(1))
    batch = Batch(splits.train.x[:7], splits.train.y[:7])
    lengths = net.features(batch.x).detach().norm(dim=1)
    bound = float(lengths.median())
    statistic = ClippedFeature(bound=bound, labelled=labelled)
    check_statistic(statistic, net, batch, task)
    for i, row in enumerate(statistic.rows(net, batch, task)["feature"]):
        slow = net.features(batch.x[i : i + 1])[0].detach() * min(1.0, bound / float(lengths[i]))
        if labelled:
            whole = torch.zeros(len(slow), 3)
            whole[:, batch.y[i]] = slow
            slow = whole
        torch.testing.assert_close(row, slow)
    soft = Batch(batch.x, torch.full((7, 3), 1 / 3))
    if labelled:
        torch.testing.assert_close(
            statistic.mean(net, soft, task, live=False)["feature"].sum(1),
            statistic.with_(labelled=False).mean(net, soft, task, live=False)["feature"],
        )


def test_a_step_of_dp_dm_equals_one_of_the_official_loss_at_its_rate_of_1():
    """Sums over L = 20 records against L times the set's mean, the set's lengths held still; classes of 30, 20, 10."""
    recipe = small("dp-dm", steps=1, n=20).set("outer.groups.0.lr", 400.0).set("objective.statistic.bound", 0.5)
    assert registry().recipes()["dp-dm"][0](group=20).outer.groups[0].lr == 400.0
    run = private_run(recipe)
    done, (entry,) = made(run)
    assert (entry.q, entry.bound) == (1.0, 0.5)
    net, (real, labels) = first_network(run), records(run)
    x = start(run).requires_grad_()
    loss = torch.zeros(())
    for c in range(3):
        rows = [net.features(r[None])[0].detach() for r in real[labels == c]]
        total = sum(r * min(1.0, 0.5 / float(r.norm())) for r in rows)
        mine = [net.features(image[None])[0] for image in x[2 * c : 2 * c + 2]]
        mean = sum(f * min(1.0, 0.5 / float(f.norm().detach())) for f in mine)
        loss = loss + ((total - 20 / 2 * mean) ** 2).sum()
    torch.testing.assert_close(done.x, (x - torch.autograd.grad(loss, x)[0]).detach(), rtol=1e-3, atol=1e-5)


# -- DP-MERF --------------------------------------------------------------------------------------------------------


def test_random_fourier_features_have_length_1_and_the_products_of_their_kernel():
    task = toy_splits().task
    net = RandomFourier(features=20_000, length=5.0).make(task, Rng(2))
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    features = net.features(x).detach()
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    kernel = torch.tensor([[math.exp(-float((a - b).square().sum()) / 50) for a in x] for b in x])
    torch.testing.assert_close(features @ features.T, kernel, rtol=0, atol=4 / math.sqrt(10_000))
    assert net(x).shape == (6, 3)
    assert not any(name.startswith("frequencies") for name, _ in net.named_parameters()), "they are fixed"
    default = RandomFourier(features=20_000).make(task, Rng(2)).frequencies
    torch.testing.assert_close(default * math.sqrt(0.6 * 64), net.frequencies * 5.0)
    with pytest.raises(BadValue, match="multiple of 2"):
        named(Net, "random-fourier", features=5)


def test_dp_merf_matches_the_embedding_that_was_released_in_its_first_step():
    run = private_run(
        small("dp-merf", steps=1).set("outer.groups.0.rule", {"name": "sgd"}).set("outer.groups.0.lr", 50.0)
    )
    done, (entry,) = made(run)
    assert entry.q == 1.0
    kept = next(iter(run.states.values()))
    w, (real, labels) = kept.model.frequencies, records(run)

    def embedded(x, y):
        phases = [w @ image.flatten() for image in x]
        each = [torch.cat([p.cos(), p.sin()]) / math.sqrt(len(w)) for p in phases]
        return torch.stack(
            [
                sum((e for e, label in zip(each, y, strict=True) if label == c), torch.zeros(2 * len(w)))
                for c in range(3)
            ],
            dim=1,
        ) / len(x)

    goal = embedded(real, labels)
    (target,) = kept.targets().values()
    torch.testing.assert_close(target, goal, **CLOSE)
    x = start(run).requires_grad_()
    gap = (goal - embedded(x, torch.arange(3).repeat_interleave(2))).square().sum()
    expected = (x - 50.0 * torch.autograd.grad(gap, x)[0]).detach().clamp(-1, 1)
    torch.testing.assert_close(done.x, expected, **CLOSE)


class Seen:
    def __init__(self):
        self.losses = []

    @hookimpl
    def condense_stepped(self, losses):
        self.losses.append(float(losses["released"]))


def test_dp_merf_closes_the_gap_without_another_look_at_the_data():
    recipe = small("dp-merf", steps=60)
    run = private_run(recipe, noise_multiplier=1.0)
    seen = Seen()
    run.hooks.register(seen)
    done, entries = made(run)
    assert len(entries) == 1
    assert seen.losses[-1] < 0.7 * seen.losses[0]
    assert float(done.x.abs().max()) <= 1.0
    assert isinstance(recipe.objective, Released)


def test_networks_with_weights_are_no_parameters_of_the_outer_loop():
    """Released takes any network: its weights are neither moved by outer groups nor trained."""
    run = private_run(small("dp-merf", net=ToyNet(), steps=2))
    made(run)
    (kept,) = run.states.values()
    assert list(kept.parameters()) == []
    fresh = ToyNet().make(run.task, run.rng.fold("released"))
    assert all(a.equal(b) for a, b in zip(kept.model.parameters(), fresh.parameters(), strict=True))


# -- noised means ---------------------------------------------------------------------------------------------------


def test_noisy_means_are_the_means_of_their_class_over_a_constant():
    """All records are in: sums over 20, whatever the class holds (30, 20, 10); one measure for each image."""
    run = private_run(small("ldpdc", n=20), inner=images())
    done, entries = made(run)
    real, labels = records(run)
    for c in range(3):
        slow = sum(real[labels == c]) / 20
        for image in done.x[2 * c : 2 * c + 2]:
            torch.testing.assert_close(image, slow, **CLOSE)
    assert len(entries) == 2
    assert done.y.tolist() == [0, 0, 1, 1, 2, 2]


def test_each_noisy_mean_has_a_sample_of_its_own_and_lands_in_its_place():
    run = private_run(small("ldpdc", n=20), inner=images())
    run.splits.train.begin(None)
    groups = torch.tensor([2, 0, 1, 0, 2, 0])
    x = NoisyMeans(group=20)(run, groups).x
    assert len(run.splits.train.account.ledger.entries) == 3, "as many as the class with the most images has"
    assert not x[1].equal(x[3]), "two samples"
    real, labels = records(run)
    means = torch.stack([real[labels == c].mean(0) for c in range(3)]).flatten(1)
    found = F.cosine_similarity(x.flatten(1)[:, None], means[None], dim=2).argmax(1)
    assert found.tolist() == groups.tolist()


def test_noise_of_a_mean_has_the_deviation_of_its_bound():
    """sigma sqrt(d) / L, over 600 draws of 64 numbers; no image in [-1, 1] is longer than sqrt(64) = 8."""
    recipe = small("ldpdc", per_class=200, n=20)
    loud, quiet = (made(private_run(recipe, inner=images(), noise_multiplier=s))[0].x for s in (3.0, QUIET))
    assert float((loud - quiet).std()) == pytest.approx(3 * 8 / 20, rel=0.02)


def test_example_is_the_example_and_is_refused_where_there_is_none():
    splits = toy_splits()
    batch = Batch(splits.train.x[:5], splits.train.y[:5])
    check_statistic(Example(), ToyNet().make(splits.task, Rng(0)), batch, splits.task)
    assert Example().rows(None, batch, splits.task)["x"].equal(batch.x)
    recipe = small("ldpdc").with_(budget={"name": "total", "n": 6, "split": "equal"})
    assert NoisyMeans().reads(recipe).examples
    with pytest.raises(BadValue, match="per-class"):
        check_recipe(recipe, splits.task)


# -- DP-SGD ---------------------------------------------------------------------------------------------------------


def test_dp_sgd_without_noise_and_clipping_is_gradient_descent_on_all_records():
    inner = toy_splits().train
    source = PrivateSource(inner, Account(Private(data=named(Data, "digits"), noise_multiplier=QUIET, clip=1e6)))
    net, slow = (ToyNet().make(inner.task, Rng(5)) for _ in range(2))
    train(net, source, 4, 60, SGD(momentum=0.9), schedule(0.3))
    optimiser = torch.optim.SGD(slow.parameters(), lr=0.3, momentum=0.9)
    for _ in range(4):
        optimiser.zero_grad()
        F.cross_entropy(slow(inner.x), inner.y).backward()
        optimiser.step()
    for a, b in zip(net.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def test_two_processes_do_not_write_one_ledger(tmp_path):
    data, net = Private(data=named(Data, "digits"), noise_multiplier=0.7, clip=1.0), named(Net, "mlp")
    with Lock(tmp_path), pytest.raises(InUse, match="is being written by another run"):
        dp_sgd(data, net, steps=12, batch=60, networks=1, folder=tmp_path)


def test_a_first_network_that_is_broken_off_is_gone_on_with_by_the_same_settings_only(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*asked):
        raise Killed

    data, net = Private(data=named(Data, "digits"), noise_multiplier=0.7, clip=1.0), named(Net, "mlp")
    with monkeypatch.context() as patch:
        patch.setattr("condense_private.dp_sgd.train", kill)
        with pytest.raises(Killed):
            dp_sgd(data, net, steps=12, batch=60, networks=1, folder=tmp_path)
    with pytest.raises(BadValue, match="trained otherwise: net"):
        dp_sgd(data, named(Net, "mlp", hidden=(7, 7)), steps=12, batch=60, networks=1, folder=tmp_path)


def test_the_page_shows_what_networks_trained_with_dp_sgd_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "bounds", lambda releases, delta: [accounting.Bound(2.345, "rdp", "1")])
    assert yardsticks(tmp_path) == ""
    data = Private(data=named(Data, "digits"), noise_multiplier=0.7, clip=1.0)
    found = dp_sgd(data, named(Net, "mlp"), steps=12, batch=60, networks=2, folder=tmp_path)
    a, b = (100 * accuracy for accuracy in found.accuracies)
    (line,) = yardsticks(tmp_path).splitlines()[2:]
    assert line.startswith("| digits-private | 2.35 (rdp); delta 1e-05 | mlp | 12 of 60 records, clip 1 |")
    assert f"| {(a + b) / 2:.1f} +- {abs(a - b) / 2:.1f} (n=2, seed 0) |" in line
    assert "condense-private dp-sgd" in page_of_privacy()


def test_dp_sgd_bills_each_network_alone_and_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "bounds", lambda releases, delta: [])  # of two ledgers by PRV, it takes a minute
    data = Private(data=named(Data, "digits"), noise_multiplier=0.7, clip=1.0)
    net = named(Net, "mlp")
    found = dp_sgd(data, net, steps=12, batch=60, lr=0.5, networks=2, folder=tmp_path)
    assert [network.privacy["draws"] for network in found.networks] == [12, 12]
    assert len({network.privacy["ledger"] for network in found.networks}) == 2
    assert all(len((tmp_path / str(i) / "ledger.jsonl").read_text().splitlines()) == 13 for i in range(2))
    assert not list(tmp_path.rglob("*.key"))
    more = dp_sgd(data, net, steps=12, batch=60, lr=0.5, networks=3, folder=tmp_path)
    assert more.networks[:2] == found.networks, "what is finished stays"
    with pytest.raises(BadValue, match="trained otherwise: steps, lr"):
        dp_sgd(data, net, steps=13, batch=60, lr=0.6, networks=3, folder=tmp_path)
    assert min(found.accuracies) > 0.3, "ten classes"
    noise.kept(tmp_path / "1")  # as a kill between the result and the end of its key leaves it
    dp_sgd(data, net, steps=12, batch=60, lr=0.5, networks=3, folder=tmp_path)
    assert not list(tmp_path.rglob("*.key"))
    with pytest.raises(BadValue, match="below 1"):
        dp_sgd(data, net, networks=0)
    with pytest.raises(BadValue, match="instance or group norm"):
        dp_sgd(data, named(Net, "conv-net", depth=1, pad=1, norm="batch"), steps=1)
