"""Membership inference: scores, ratios and intervals against slow computations, leaks that must be found, resuming."""

from __future__ import annotations

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from condense import store
from condense.api import carry_out
from condense.artifact import load
from condense.axes import Evaluator
from condense.component import checked, member, named
from condense.data import Data, Facts
from condense.errors import BadValue
from condense.evaluate import network_key
from condense.planning import plan
from condense.plugins import registry
from condense.protocol import Protocol
from condense.recipe import Execution, Plan
from condense.rng import Rng
from condense.testing import Toy, ToyNet, toy_recipe, toy_splits, toys
from condense_private import accounting, lira
from condense_private.cli import main
from condense_private.membership import (
    RESULT,
    SCORES,
    Findings,
    Membership,
    by_detail,
    by_distance,
    by_model,
    called,
    notes,
    started_from,
)
from condense_private.page import MEASURED, measured, page_of_privacy
from condense_private.private import Private
from condense_private.shadows import Shadow, chosen

FAST = {"name": "vico", "nets": ["toy-net"], "epochs": 3, "repeats": 1}


class Mirrored(Toy):
    """The toy splits, with images that keep their meaning in a mirror."""

    def open(self, device="cpu"):
        splits = toy_splits(device, self.seed)
        return type(splits)(splits.train, splits.test, None, Facts(title="toy", extra={"mirror": True}))


@pytest.fixture(autouse=True)
def _toys():
    with toys(Mirrored):
        yield


def toy_plan(data=None, recipe=None, seed=0):
    rules = member(Protocol, FAST)
    made = recipe or toy_recipe()
    return Plan(method="toy", data=data or Toy(), recipe=made, protocol=rules, seed=seed, execution=Execution())


def drawn(k=16, n=3000, queries=1, seed=0, effect=0.0, shift=0.0):
    """Scores of their own mean for each record and shadow, `effect` higher where a record is in."""
    g = torch.Generator().manual_seed(seed)
    groups = torch.randint(3, (n,), generator=g)
    inside = lira.halves(groups, k, Rng(seed))
    hard, easy = 2 * torch.randn(1, 1, n, generator=g), shift * torch.randn(k, 1, 1, generator=g)
    noise = torch.randn(k, queries, n, generator=g)
    return (hard + easy + noise + effect * inside.unsqueeze(1)).double(), inside, groups


