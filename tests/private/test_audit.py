"""The audit of private releases: what it concludes from counts, its silence on this code, and its teeth."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from condense import clipping
from condense.data import TensorSource
from condense.errors import BadValue
from condense.task import Batch
from condense_private import audit as audits
from condense_private import dp_dm, noise
from condense_private.account import Account
from condense_private.accounting import gaussian_epsilon
from condense_private.audit import Canaries, Plain, Terms, audit, cases, claimed, highest, lower_bound
from condense_private.cli import main
from condense_private.noisy_means import Example, NoisyMeans
from condense_private.page import recipes, verdict
from condense_private.private import PrivateSource
from condense_private.sampling import Sampling

SHORT = Terms(draws=10_000, measures=4, noise_multiplier=2.0, delta=1e-3, noise_seed=1)
FULL = Terms(noise_seed=1)
LONGER = replace(SHORT, draws=30_000)  # the bound then lies above the claim by RDP, whatever noise is drawn
SAMPLED = Terms(measures=2, noise_multiplier=1.0, rate=0.25, noise_seed=1)
ALONE = Terms(canaries=1, measures=1, noise_multiplier=1.0, delta=1e-3, noise_seed=1)
SEEDS = range(5)


def said(found):
    claims = ", ".join(f"{value:.3f} ({name})" for name, value in sorted(found.claimed.items()))
    return f"{found.statistic}, seed {found.seed}: epsilon >= {found.lower:.3f} by {found.test}, claimed {claims}"


# -- the bugs that are planted --------------------------------------------------------------------------------------


def half_the_noise(patch):
    release = PrivateSource._release

    def half(self, statistic, model, plan, request, deviation, bound):
        return release(self, statistic, model, plan, request, deviation / 2, bound)

    patch.setattr(PrivateSource, "_release", half)


def noise_for_a_bound_of_one(patch):
    """The official NDPDC's: noise of deviation sigma, whatever records are clipped to."""
    release = PrivateSource._release

    def unscaled(self, statistic, model, plan, request, deviation, bound):
        return release(self, statistic, model, plan, request, deviation / bound, bound)

    patch.setattr(PrivateSource, "_release", unscaled)


def no_clipping(patch):
    clip = clipping.clipped_sum
    patch.setattr(clipping, "clipped_sum", lambda rows, member, bound: clip(rows, member, bound * math.inf))
    patch.setattr(dp_dm, "clipped", lambda rows, bound: rows)


def the_class_mean_is_clipped(patch):
    """Mean first, then clipped, where the noise is for a mean of clipped rows."""

    def of_means(rows, member, bound):
        sums = {part: torch.tensordot(member, row.detach().double(), dims=1) for part, row in rows.items()}
        size = member.sum(dim=1).clamp(min=1)
        means = {part: value / clipping._beside(size, value) for part, value in sums.items()}
        factor = size * (bound / clipping.lengths(means)).clamp(max=1.0)
        return {part: clipping._beside(factor, value) * value for part, value in means.items()}

    patch.setattr(clipping, "clipped_sum", of_means)
    patch.setattr(dp_dm, "clipped", lambda rows, bound: rows)


def the_mean_is_clipped_and_not_noised_for_a_mean(patch):
    """The milder form: the noise is that of a sum, and one record turns a clipped mean round."""

    def of_means(rows, member, bound):
        sums = {part: torch.tensordot(member, row.detach().double(), dims=1) for part, row in rows.items()}
        factor = (bound / clipping.lengths(sums)).clamp(max=1.0)
        return {part: clipping._beside(factor, value) * value for part, value in sums.items()}

    patch.setattr(clipping, "clipped_sum", of_means)
    patch.setattr(dp_dm, "clipped", lambda rows, bound: rows)


def sums_are_kept_and_given_again_without_noise(patch):
    release, asked = PrivateSource._release, []

    def kept(self, statistic, model, plan, request, deviation, bound):
        again = bool(asked) and asked[-1] is self.inner
        asked[:] = [self.inner]
        return release(self, statistic, model, plan, request, 0.0 if again else deviation, bound)

    patch.setattr(PrivateSource, "_release", kept)


