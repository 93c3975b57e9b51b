"""The judge on a toy: what is counted, what is kept, what is refused, and what is never read."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from condense import baselines, report
from condense.axes import Augment, Loss, Net, Rule, TaskLoss, Transform, Warp
from condense.data import Splits, TensorSampler, TensorSource
from condense.engine import condense
from condense.errors import BadData, BadValue
from condense.evaluate import JUDGED, Candidate, evaluate, network_key, stops
from condense.fit import Crowd, Fit
from condense.metrics import Accuracy, confusion, suspicions
from condense.parts.budgets import PerClass
from condense.parts.inits import Real
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels
from condense.parts.pools import NoModel
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Drops
from condense.protocol import Protocol
from condense.recipe import Outer, Recipe
from condense.report import Report, Row
from condense.rng import Rng
from condense.testing import toy_run, toy_splits


class Small(Net):
    """A convolution, a normalisation, a linear layer."""

    norm: str = "group"
    dropout: float = 0.0

    def build(self, task):
        c, h, w = task.shape
        norm = nn.BatchNorm2d(4) if self.norm == "batch" else nn.GroupNorm(2, 4)
        drop = [nn.Dropout(self.dropout)] if self.dropout else []
        layers = [nn.Conv2d(c, 4, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), *drop]
        return nn.Sequential(*layers, nn.Linear(4 * (h // 2) * (w // 2), task.outputs))


class Quick(Protocol):
    """A judge of few steps."""

    steps: int = 20
    rule: Rule = SGD(momentum=0.9)
    lr: float = 0.05
    augment: Augment | None = None
    loss: Loss = TaskLoss()

    def fit(self, data):
        lr = Drops(start=self.lr, at=(0.5,), restart=True)
        return Fit(rule=self.rule, lr=lr, steps=self.steps, batch=7, augment=self.augment, loss=self.loss)


class Added(Warp):
    def __init__(self, noise):
        self.noise = noise

    def __call__(self, batch):
        return batch.with_x(batch.x + self.noise.to(batch.x))

    def state(self):
        return {"noise": self.noise}


class Jitter(Augment):
    """A number of its own added to each example."""

    def sample(self, rng, n=None, progress=0.0):
        return Added(torch.randn(n, 1, 1, 1, generator=rng.generator()))


class Noisy(Loss):
    """A loss that draws random numbers."""

    def __call__(self, model, batch, task, rng):
        return TaskLoss()(model, batch, task, rng) * float(rng.choice(3))


class Same(Transform):
    """Examples as they are; counts those that pass."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __deepcopy__(self, memo):
        return self

    def encode(self, raw):
        self.seen += len(raw)
        return raw.float()

    def decode(self, x):
        return x

    def describe(self):
        return {"name": "same"}


class Spied(TensorSource):
    """Counts how its examples are read."""

    def __init__(self, *args, reads=None):
        super().__init__(*args)
        self.reads = Counter() if reads is None else reads

    def encoded(self, transform):
        return Spied(self.task, self.x, self.y, transform, reads=self.reads)

    def take(self, index):
        self.reads["examples"] += len(index)
        return super().take(index)

    def draw(self, *args, **kwargs):
        self.reads["draws"] += 1
        return super().draw(*args, **kwargs)

    def sweep(self, n):
        self.reads["sweeps"] += 1
        return super().sweep(n)


def spied(source) -> Spied:
    return Spied(source.task, source.x, source.y)


@pytest.fixture
def splits(device) -> Splits:
    return toy_splits(device)


@pytest.fixture
def candidate(splits) -> Candidate:
    """12 real images of the toy, 4 of each class."""
    return chosen(splits)


def chosen(splits, label=lambda y: y) -> Candidate:
    batch = splits.train.draw(4, "each", Rng(5))
    return Candidate(TensorSampler(splits.task, batch.x, label(batch.y)), Same(), "toy")


def judge(candidate, splits, protocol, **changes) -> Report:
    return evaluate(candidate, splits, protocol, device=splits.train.device, **changes)


def quick(**changes) -> Quick:
    return Quick(**{"nets": (Small(),), "repeats": 3, "record": 1, **changes})


# -- what is counted ------------------------------------------------------------------------------------------------


