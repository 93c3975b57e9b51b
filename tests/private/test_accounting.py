"""Accountants against independent ones, against known values, and against input that makes them lie or hang."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from condense.errors import BadValue
from condense_private import accounting
from condense_private.accounting import (
    LARGEST,
    ORDERS,
    Bound,
    Prv,
    Release,
    Spent,
    advice,
    bound,
    bounds,
    calibrate,
    epsilon,
    noise_multiplier,
    signal_to_noise,
)

PATIENT = 600.0  # seconds: on a machine that is busy PRV is late, not wrong
GRID = list(itertools.product((0.7, 1.0, 2.0, 5.0), (0.001, 0.01, 0.1, 1.0), (1, 100, 1000, 10_000), (1e-5, 1e-6)))
COMMON = [case for case in GRID if case[0] >= 1 and case[1] in (0.001, 0.01, 1.0)]


@pytest.fixture(scope="module")
def prv():
    """One process for all questions: its start takes longer than an answer."""
    pytest.importorskip("opacus")
    with Prv(PATIENT) as process:
        yield process


@pytest.fixture
def orders(monkeypatch):
    """Accounts at other orders, for a while."""

    def use(chosen):
        monkeypatch.setattr(accounting, "ORDERS", chosen)
        accounting.renyi.cache_clear()
        accounting.conversion.cache_clear()

    yield use
    accounting.renyi.cache_clear()
    accounting.conversion.cache_clear()


def reference(sigma, q, steps, delta, orders):
    """RDP by dp-accounting: another code, by other authors."""
    dp, rdp = pytest.importorskip("dp_accounting"), pytest.importorskip("dp_accounting.rdp")
    accountant, gaussian = rdp.RdpAccountant(orders=list(orders)), dp.GaussianDpEvent(sigma)
    accountant.compose(dp.PoissonSampledDpEvent(q, gaussian) if q < 1 else gaussian, steps)
    return accountant.get_epsilon(delta)


def distribution(sigma, q, steps, delta):
    """Epsilon by dp-accounting's privacy loss distribution, in steps of 1e-4: the truth, a little above."""
    dp, pld = pytest.importorskip("dp_accounting"), pytest.importorskip("dp_accounting.pld")
    accountant, gaussian = pld.PLDAccountant(value_discretization_interval=1e-4), dp.GaussianDpEvent(sigma)
    accountant.compose(dp.PoissonSampledDpEvent(q, gaussian) if q < 1 else gaussian, steps)
    return accountant.get_epsilon(delta)


# -- RDP --------------------------------------------------------------------------------------------------------------


def test_epsilon_equals_that_of_an_independent_accountant():
    worst, same = 0.0, ORDERS[ORDERS <= LARGEST]
    for sigma, q, steps, delta in COMMON:
        ours, theirs = (
            epsilon([Release(sigma, q, steps)], delta),
            reference(sigma, q, steps, delta, ORDERS if q == 1 else same),
        )
        worst = max(worst, abs(ours - theirs))
        assert ours == pytest.approx(theirs, abs=1e-3), (sigma, q, steps, delta)
    print(f"largest difference of epsilon over {len(COMMON)} settings: {worst:.1e}")


def test_epsilon_is_that_of_an_independent_accountant_at_whole_orders_and_less_between_them(orders):
    """For a broken order dp-accounting adds up the sizes of terms that alternate, or leaves the order out; the whole
    orders are exact in both."""
    tight = [epsilon([Release(sigma, q, steps)], delta) for sigma, q, steps, delta in GRID]
    whole = ORDERS[(np.round(ORDERS) == ORDERS) & (ORDERS <= LARGEST)]
    orders(whole)
    worst = 0.0
    for (sigma, q, steps, delta), at_all in zip(GRID, tight, strict=True):
        ours, theirs = epsilon([Release(sigma, q, steps)], delta), reference(sigma, q, steps, delta, whole)
        worst = max(worst, abs(ours - theirs))
        assert at_all <= ours == pytest.approx(theirs, abs=1e-6, rel=1e-9), (sigma, q, steps, delta)
    print(f"largest difference of epsilon at whole orders over {len(GRID)} settings: {worst:.1e}")