# -- who is in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "shadows"), [(60, 8), (61, 16), (7, 10)])
def test_every_record_is_in_exactly_half_of_the_shadows_and_pairs_are_complements(n, shadows):
    groups = torch.arange(n) % 3
    inside = lira.halves(groups, shadows, Rng(3))
    assert inside.sum(dim=0).tolist() == [shadows // 2] * n
    assert torch.equal(inside[::2], ~inside[1::2])
    assert {int(row.sum()) for row in inside} <= {n // 2, n - n // 2}
    for c in range(3):
        of = inside[:, groups == c].sum(dim=1)
        assert int(of.max() - of.min()) <= 1, "half of each class, up to one"
    assert len({tuple(row.tolist()) for row in inside}) == shadows


def test_who_is_in_one_pair_says_nothing_of_another():
    inside = lira.halves(torch.zeros(4001, dtype=torch.int64), 64, Rng(0)).double()[::2] - 0.5
    product = inside @ inside.T / inside.shape[1]
    off = product[~torch.eye(32, dtype=torch.bool)]
    assert float(off.abs().max()) < 5 * 0.25 / math.sqrt(4001)


# -- scores and likelihoods, slowly ----------------------------------------------------------------------------------


def test_confidence_is_that_of_a_loop_over_probabilities():
    logits, y = 5 * torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4
    found = lira.confidence(logits, y)
    for network in range(2):
        for i in range(30):
            p = np.exp(logits[network, i].double().numpy())
            p /= p.sum()
            others = sum(p[j] for j in range(4) if j != y[i])
            assert float(found[network, i]) == pytest.approx(math.log(p[y[i]]) - math.log(others), rel=1e-9)
    assert torch.isfinite(lira.confidence(torch.tensor([[[900.0, 0.0]]]), torch.tensor([0]))).all(), "no rounding to 1"


@pytest.mark.parametrize("k", [8, 70])
def test_ratio_and_one_sided_are_those_of_a_loop_over_records(k):
    """Below 64 shadows one variance for all records, about each one's own mean; above, each record's own."""
    scores, inside, _ = drawn(k=k, n=40, queries=2, effect=0.5)
    targets = torch.randn(2, 2, 40, generator=torch.Generator().manual_seed(9)).double()
    ratio, one_sided = lira.ratio(targets, scores, inside), lira.one_sided(targets, scores, inside)
    in_rows = [[scores[inside[:, i], q, i].numpy() for i in range(40)] for q in range(2)]
    out_rows = [[scores[~inside[:, i], q, i].numpy() for i in range(40)] for q in range(2)]

    def deviation(rows, i):
        if k >= 64:
            return np.std(rows[i], ddof=1)
        return math.sqrt(sum(((r - r.mean()) ** 2).sum() for r in rows) / sum(len(r) - 1 for r in rows))

    for t in range(2):
        for i in range(40):
            logs, ahead = [], []
            for q in range(2):
                phi = float(targets[t, q, i])
                like_in = norm.logpdf(phi, in_rows[q][i].mean(), deviation(in_rows[q], i))
                like_out = norm.logpdf(phi, out_rows[q][i].mean(), deviation(out_rows[q], i))
                logs.append(like_in - like_out)
                ahead.append((phi - out_rows[q][i].mean()) / deviation(out_rows[q], i))
            assert float(ratio[t, i]) == pytest.approx(np.mean(logs), rel=1e-9, abs=1e-9)
            assert float(one_sided[t, i]) == pytest.approx(np.mean(ahead), rel=1e-9, abs=1e-9)


def test_scores_are_standardised_in_each_shadow_and_class():
    scores, _, groups = drawn(k=8, n=60, shift=3.0)
    found = lira.standard(scores, groups)
    for shadow in range(8):
        for c in range(3):
            of = scores[shadow, 0, groups == c].numpy()
            np.testing.assert_allclose(found[shadow, 0, groups == c].numpy(), (of - of.mean()) / of.std(), rtol=1e-9)


def test_the_area_is_that_of_scikit_learn_with_ties_too():
    g = torch.Generator().manual_seed(1)
    inside, outside = torch.randint(9, (300,), generator=g).double(), torch.randint(8, (500,), generator=g).double()
    truth = np.r_[np.ones(300), np.zeros(500)]
    assert lira.auc(inside, outside) == pytest.approx(roc_auc_score(truth, np.r_[inside.numpy(), outside.numpy()]))


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (1, 5000), (4321, 160_000)])
def test_intervals_are_those_of_scipys_exact_binomial_test(hits, n):
    exact = binomtest(hits, n).proportion_ci(0.95, method="exact")
    assert lira.clopper_pearson(hits, n) == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-12)
    assert lira.clopper_pearson(0, 0) == (0.0, 1.0)


def test_a_threshold_is_exceeded_by_at_most_its_rate_and_no_smaller_one_is():
    outside = torch.randn(1000, generator=torch.Generator().manual_seed(2)).double()
    for rate in (0.001, 0.01, 0.0005):
        limit = lira.threshold(outside, rate)
        assert int((outside > limit).sum()) == math.floor(rate * 1000)
    ties = torch.ones(1000).double()
    assert int((ties > lira.threshold(ties, 0.01)).sum()) == 0


# -- attacks on scores that are drawn --------------------------------------------------------------------------------


def area_of(trials):
    areas = [lira.auc(v[m], v[~m]) for t in trials for v, m in zip(t.values, t.member, strict=True)]
    return sum(areas) / len(areas)


def rates_of(trials, rate):
    """Shares of members and of non-members above the thresholds."""
    flags = [t.values > lira.threshold(t.other_values[~t.other_member], rate) for t in trials]
    caught = torch.cat([f[t.member] for f, t in zip(flags, trials, strict=True)])
    false = torch.cat([f[~t.member] for f, t in zip(flags, trials, strict=True)])
    return float(caught.double().mean()), float(false.double().mean())