def sums_are_noised_anew_and_billed_once(patch):
    bill, asked = Account.bill, []

    def once(self, entry):
        inner = AUDITED[-1].inner
        again = bool(asked) and asked[-1] is inner
        asked[:] = [inner]
        if again:
            self.taken += 1
        else:
            bill(self, entry)

    measure = PrivateSource.measure

    def seen(self, *arguments):
        AUDITED[:] = [self]
        return measure(self, *arguments)

    patch.setattr(PrivateSource, "measure", seen)
    patch.setattr(Account, "bill", once)


AUDITED = []


def classes_share_their_noise(patch):
    stream = noise.Noise.stream
    shared = re.compile(r"noise \d+")
    patch.setattr(noise.Noise, "stream", lambda self, request, to: stream(self, request, shared.sub("noise 0", to)))


class Zeros:
    def random(self, n):
        return np.zeros(n)


def every_record_is_sampled(patch):
    sample = Sampling.sample
    patch.setattr(Sampling, "sample", lambda plan, inner, stream: sample(plan, inner, Zeros()))


EVERYWHERE = [
    half_the_noise,
    no_clipping,
    the_class_mean_is_clipped,
    sums_are_kept_and_given_again_without_noise,
    sums_are_noised_anew_and_billed_once,
]
BY_CLASS = [name for name, case in cases().items() if case.by_class]


# -- what is concluded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "n"), [(0, 10), (3, 10), (10, 10), (17, 5000), (4999, 5000)])
def test_the_bound_on_a_rate_is_the_one_under_which_so_few_would_hardly_be_seen(count, n):
    found = float(highest(np.array(count), n, 0.005))
    assert found == 1.0 if count == n else binom.cdf(count, n, found) == pytest.approx(0.005, rel=1e-6)


def test_bounds_are_those_of_the_two_inequalities():
    """By hand, where nothing was guessed wrong: both rates are at most 1 - alpha^(1/n)."""
    terms = Terms(delta=1e-3, confidence=0.99)
    rate = 1 - 0.005 ** (1 / 1000)
    found = lower_bound(np.array([0, 500]), 1000, np.array([0, 500]), 1000, terms)
    assert found[0] == pytest.approx(math.log((1 - 1e-3 - rate) / rate), rel=1e-9)
    assert found[1] == 0.0
    few, many = lower_bound(np.array([1, 200]), 1000, np.array([900, 1]), 1000, terms)
    high = {k: float(highest(np.array(k), 1000, 0.005)) for k in (1, 200, 900)}
    assert few == pytest.approx(math.log((1 - 1e-3 - high[900]) / high[1]))
    assert many == pytest.approx(math.log((1 - 1e-3 - high[200]) / high[1]))


def test_bounds_exceed_the_truth_no_more_often_than_is_said():
    """Counts of a Gaussian mechanism at many thresholds, each 20,000 times; its epsilon at each is known exactly."""
    sigma, n, terms, worst = 1.0, 2000, Terms(delta=1e-3, confidence=0.9), 0.0
    generator = np.random.default_rng(0)
    for threshold in np.linspace(-2, 3, 11):
        mistaken, missed = norm.sf(threshold / sigma), norm.cdf((threshold - 1) / sigma)
        true = max(math.log(max(1 - 1e-3 - a, 1e-300) / b) for a, b in ((mistaken, missed), (missed, mistaken)))
        assert true <= gaussian_epsilon(sigma, 1e-3) + 1e-9
        counts = (generator.binomial(n, rate, size=20_000) for rate in (mistaken, missed))
        found = lower_bound(next(counts), n, next(counts), n, terms)
        worst = max(worst, float((found > max(true, 0.0)).mean()))
    print(f"largest share of bounds above the truth: {worst:.4f}, stated: at most 0.1")
    assert 0 < worst <= 0.1


# -- what is measured -----------------------------------------------------------------------------------------------


def private_recipes():
    """Name and recipe of all that a private source accepts, from noise where they start from real examples."""
    for name, method, recipe in recipes():
        changed = (
            recipe.set("init", "noise") if (method.form, name) in (("tensors", "dm"), ("tensors", "dsa")) else recipe
        )
        if method.form != "nodes" and verdict(changed)[0] == "accepted":
            yield name, changed