@pytest.mark.parametrize(
    ("sigma", "q"),
    [(0.3, 0.01), (0.7, 0.1), (1.0, 1e-9), (1.0, 0.5), (4.0, 0.3), (8.0, 0.99), (50.0, 1e-4), (300.0, 0.5)],
)
def test_a_divergence_is_the_integral_that_defines_it_and_never_below(sigma, q):
    mp = pytest.importorskip("mpmath")
    found = dict(zip(ORDERS.tolist(), accounting.renyi(sigma, q).tolist(), strict=True))
    for order in (1.02, 2.7, 10.9, 63.0):
        with mp.workdps(30):
            s, rate, alpha, centre = mp.mpf(sigma), mp.mpf(q), mp.mpf(order), order / sigma

            def density(y, s=s, rate=rate, alpha=alpha):
                return mp.npdf(y) * (1 - rate + rate * mp.exp(y / s - 1 / (2 * s * s))) ** alpha

            cuts = sorted(
                {-14.0, *(c for at in (0.0, centre) for c in (at - 7, at - 3, at, at + 3, at + 7, at + 14) if c > -14)}
            )
            true = mp.log(mp.quad(density, cuts)) / (alpha - 1)
            assert true <= found[order] <= true * (1 + 1e-9) + 1e-11 / (alpha - 1), order


def test_more_noise_fewer_steps_and_smaller_samples_cost_less():
    for (sigma, q, steps), delta in itertools.product([(1.0, 0.01, 1000), (5.0, 0.3, 50), (3.0, 0.9, 1)], (1e-5, 1e-7)):
        at = epsilon([Release(sigma, q, steps)], delta)
        assert epsilon([Release(1.1 * sigma, q, steps)], delta) < at
        assert epsilon([Release(sigma, 0.9 * q, steps)], delta) < at
        assert epsilon([Release(sigma, q, steps + 1)], delta) > at
        assert epsilon([Release(sigma, q, steps)], delta * 2) < at
        assert epsilon([Release(sigma, q, steps), Release(sigma, q)], delta) > at


def test_nothing_released_costs_nothing_and_little_costs_little():
    for accountant in ("rdp", "prv", "gaussian"):
        for nothing in (
            [],
            [Release(1.0, 0.01, 0)],
            [Release(1.0, 0.0, 9)],
            [Release(1.0, 0.0, 9), Release(2.0, 0.1, 0)],
        ):
            assert bound(nothing, 1e-5, accountant) == Bound(0.0, accountant, "")
    assert epsilon([Release(1000.0, 0.01)], 1e-5) < 0.01  # opacus' own orders end at 0.1029


@pytest.mark.parametrize("q", [1e-320, 1e-9, 0.5, 1 - 1e-16, 1.0])
@pytest.mark.parametrize("sigma", [1e-310, 1e-200, 1e-12, 0.04, 1001.0, 1e6, 1e200, 1.7e308])
def test_every_noise_multiplier_has_an_answer(sigma, q):
    """opacus divides by a square that is 0, or sums for hours: no epsilon is still a bound, and a small one is true."""
    found = epsilon([Release(sigma, q, 1000)], 1e-5)
    assert found == math.inf if sigma < 1e-100 else 0 <= found < math.inf
    assert found < 0.2 or sigma < 1


