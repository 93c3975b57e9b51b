"""DD: settings as its code has them, sets that are used in turn, weights that belong to a set, the judge `replay`."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import condense
from condense.api import carry_out
from condense.axes import Net
from condense.checkpoint import Checkpoints
from condense.component import named
from condense.data import TensorSampler
from condense.engine import condense as condensed
from condense.errors import BadData, BadValue, Diverged
from condense.evaluate import Candidate, evaluate, network_key
from condense.fit import Fit
from condense.parts.bilevel import Bilevel
from condense.parts.inits import Noise
from condense.parts.parameterizations import Pixels
from condense.parts.pools import Fresh
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Drops, Learned
from condense.parts.sequence import Sequence, in_turn
from condense.planning import plan
from condense.protocol import Protocol
from condense.recipe import Plan, check_recipe
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.task import Batch, Task
from condense.testing import Sealed, Toy, ToyNet, toy_run, toy_splits, toys
from condense_image.dd import AlexCifar, Replay, Xavier, dd, dd_fixed
from condense_image.nets import MLP, LeNet

LENET = Xavier(net=LeNet())


@pytest.fixture(autouse=True)
def _toys():
    with toys():
        yield


def small(make, steps=4, per_class=2, net=ToyNet, **options):
    recipe = make(per_class=per_class, iterations=steps, **options).rewrite(Net, lambda _: net())
    return recipe.set("objective.n", 16).set("preprocess", "raw").set("augment", "none")


# -- settings -------------------------------------------------------------------------------------------------------


def test_dd_is_what_its_code_runs():
    recipe = dd()
    assert recipe.objective == Bilevel(fit=Fit(rule=SGD(), lr=Learned(), epochs=3, batch=None), n=1024)
    assert recipe.pool == Fresh(net=LENET, turns=1, inner=None)
    assert recipe.parameterization == Sequence(inner=Pixels(), repeats=3, start=0.02, network=None)
    assert dd_fixed() == recipe.with_(parameterization=recipe.parameterization.with_(network=LENET))
    (group,) = recipe.outer.groups
    assert (group.role, group.rule, group.lr) == (
        "*",
        Adam(betas=(0.5, 0.999)),
        Drops(start=0.01, at=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), factor=0.5),
    )
    assert (recipe.init, recipe.augment.name, recipe.preprocess.name) == (Noise(), "none", "normalise")


@pytest.mark.parametrize("epoch", [0, 1, 39, 40, 119, 120, 399])
def test_the_rate_halves_every_forty_epochs(epoch):
    lr = dd().outer.groups[0].lr
    assert lr.value(epoch / 400) == pytest.approx(0.01 * 0.5 ** (epoch // 40))


def test_the_published_settings_of_cifar10():
    for method in ("dd", "dd-fixed"):
        made = plan(method, data="cifar10", per_class=10)
        assert made.recipe.pool.net == made.protocol.nets[0] == Xavier(net=AlexCifar())
        assert (made.recipe.parameterization.start, made.recipe.outer.steps) == (0.001, 19_600)
        assert made.recipe.preprocess.std == (0.247, 0.243, 0.261)
        assert (made.protocol.name, made.protocol.repeats) == ("replay", 1 if method == "dd-fixed" else 5)
    assert plan("dd-fixed", data="cifar10").recipe.parameterization.network == Xavier(net=AlexCifar())
    assert plan("dd", data="mnist").recipe.outer.steps == 23_600 == 400 * -(-60_000 // 1024)


def test_weights_for_another_network_than_the_pool_trains_are_refused():
    made = plan("dd-fixed", data="digits").recipe
    other = made.with_(pool=made.pool.with_(net=LENET.with_(net=named(Net, "mlp"))))
    task = plan("dd-fixed", data="digits").data.open().task
    made.parameterization.check(made, task)
    with pytest.raises(BadValue, match=r"parameterization.network: is not the network of the pool"):
        other.parameterization.check(other, task)


def test_another_number_of_rounds_is_that_of_the_set_of_its_making_and_of_its_judge():
    five = plan("dd", data="mnist", options={"repeats": 5})
    assert five.recipe.parameterization.repeats == five.recipe.objective.fit.epochs == five.protocol.epochs == 5
    assert plan("dd", data="mnist", options={"repeats": 5}, settings={"protocol.epochs": 2}).protocol.epochs == 2
    assert plan("dm", data="mnist", protocol="replay").protocol.epochs == 3


def test_step_sizes_for_rounds_that_are_not_taken_are_refused():
    settled = plan("dd", data="mnist", settings={"parameterization.repeats": 5})
    with pytest.raises(BadValue, match=r"for 5 rounds, and a set is made by 3.*--with repeats=N") as caught:
        check_recipe(settled.recipe, Task(classes=("a", "b"), shape=(1, 28, 28)))
    assert (caught.value.field, caught.value.value) == ("parameterization.repeats", 5)


@pytest.mark.parametrize(("name", "places"), [("dd", 1), ("dd-fixed", 2)])
def test_another_network_starts_from_weights_as_the_method_draws_them(name, places):
    network = Xavier(net=MLP())
    settled = plan(name, data="mnist", net="mlp")
    assert [part for part in settled.recipe.walk() if isinstance(part, Xavier)] == [network] * places
    assert settled.protocol.nets == (network,)


def test_real_images_of_cifar_are_shifted_and_mirrored_as_in_the_code():
    for method in ("dd", "dd-fixed"):
        augment = plan(method, data="cifar10").recipe.augment
        x = torch.randn(200, 3, 32, 32, generator=Rng(0).generator())
        found = augment.sample(Rng(1), 200)(Batch(x, torch.zeros(200))).x
        want = {(flip, dy, dx) for flip in (False, True) for dy in range(-4, 5) for dx in range(-4, 5)}
        for image, other in zip(x[:8], found[:8], strict=True):
            inside = other[:, 4:-4, 4:-4]
            shifted = [
                torch.equal(inside, (image.flip(2) if flip else image)[:, 4 + dy : 28 + dy, 4 + dx : 28 + dx])
                for flip, dy, dx in want
            ]
            assert sum(shifted) == 1


# -- networks -------------------------------------------------------------------------------------------------------


def test_xavier_draws_weights_by_fan_in_and_fan_out_and_no_biases():
    task = Task(classes=tuple("0123456789"), shape=(1, 28, 28))
    module = LENET.make(task, Rng(0))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert not layer.bias.any()
            fans = torch.tensor(layer.weight.shape[:2]).sum() * layer.weight[0, 0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fans).sqrt().item(), rel=0.15)
    assert not torch.equal(module.head.weight, LENET.make(task, Rng(1)).head.weight)


def test_the_network_for_cifar_is_that_of_the_code():
    task = Task(classes=tuple("0123456789"), shape=(3, 32, 32))
    module = AlexCifar().make(task, Rng(0))
    convolutions, linear = 75 * 64 + 64 + 25 * 64 * 64 + 64, 4096 * 384 + 384 + 384 * 192 + 192 + 192 * 10 + 10
    assert sum(p.numel() for p in module.parameters()) == convolutions + linear
    x = torch.randn(2, 3, 32, 32, generator=Rng(1).generator())
    first, second, *rest = [part for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    maps = normed(F.max_pool2d(first(x).relu(), 3, 2, 1))
    maps = F.max_pool2d(normed(second(maps).relu()), 3, 2, 1).flatten(1)
    for layer in rest[:-1]:
        maps = layer(maps).relu()
    torch.testing.assert_close(module(x), rest[-1](maps), rtol=1e-4, atol=1e-5)


def normed(maps):
    """Local response norm over 4 channels, written out: channels c-2 to c+1 divide channel c."""
    squares, out = maps.square(), torch.empty_like(maps)
    for c in range(maps.shape[1]):
        around = squares[:, max(0, c - 2) : c + 2].sum(1)
        out[:, c] = maps[:, c] / (1 + 0.001 / 9 / 4 * around) ** 0.75
    return out


# -- sets in turn ---------------------------------------------------------------------------------------------------


def test_turn_i_holds_item_i_of_each_class():
    assert in_turn(torch.tensor([0, 0, 0, 2, 2, 2])).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert in_turn(torch.tensor([1, 0, 1, 0])).tolist() == [[1, 0], [3, 2]]
    with pytest.raises(BadValue, match=r"^budget: .* as many of each class"):
        in_turn(torch.tensor([0, 0, 1]))


def test_a_set_gives_its_turns_in_order_its_step_sizes_and_other_draws_as_ever():
    syn = condensed(toy_run(small(dd, steps=0)))
    data = syn.freeze()
    for at in range(9):
        batch = data.draw(None, None, Rng(at), at=at)
        assert batch.index.tolist() == [at % 2, 2 + at % 2, 4 + at % 2]
        assert data.rate(at).item() == pytest.approx(0.02)
    assert data.chunks(None) == 2
    assert len(data.draw(None, None, Rng(0))) == 6, "without a place, all of them"
    plain = TensorSampler(data.task, data.x, data.y)
    for asked in ((4, None), (1, "each"), (None, 1)):
        assert torch.equal(data.draw(*asked, Rng(5), at=3).index, plain.draw(*asked, Rng(5), at=3).index)
    assert plain.chunks(None) == 1
    assert syn.stored() == {**syn.inner.stored(), "rate": 4 * 6}


def test_step_sizes_are_learned_each_by_itself_and_stored_with_the_set(tmp_path):
    run = Plan(method="toy", data=Toy(), recipe=small(dd, steps=10), protocol=None)
    made = condense.load(carry_out(run, tmp_path / "made").path)
    rates = [made.sampler().rate(at).item() for at in range(6)]
    assert len(set(rates)) == 6
    assert rates == [F.softplus(made.synthetic.pace[at]).item() for at in range(6)]
    assert made.sampler().turns.tolist() == [[0, 2, 4], [1, 3, 5]]
    assert made.sampler().initial is None


# -- weights that belong to the set ---------------------------------------------------------------------------------


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_networks_of_dd_fixed_start_from_the_weights_that_are_stored_with_the_set(tmp_path):
    run = Plan(method="toy", data=Toy(), recipe=small(dd_fixed), protocol=None, seed=3)
    made = condense.load(carry_out(run, tmp_path / "made").path)
    initial = made.sampler().initial
    module, other = (ToyNet(width=w).make(made.task, Rng(99)) for w in (4, 5))
    before = flat(other)
    initial.put(ToyNet(), module)
    initial.put(ToyNet(width=5), other)
    assert torch.equal(flat(other), before), "another architecture starts as it would"
    toys_run = toy_run(small(dd_fixed), seed=3)
    syn = condensed(toys_run)
    lent = toys_run.recipe.pool.learners(toys_run, syn)
    assert all(torch.equal(flat(lent.next(i).module), flat(module)) for i in range(3))
    assert made.stored["network"] == 4 * len(flat(module))
    elsewhere = condensed(toy_run(small(dd_fixed), seed=4)).initial
    elsewhere.put(ToyNet(), module)
    assert not torch.equal(flat(module), flat(lent.next(0).module)), "another seed, another network"


def test_dd_meets_new_weights_in_every_update():
    run = toy_run(small(dd))
    lent = run.recipe.pool.learners(run, condensed(run))
    assert len({tuple(flat(lent.next(i).module).tolist()) for i in range(4)}) == 4


# -- the judge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dd, dd_fixed])
def test_the_judge_repeats_the_steps_of_the_set(make, tmp_path):
    run = Plan(method="toy", data=Toy(), recipe=small(make, steps=6), protocol=None)
    made = condense.load(carry_out(run, tmp_path / "made").path)
    judge, splits = Replay(nets=(ToyNet(),), repeats=2), toy_splits()
    row = evaluate(made, splits, judge, seed=5).rows[0]
    data = made.sampler()
    for i, found in enumerate(row.accuracies):
        module = ToyNet().make(made.task, network_key(5, ToyNet(), i).fold("make"))
        if make is dd_fixed:
            data.initial.put(ToyNet(), module)
        for t in range(6):
            turn = [t % 2, 2 + t % 2, 4 + t % 2]
            loss = F.cross_entropy(module(data.x[turn]), torch.arange(3))
            grads = torch.autograd.grad(loss, list(module.parameters()))
            with torch.no_grad():
                for p, g in zip(module.parameters(), grads, strict=True):
                    p -= F.softplus(made.synthetic.pace[t]) * g
        share = (module(splits.test.x).argmax(1) == splits.test.y).float().mean()
        assert found == pytest.approx(share.item())
    assert (row.accuracies[0] == row.accuracies[1]) or make is dd


def test_random_images_are_replayed_in_as_many_steps(tmp_path):
    task = toy_splits().task
    plain = TensorSampler(task, torch.zeros(6, 1, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2]))
    fit = named(Protocol, "replay").fit(plain)
    assert (fit.length(plain), fit.batch, fit.rule) == (3 * 2, 3, SGD())
    assert fit.lr.rate(0.0, plain, 0) == 0.02
    in_turns = condensed(toy_run(small(dd, steps=0))).freeze()
    assert named(Protocol, "replay").fit(in_turns).length(in_turns) == 6


def test_what_was_judged_is_kept_by_turns_and_weights_too():
    data = condensed(toy_run(small(dd_fixed, steps=0))).freeze()
    own = Candidate(data, toy_run(small(dd)).transform, "dd")
    others = [TensorSampler(data.task, data.x, data.y, turns=data.turns), TensorSampler(data.task, data.x, data.y)]
    digests = {replace(own, data=other).digest() for other in (data, *others)}
    assert len(digests) == 3
    assert own.to(torch.device("cpu")).digest(6) == own.digest(6)


# -- runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [dd, dd_fixed])
def test_a_run_resumes_bit_exactly_with_rates_and_weights(make, tmp_path):
    whole = condensed(toy_run(small(make, steps=5)))
    for minutes in (0.0, 0.0, None):
        try:
            again = condensed(toy_run(small(make, steps=5), folder=tmp_path, limits=Limits(minutes=minutes)))
        except Paused:
            continue
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert any(key.startswith("weights") for key in whole.state_dict()) == (make is dd_fixed)


def test_a_step_size_that_explodes_stops_the_run_with_the_last_good_checkpoint(tmp_path):
    recipe = small(dd, steps=30).set("outer.groups.0.lr", 0.5).set("parameterization.explodes", 5.0)
    with pytest.raises(Diverged, match=r"^rate: the learned step size is above 0\.1 since outer step \d+ .*") as found:
        condensed(toy_run(recipe, folder=tmp_path, limits=Limits(steps=1)))
    index, tree = Checkpoints(tmp_path / ".run").latest()
    assert f"The last good checkpoint is that after {index} steps" in str(found.value)
    assert F.softplus(tree["set"]["pace"]).max() <= 0.1


def test_a_step_size_that_falls_to_zero_stops_the_run(tmp_path):
    syn = condensed(toy_run(small(dd, steps=0)))
    with torch.no_grad():
        syn.pace[2] = -500.0
    syn.project(7)
    with pytest.raises(Diverged, match="the learned step size is not above 0 since outer step 7"):
        syn.check()


@pytest.mark.parametrize("make", [dd, dd_fixed])
def test_private_data_are_refused_by_construction(make):
    splits = toy_splits()
    run = toy_run(small(make), replace(splits, train=Sealed(splits.train)))
    with pytest.raises(BadData, match="gives no examples, which objective bilevel would read"):
        run.splits.train.admit(run.recipe)
    with pytest.raises(BadData, match="sealed"):
        condensed(run)
    with pytest.raises(BadValue, match=r"^objective: cannot be used on private data: it reads private examples itself"):
        condense.run(make.make.__name__.replace("_", "-"), data={"name": "private", "data": "digits", "epsilon": 8.0})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dd", "dd-fixed"])
def test_it_beats_random_images_on_digits(method, tmp_path):
    """At 1 image per class, replayed from 5 networks (dd-fixed: sets of 3 seeds), against random images at the best of
    four step sizes.
    """
    seeds = [0] if method == "dd" else [0, 1, 2]
    ours, random = [], []
    for seed in seeds:
        made, other = (
            condense.load(carry_out(plan(name, data="digits", per_class=1, seed=seed), tmp_path / f"{name}{seed}").path)
            for name in (method, "random")
        )
        splits, judge = made.plan.data.open(), made.plan.protocol.with_(repeats=5 if method == "dd" else 1)
        ours += evaluate(made, splits, judge, seed=seed).rows[0].accuracies
        rates = [judge.with_(otherwise=rate, repeats=5) for rate in (0.02, 0.1, 0.3, 1.0)]
        found = [evaluate(other, splits, rules, seed=seed).rows[0].accuracies for rules in rates]
        random += max(found, key=lambda accuracies: sum(accuracies))
    assert len(ours) >= 3
    assert sum(ours) / len(ours) > sum(random) / len(random), (ours, random)
