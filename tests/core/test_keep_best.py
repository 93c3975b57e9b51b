"""Weights chosen on validation: against a plain loop; what chooses, what does not; what is refused, kept, resumed."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from condense import baselines
from condense.api import open_run
from condense.component import named
from condense.data import Splits, TensorSampler, TensorSource
from condense.errors import BadData, BadValue
from condense.evaluate import Candidate, evaluate, network_key
from condense.fit import Crowd, Fit
from condense.keeping import Best, interval
from condense.metrics import Accuracy, RocAuc, area_under_roc
from condense.parts.rules import Adam
from condense.parts.schedules import Drops
from condense.protocol import Protocol
from condense.rng import Rng
from condense.running import Limits
from condense.task import Task, Tensors
from condense.testing import toy_run

from .test_evaluate import Same, Small, Stop, after, coreset, counting, quick, spied

STEPS = 30


class Chosen(Protocol):
    """Steps on the whole set at a rate at which accuracies jump."""

    keep: str = "best"
    steps: int = STEPS
    lr: float = 0.1

    def fit(self, data):
        lr = Drops(start=self.lr, at=(0.5,), restart=True)
        return Fit(rule=Adam(weight_decay=0.001), lr=lr, steps=self.steps, batch=None)


class Everything(Chosen):
    """The same, of all real data as well."""

    whole: ClassVar[bool] = True


class Passes(Protocol):
    """A judge that counts epochs."""

    keep: str = "best"

    def fit(self, data):
        return Fit(rule="sgd", epochs=3, batch=7)


class Together(Tensors):
    """Examples that cannot be taken alone."""

    independent: ClassVar[bool] = False


def chosen(kind=Chosen, **changes) -> Protocol:
    return kind(**{"nets": (Small(),), "repeats": 3, **changes})


@pytest.fixture
def splits(device) -> Splits:
    return overlapping(device)


def overlapping(device, seed: int = 3) -> Splits:
    """Three classes of images that overlap: 30 to train on, 40 to choose by, 50 to test on."""
    g = torch.Generator().manual_seed(seed)
    task = Task(classes=("circle", "square", "star"), shape=(1, 8, 8))
    centres = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def source(n):
        y = torch.arange(n) % 3
        return TensorSource(task, (0.3 * centres[y] + torch.randn(n, 1, 8, 8, generator=g)).to(device), y.to(device))

    return Splits(source(30), source(50), source(40))


@pytest.fixture
def candidate(splits) -> Candidate:
    """All 30 training images."""
    return Candidate(TensorSampler(splits.task, splits.train.x, splits.train.y), Same(), "toy")


def judge(candidate, splits, protocol, **changes):
    return evaluate(candidate, splits, protocol, device=splits.train.device, **changes).rows[0]


def share(module, source) -> float:
    module.eval()
    with torch.no_grad():
        return float((module(source.x).argmax(1) == source.y).double().mean())


def plain(net, number, splits, every=1, steps=STEPS, lr=0.1):
    """A loop with torch's own optimiser: (test score of the best weights, of the last, step of the best)."""
    module = net.make(splits.task, network_key(0, net, number).fold("make"), splits.train.device)
    best, weights, at = -1.0, None, 0
    optimiser = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=0.001)
    for step in range(steps):
        if step == steps // 2:
            optimiser = torch.optim.Adam(module.parameters(), lr=0.1 * lr, weight_decay=0.001)
        module.train()
        optimiser.zero_grad()
        F.cross_entropy(module(splits.train.x), splits.train.y).backward()
        optimiser.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            score = share(module, splits.validation)
            if score > best:
                best, weights, at = score, copy.deepcopy(module.state_dict()), step + 1
    last = share(module, splits.test)
    module.load_state_dict(weights)
    return share(module, splits.test), last, at


# -- what is chosen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [Small(), Small(norm="batch")], ids=["group norm", "batch norm"])
@pytest.mark.parametrize("look", [1, 7])
def test_the_tested_weights_are_those_of_a_plain_loop(splits, candidate, net, look):
    row = judge(candidate, splits, chosen(nets=(net,), look=look))
    expected = [plain(net, i, splits, look) for i in range(3)]
    assert row.accuracies == pytest.approx([best for best, _, _ in expected])
    assert row.numbers["accuracy"] == row.accuracies
    assert row.numbers["last-accuracy"] == pytest.approx([last for _, last, _ in expected])
    assert any(at < STEPS for _, _, at in expected)  # so that there was something to choose
    if look == 1:
        assert row.accuracies != row.numbers["last-accuracy"]