def test_a_running_total_is_the_total_of_the_whole_to_the_last_bit():
    releases = [Release(1.0, 0.01, 3000), Release(2.0, 0.05, 20), Release(4.0, 1.0)]
    spent, before = Spent(), 0.0
    for release in reversed(releases):
        for _ in range(release.count):
            one = Release(release.sigma, release.q)
            then = spent.after(one).epsilon(1e-5)
            assert spent.epsilon(1e-5) == before < then
            spent.add(one)
            before = then
    assert before == epsilon(releases, 1e-5) == Spent(releases).epsilon(1e-5)
    million = Spent()
    for _ in range(1000):
        million.add(Release(20.0, 0.001, 1000))
    assert million.epsilon(1e-5) == epsilon([Release(20.0, 0.001, 10**6)], 1e-5)


# -- known values -----------------------------------------------------------------------------------------------------


def test_known_values_of_rdp():
    """opacus' own frozen 7.32911117143 is of 2,250 steps; 2.101322 and the noise of PSG were computed for the issue."""
    assert epsilon([Release(1.0, 0.01, 1000)], 1e-5) == pytest.approx(2.101322, abs=5e-5)
    assert epsilon([Release(1.5, 0.04, 2250)], 1e-5) == pytest.approx(7.32911117143, abs=1e-7)
    assert epsilon([Release(5.0, 1.0)], 1e-5) == pytest.approx(0.795, abs=1e-3)
    table = {(1.0, 10_000): 1.885, (1.0, 100_000): 5.547, (10.0, 10_000): 0.604, (10.0, 200_000): 1.214}
    for (target, steps), sigma in table.items():
        found = noise_multiplier(target, 1e-5, 256 / 60_000, steps)  # theirs keeps epsilon by up to 0.01 too well
        assert 0.99 * sigma < found < 1.002 * sigma


def test_known_values_of_prv(prv):
    found = prv([Release(1.0, 0.01, 1000)], 1e-5)
    assert found.estimate == pytest.approx(1.8282, abs=1e-3)
    assert found.epsilon == pytest.approx(1.8384, abs=1e-3)
    frozen = prv([Release(1.5, 0.04, 2249)], 1e-5)  # in opacus' own tests
    assert frozen.epsilon == pytest.approx(6.777395712150674, abs=1e-6)
    assert frozen.accountant == "prv"
    assert frozen.version.startswith("opacus ")


def test_known_values_of_the_exact_gaussian():
    assert epsilon([Release(5.0, 1.0)], 1e-5, "gaussian") == pytest.approx(0.726, abs=5e-4)
    assert epsilon([Release(25.0, 1.0)], 1e-5, "gaussian") == pytest.approx(0.125, abs=5e-4)
    assert noise_multiplier(1.0, 1e-5, 1.0, 1, "gaussian") == pytest.approx(3.731, rel=1.1e-3)
    assert noise_multiplier(0.2, 1e-5, 1.0, 1, "gaussian") == pytest.approx(16.304, rel=1.1e-3)


# -- PRV, and the exact Gaussian --------------------------------------------------------------------------------------


def test_the_estimate_of_prv_is_that_of_another_code_and_its_bound_lies_above(prv):
    worst = 0.0
    for sigma, q, steps, delta in [
        (1.0, 0.01, 1000, 1e-5),
        (5.0, 0.1, 100, 1e-6),
        (1.0, 0.1, 1, 1e-5),
        (2.0, 0.004, 10_000, 1e-5),
    ]:
        found, true = prv([Release(sigma, q, steps)], delta), distribution(sigma, q, steps, delta)
        worst = max(worst, abs(found.estimate - true))
        assert found.estimate == pytest.approx(true, abs=1e-3)
        assert true < found.epsilon < epsilon([Release(sigma, q, steps)], delta)
    print(f"largest difference of PRV's estimate: {worst:.1e}")


def test_prv_composes_releases_of_several_kinds(prv):
    whole = [Release(3.0, 1.0, 2), Release(4.0, 1.0)]
    exact = epsilon(whole, 1e-5, "gaussian")
    found = prv(whole, 1e-5)
    assert found.estimate == pytest.approx(exact, abs=1e-3)
    assert exact < found.epsilon < epsilon(whole, 1e-5)


