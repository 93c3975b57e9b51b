"""A private source: what it refuses, what it releases, what it bills, and where its noise comes from."""

from __future__ import annotations

import json
import random
import stat
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import condense
from condense.axes import Augment, Statistic, Warp
from condense.component import named
from condense.data import Ask, Data, TensorSource
from condense.errors import BadData, BadValue, Damaged
from condense.execution import Passes, using
from condense.parts.augment import Beside, NoAugment, Then
from condense.parts.matching import Gradient, MeanFeature
from condense.rng import Rng
from condense.task import Batch
from condense.testing import Still, ToyNet, toy_splits
from condense_private import accounting, noise
from condense_private.account import Account
from condense_private.dp_dm import ClippedFeature
from condense_private.ledger import Entry, Ledger
from condense_private.noisy_means import Example
from condense_private.private import Private, PrivateSource, finite
from condense_private.sampling import Sampling, digest_of

SMALL = {"pool.net.width": 4, "pool.net.depth": 1, "objective.pairing.n": 20, "pool.inner.epochs": 1}


def terms(**changes):
    return Private(data=named(Data, "digits"), **{"noise_multiplier": 1.0, "noise_seed": 3, **changes})


def source(inner=None, *, measures=4, **changes):
    made = PrivateSource(inner or toy_splits().train, Account(terms(**changes)))
    made.account.measures = measures
    return made


def network(task, seed=0):
    return ToyNet().make(task, Rng(seed))


def released(made, asks, statistic=None, seed=0):
    return list(made.measure(statistic or MeanFeature(), network(made.task, seed), asks, Rng(0)))


# -- what is refused ------------------------------------------------------------------------------------------------


def test_every_door_but_measure_is_closed():
    made = source()
    doors = {
        "take": lambda: made.take(torch.tensor([0])),
        "draw": lambda: made.draw(3, None, Rng(0)),
        "sweep": lambda: made.sweep(8),
        "ids": lambda: made.ids(0),
        "groups": lambda: made.groups,
        "counts": made.counts,
        "chunks": lambda: made.chunks(4, 1),
    }
    for door in doors.values():
        with pytest.raises(BadValue, match="is private"):
            door()
    assert len(made) == 60
    assert source(public_counts=True).counts() == [30, 20, 10]
    assert set(made.provenance()) == {"classes", "records"}


@pytest.mark.usefixtures("rdp_only")
@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_a_method_that_starts_from_real_images_is_refused_and_runs_from_noise(method, tmp_path):
    asked = {"data": terms(noise_seed=None), "per_class": 1, "steps": 2, "out": tmp_path / "run"}
    small = {key: value for key, value in SMALL.items() if method != "dm" or "inner" not in key}
    with pytest.raises(BadValue, match="--set init=noise"):
        condense.run(method, settings=small, **asked)
    assert not (tmp_path / "run").exists()
    artifact = condense.run(method, settings={**small, "init": "noise"}, **asked)
    assert artifact.provenance["privacy"]["draws"] == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preprocess": "zca-kornia"}, "normalise"),
        ({"pool.on": "real"}, "pool.on=synthetic"),
        ({"pool.net.norm": "batch"}, "instance or group norm"),
        ({"outer.steps": 0}, "no measure"),
        ({"init": "herding"}, "init=noise"),
    ],
)
def test_what_would_publish_private_examples_is_refused_with_what_to_use(changes, says, tmp_path):
    with pytest.raises(BadValue, match=says):
        condense.run("dc", data=terms(), per_class=1, settings={**SMALL, **changes}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_asks_that_share_records_are_refused():
    made = source()
    for asks in ([], [Ask(0, 2), Ask(0, 2)], [Ask(None, 2), Ask(0, 2)]):
        with pytest.raises(BadValue, match="share records"):
            released(made, asks)
    with pytest.raises(BadValue, match="Take at most 60"):
        released(made, [Ask(None, 61)])
    assert made.account.ledger.entries == []


class Peeks(Statistic):
    """Says of each example how far it is from the mean of its batch."""

    def rows(self, model, batch, task):
        x = batch.x.flatten(1)
        return {"gap": x - x.mean(dim=0)}

    def mean(self, model, batch, task, *, live):
        return {"gap": self.rows(model, batch, task)["gap"].mean(dim=0)}


def test_a_statistic_that_looks_at_its_neighbours_is_refused_before_anything_is_released():
    made = source()
    with pytest.raises(BadValue, match="depends on the other records"):
        released(made, [Ask(None, 20)], Peeks())
    assert made.account.ledger.entries == []


class Neighbourly(Augment):
    """A stranger's, that does not say that it mixes: each example becomes the mean of itself and the one before it."""

    def sample(self, rng, n=None, progress=0.0):
        return Drawn(lambda batch: Batch((batch.x + batch.x.roll(1, dims=0)) / 2, batch.y))


class Drawn(Warp):
    def __init__(self, function):
        self.function = function

    def __call__(self, batch):
        return self.function(batch)

    def state(self):
        return {}


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (Beside(augment=NoAugment()), "makes 8 examples of 4 records"),
        (Then(augments=(Beside(augment=NoAugment()), Beside(augment=NoAugment()))), "makes 16 examples of 4 records"),
        (Neighbourly(), "makes of a record what depends on the other records"),
    ],
)
def test_an_augmentation_that_makes_anything_but_one_of_each_record_is_refused_before_it_is_billed(augment, says):
    made = source()
    with pytest.raises(BadValue, match=f"^augment: {says}"):
        released(made, [Ask(None, 20, (augment.sample(Rng(0)),))])
    assert made.account.ledger.entries == []