def test_the_curve_holds_the_end_of_training_which_nothing_selects(splits, candidate):
    row = judge(candidate, splits, chosen())
    assert [curve for curve in row.curves] == [((STEPS, last),) for last in row.numbers["last-accuracy"]]
    pairs = zip(row.accuracies, row.numbers["last-accuracy"], strict=True)
    assert row.bests == tuple(max(pair) for pair in pairs)
    asked = judge(candidate, splits, chosen(record=3))
    assert [[step for step, _ in curve] for curve in asked.curves] == [[10, 20, 30]] * 3
    assert asked.accuracies == row.accuracies


def test_of_equal_scores_the_first_is_kept_and_nan_is_the_lowest():
    module = nn.BatchNorm1d(2)
    best = Best(module)
    for value, score in enumerate([0.5, 0.7, 0.7, math.nan, 0.6]):
        nn.init.constant_(module.weight, value)
        module.running_mean.fill_(10.0 + value)
        best.see(score)
    best.restore()
    assert module.weight.tolist() == [1.0, 1.0]
    assert module.running_mean.tolist() == [11.0, 11.0]
    assert best.score == 0.7


def test_a_network_that_was_never_looked_at_or_never_had_a_score():
    module = nn.Linear(1, 1)
    before = module.weight.item()
    Best(module).restore()
    assert module.weight.item() == before
    best = Best(module)
    best.see(math.nan)
    nn.init.constant_(module.weight, 9.0)
    best.see(math.nan)
    best.restore()
    assert module.weight.item() == before
    best.see(-1e9)
    assert best.score == -1e9


def test_no_training_and_no_look(splits, candidate):
    row = judge(candidate, splits, chosen(steps=0, repeats=2))
    assert row.accuracies == row.numbers["last-accuracy"]


@pytest.mark.parametrize(("look", "looks"), [(1, 10), (3, 4), (5, 2), (40, 1)])
def test_validation_is_looked_at_after_every_so_many_steps_and_at_the_end(splits, candidate, look, looks):
    watched = Splits(splits.train, spied(splits.test), spied(splits.validation))
    judge(candidate, watched, chosen(steps=10, look=look, repeats=2))
    assert watched.validation.reads == {"sweeps": 2 * looks, "examples": 80 * looks}
    assert watched.test.reads == {"sweeps": 2 * 2, "examples": 2 * 2 * 50}  # the last weights and the kept ones


def test_where_training_counts_epochs_so_do_looks(splits, candidate):
    watched = Splits(splits.train, splits.test, spied(splits.validation))
    protocol = chosen(Passes, repeats=1)
    assert interval(protocol, protocol.fit(candidate.data), candidate.data) == 5  # 30 examples in batches of 7
    judge(candidate, watched, protocol)
    assert watched.validation.reads["sweeps"] == 3
    judge(candidate, watched, protocol.with_(look=2))
    assert watched.validation.reads["sweeps"] == 3 + 2


# -- what has no part in it -----------------------------------------------------------------------------------------


def spying(monkeypatch) -> list[float]:
    seen: list[float] = []
    see = Best.see

    def spy(self, score):
        seen.append(score)
        see(self, score)

    monkeypatch.setattr(Best, "see", spy)
    return seen


def test_the_test_split_does_not_choose(splits, candidate, monkeypatch):
    seen = spying(monkeypatch)
    row = judge(candidate, splits, chosen())
    first = list(seen)
    seen.clear()
    wrong = TensorSource(splits.task, splits.test.x.flip(0), (splits.test.y + 1) % 3)
    other = judge(candidate, Splits(splits.train, wrong, splits.validation), chosen())
    assert seen == first
    assert other.accuracies != row.accuracies
    seen.clear()
    judge(candidate, Splits(splits.train, splits.test, wrong), chosen())
    assert seen != first  # validation does