def test_accuracies_are_those_of_networks_trained_and_tested_by_a_plain_loop(splits, candidate):
    protocol = quick(record=4)
    row = judge(candidate, splits, protocol, seed=3).rows[0]
    for i, found in enumerate(row.accuracies):
        key = network_key(3, Small(), i)
        module = Small().make(splits.task, key.fold("make"), splits.train.device)
        momenta = [torch.zeros_like(p) for p in module.parameters()]
        for step in range(20):
            lr = 0.05 if step < 10 else 0.005
            if step == 10:
                momenta = [torch.zeros_like(p) for p in module.parameters()]
            epoch, chunk = divmod(step, 2)
            order = key.fold("train", "batch", "epoch", epoch).permutation(12, splits.train.device)[
                7 * chunk : 7 * chunk + 7
            ]
            logits = module(candidate.data.x[order])
            picked = logits.log_softmax(1)[range(len(order)), candidate.data.y[order]]
            grads = torch.autograd.grad(-picked.mean(), list(module.parameters()))
            for p, g, m in zip(module.parameters(), grads, momenta, strict=True):
                m.mul_(0.9).add_(g)
                p.data -= lr * m
        right = [int(module(x[None]).argmax()) == int(y) for x, y in zip(splits.test.x, splits.test.y, strict=True)]
        assert found == pytest.approx(np.mean(right))
    assert row.mean > 0.6  # it has learned something, so the equality above is not one of guesses


def test_the_headline_is_the_last_accuracy_and_the_curve_is_stored(splits, candidate):
    row = judge(candidate, splits, quick(record=5)).rows[0]
    assert [[step for step, _ in curve] for curve in row.curves] == [[4, 8, 12, 16, 20]] * 3
    assert row.accuracies == tuple(curve[-1][1] for curve in row.curves)
    assert row.bests == tuple(max(value for _, value in curve) for curve in row.curves)
    # a curve with a peak before its end: the headline is the end
    rising = made(accuracies=(0.4, 0.5), bests=(0.8, 0.9))
    assert (rising.mean, rising.best) == (pytest.approx(0.45), pytest.approx(0.85))


def test_an_unasked_curve_has_as_many_points_as_a_quarter_of_the_training_pays_for(splits, candidate):
    long = TensorSource(splits.task, splits.test.x.repeat(100, 1, 1, 1), splits.test.y.repeat(100))
    protocol = quick(record=None, steps=200)
    fit = protocol.fit(candidate.data)
    assert len(stops(protocol, fit, candidate.data, splits.test)) == 10
    assert stops(protocol, fit, candidate.data, long) == [200]
    assert stops(quick(record=None, steps=0), quick(steps=0).fit(candidate.data), candidate.data, splits.test) == [0]
    two = quick(record=10, steps=2)
    assert stops(two, two.fit(candidate.data), candidate.data, splits.test) == [1, 2]  # none before the first step


def test_the_spread_is_the_populations_as_numpy_and_the_official_code_have_it():
    row = made(accuracies=(0.5, 0.6, 0.9))
    assert row.std == pytest.approx(np.std([0.5, 0.6, 0.9])) != pytest.approx(np.std([0.5, 0.6, 0.9], ddof=1))
    assert row.mean == pytest.approx(np.mean([0.5, 0.6, 0.9]))
    assert row.headline == "66.7 +- 17.0 (n=3)"
    assert made(accuracies=(0.25,)).std == 0.0


def test_a_network_is_the_same_whatever_is_judged_and_another_for_another_seed(splits, candidate):
    untrained = quick(steps=0, repeats=8)
    a = judge(candidate, splits, untrained).rows[0]
    b = judge(chosen(splits, lambda y: 2 - y), splits, untrained.with_(repeats=3)).rows[0]
    c = judge(candidate, splits, untrained, seed=1).rows[0]
    assert a.accuracies[:3] == b.accuracies
    assert len(set(a.accuracies)) > 1
    assert a.accuracies != c.accuracies


def test_every_row_says_what_was_judged_and_where(splits, candidate):
    rows = judge(candidate, splits, quick(nets=(Small(), Small(norm="batch")))).rows
    assert [r.net for r in rows] == ["small", "small(norm=batch)"]
    for r in rows:
        assert (r.kind, r.method, r.images, r.labels, r.protocol, r.n) == ("condensed", "toy", 12, "hard", "quick", 3)
        assert r.preprocessing == {"name": "same"}
        assert r.seconds > 0
        assert r.peak_memory_bytes > 10**6
        assert r.hardware["threads"] == torch.get_num_threads()
        assert r.versions["torch"] == torch.__version__
        assert r.hardware["passes"] == "eager float32"
        assert r.rules == quick().rules_digest() != quick(steps=21).rules_digest()