def test_the_exact_gaussian_is_the_smallest_epsilon_that_its_delta_allows():
    mp = pytest.importorskip("mpmath")

    def delta_of(sigma, at):
        s, e = mp.mpf(sigma), mp.mpf(at)
        return mp.ncdf(1 / (2 * s) - e * s) - mp.exp(e) * mp.ncdf(-1 / (2 * s) - e * s)

    for sigma, delta in itertools.product((0.05, 1.0, 5.0, 100.0, 1e4), (1e-2, 1e-5, 1e-30, 1e-200)):
        found = accounting.gaussian_epsilon(sigma, delta)
        with mp.workdps(300):
            assert delta_of(sigma, found) <= delta
            assert found == 0 or delta_of(sigma, found * (1 - 1e-6)) > delta
    assert accounting.gaussian_epsilon(1.0, 0.5) == 0.0


def test_the_exact_gaussian_is_below_rdp_and_composes():
    for sigma, count in itertools.product((1.0, 3.0, 10.0), (1, 7)):
        releases = [Release(sigma, 1.0, count)]
        exact = epsilon(releases, 1e-5, "gaussian")
        assert exact < epsilon(releases, 1e-5)
        assert exact == pytest.approx(epsilon([Release(sigma / math.sqrt(count), 1.0)], 1e-5, "gaussian"))
    mixed = [Release(1.0, 1.0), Release(2.0, 1.0, 4), Release(3.0, 0.0)]
    assert epsilon(mixed, 1e-5, "gaussian") == pytest.approx(epsilon([Release(math.sqrt(0.5), 1.0)], 1e-5, "gaussian"))
    found = bounds([Release(4.0, 1.0)], 1e-5, PATIENT)
    assert [each.accountant for each in found] == ["rdp", "prv", "gaussian"]
    assert found[2].epsilon < found[1].epsilon < found[0].epsilon


def test_prv_that_is_late_is_replaced_by_rdp_and_its_process_is_ended():
    release = [Release(1.0, 0.01, 1000)]
    late = bound(release, 1e-5, "prv", limit=0.01)
    assert (late.accountant, late.epsilon, late.estimate) == ("rdp", epsilon(release, 1e-5), None)
    with Prv(0.01) as process:
        child = process._started()
        assert process(release, 1e-5) is None
        assert child.poll() is not None
        assert process(release, 1e-5) is process.child is None  # it is not started again
    assert noise_multiplier(1.0, 1e-5, 0.01, 100, "prv", limit=0.01) == noise_multiplier(1.0, 1e-5, 0.01, 100)
    assert [each.accountant for each in bounds(release, 1e-5, 0.01)] == ["rdp"]


def test_prv_that_runs_out_of_time_while_it_is_searched_leaves_the_noise_of_rdp(monkeypatch):
    left = [2]  # answers

    def answered(releases, delta, accountant, prv):
        sigma = releases[-1].sigma
        left[0] -= accountant == "prv"
        by = accountant if left[0] >= 0 else "rdp"
        return accounting.Bound((2.0 if by == "rdp" else 1.9) / sigma, by, "")

    monkeypatch.setattr(accounting, "answered", answered)
    assert noise_multiplier(1.0, 1e-5, 0.01, 100, "prv") == noise_multiplier(1.0, 1e-5, 0.01, 100, "rdp")


def test_prv_that_fails_is_replaced_by_rdp(prv, monkeypatch):
    huge = [Release(0.05, 1.0, 10**4)]  # an epsilon of two million
    assert prv(huge, 1e-5) is None
    assert accounting.answered(huge, 1e-5, "prv", prv) == bound(huge, 1e-5, "rdp")
    tiny = [Release(1.0, 0.01, 1000)]
    assert prv(tiny, 1e-30) is None  # beyond the digits of a float
    assert prv(tiny, 1e-5) is not None  # and it goes on
    monkeypatch.setattr(accounting, "PRV", "raise SystemExit(1)")
    assert bound(tiny, 1e-5, "prv", PATIENT) == bound(tiny, 1e-5, "rdp")
    for lie in ("nan", "-1.0", "float('inf')", "'x'", "None"):
        said = f"import json; input(); print(json.dumps({{'upper': {lie}, 'estimate': 0.5}}), flush=True); input()"
        monkeypatch.setattr(accounting, "PRV", said.replace("nan", "float('nan')"))
        assert bound(tiny, 1e-5, "prv", PATIENT).accountant == "rdp"