def test_the_last_weights_are_those_that_are_judged_without_choosing(splits, candidate):
    for dropout in (0.0, 0.5):
        nets = (Small(dropout=dropout),)
        by_steps = judge(candidate, splits, chosen(nets=nets, look=STEPS))
        assert by_steps.numbers["last-accuracy"] == judge(candidate, splits, chosen(nets=nets, keep="last")).accuracies
        assert by_steps.accuracies == by_steps.numbers["last-accuracy"]


def test_validation_goes_through_the_candidates_own_transform(splits, candidate):
    seen = candidate.transform.seen
    judge(candidate, splits, chosen(repeats=1, steps=4))
    shapes = 1 + 1  # `encoded` tries one example of each split
    assert candidate.transform.seen - seen == 4 * 40 + 2 * 50 + shapes


def test_what_is_suspicious_is_looked_for_in_the_kept_weights(splits):
    one = TensorSampler(splits.task, splits.train.x, torch.zeros_like(splits.train.y))
    row = judge(Candidate(one, Same(), "toy"), splits, chosen(look=STEPS))
    assert "class number 0" in row.warnings["constant-prediction"]


def test_networks_whose_weights_are_chosen_go_one_by_one(splits, candidate, monkeypatch):
    plainly = judge(candidate, splits, chosen(), together=False)
    monkeypatch.setattr(Crowd, "advance", lambda *a, **k: pytest.fail("in step"))
    assert judge(candidate, splits, chosen(), together=True).accuracies == plainly.accuracies


def test_examples_that_cannot_be_taken_alone_are_not_trained_on_together(splits, candidate):
    protocol, net = quick(), Small()
    task = splits.task.model_copy(update={"form": Together()})
    bound = TensorSampler(task, candidate.data.x, candidate.data.y)
    module = net.make(task, Rng(0), splits.train.device)
    assert Crowd.fits(protocol.fit(candidate.data), module, candidate.data)
    assert not Crowd.fits(protocol.fit(bound), module, bound)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_without_a_validation_split_nothing_is_trained(splits, candidate, monkeypatch):
    made = counting(monkeypatch)
    with pytest.raises(BadValue, match="chooses weights on a validation split, which this data set does not") as error:
        judge(candidate, Splits(splits.train, splits.test), chosen())
    assert error.value.field == "protocol.keep"
    assert "keep=last" in error.value.remedy
    assert made == []


def test_a_run_is_refused_before_its_first_step(toy_plan):
    judged = toy_plan.protocol.with_(keep="best")
    with pytest.raises(BadValue, match="validation"):
        open_run(toy_plan.model_copy(update={"protocol": judged}), None, (), Limits())
    open_run(toy_plan, None, (), Limits())


# -- rules, and what is kept ----------------------------------------------------------------------------------------


def test_protocols_that_keep_the_last_weights_have_the_digests_of_stored_rows():
    assert named(Protocol, "vico").rules_digest() == "f4f5edf13624c215"  # of docs/reproduced/dc-fashion-mnist-1-0.json
    last = chosen(keep="last")
    assert last.rules_digest() == last.with_(look=5).rules_digest()
    best = last.with_(keep="best")
    assert len({last.rules_digest(), best.rules_digest(), best.with_(look=5).rules_digest()}) == 3


def test_an_interrupt_keeps_what_is_judged(splits, candidate, tmp_path, monkeypatch):
    whole = judge(candidate, splits, chosen())
    with pytest.raises(Stop):
        judge(candidate, splits, chosen(), folder=tmp_path, progress=after(2))
    made = counting(monkeypatch)
    row = judge(candidate, splits, chosen(), folder=tmp_path)
    assert made == [2]
    assert (row.accuracies, row.numbers, row.curves) == (whole.accuracies, whole.numbers, whole.curves)
    made.clear()
    other = Splits(splits.train, splits.test, splits.validation.subset(torch.arange(20)))
    judge(candidate, other, chosen(repeats=1), folder=tmp_path)
    judge(candidate, splits, chosen(repeats=1, look=2), folder=tmp_path)
    assert made == [0, 0]  # chosen by something else, so judged again