@pytest.mark.parametrize("shadows", [8, 16])
@pytest.mark.parametrize("name", lira.ATTACKS)
def test_where_nothing_leaks_no_attack_finds_anything(name, shadows):
    """Not by how many shadows have a record either, which would tell of it if the target's twin were not left out."""
    scores, inside, groups = drawn(k=shadows, n=20_000, shift=0.3)
    trials = lira.trials(lira.standard(scores, groups), inside, lira.ATTACKS[name])
    low, high = lira.auc_interval(area_of(trials), 10_000, 10_000)
    assert low < 0.5 < high
    caught, false = rates_of(trials, 0.01)
    assert abs(caught - false) < 0.002
    assert 0.008 < false < 0.012


@pytest.mark.parametrize("name", lira.ATTACKS)
def test_shuffled_memberships_give_an_area_within_its_interval_of_a_half(name):
    scores, inside, _ = drawn(n=4000, effect=1.5)
    true = lira.trials(scores, inside, lira.ATTACKS[name])
    shuffled = lira.trials(scores, inside[:, torch.randperm(4000, generator=Rng(5).generator())], lira.ATTACKS[name])
    low, high = lira.auc_interval(area_of(shuffled), 2000, 2000)
    assert low < 0.5 < high
    assert lira.auc_interval(area_of(true), 2000, 2000)[0] > 0.55


def test_what_moves_every_member_is_found_by_the_ratio_better_than_by_one_threshold():
    scores, inside, _ = drawn(effect=2.0)
    found = {name: rates_of(lira.trials(scores, inside, attack), 0.01) for name, attack in lira.ATTACKS.items()}
    assert found["likelihood ratio"][0] > 0.2
    assert found["likelihood ratio"][0] > 3 * found["threshold"][0]
    assert 0.005 < found["likelihood ratio"][1] < 0.015


def test_nothing_of_a_target_enters_its_thresholds():
    scores, inside, _ = drawn(k=8, n=200, effect=1.0)
    changed = scores.clone()
    changed[2:4] += 100 * torch.randn(2, 1, 200, generator=Rng(1).generator()).double()
    for attack in lira.ATTACKS.values():
        before, after = (lira.trials(s, inside, attack)[1] for s in (scores, changed))
        assert torch.equal(before.other_values, after.other_values)
        assert not torch.equal(before.values, after.values)


def test_attacks_together_find_what_the_best_finds_and_keep_their_rate():
    scores, inside, _ = drawn(n=10_000, effect=3.0)
    nothing, _, _ = drawn(n=10_000, seed=3)
    strong = lira.trials(scores, inside, lira.ratio)
    weak = lira.trials(nothing, inside, lira.one_sided)
    for pair in ((strong, weak), (weak, strong), (weak, strong, weak)):
        caught, false = rates_of(lira.combined(*pair), 0.01)
        assert caught > 0.7 * rates_of(strong, 0.01)[0]
        assert 0.007 < false < 0.013


# -- scores of a set -------------------------------------------------------------------------------------------------


def test_the_set_score_is_the_distance_to_the_nearest_of_its_class_by_a_loop(tmp_path):
    half = Shadow(data=Toy(), shadows=8, number=2, canaries=6)
    artifact = carry_out(toy_plan(half, toy_recipe(init="real")), tmp_path / "made")
    splits = toy_splits()
    design = half.design(splits.train)
    found = by_distance(artifact, artifact.plan.protocol, splits, design)
    data, records = artifact.sampler(), chosen(splits.train, design)
    for i in range(len(design.y)):
        x, y = records.take(torch.tensor([i])).x[0].numpy(), int(design.y[i])
        far = [np.sqrt(((x - s) ** 2).sum()) for s, c in zip(data.x.numpy(), data.y.tolist(), strict=True) if c == y]
        assert float(found[0, i]) == pytest.approx(-min(far), rel=1e-5)


def test_the_detail_score_is_a_whitened_cosine_by_a_loop(tmp_path):
    half = Shadow(data=Toy(), shadows=8, number=2)
    artifact = carry_out(toy_plan(half, toy_recipe(init="real")), tmp_path / "made")
    splits = toy_splits()
    design = half.design(splits.train)
    found = by_detail(artifact, artifact.plan.protocol, splits, design)
    data, x = artifact.sampler(), splits.train.x[design.index].flatten(1).double().numpy()
    y, items = design.y.numpy(), data.x.flatten(1).double().numpy()
    mean = np.stack([x[y == c].mean(axis=0) for c in range(3)])
    covariance = np.cov((x - mean[y]).T, bias=True)
    values, vectors = np.linalg.eigh(covariance + 0.1 * np.trace(covariance) / 64 * np.eye(64))
    white = vectors @ np.diag(values**-0.5) @ vectors.T
    for i in range(len(y)):
        a = white @ (x[i] - mean[y[i]])
        others = [white @ (s - mean[c]) for s, c in zip(items, data.y.tolist(), strict=True) if c == y[i]]
        cosine = max(a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in others)
        assert float(found[0, i]) == pytest.approx(cosine, rel=1e-6)