# -- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accountant", ["rdp", "gaussian"])
def test_calibrated_noise_keeps_the_budget_and_is_not_wasted(accountant):
    rates = (1.0,) if accountant == "gaussian" else (0.01, 0.2, 1.0)
    for target, q, count in itertools.product((0.1, 1.0, 8.0), rates, (1, 1000)):
        sigma = noise_multiplier(target, 1e-5, q, count, accountant)
        assert epsilon([Release(sigma, q, count)], 1e-5, accountant) <= target
        assert epsilon([Release(0.9985 * sigma, q, count)], 1e-5, accountant) > target
    rows = calibrate([1.0, 8.0], 1e-5, 1.0, [1, 10], [accountant])
    assert [(row.epsilon, row.steps) for row in rows] == [(1.0, 1), (1.0, 10), (8.0, 1), (8.0, 10)]
    assert all(0.99 * row.epsilon < row.reached <= row.epsilon for row in rows)
    assert {row.accountant for row in rows} == {accountant}


def test_calibrated_noise_keeps_the_budget_by_prv_too_and_is_less(prv):
    (row, loose) = calibrate([1.0], 1e-5, 0.01, [100], ["prv", "rdp"], limit=PATIENT)
    assert (row.accountant, loose.accountant) == ("prv", "rdp")
    assert row.noise_multiplier < loose.noise_multiplier
    assert prv([Release(row.noise_multiplier, 0.01, 100)], 1e-5).epsilon == row.reached <= 1.0
    assert prv([Release(0.9985 * row.noise_multiplier, 0.01, 100)], 1e-5).epsilon > 1.0


def test_noise_is_calibrated_beside_what_is_fixed():
    fixed = [Release(2.0, 0.05, 50), Release(10.0, 1.0)]
    alone, beside = noise_multiplier(3.0, 1e-5, 0.01, 500), noise_multiplier(3.0, 1e-5, 0.01, 500, fixed=fixed)
    assert beside > alone
    assert epsilon([*fixed, Release(beside, 0.01, 500)], 1e-5) <= 3.0
    assert epsilon([*fixed, Release(0.9985 * beside, 0.01, 500)], 1e-5) > 3.0
    exact = noise_multiplier(1.0, 1e-5, 1.0, 3, "gaussian", fixed=[Release(6.0, 1.0, 2)])
    one = noise_multiplier(1.0, 1e-5, 1.0, 1, "gaussian")
    assert 3 / exact**2 == pytest.approx(1 / one**2 - 2 / 36, rel=1e-2)
    with pytest.raises(BadValue, match=r"what is fixed gives \d") as raised:
        noise_multiplier(0.5, 1e-5, 0.01, 500, fixed=fixed)
    assert raised.value.field == "epsilon"