def test_progress_tells_the_headline(splits, candidate):
    told = []
    row = judge(candidate, splits, chosen(), progress=told.append)
    assert [(p.done, p.accuracy) for p in told] == [(i + 1, a) for i, a in enumerate(row.accuracies)]


# -- all real data, by the same rules -------------------------------------------------------------------------------


def test_all_real_data_are_judged_by_the_protocols_own_rules_where_it_says_so(splits, candidate, tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path))
    run, protocol = toy_run(coreset(), splits), chosen(Everything)
    assert not baselines.full_data_is_made(run, protocol)
    row = baselines.full_data(run, protocol).rows[0]
    assert (row.kind, row.method, row.images, row.rules) == ("full", "full data", 30, protocol.rules_digest())
    assert row.accuracies == pytest.approx([plain(Small(), i, splits)[0] for i in range(3)])
    assert row.numbers["last-accuracy"] == judge(candidate, splits, protocol).numbers["last-accuracy"]
    assert baselines.full_data_is_made(run, protocol)
    assert not baselines.full_data_is_made(run, protocol.with_(repeats=4))
    assert not baselines.full_data_is_made(toy_run(coreset(), overlapping(run.device, seed=4)), protocol)
    monkeypatch.setattr("condense.fit.Training.advance", lambda *a, **k: pytest.fail("trained again"))
    again = baselines.full_data(run, protocol).rows[0]
    assert (again.accuracies, again.seconds) == (row.accuracies, row.seconds)


def test_a_source_is_judged_where_it_is_and_known_by_its_provenance(splits, candidate):
    a = Candidate(splits.train, Same(), "full data")
    assert a.to(splits.train.device) is a
    assert a.digest() == Candidate(splits.train, Same(), "another name").digest()
    assert a.digest() != Candidate(splits.test, Same(), "full data").digest()
    assert judge(a, splits, chosen()).accuracies == judge(candidate, splits, chosen()).accuracies


# -- the area under the ROC curve -----------------------------------------------------------------------------------


def test_roc_auc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    for classes in (2, 3, 5):
        task = Task(classes=tuple("abcde"[:classes]), shape=(1,))
        scores = rng.dirichlet(np.ones(classes), size=200).round(2)  # rounded, so that there are ties
        scores /= scores.sum(axis=1, keepdims=True)
        y = rng.integers(0, classes, size=200)
        found = RocAuc()(torch.from_numpy(scores), torch.from_numpy(y), task)
        expected = roc_auc_score(y, scores[:, 1]) if classes == 2 else roc_auc_score(y, scores, multi_class="ovr")
        assert found == {"roc-auc": pytest.approx(expected, abs=1e-12)}


def test_roc_auc_against_every_pair():
    g = torch.Generator().manual_seed(0)
    scores, positive = torch.randint(6, (40,), generator=g) / 6, torch.rand(40, generator=g) > 0.7
    pairs = [(float(p), float(n)) for p in scores[positive] for n in scores[~positive]]
    expected = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert area_under_roc(scores, positive) == pytest.approx(expected)
    assert area_under_roc(positive.float(), positive) == 1.0
    assert area_under_roc(torch.zeros(40), positive) == 0.5
    assert math.isnan(area_under_roc(scores, torch.ones(40, dtype=torch.bool)))


def test_roc_auc_of_classes_that_are_absent():
    task = Task(classes=("a", "b", "c"), shape=(1,))
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.4, 0.1]])
    two = RocAuc()(scores, torch.tensor([0, 1, 0]), task)["roc-auc"]
    assert two == pytest.approx((area_under_roc(scores[:, 0], torch.tensor([True, False, True])) + 1.0) / 2)
    with pytest.raises(BadData, match="all of one class"):
        RocAuc()(scores, torch.tensor([2, 2, 2]), task)


def test_the_headline_metric_chooses(splits, candidate):
    row = judge(candidate, splits, chosen(metrics=(RocAuc(), Accuracy())))
    assert row.metric == "roc-auc"
    assert list(row.numbers) == ["roc-auc", "accuracy", "last-roc-auc", "last-accuracy"]
    assert row.accuracies == row.numbers["roc-auc"]
    assert row.numbers["accuracy"] != judge(candidate, splits, chosen()).accuracies
