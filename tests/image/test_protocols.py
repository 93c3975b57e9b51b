"""vico and vico-dsa: constants as the official code has them, and a plain re-implementation of its loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from condense import planning as api
from condense.axes import Preprocess
from condense.component import named
from condense.data import TensorSampler
from condense.evaluate import Candidate, evaluate, network_key
from condense.parts.schedules import Drops
from condense.plugins import registry
from condense.protocol import Protocol
from condense.published import rows
from condense.rng import Rng
from condense.testing import toy_splits

SMALL = {"name": "conv-net", "width": 4, "depth": 2, "pad": 1}


def protocol(name: str = "vico", **settings) -> Protocol:
    return named(Protocol, name, **settings)


@pytest.fixture
def data(device) -> TensorSampler:
    """12 images of the toy: two batches of at most 7 in an epoch."""
    splits = toy_splits(device)
    batch = splits.train.draw(4, "each", Rng(5))
    return TensorSampler(splits.task, batch.x, batch.y)


@pytest.mark.parametrize(("name", "epochs", "augment"), [("vico", 300, "none"), ("vico-dsa", 1000, "dsa")])
def test_the_constants_are_those_of_the_official_code(data, name, epochs, augment):
    judge = protocol(name)
    fit = judge.fit(data)
    assert (judge.epochs, fit.epochs, fit.steps, fit.batch) == (epochs, epochs + 1, None, 256)
    assert fit.rule.dump() == {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0005}
    assert isinstance(fit.lr, Drops)
    assert (fit.lr.start, fit.lr.factor, fit.lr.restart) == (0.01, 0.1, True)
    assert fit.lr.at == ({300: 152, 1000: 502}[epochs] / (epochs + 1),)
    assert fit.augment.name == augment
    assert fit.loss.name == "own-loss"
    (net,) = judge.nets
    assert (net.name, net.depth, net.width, net.norm, net.pooling) == ("conv-net", 3, 128, "instance", "avg")
    assert (judge.repeats, judge.split, [m.name for m in judge.metrics]) == (5, "test", ["accuracy"])


def official_rates(epochs: int) -> list[tuple[float, bool]]:
    """(rate, is the optimiser new) of each epoch, as the official loop has them."""
    lr, new, found = 0.01, True, []
    for ep in range(epochs + 1):
        found.append((lr, new))
        new = ep in [epochs // 2 + 1]
        if new:
            lr *= 0.1
    return found


@pytest.mark.parametrize("epochs", [0, 1, 2, 3, 4, 7, 300, 600, 1000])
@pytest.mark.parametrize("batches", [1, 2, 3, 7])
def test_rate_and_restart_fall_on_the_official_epoch_to_the_step(data, epochs, batches):
    fit = protocol(epochs=epochs).fit(data)
    total = fit.epochs * batches
    lr = fit.lr if isinstance(fit.lr, Drops) else Drops(start=fit.lr, at=())
    for epoch, (rate, new) in enumerate(official_rates(epochs)):
        for step in range(epoch * batches, (epoch + 1) * batches):
            assert lr.value(step / total) == pytest.approx(rate)
            if step:
                assert lr.restarts((step - 1) / total, step / total) == (new and step == epoch * batches), step


def official(module: nn.Module, batch_of, epochs: int, batches: int, *, drop: int | None = None, restart: bool = True):
    """The official training, with torch's own optimiser, on given batches. The keywords are mistakes to be found."""

    def optimiser(lr):
        return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9, weight_decay=0.0005)

    lr, drop = 0.01, epochs // 2 + 1 if drop is None else drop
    optimizer = optimiser(lr)
    for ep in range(epochs + 1):
        for i in range(batches):
            batch = batch_of(ep * batches + i)
            optimizer.zero_grad()
            F.cross_entropy(module(batch.x), batch.y).backward()
            optimizer.step()
        if ep == drop:
            lr *= 0.1
            if restart:
                optimizer = optimiser(lr)
            else:
                optimizer.param_groups[0]["lr"] = lr
    return nn.utils.parameters_to_vector(module.parameters()).detach()