# -- bad input --------------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
HUGE = 10**400  # a whole number that no float holds
RELEASES = [Release(1.0, 0.1)]


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        *(("noise_multiplier", lambda v=v: Release(v, 0.01)) for v in (NAN, INF, 0, -1, "1", True, None, HUGE)),
        *(("rate", lambda v=v: Release(1.0, v)) for v in (NAN, INF, -0.1, 1.1, "x", True, None)),
        *(("steps", lambda v=v: Release(1.0, 0.1, v)) for v in (-1, 1.5, 2.0, NAN, INF, True, "3", HUGE)),
        *(("delta", lambda v=v: epsilon(RELEASES, v)) for v in (0, 1, -1e-5, NAN, INF, 2, "x", True)),
        *(("delta", lambda v=v: Spent(RELEASES).epsilon(v)) for v in (0, 1, NAN)),
        *(("epsilon", lambda v=v: noise_multiplier(v, 1e-5, 0.1, 10)) for v in (0, -1, NAN, INF, "8")),
        *(("delta", lambda v=v: noise_multiplier(1.0, v, 0.1, 10)) for v in (0, 1, NAN)),
        *(("rate", lambda v=v: noise_multiplier(1.0, 1e-5, v, 10)) for v in (0, 1.1, NAN)),
        *(("steps", lambda v=v: noise_multiplier(1.0, 1e-5, 0.1, v)) for v in (0, -1, 1.5, NAN)),
        *(("epsilon", lambda a=a: noise_multiplier(1e-9, 1e-5, 1.0, 10**6, a)) for a in ("rdp", "prv", "gaussian")),
        *(("accountant", lambda a=a: epsilon(RELEASES, 1e-5, a)) for a in ("gdp", "pld", None, "gaussian")),
        *(("accountant", lambda a=a: noise_multiplier(1.0, 1e-5, 0.1, 10, a)) for a in ("gdp", "pld", "gaussian")),
        *(("accountant", lambda a=a: epsilon([], 1e-5, a)) for a in ("gdp", "pld")),
        *(("limit", lambda v=v: bound(RELEASES, 1e-5, "prv", v)) for v in (0, -1, NAN)),
    ],
)
def test_input_that_accountants_hang_or_lie_on_is_refused(field, ask):
    with pytest.raises(BadValue) as raised:
        ask()
    assert raised.value.field == field
    assert raised.value.remedy


def test_what_is_refused_says_why():
    with pytest.raises(BadValue, match="less than what was spent"):
        epsilon(RELEASES, 1e-5, "gdp")
    with pytest.raises(BadValue, match=r"1,000,000 releases at rate 1 .* noise multiplier of 1e\+06 still give \d"):
        noise_multiplier(1e-9, 1e-5, 1.0, 10**6)


def test_numbers_of_other_kinds_are_numbers():
    assert Release(np.float32(1.5), Fraction(1, 4), np.int64(3)) == Release(1.5, 0.25, 3)
    assert [type(part) for part in vars(Release(2, 1, np.int64(3))).values()] == [float, float, int]


# -- advice -----------------------------------------------------------------------------------------------------------


def test_advice_on_delta_says_why():
    assert advice(60_000, 1e-5) == []
    (said,) = advice(546, 1e-2)
    assert "above 1 / N = 0.0018 (546 records)" in said


def test_a_set_that_is_too_small_is_told_with_numbers():
    """BreastMNIST's 546 images, and MNIST's 60,000 with the noise that each needs at epsilon 1, for a ConvNet-3."""
    numbers = 320_010
    few, many = (
        Release(noise_multiplier(1.0, 1e-5, batch / records, 1000), batch / records, 1000)
        for records, batch in ((546, 64), (60_000, 256))
    )
    (said,) = advice(546, 1e-5, few, numbers)
    assert f"{few.sigma:.3g} on 320,010 numbers" in said
    assert f"{signal_to_noise(546, few, numbers):.2g} times as long as its noise" in said
    assert advice(60_000, 1e-5, many, numbers) == []


def test_the_signal_is_the_length_of_a_mean_over_that_of_its_noise():
    """Measured: 4,000 unit vectors that agree, sampled at a rate of 0.1, in 25 releases with noise on 500 numbers."""
    generator = np.random.default_rng(0)
    release, records, numbers = Release(7.0, 0.1, 25), 4000, 500
    sums = generator.binomial(records, release.q, release.count)
    noise = generator.normal(0.0, release.sigma, (release.count, numbers)).mean(axis=0)
    measured = sums.mean() / np.linalg.norm(noise)
    assert signal_to_noise(records, release, numbers) == pytest.approx(measured, rel=0.1)