# -- together and one by one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [SGD(), SGD(momentum=0.9, weight_decay=0.01), Adam()])
@pytest.mark.parametrize("augment", [None, Jitter()])
def test_networks_trained_together_equal_those_trained_one_by_one(splits, candidate, rule, augment):
    data = TensorSampler(splits.task, candidate.data.x.double(), candidate.data.y)
    fit = quick(rule=rule, lr=0.01, augment=augment).fit(data)
    keys = [network_key(0, Small(), i) for i in range(3)]

    def modules():
        return [Small().make(splits.task, key.fold("make"), splits.train.device).double() for key in keys]

    together = Crowd(fit, modules(), [key.fold("train") for key in keys])
    alone = [fit.begin(module, key.fold("train")) for module, key in zip(modules(), keys, strict=True)]
    before = [p.detach().clone() for p in modules()[0].parameters()]
    for steps in (3, 9, 8):  # carried on piece by piece, over the drop in the middle
        losses = together.advance(data, steps, of=20)
        single = torch.stack([training.advance(data, steps, of=20) for training in alone])
        torch.testing.assert_close(losses, single, rtol=1e-10, atol=1e-12)
    for a, b in zip(together.modules, alone, strict=True):
        for p, q in zip(a.parameters(), b.module.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    x, form = splits.test.x.double(), splits.task.form
    torch.testing.assert_close(
        together.predict(x, form), torch.cat([t.predict(x, form) for t in alone]), rtol=1e-9, atol=1e-11
    )
    assert not any(torch.equal(p, q) for p, q in zip(together.modules[0].parameters(), before, strict=True))


def test_the_judge_says_the_same_together(splits, candidate):
    protocol = quick(augment=Jitter(), repeats=4, record=3)
    a = judge(candidate, splits, protocol, together=True).rows[0]
    b = judge(candidate, splits, protocol, together=False).rows[0]
    assert a.curves == b.curves
    assert a.accuracies == b.accuracies


@pytest.mark.parametrize(
    "protocol",
    [quick(nets=(Small(norm="batch"),)), quick(nets=(Small(dropout=0.5),)), quick(loss=Noisy())],
    ids=["batch norm", "dropout", "a loss that draws"],
)
def test_what_cannot_be_trained_together_goes_one_by_one(splits, candidate, protocol):
    module = protocol.nets[0].make(splits.task, Rng(0), splits.train.device)
    assert not Crowd.fits(protocol.fit(candidate.data), module, candidate.data)
    assert Crowd.fits(
        quick().fit(candidate.data), Small().make(splits.task, Rng(0), splits.train.device), candidate.data
    )
    a = judge(candidate, splits, protocol, together=True).rows[0]
    assert a.curves == judge(candidate, splits, protocol, together=False).rows[0].curves


# -- doubts ---------------------------------------------------------------------------------------------------------


def test_swapped_labels_are_found(splits, candidate):
    swapped = chosen(splits, lambda y: (y + 1) % 3)
    row = judge(swapped, splits, quick(steps=60)).rows[0]
    assert row.mean < 0.3
    assert "0 for 2, 1 for 0, 2 for 1" in row.warnings["class-order"]
    assert judge(candidate, splits, quick(steps=60)).rows[0].warnings == {}


def test_classes_of_another_order_or_size_are_refused(splits, candidate):
    task = splits.task.model_copy(update={"classes": ("square", "circle", "star")})
    other = Candidate(TensorSampler(task, candidate.data.x, candidate.data.y), Same(), "toy")
    with pytest.raises(BadData, match="not the classes of the data set in its order"):
        judge(other, splits, quick())
    small = splits.task.model_copy(update={"shape": (1, 4, 4)})
    other = Candidate(TensorSampler(small, candidate.data.x[..., :4, :4], candidate.data.y), Same(), "toy")
    with pytest.raises(BadData, match="shape"):
        judge(other, splits, quick())


def test_constant_and_infinite_predictions_are_named(splits, candidate):
    one = chosen(splits, torch.zeros_like)
    assert "class number 0" in judge(one, splits, quick()).rows[0].warnings["constant-prediction"]
    burst = judge(candidate, splits, quick(lr=1e30)).rows[0]
    assert "not-finite" in burst.warnings
    assert json.dumps(burst.model_dump(mode="json"), allow_nan=False)


def test_confusion_and_suspicions_against_plain_loops():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(4, (200,), generator=g)
    scores = torch.rand(200, 4, generator=g)
    table = [[0] * 4 for _ in range(4)]
    for row, target in zip(scores.tolist(), y.tolist(), strict=True):
        table[row.index(max(row))][target] += 1
    assert confusion(scores, y).tolist() == table
    assert Accuracy()(scores, y, toy_splits().task)["accuracy"] == pytest.approx(
        sum(table[i][i] for i in range(4)) / 200
    )
    right = torch.eye(4)[y]
    assert suspicions(right, y) == {}
    assert set(suspicions(right[:, [1, 0, 2, 3]], y)) == {"class-order"}
    assert suspicions(right[:, [1, 0, 2, 3]], y)["class-order"].endswith("0 for 1, 1 for 0")


# -- what is kept ---------------------------------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    pass


def after(networks: int):
    def stop(progress):
        if progress.done >= networks:
            raise Stop

    return stop


def counting(monkeypatch) -> list[int]:
    made: list[int] = []
    make = Small.make

    def spy(self, task, rng, device="cpu"):
        made.append(rng.path[2])
        return make(self, task, rng, device)

    monkeypatch.setattr(Small, "make", spy)
    return made


def test_an_interrupt_keeps_what_is_judged(splits, candidate, tmp_path, monkeypatch):
    whole = judge(candidate, splits, quick(repeats=5)).rows[0]
    with pytest.raises(Stop):
        judge(candidate, splits, quick(repeats=5), folder=tmp_path, progress=after(3))
    path = tmp_path / ".run" / JUDGED
    assert (tmp_path / ".run").stat().st_mode & 0o777 == 0o700
    assert path.read_text().count('"number"') == 3  # a network that is told of as done is kept
    with path.open("a") as file:
        file.write('\n{"key": "cut sho')  # as a kill in the middle of a write leaves it
    made = counting(monkeypatch)
    row = judge(candidate, splits, quick(repeats=5), folder=tmp_path).rows[0]
    assert made == [3, 4]
    assert row.curves == whole.curves
    made.clear()
    assert judge(candidate, splits, quick(repeats=7), folder=tmp_path).rows[0].accuracies[:5] == whole.accuracies
    assert made == [5, 6]


def test_a_row_of_kept_networks_is_what_it_was(splits, candidate, tmp_path, monkeypatch):
    first = judge(candidate, splits, quick(repeats=3), folder=tmp_path)
    monkeypatch.setattr("condense.evaluate.peak_memory", lambda device: 1)  # of a process that trained nothing
    assert judge(candidate, splits, quick(repeats=3), folder=tmp_path) == first
    fewer = judge(candidate, splits, quick(repeats=2), folder=tmp_path)
    assert fewer.rows[0].accuracies == first.rows[0].accuracies[:2]
    assert first.merge(fewer).rows == first.rows


def test_what_is_kept_is_used_for_the_same_set_protocol_and_seed_only(splits, candidate, tmp_path, monkeypatch):
    judge(candidate, splits, quick(repeats=1), folder=tmp_path)
    made = counting(monkeypatch)
    judge(candidate, splits, quick(repeats=1), folder=tmp_path)
    assert made == []
    other = Candidate(TensorSampler(splits.task, candidate.data.x + 1e-6, candidate.data.y), Same(), "toy")
    tests = Splits(splits.train, splits.test.subset(torch.arange(20)))
    judge(other, splits, quick(repeats=1), folder=tmp_path)
    judge(candidate, splits, quick(repeats=1, steps=21), folder=tmp_path)
    judge(candidate, splits, quick(repeats=1), folder=tmp_path, seed=1)
    judge(candidate, tests, quick(repeats=1), folder=tmp_path)
    assert made == [0, 0, 0, 0]


# -- what is read ---------------------------------------------------------------------------------------------------


def coreset(per_class: int = 4) -> Recipe:
    return Recipe(
        pool=NoModel(),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=Real(),
        labels=Hard(),
        augment="none",
        preprocess="none",
        outer=Outer(steps=0),
    )


def test_the_test_split_is_read_by_the_judge_alone_and_in_whole_passes(splits):
    watched = Splits(splits.train, spied(splits.test), spied(splits.train))
    run = toy_run(coreset(), watched)
    set_ = Candidate(condense(run).freeze(), Same(), "toy")
    assert not watched.test.reads
    assert not watched.validation.reads
    judge(set_, watched, quick(record=1, repeats=3))
    assert watched.test.reads == {"sweeps": 3, "examples": 90}  # once for each network, in order, no draw
    judge(set_, watched, quick(record=4, repeats=2))
    assert watched.test.reads == {"sweeps": 3 + 8, "examples": 90 + 240}
    assert not watched.validation.reads
    watched.test.reads.clear()
    row = judge(set_, watched, quick(split="validation")).rows[0]
    assert row.split == "validation"
    assert not watched.test.reads
    assert watched.validation.reads["draws"] == 0


def test_a_set_without_information_is_worth_nothing(splits, candidate):
    """Were anything of the test split leaked into training, this would be far above chance."""
    shuffled = chosen(splits, lambda y: y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))])
    row = judge(shuffled, splits, quick(steps=60, repeats=5)).rows[0]
    assert row.mean < 0.6 < judge(candidate, splits, quick(steps=60)).rows[0].mean