def test_a_network_that_keeps_statistics_of_what_it_sees_is_refused():
    made, net = source(), network(toy_splits().task)

    class Counting(type(net)):
        def features(self, x):
            self.seen += len(x)
            return super().features(x)

    net.__class__ = Counting
    net.register_buffer("seen", torch.zeros(()))
    with pytest.raises(BadValue, match=r"keeps statistics of the records it sees \(seen\)"):
        list(made.measure(MeanFeature(), net, [Ask(None, 20)], Rng(0)))
    assert made.account.ledger.entries == []


class Rounded(Passes):
    """Passes whose gradients are rounded, as compiled ones in bfloat16 are."""

    def gradients(self, module, loss, batch, task, rng):
        value, found = super().gradients(module, loss, batch, task, rng)
        return value, {name: gradient.bfloat16().float() for name, gradient in found.items()}


def test_rounded_passes_of_a_run_are_no_neighbours():
    with using(Rounded()):
        assert len(released(source(), [Ask(None, 20)], Gradient())) == 1


def test_records_that_are_not_finite_are_refused_before_any_is_sampled():
    train = toy_splits().train
    for bad in (float("nan"), float("inf")):
        x = train.x.clone()
        x[7, 0, 0, 0] = bad
        with pytest.raises(BadData, match="NaN or infinity"):
            finite(TensorSource(train.task, x, train.y))


def test_live_data_and_twice_private_data_are_refused():
    x, y = torch.rand(40, 1, 8, 8), torch.arange(40) % 2
    with pytest.raises(BadValue, match="fingerprint"):
        condense.run("dc", data=Private(data=condense.api.as_data((x, y)), epsilon=1.0), per_class=1)
    with pytest.raises(BadValue, match="twice"):
        Private(data=terms(), epsilon=1.0).open()


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": None, "noise_multiplier": None},
        *(
            {key: value}
            for key in ("epsilon", "noise_multiplier", "clip")
            for value in (0, -1, float("nan"), float("inf"))
        ),
        *({"delta": value} for value in (0, 1, -1e-5, float("nan"))),
        {"accountant": "gdp"},
    ],
)
def test_parameters_out_of_range_are_refused(changes):
    with pytest.raises(BadValue):
        named(Data, "private", **{"data": "digits", "epsilon": 1.0, **changes}).open()


# -- what is released -----------------------------------------------------------------------------------------------


def test_without_noise_a_release_is_the_clipped_mean_of_the_records():
    """Every record is asked for, so the sample is all of them; own computation, record by record."""
    train = toy_splits().train
    for clip in (0.5, 100.0):
        made = source(clip=clip, noise_multiplier=1e-12)
        found = released(made, [Ask(c, None) for c in range(3)])
        rows = MeanFeature().rows(network(train.task), train.take(torch.arange(60)), train.task)["feature"].double()
        for c, answer in enumerate(found):
            own = rows[train.y == c]
            clipped = torch.stack([row * min(1.0, clip / float(row.norm())) for row in own])
            expected = clipped.sum(0) / (60 / 3)
            torch.testing.assert_close(answer["feature"].double(), expected, rtol=1e-5, atol=1e-6)