def test_the_model_score_is_that_of_networks_trained_one_by_one_and_of_mirror_images(tmp_path):
    half = Shadow(data=Mirrored(), shadows=8, number=1)
    made = toy_plan(half, seed=4)
    artifact = carry_out(made, tmp_path / "made")
    rules, splits = made.protocol.with_(repeats=2), Mirrored().open()
    design = half.design(splits.train)
    found = by_model(artifact, rules, splits, design)
    data, total = artifact.sampler(), 0
    for i in range(2):
        key = network_key(4, ToyNet(), i)
        module = ToyNet().make(data.task, key.fold("make"))
        predict = rules.fit(data)(module, data, key.fold("train"))
        x = splits.train.x[design.index]
        with torch.no_grad():
            p = torch.stack([predict(q).double().softmax(-1) for q in (x, x.flip(-1))])
        own = p[:, torch.arange(len(x)), design.y]
        total = total + own.log() - (p.sum(-1) - own).log()
    assert found.shape == (2, 60)
    torch.testing.assert_close(found, total / 2, rtol=1e-4, atol=1e-5)
    plain = Membership(shadows=8, networks=1, beside=()).attack(toy_plan(), tmp_path / "toy")
    assert plain.queries == 1


def test_the_records_that_a_set_started_from_are_those_that_stand_in_it(tmp_path):
    half = Shadow(data=Toy(), shadows=8, number=3)
    recipe = toy_recipe(init="real", outer={"steps": 0})
    artifact = carry_out(toy_plan(half, recipe), tmp_path / "made")
    design = half.design(toy_splits().train)
    used = started_from(toy_plan(half, recipe), design)
    items = artifact.sampler().x
    assert int(used.sum()) == 6
    assert bool(design.member[3][used].all())
    stands = [bool((items == toy_splits().train.x[i]).flatten(1).all(1).any()) for i in design.index]
    assert used.tolist() == stands
    assert not started_from(toy_plan(half), design).any()


# -- the evaluator ---------------------------------------------------------------------------------------------------


def rows(found, recipe, score, attack, of="records"):
    at = (recipe, score, attack, of)
    return next(row for row in found.rows if (row.recipe, row.score, row.attack, row.of) == at)