def test_the_test_split_goes_through_the_candidates_own_transform(splits, candidate):
    judge(candidate, splits, quick(repeats=1))
    assert candidate.transform.seen >= 30
    shifted = Same()
    shifted.encode = lambda raw: raw.float() + 100.0
    wrong = Candidate(candidate.data, shifted, "toy")
    wrong_mean = judge(wrong, splits, quick(steps=60)).rows[0].mean
    assert wrong_mean < judge(candidate, splits, quick(steps=60)).rows[0].mean


def test_a_split_that_is_not_there_is_refused_with_the_way_out(splits, candidate):
    with pytest.raises(BadValue, match="does not have") as error:
        judge(candidate, splits, quick(split="validation"))
    assert error.value.field == "protocol.split"
    assert "validation" in error.value.remedy


def test_an_artifact_is_judged_by_its_own_tensors_and_transform(toy_artifact, toy_plan):
    opened = toy_plan.data.open()
    row = evaluate(toy_artifact, opened, quick(repeats=2)).rows[0]
    assert (row.kind, row.method, row.images, row.preprocessing) == ("condensed", "toy", 6, toy_artifact.preprocessing)
    x, y = toy_artifact.sampler().x, toy_artifact.sampler().y
    data = TensorSampler(toy_artifact.task, x, y)
    by_hand = evaluate(Candidate(data, toy_artifact.transform, "toy"), opened, quick(repeats=2)).rows[0]
    assert by_hand.curves == row.curves