def test_noise_has_the_deviation_that_is_billed_and_no_mean():
    made = source(clip=0.5, noise_multiplier=2.0, noise_seed=None)
    task = made.task
    model = network(task)
    quiet = source(clip=0.5, noise_multiplier=1e-12)
    exact = next(quiet.measure(MeanFeature(), model, [Ask(None, None)], Rng(0)))
    gaps = []
    for _ in range(400):
        answer = next(made.measure(MeanFeature(), model, [Ask(None, None)], Rng(0)))
        gaps.append((answer["feature"] - exact["feature"]) * 60)
    drawn = torch.stack(gaps)
    n = drawn.numel()
    assert abs(float(drawn.mean())) < 4 / n**0.5
    assert float(drawn.std()) == pytest.approx(2.0 * 0.5, rel=4 / (2 * n) ** 0.5)
    assert len(made.account.ledger.entries) == 400


@pytest.mark.parametrize(
    "statistic",
    [Gradient(), MeanFeature(), *(ClippedFeature(bound=0.5, labelled=by) for by in (False, True)), Example(bound=0.5)],
    ids=["gradient", "mean-feature", "clipped-feature", "labelled", "example"],
)
def test_a_record_moves_a_release_by_no_more_than_the_bound(statistic):
    """The same noise twice: with and without one record, which is 1,000 times as long as the others."""
    train, worst = toy_splits().train, 0.0
    for i in range(20):
        x = train.x.clone()
        x[i] *= 1000
        parts = [TensorSource(train.task, x[keep], train.y[keep]) for keep in (torch.arange(60), torch.arange(60) != i)]
        sums = []
        for inner in parts:
            made = source(inner, clip=0.5, noise_multiplier=1e-12)
            answers = released(made, [Ask(c, None) for c in range(3)], statistic)
            sums.append([torch.cat([v.flatten() for v in a.values()]) * len(inner) / 3 for a in answers])
        gap = torch.cat([a - b for a, b in zip(*sums, strict=True)]).norm()
        worst = max(worst, float(gap) / 0.5)
    print(f"largest change of a release of {statistic.name}, in units of its bound: {worst:.7f}")
    assert 0.99 < worst <= 1 + 1e-5


@pytest.mark.parametrize("statistic", [MeanFeature(), Gradient()])
def test_an_empty_sample_releases_noise_like_any_other(statistic, monkeypatch):
    nobody = torch.zeros(0, dtype=torch.int64)
    monkeypatch.setattr(Sampling, "sample", lambda plan, inner, stream: (inner.take(nobody), nobody))
    for answer in released(source(clip=1.0), [Ask(0, 1), Ask(1, 1)], statistic):
        values = torch.cat([value.flatten() for value in answer.values()])
        assert float(values.std()) == pytest.approx(1.0, rel=0.5)


def test_class_sizes_are_used_only_where_they_are_public():
    def rates(**changes):
        made = source(**changes)
        released(made, [Ask(c, 5) for c in range(3)])
        return made.account.ledger.entries[0].q

    assert rates() == pytest.approx(15 / 60)
    assert rates(public_counts=True) == pytest.approx(5 / 10)


# -- where the noise comes from -------------------------------------------------------------------------------------


def test_noise_does_not_come_from_any_generator_of_the_process(monkeypatch):
    """Global generators seeded alike, and the clock stopped, before each of 1,000 releases: none is like another."""
    monkeypatch.setattr(time, "time", lambda: 0.0)
    made = source(noise_seed=None, clip=1.0)
    model, seen = network(made.task), set()
    for _ in range(1000):
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        answer = next(made.measure(MeanFeature(), model, [Ask(None, None)], Rng(0)))["feature"]
        seen.add(answer.numpy().tobytes())
    print(f"{len(seen)} different releases of 1000")
    assert len(seen) == 1000


@pytest.mark.usefixtures("rdp_only")
def test_the_seed_of_a_run_does_not_touch_its_noise(tmp_path):
    asked = {"per_class": 1, "steps": 2, "settings": SMALL, "seed": 0}
    sets = {}
    for seeded in (None, 5):
        for i in (0, 1):
            artifact = condense.run("dc", data=terms(noise_seed=seeded), out=tmp_path / f"{seeded}-{i}", **asked)
            sets[seeded, i] = artifact.sampler().x
            said = artifact.provenance["privacy"]
            assert said["private"] == (seeded is None)
            assert ("not private" in json.dumps(said)) == (seeded is not None)
    assert not torch.equal(sets[None, 0], sets[None, 1])
    assert torch.equal(sets[5, 0], sets[5, 1])