SMALL = {"protocol.epochs": 4, "pool.net.width": 8, "protocol.nets.0.width": 8, "objective.pairing.n": 16}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three steps of DM on digits, from noise, beside random real examples and a start from real ones."""
    folder = tmp_path_factory.mktemp("digits")
    made = plan("dm", data="digits", per_class=1, steps=3, settings={**SMALL, "init": "noise"}, device="cpu")
    return Membership(shadows=8, networks=1, canaries=100).attack(made, folder), folder


def test_records_that_stand_in_the_set_are_found_by_the_set(digits):
    found, _ = digits
    for recipe in ("random real subset", "dm, init=real"):
        row = rows(found, recipe, "set detail", "one-sided")
        used = row.rates[1].used
        assert 60 < used.n <= 80, "ten in each of eight sets, but for canaries"
        assert used.low > 0.3, recipe
        assert row.rates[1].others.share < 0.02
    noise = rows(found, "dm, init=noise", "set detail", "one-sided")
    assert noise.rates[1].used.n == 0
    assert noise.low < 0.5 < noise.high
    assert rows(found, "random real subset", "set distance", "one-sided").rates[1].used.low > 0.3
    assert {row.score for row in found.rows} == {*SCORES, "all"}
    assert rows(found, "random real subset", "all", "the strongest").rates[1].used.low > 0.3


def test_a_rate_that_too_few_non_members_can_show_has_no_meaning_and_the_report_says_so(digits):
    found, folder = digits
    row = rows(found, "dm, init=noise", "model", "likelihood ratio")
    assert row.members == row.others == 579
    assert [at.meaningful for at in row.rates] == [False, True]
    assert [at.others.n for at in row.rates] == [8 * 579, 8 * 579]
    assert any("579 non-members among the records are fewer than the 1,000" in note for note in notes(found.rows))
    canary = rows(found, "dm, init=noise", "model", "likelihood ratio", of="canaries")
    assert (canary.members, canary.others) == (50, 50)
    assert not any(at.meaningful for at in canary.rates)
    assert Findings.model_validate(json.loads((folder / RESULT).read_text())) == found


def test_the_page_shows_what_is_stored(digits):
    found, folder = digits
    (folder / "shown").mkdir()
    (folder / "shown" / "a.json").write_text((folder / RESULT).read_text())
    text = "\n".join(measured(folder / "shown"))
    assert "| dm, init=noise | records |" in text
    assert "no meaning" in text
    assert f"{found.machine['device']}" in text
    assert "proves nothing" in page_of_privacy()


def test_what_is_stored_for_the_page_has_teeth():
    """The attack on the set finds the records that were used, in every stored result; so many members are attacked."""
    for path in (MEASURED / "membership").glob("*.json"):
        found = Findings.model_validate(json.loads(path.read_text()))
        for recipe in ("random real subset", f"{found.method}, init=real"):
            row = rows(found, recipe, "set detail", "one-sided")
            assert min(row.members, row.others) >= 5000
            assert row.rates[1].used.low > 0.01, (path.name, recipe)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_killed_attack_goes_on_and_ends_with_the_same_numbers(tmp_path):
    evaluator, made = Membership(shadows=8, networks=1, beside=("random",)), toy_plan()
    whole = evaluator.attack(made, tmp_path / "whole")
    child = os.fork()
    if child == 0:  # killed as its fifth shadow begins, and once more among the random sets
        evaluator.attack(made, tmp_path / "killed", lambda told: "shadow 5" in told and os.kill(os.getpid(), 9))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = sorted((tmp_path / "killed").rglob("*.safetensors"))
    scores = [path for path in kept if path.name.startswith("shadow")]
    assert len(scores) == 4
    assert not (tmp_path / "killed" / RESULT).exists()
    before = {path: path.stat().st_mtime_ns for path in kept}
    again = evaluator.attack(made, tmp_path / "killed")
    assert {path: path.stat().st_mtime_ns for path in kept} == before, "what was done is not made again"
    assert again.rows == whole.rows


def test_scores_of_another_attack_are_not_taken(tmp_path):
    made = toy_plan()
    Membership(shadows=8, networks=1, beside=()).attack(made, tmp_path)
    path = next(tmp_path.rglob("shadow-00.safetensors"))
    one = store.load(path, "membership-scores")["scores"]["model"]
    Membership(shadows=8, networks=3, beside=()).attack(made, tmp_path)
    assert not torch.equal(store.load(path, "membership-scores")["scores"]["model"], one)


def test_an_artifact_is_attacked_by_its_plan(tmp_path):
    artifact = carry_out(toy_plan(), tmp_path / "made")
    evaluator = checked(lambda: member(Evaluator, {"name": "membership", "shadows": 8, "networks": 1}), "evaluator")
    told = []
    found = evaluator(artifact, tmp_path / "attack", told.append)
    names = list(dict.fromkeys(row.recipe for row in found.rows))
    assert names == ["toy, init=noise", "random real subset", "toy, init=real"]
    assert len(told) == 24
    assert load(tmp_path / "attack" / "toy-init-real" / "shadow-07").plan.seed == 7


@pytest.mark.filterwarnings("ignore:hopeless")
def test_a_private_recipe_is_attacked_with_its_noise_and_others_beside_it_without(tmp_path, monkeypatch):
    monkeypatch.setattr(accounting, "bounds", lambda releases, delta: [])  # seconds for each of eight ledgers
    data = Private(data=Toy(), noise_multiplier=2.0, delta=1e-3)
    made = toy_plan(data, toy_recipe(objective={**toy_recipe().objective.dump(), "statistic": "gradient"}))
    found = Membership(shadows=8, networks=1, beside=("random",)).attack(made, tmp_path)
    assert list(found.plans) == ["toy, init=noise, noise multiplier 2", "random real subset"]
    within = load(tmp_path / "toy-init-noise-noise-multiplier-2" / "shadow-05").provenance["privacy"]
    assert within["draws"] == made.recipe.outer.steps
    assert found.plans["toy, init=noise, noise multiplier 2"]["data"]["data"]["name"] == "shadow"
    assert found.plans["random real subset"]["data"]["name"] == "shadow"


def test_no_method_without_noise_is_called_private():
    for name in registry().recipes("tensors"):
        assert "private" not in called(Plan(method=name, data=Toy(), recipe=toy_recipe()))
    assert "epsilon 8" in called(Plan(method="dc", data=Private(data=Toy(), epsilon=8.0), recipe=toy_recipe()))


def test_canaries_have_another_label_in_every_shadow_that_has_them():
    half = Shadow(data=Toy(), shadows=8, number=0, canaries=10, seed=5)
    train = toy_splits().train
    design = half.design(train)
    changed = design.y != train.y[design.index]
    assert torch.equal(changed, design.canary)
    assert int(changed.sum()) == 10
    inside = half.open().train
    assert torch.equal(inside.groups, design.y[design.member[0]])
    assert torch.equal(inside.take(torch.tensor([4])).x[0], train.x[design.index[design.member[0]][4]])
    facts = [
        Shadow(data=Toy(), shadows=8, number=i, canaries=n).open().train.provenance()
        for i, n in ((0, 0), (0, 9), (1, 0))
    ]
    assert len({one["fingerprint"] for one in facts}) == 3


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"shadows": 9}, r"membership\.shadows.*even"),
        ({"shadows": 1}, r"membership\.shadows.*even"),
        ({"shadows": 6}, r"membership\.shadows.*at least 8"),
        ({"networks": 0}, r"membership\.networks"),
        ({"records": 0}, r"membership\.records"),
        ({"beside": ["herding"]}, r"membership\.beside"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(fields, says):
    with pytest.raises(BadValue, match=says):
        checked(lambda: Membership.model_validate(fields), "membership")


@pytest.mark.parametrize(
    ("fields", "data", "says"),
    [
        ({"records": 61}, Toy(), "more than the 60 records.*got 61"),
        ({"records": 3}, Toy(), "fewer than two records of class"),
        ({"records": 20, "canaries": 21}, Toy(), "canaries.*more than the 20 records.*got 21"),
        ({}, Private(data=Toy()), "needs a budget"),
        ({}, Private(data=Private(data=Toy(), epsilon=1.0), epsilon=1.0), "private twice"),
        ({}, named(Data, "karate"), "nodes of one graph"),
    ],
)
def test_data_that_cannot_be_attacked_are_refused_before_anything_is_made(fields, data, says, tmp_path):
    with pytest.raises(BadValue, match=says):
        Membership(shadows=8, **fields).attack(toy_plan(data), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shadow_that_is_none_is_refused():
    with pytest.raises(BadValue, match="none of 8 shadows"):
        Shadow(data=Toy(), shadows=8, number=8).open()


def ask(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["membership", "random", "--per-class", "1", "--set", "protocol.epochs=2", *map(str, arguments)])
    return ended.value.code or 0, capsys.readouterr()


def test_the_command_prints_one_object_or_refuses_in_one_sentence(tmp_path, capsys):
    small = ("--shadows", 8, "--networks", 1, "--records", 200, "--beside", "none", "--out", tmp_path / "out")
    code, said = ask(capsys, *small, "--json")
    assert code == 0
    found = json.loads(said.out)
    assert found["records"] == 200
    assert {row["recipe"] for row in found["rows"]} == {"random real subset"}
    code, said = ask(capsys, *small)
    assert code == 0
    assert "No meaning: 100 non-members" in said.out
    assert "proves nothing" in said.out
    code, said = ask(capsys, *small, "--delta", "1e-5")
    assert code == 2
    assert "--delta" in said.err
    assert "Give --epsilon or --noise-multiplier" in said.err
    code, said = ask(capsys, *small, "--epsilon", "8")
    assert code == 2
    assert "init=noise" in said.err, "real examples as the set are refused under noise"