# -- reports --------------------------------------------------------------------------------------------------------


def made(**changes) -> Row:
    accuracies = changes.pop("accuracies", (0.5,))
    fields = {
        "method": "dm",
        "images": 10,
        "protocol": "vico",
        "rules": "r",
        "net": "conv-net",
        "network": {},
        "labels": "hard",
        "preprocessing": {},
        "preprocessing_digest": "p",
        "classes": 10,
        "split": "test",
        "tested": "t",
        "seed": 0,
        "accuracies": accuracies,
        "bests": accuracies,
        "curves": [[(1, a)] for a in accuracies],
        "numbers": {"accuracy": accuracies},
        "seconds": 1.0,
        "peak_memory_bytes": 1,
        "hardware": {},
        "versions": {},
    }
    return Row.model_validate({**fields, **changes})


def test_a_report_survives_json_and_carries_its_numbers():
    whole = Report(rows=(made(accuracies=(0.1, 0.2)), made(kind="full", rules="f")))
    data = json.loads(json.dumps(whole.dump(), allow_nan=False))
    assert Report.model_validate(data) == whole
    assert data["format"] == 1
    assert data["rows"][0]["mean"] == pytest.approx(0.15)
    assert data["rows"][0]["n"] == 2
    with pytest.raises(ValueError, match="format"):
        Report.model_validate({**data, "format": 2})