@pytest.mark.usefixtures("rdp_only")
def test_the_key_is_secret_while_the_run_goes_on_and_gone_when_it_is_complete(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(condense.running.Paused):
        condense.run(
            "dc", data=terms(noise_seed=None), per_class=1, steps=30, settings=SMALL, out=folder, minutes=0.001
        )
    key = folder / ".run" / noise.KEY
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert len(key.read_bytes()) == 32
    plan = condense.api.stored_plan(folder)
    short = plan.model_copy(update={"recipe": plan.recipe.set("outer.steps", 30)})
    assert short == plan
    condense.resume(folder)
    assert not key.exists()
    assert b"" not in {path.read_bytes() for path in folder.glob("*.json")}
    key.write_bytes(bytes(31))
    with pytest.raises(Damaged, match="not a whole key"):
        noise.kept(folder / ".run")


# -- what is billed -------------------------------------------------------------------------------------------------


def test_a_request_that_comes_again_after_a_resume_is_the_same_release_and_is_billed_once(tmp_path):
    made = source(noise_seed=None)
    made.begin(tmp_path)
    first = [released(made, [Ask(None, 20)], seed=i)[0]["feature"] for i in range(4)]
    again = source(noise_seed=None)
    again.begin(tmp_path)
    again.load_state_dict({"taken": 2})
    second = [released(again, [Ask(None, 20)], seed=i)[0]["feature"] for i in (2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(first[2:], second, strict=True))
    assert len(again.account.ledger.entries) == 4
    other = released(again, [Ask(None, 20)], seed=9)[0]["feature"]
    assert len(again.account.ledger.entries) == 5
    assert not torch.equal(other, first[0])
    with pytest.raises(Damaged, match="other data"):
        source(toy_splits(seed=8).train, noise_seed=None).begin(tmp_path)


def test_a_ledger_that_lacks_what_a_checkpoint_has_seen_is_refused(tmp_path):
    """Whether it is gone, or was cut at the end of a line, or is an older copy."""
    made = source(noise_seed=None)
    made.begin(tmp_path)
    for i in range(3):
        released(made, [Ask(None, 20)], seed=i)
    path = tmp_path / "ledger.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 3):
        path.unlink()
        if kept:
            path.write_bytes(b"".join(whole[:kept]))
        again = source(noise_seed=None)
        again.begin(tmp_path)
        with pytest.raises(Damaged, match=f"lists {max(0, kept - 1)} releases, and the checkpoint .* after 3"):
            again.load_state_dict({"taken": 3})
    path.write_bytes(b"".join(whole))
    again = source(noise_seed=None)
    again.begin(tmp_path)
    again.load_state_dict({"taken": 3})
    assert again.state_dict() == {"taken": 3}


def test_noise_that_was_calibrated_once_stays(tmp_path, monkeypatch):
    """Another accountant's answer, or PRV's that comes late this time, would make the rest of a run another kind."""
    made = source(noise_seed=None, noise_multiplier=None, epsilon=8.0)
    made.begin(tmp_path)
    released(made, [Ask(None, 20)])
    monkeypatch.setattr(accounting, "noise_multiplier", lambda *asked: 99.0)
    again = source(noise_seed=None, noise_multiplier=None, epsilon=8.0)
    again.begin(tmp_path)
    released(again, [Ask(None, 20)], seed=1)
    assert len({entry.sigma for entry in again.account.ledger.entries}) == 1


def test_a_request_names_the_architecture():
    """Other functions of the same weights: the difference of two answers with the same noise would show the data."""
    asked, facts, net = [Ask(None, 20)], {}, network(toy_splits().task)
    same = [digest_of(0, facts, asked, net) for _ in range(2)]
    net.eval()
    evaluating = digest_of(0, facts, asked, net)
    net.train().architecture = "another"
    assert len({*same, evaluating, digest_of(0, facts, asked, net)}) == 3


def test_a_changed_request_gets_noise_of_its_own(tmp_path):
    """Same place in the run, other weights: were the noise the same, the difference of the two would show the data."""
    answers = []
    for seed in (0, 1):
        made = source(noise_seed=3, noise_multiplier=1e6, clip=1.0)
        answers.append(released(made, [Ask(None, None)], seed=seed)[0]["feature"])
    assert float((answers[0] - answers[1]).abs().min()) > 1.0


def test_every_line_of_a_ledger_counts(tmp_path):
    path, said = tmp_path / "ledger.jsonl", {"records": 10, "delta": 1e-5, "data": "x"}
    entries = [Entry(f"{i:064x}", "mean-feature", 0.1, 1.0, 0.5) for i in range(5)]
    ledger = Ledger(path, said)
    assert [ledger.bill(entry) for entry in [*entries, entries[2]]] == [True] * 5 + [False]
    whole = path.read_bytes()
    assert Ledger(path, said).entries == entries
    lines = whole.splitlines(keepends=True)
    ends = [sum(map(len, lines[: i + 1])) for i in range(len(lines))]
    for cut in range(ends[0], len(whole)):  # killed while it wrote: the half line was never released
        path.write_bytes(whole[:cut])
        assert len(Ledger(path, said).entries) == sum(end <= cut for end in ends) - 1
        assert path.read_bytes() == whole[: max(end for end in ends if end <= cut)]
    for i in range(1, 5):
        path.write_bytes(b"".join(lines[:i] + lines[i + 1 :]))
        with pytest.raises(Damaged):
            Ledger(path, said)
    path.write_bytes(whole.replace(b'"q": 0.1', b'"q": 0.2', 1))
    with pytest.raises(Damaged):
        Ledger(path, said)
    path.write_bytes(whole)
    with pytest.raises(Damaged, match="other terms"):
        Ledger(path, {**said, "delta": 1e-6})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_run_bills_as_often_as_it_measures_and_its_artifact_says_so(tmp_path):
    folder = tmp_path / "run"
    wrapped = terms(noise_seed=None, noise_multiplier=None, epsilon=8.0, public_counts=False)
    artifact = condense.run("dc", data=wrapped, per_class=1, steps=5, settings=SMALL, out=folder)
    said = artifact.provenance["privacy"]
    lines = (folder / ".run" / "ledger.jsonl").read_text().splitlines()
    assert (said["draws"], said["requests"], len(lines)) == (5, 5, 6)
    records = len(named(Data, "digits").open().train)
    assert [(r["count"], r["rate"]) for r in said["releases"]] == [(5, 200 / records)]
    assert 7.5 < said["epsilon"]["rdp"] <= 8.0
    assert 6.0 < said["epsilon"]["prv"] < said["epsilon"]["rdp"]
    assert artifact.provenance["source"]["records"] == records
    everything = b"".join(
        path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".run" not in path.parts
    )
    inner = named(Data, "digits").open().train
    assert inner.fingerprint.encode() not in everything
    assert all(line_before != line for line_before, line in pairwise(lines))


@pytest.mark.usefixtures("rdp_only")
def test_a_budget_that_is_used_up_stops_the_run_and_what_is_released_stays(tmp_path):
    wrapped = terms(noise_seed=None, noise_multiplier=2.0, epsilon=2.0)
    artifact = condense.run("dc", data=wrapped, per_class=1, steps=400, settings=SMALL, out=tmp_path / "run")
    said = artifact.provenance["privacy"]
    assert 0 < said["draws"] < 400
    assert said["epsilon"]["rdp"] <= 2.0
    assert "epsilon" in artifact.provenance["notes"]["stopped"]["reason"]


@pytest.mark.usefixtures("rdp_only")
def test_a_judge_keeps_what_it_finds_out_of_the_artifact(tmp_path):
    folder = tmp_path / "run"
    artifact = condense.run("dc", data=terms(noise_multiplier=0.5), per_class=1, steps=1, settings=SMALL, out=folder)
    rules = artifact.plan.protocol.with_(repeats=1, epochs=1)
    before = {path.name for path in folder.iterdir()}
    judged = condense.judge(artifact, protocol=rules)
    assert [row["kind"] for row in judged.report["rows"]] == ["condensed"]
    assert {path.name for path in folder.iterdir()} == before
    assert condense.load(folder).report is None
    assert json.loads((folder / ".run" / "report.json").read_text()) == judged.report
    assert "no epsilon covers them" not in (folder / ".run" / "report.html").read_text()
    condense.judge(artifact, protocol=rules, publish=True)
    assert condense.load(folder).report["uncovered"] is True
    page = (folder / "report.html").read_text()
    assert "no epsilon covers them" in page
    assert artifact.provenance["privacy"]["sentence"] in page


def test_test_examples_are_not_in_the_source():
    splits = terms().open()
    plain = named(Data, "digits").open()
    assert len(splits.train) == len(plain.train)
    assert torch.equal(splits.test.x, plain.test.x)
    assert splits.facts.mean == splits.facts.std == (0.5,)
    assert replace(plain.facts).mean != (0.5,)
    assert isinstance(splits.train.encoded, object)


def test_no_augmentation_is_a_warp_of_its_own():
    made = source(noise_multiplier=1e-12, clip=100.0)
    warp = Still().sample(Rng(0))
    plain = released(made, [Ask(None, None)])[0]["feature"]
    twice = released(made, [Ask(None, None, (warp, warp))])[0]["feature"]
    torch.testing.assert_close(plain, twice)