def test_every_statistic_that_private_recipes_measure_is_audited_as_they_ask_for_it():
    audited = {name: case for case in cases().values() for name in case.used_by}
    found = dict(private_recipes())
    assert set(audited) == {*found, "dp-sgd"}
    for name, recipe in found.items():
        if recipe.objective is None:
            assert isinstance(recipe.init, NoisyMeans)
            assert (type(audited[name].statistic), audited[name].by_class) == (Example, True)
        else:
            pairing = getattr(recipe.objective, "pairing", None)
            by_class = pairing is not None and pairing.name == "class-wise"
            assert (audited[name].statistic, audited[name].by_class) == (recipe.objective.statistic, by_class)


@pytest.mark.parametrize("name", list(cases()))
def test_canaries_are_clipped_orthogonal_and_a_null_record_adds_nothing(name):
    data = Canaries(number=6)
    case, model, records = cases(data.inputs)[name], Plain(data.task), data.rows()
    rows = case.statistic.rows(model, records, data.task)
    flat = torch.cat([row.detach().flatten(1) for row in rows.values()], dim=1).double()[:6]
    gram = flat @ flat.T
    assert float((gram - gram.diag().diag()).abs().max()) == 0.0
    bound = getattr(case.statistic, "bound", None) or 0.1
    assert float(flat.norm(dim=1).min()) >= (1 - 1e-6) * bound
    null = case.statistic.rows(model, Batch(torch.zeros_like(records.x), records.y), data.task)
    assert all(float(row.detach().abs().max()) == 0.0 for row in null.values())


def test_it_drives_the_very_measure_and_looks_at_no_counted_draw_beforehand(monkeypatch):
    measure, choose, calls, seen = PrivateSource.measure, audits.chosen, [], []

    def counted(self, *arguments):
        calls.append(self.inner)
        return measure(self, *arguments)

    def shown(drawn, inside, terms):
        seen.append(drawn.shape)
        return choose(drawn, inside, terms)

    monkeypatch.setattr(PrivateSource, "measure", counted)
    monkeypatch.setattr(audits, "chosen", shown)
    terms = Terms(draws=640, measures=3, canaries=8, noise_seed=1)
    found = audit("mean-feature", 0, terms)
    runs = 80 + 20
    assert (found.runs, found.out + found.inside) == (80, 640)
    assert len(calls) == 3 * runs
    assert len(set(map(id, calls))) == runs
    assert all(isinstance(inner, TensorSource) for inner in calls)
    assert seen == [(1 + 3 + 1, 20, 8)]
    assert [(r.sigma, r.q, r.count) for r in found.releases] == [(3.0, 1.0, 3)]
    assert dict(found.claimed) == dict(claimed(found.releases, 1e-5))


def test_an_audit_can_be_repeated_and_seeds_differ():
    terms = Terms(draws=2000, measures=3, canaries=16, noise_seed=5)
    first, again, other = (audit("example", seed, terms) for seed in (0, 0, 1))
    assert first == again
    assert (first.mistaken, first.missed, first.out) != (other.mistaken, other.missed, other.out)
    fresh = [audit("example", 0, Terms(draws=2000, measures=3, canaries=16)) for _ in range(2)]
    assert fresh[0].inside == fresh[1].inside
    assert fresh[0] != fresh[1]


# -- silence, and teeth ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(cases()))
def test_no_statistic_gives_away_more_than_is_claimed(name):
    found = audit(name, 0, SHORT)
    print(said(found))
    assert 0.5 < found.lower < min(found.claimed.values())
    assert not found.refuted


@pytest.mark.parametrize("bug", EVERYWHERE)
def test_planted_bugs_are_caught(bug, monkeypatch):
    bug(monkeypatch)
    found = audit("clipped-feature", 0, LONGER)
    print(f"{bug.__name__}: {said(found)}")
    assert found.lower > max(found.claimed.values())
    assert found.refuted


def test_noise_that_classes_share_is_caught(monkeypatch):
    classes_share_their_noise(monkeypatch)
    found = audit("mean-feature", 0, SHORT)
    assert found.test == "against the other class"
    assert found.lower > max(found.claimed.values())


def test_a_sample_that_is_everybody_is_caught_and_a_real_one_is_not(monkeypatch):
    terms = Terms(draws=10_000, measures=4, noise_multiplier=1.0, rate=0.1, delta=1e-3, noise_seed=1)
    kept = audit("mean-feature", 0, terms)
    assert kept.releases[0].q == pytest.approx(0.1, abs=0.02)
    assert kept.lower < min(kept.claimed.values())
    every_record_is_sampled(monkeypatch)
    assert audit("mean-feature", 0, terms).lower > max(kept.claimed.values())