def test_rows_of_two_protocols_or_two_test_sets_are_not_merged():
    dm = Report(rows=(made(),))
    with pytest.raises(BadValue, match="two protocols"):
        dm.merge(Report(rows=(made(method="random", kind="random", protocol="vico-dsa", rules="other"),)))
    with pytest.raises(BadValue, match="two protocols"):
        dm.merge(Report(rows=(made(method="random", kind="random", rules="vico with other constants"),)))
    with pytest.raises(BadValue, match="two sets"):
        dm.merge(Report(rows=(made(method="random", kind="random", tested="u"),)))
    assert len(dm.merge(Report(rows=(made(kind="full", protocol="full-data", rules="f"),))).rows) == 2


def test_of_two_rows_about_the_same_the_later_stays():
    merged = Report(rows=(made(), made(net="mlp"))).merge(Report(rows=(made(accuracies=(0.7,)),)))
    assert [(row.net, row.mean) for row in merged.rows] == [("conv-net", 0.7), ("mlp", 0.5)]


def test_a_row_that_goes_on_from_the_later_one_stays():
    longer = Report(rows=(made(accuracies=(0.1, 0.2, 0.3)),))
    assert longer.merge(Report(rows=(made(accuracies=(0.1, 0.2)),))).rows[0].n == 3
    for other in (made(accuracies=(0.1, 0.25)), made(accuracies=(0.1, 0.2), seed=1)):
        assert longer.merge(Report(rows=(other,))).rows == (other,)


def test_a_network_that_judges_twice_is_refused():
    with pytest.raises(ValueError, match="small stands there twice"):
        quick(nets=[Small(), Small()])


def test_far_below_random_images_is_doubted():
    random = made(kind="random", method="random", accuracies=(0.5,))
    low, fair = made(accuracies=(0.25,)), made(accuracies=(0.45,))
    assert "25.0 against 50.0" in Report(rows=(low, random)).merge().rows[0].warnings["below-random"]
    assert Report(rows=(fair, random)).merge().rows[0].warnings == {}
    assert report.doubted(low, [low]).warnings == {}


# -- baselines ------------------------------------------------------------------------------------------------------


def test_the_full_data_reference_is_trained_once(splits, tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path))
    run, protocol = toy_run(coreset(), splits), quick(repeats=2)
    assert not baselines.full_data_is_made(run, protocol)
    first = baselines.full_data(run, protocol).rows[0]
    assert (first.kind, first.images, first.protocol, first.n) == ("full", 60, "full-data", 2)
    assert first.mean > 0.9
    assert baselines.full_data_is_made(run, protocol)
    assert not baselines.full_data_is_made(run, protocol.with_(repeats=3))
    monkeypatch.setattr("condense.fit.Training.advance", lambda *a, **k: pytest.fail("trained again"))
    again = baselines.full_data(run, protocol).rows[0]
    assert (again.accuracies, again.seconds) == (first.accuracies, first.seconds)
    other = toy_run(coreset(), splits, seed=1)
    assert not baselines.full_data_is_made(other, protocol)


def test_the_reference_counts_its_training_in_steps(splits):
    fit = baselines.full_fit(splits.train)
    assert (fit.steps, fit.epochs, fit.batch, fit.augment) == (200, None, 64, None)
    assert (fit.rule, fit.lr.start, fit.lr.at) == (SGD(momentum=0.9, weight_decay=5e-4), 0.01, (0.5,))

    def of(n):
        x, y = splits.train.x[:1].expand(n, -1, -1, -1), torch.zeros(n).long()
        fit = baselines.full_fit(TensorSource(splits.task, x, y))
        return fit.batch, fit.steps

    assert of(1258) == (64, 20 * 20)
    assert [of(n) for n in (5119, 5120, 50_000, 10**6)] == [(64, 1600), (256, 400), (256, 20 * 196), (256, 5000)]


def test_random_images_are_real_ones_as_many_as_the_budget_says(splits):
    run = toy_run(coreset(3), splits)
    found = baselines.random_images(run)
    assert found.kind == "random"
    assert found.data.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    real = splits.train.x.flatten(1)
    for x, y in zip(found.data.x.flatten(1), found.data.y, strict=True):
        same = (real == x).all(dim=1).nonzero().flatten()
        assert len(same) == 1
        assert splits.train.y[same[0]] == y
    assert torch.equal(baselines.random_images(run).data.x, found.data.x)