@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_weights_equal_the_official_loop_on_the_same_batches(data, augment):
    judge = protocol(nets=(SMALL,), epochs=9, batch=7, augment=augment)
    net, key, fit = judge.nets[0], network_key(0, judge.nets[0], 0), judge.fit(data)

    def fresh():
        return net.make(data.task, key.fold("make"), data.device)

    def batch_of(at):
        batch = data.draw(7, None, key.fold("train").fold("batch"), at=at)
        return judge.augment.sample(key.fold("train").fold("warp", at), len(batch), at / 20)(batch)

    seen = torch.cat([batch_of(at).index for at in (0, 1)])
    assert sorted(seen.tolist()) == list(range(12))  # an epoch is a pass
    training = fit.begin(fresh(), key.fold("train"))
    training.advance(data, fit.length(data))
    ours = nn.utils.parameters_to_vector(training.module.parameters()).detach()
    torch.testing.assert_close(ours, official(fresh(), batch_of, 9, 2), rtol=1e-5, atol=1e-5)
    for mistake in ({"drop": 4}, {"drop": 6}, {"drop": 99}, {"restart": False}):
        other = official(fresh(), batch_of, 9, 2, **mistake)
        assert float((ours - other).abs().max()) > 1e-4, mistake


def test_the_judge_trains_by_the_protocol_and_reports_the_last_epoch(data):
    splits = toy_splits(data.device)
    judge = protocol(nets=(SMALL,), epochs=9, batch=7, repeats=2, record=2)
    transform = named(Preprocess, "none").fit(splits.train, splits.facts)
    row = evaluate(Candidate(data, transform, "toy"), splits, judge, seed=4, device=data.device).rows[0]
    for i, (found, curve) in enumerate(zip(row.accuracies, row.curves, strict=True)):
        key = network_key(4, judge.nets[0], i)
        module = judge.nets[0].make(data.task, key.fold("make"), data.device)
        official(module, lambda at, k=key: data.draw(7, None, k.fold("train", "batch"), at=at), 9, 2)
        share = (module(splits.test.x).argmax(1) == splits.test.y).float().mean()
        assert found == pytest.approx(float(share))
        assert curve[-1] == (20, found)


def test_images_are_augmented_one_by_one_while_networks_train(data):
    warp = protocol("vico-dsa", augment={"name": "dsa", "strategy": "scale"}).augment.sample(Rng(0), 12)
    same = TensorSampler(data.task, data.x[:1].expand(12, -1, -1, -1), data.y)
    x = warp(same.draw(None, None, Rng(0))).x
    assert len({tuple(image.flatten().tolist()) for image in x}) == 12


def test_every_published_row_fits_the_protocol_that_it_sets():
    checked = 0
    for name, (method, _) in registry().recipes("tensors").items():
        for row in rows(method):
            if row.judging:
                judged = api.overridden(named(Protocol, row.protocol or method.protocol), row.judging)
                assert judged.dump() != named(Protocol, row.protocol or method.protocol).dump(), (name, row)
                checked += 1
    assert checked >= 9


def test_the_published_exceptions_arrive():
    dc = api.plan("dc", data="mnist", per_class=1).protocol
    assert (dc.name, dc.epochs, dc.augment.name) == ("vico", 1000, "dc-augment")
    assert api.plan("dc", data="fashion-mnist", per_class=1).protocol == named(Protocol, "vico")
    dsa = api.plan("dsa", data="svhn", per_class=1).protocol
    assert (dsa.name, dsa.epochs) == ("vico-dsa", 1000)
    assert dsa.augment.strategy == "color_crop_cutout_scale_rotate"
    assert "flip" in api.plan("dsa", data="cifar10", per_class=1).protocol.augment.strategy


@pytest.mark.parametrize("method", ["dm", "dsa", "dc", "random", "herding"])
def test_the_embedded_default_is_judged_by_a_setting_of_its_own(method):
    judged = api.plan(method, data="digits").protocol
    assert (judged.epochs, judged.nets[0].depth, judged.nets[0].pad) == (200, 2, 1)
    assert "flip" not in judged.augment.dump().get("strategy", "")
    assert all(row.embedded == (row.data == "digits") for row in rows(registry().recipe(method)))