@pytest.mark.parametrize(
    "changes",
    [
        *({"draws": value} for value in (0, 99, 1e5, True)),
        {"measures": 0},
        {"canaries": 0},
        {"rate": 0.0},
        {"rate": 1.1},
        {"noise_multiplier": math.nan},
        {"delta": 1.0},
        {"confidence": 1.0},
    ],
)
def test_terms_out_of_range_are_refused(changes):
    with pytest.raises(BadValue):
        Terms(**changes)


def test_what_cannot_be_audited_is_refused():
    with pytest.raises(BadValue, match="mean-feature"):
        audit("mean-featur", 0, SHORT)
    with pytest.raises(BadValue, match="larger rate"):
        audit("example", 0, Terms(rate=0.01, canaries=3))


def test_the_command_says_what_it_found_and_fails_where_a_claim_is_refuted(monkeypatch, capsys):
    asked = ["audit", "--statistic", "example,mean-feature", "--draws", "2000", "--measures", "3", "--noise-seed", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*asked, "--json"])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["statistic"] for each in told["audits"]] == ["example", "mean-feature"]
    assert not told["refuted"]
    assert {"rdp", "prv", "gaussian"} == set(told["audits"][0]["claimed"])
    no_clipping(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main(asked)
    assert ended.value.code == 1
    assert "refuted" in capsys.readouterr().out


# -- in full --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("terms", [FULL, SAMPLED], ids=["every record", "a sample"])
@pytest.mark.parametrize("name", list(cases()))
def test_in_full_no_statistic_gives_away_more_than_is_claimed(name, terms):
    """100,000 draws for each of five seeds."""
    found = [audit(name, seed, terms) for seed in SEEDS]
    for each in found:
        print(said(each))
    assert all(each.out + each.inside >= 100_000 for each in found)
    assert all(each.lower < min(each.claimed.values()) for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("bug", EVERYWHERE)
@pytest.mark.parametrize("name", list(cases()))
def test_in_full_planted_bugs_are_caught_in_every_statistic(name, bug, monkeypatch):
    bug(monkeypatch)
    found = audit(name, 0, FULL)
    print(f"{bug.__name__}: {said(found)}")
    assert found.lower > max(found.claimed.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_CLASS)
def test_in_full_noise_that_classes_share_is_caught(name, monkeypatch):
    classes_share_their_noise(monkeypatch)
    found = audit(name, 0, FULL)
    print(f"classes_share_their_noise: {said(found)}")
    assert found.lower > max(found.claimed.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(cases()))
def test_in_full_a_sample_that_is_everybody_is_caught(name, monkeypatch):
    terms = Terms(measures=4, noise_multiplier=1.0, rate=0.1, noise_seed=1)
    every_record_is_sampled(monkeypatch)
    found = audit(name, 0, terms)
    print(f"every_record_is_sampled: {said(found)}")
    assert found.lower > max(found.claimed.values())


@pytest.mark.slow
def test_in_full_noise_for_a_bound_of_one_is_caught(monkeypatch):
    """Where the bound is above 1: of the statistics that are audited, the example itself."""
    noise_for_a_bound_of_one(monkeypatch)
    found = audit("example", 0, FULL)
    print(f"noise_for_a_bound_of_one: {said(found)}")
    assert found.lower > max(found.claimed.values())


@pytest.mark.slow
def test_in_full_one_canary_in_a_run_says_the_same():
    """Guesses that are independent of each other whatever the code does: 125,000 runs of one release."""
    found = audit("mean-feature", 0, ALONE)
    print(said(found))
    assert found.lower < min(found.claimed.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean-feature", "example"])
def test_in_full_a_mean_that_a_record_turns_round_is_caught_by_one_canary(name, monkeypatch):
    the_mean_is_clipped_and_not_noised_for_a_mean(monkeypatch)
    found = audit(name, 0, replace(ALONE, draws=20_000))
    print(f"the_mean_is_clipped_and_not_noised_for_a_mean: {said(found)}")
    assert found.lower > max(found.claimed.values())
