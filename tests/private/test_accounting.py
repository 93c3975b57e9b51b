"""Accountants against an independent one, against known values, and against input that makes them lie or hang."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from condense.errors import BadValue
from condense_private import accounting
from condense_private.accounting import Release, Spent, bound, bounds, calibrate, epsilon, noise_multiplier

GRID = list(itertools.product((0.7, 1.0, 2.0, 5.0), (0.004, 0.01, 0.1, 1.0), (1, 100, 1000, 10_000), (1e-5, 1e-6)))


def reference(sigma, q, steps, delta):
    """The same by dp-accounting, at the same orders: another code, by other authors."""
    rdp = pytest.importorskip("dp_accounting.rdp")
    event = pytest.importorskip("dp_accounting")
    accountant = rdp.RdpAccountant(orders=list(accounting.ORDERS))
    gaussian = event.GaussianDpEvent(sigma)
    accountant.compose(event.PoissonSampledDpEvent(q, gaussian) if q < 1 else gaussian, steps)
    return accountant.get_epsilon(delta)


def test_epsilon_equals_that_of_an_independent_accountant(monkeypatch):
    """At whole orders: between them dp-accounting bounds the divergence by interpolation, and we compute it."""
    tight = [epsilon([Release(sigma, q, steps)], delta) for sigma, q, steps, delta in GRID]
    whole = accounting.ORDERS[np.round(accounting.ORDERS) == accounting.ORDERS]
    monkeypatch.setattr(accounting, "ORDERS", whole)
    accounting.renyi.cache_clear()
    worst = 0.0
    for (sigma, q, steps, delta), at_all in zip(GRID, tight, strict=True):
        ours, theirs = epsilon([Release(sigma, q, steps)], delta), reference(sigma, q, steps, delta)
        worst = max(worst, abs(ours - theirs))
        assert at_all <= ours == pytest.approx(theirs, abs=1e-3, rel=1e-6), (sigma, q, steps, delta)
    accounting.renyi.cache_clear()
    print(f"largest difference of epsilon over {len(GRID)} settings: {worst:.1e}")


@pytest.mark.parametrize("sigma", [0.7, 1.5])
def test_a_divergence_between_whole_orders_is_the_integral_that_it_is_defined_by(sigma):
    q, orders = 0.01, (1.5, 2.3, 2.7, 5.5)

    def divergence(order):
        def density(x):
            return norm.pdf(x, 0, sigma) * ((1 - q) + q * math.exp((2 * x - 1) / (2 * sigma**2))) ** order

        return math.log(quad(density, -15, 25, limit=500, epsabs=1e-14)[0]) / (order - 1)

    found = dict(zip(np.round(accounting.ORDERS, 6).tolist(), accounting.renyi(sigma, q).tolist(), strict=True))
    for order in orders:
        assert found[order] == pytest.approx(divergence(order), rel=1e-5, abs=1e-9)


def test_known_values():
    release = [Release(1.0, 0.01, 1000)]
    assert epsilon(release, 1e-5) == pytest.approx(2.1014, abs=2e-4)
    tight = bound(release, 1e-5, "prv")
    assert tight.accountant == "prv"
    assert 1.8282 < tight.epsilon < 1.8282 + 0.0105  # the estimate, and the error that it is bounded with
    assert epsilon([Release(5.0, 1.0)], 1e-5, "gaussian") == pytest.approx(0.7255, abs=1e-3)
    assert noise_multiplier(1.0, 1e-5, 1.0, 1, "gaussian") == pytest.approx(3.731, rel=1e-3)
    assert noise_multiplier(0.2, 1e-5, 1.0, 1, "gaussian") == pytest.approx(16.304, rel=1e-3)


def test_the_exact_gaussian_is_below_rdp_and_composes():
    for sigma, count in itertools.product((1.0, 3.0, 10.0), (1, 7)):
        releases = [Release(sigma, 1.0, count)]
        exact = epsilon(releases, 1e-5, "gaussian")
        assert exact <= epsilon(releases, 1e-5)
        assert exact == pytest.approx(epsilon([Release(sigma / math.sqrt(count), 1.0)], 1e-5, "gaussian"))
    assert [b.accountant for b in bounds([Release(4.0, 1.0)], 1e-5)] == ["rdp", "prv", "gaussian"]


def test_a_running_total_is_the_total_of_the_whole():
    releases = [Release(1.0, 0.01, 300), Release(2.0, 0.05, 20), Release(4.0, 1.0)]
    spent = Spent()
    for release in releases:
        for _ in range(release.count):
            before = spent.epsilon(1e-5)
            one = Release(release.sigma, release.q)
            assert spent.after(one).epsilon(1e-5) >= before
            spent.add(one)
    assert spent.epsilon(1e-5) == pytest.approx(epsilon(releases, 1e-5), rel=1e-9)
    assert Spent(releases).epsilon(1e-5) == pytest.approx(epsilon(releases, 1e-5), rel=1e-12)


def test_more_noise_fewer_steps_and_smaller_samples_cost_less():
    for delta in (1e-5, 1e-7):
        at = epsilon([Release(1.0, 0.01, 1000)], delta)
        assert epsilon([Release(1.1, 0.01, 1000)], delta) < at
        assert epsilon([Release(1.0, 0.009, 1000)], delta) < at
        assert epsilon([Release(1.0, 0.01, 990)], delta) < at
        assert epsilon([Release(1.0, 0.01, 1000)], delta * 2) < at


def test_nothing_released_costs_nothing_and_little_costs_little():
    assert epsilon([], 1e-5) == epsilon([Release(1.0, 0.01, 0)], 1e-5) == epsilon([Release(1.0, 0.0, 9)], 1e-5) == 0.0
    assert epsilon([Release(1000.0, 0.01)], 1e-5) < 0.01  # opacus' own orders end at 0.1029


@pytest.mark.parametrize("accountant", ["rdp", "gaussian"])
def test_calibrated_noise_keeps_the_budget_and_is_not_wasted(accountant):
    for target, q, count in itertools.product(
        (0.1, 1.0, 8.0), (1.0,) if accountant == "gaussian" else (0.01, 0.2), (1, 1000)
    ):
        sigma = noise_multiplier(target, 1e-5, q, count, accountant)
        assert epsilon([Release(sigma, q, count)], 1e-5, accountant) <= target
        assert epsilon([Release(0.998 * sigma, q, count)], 1e-5, accountant) > target
    rows = calibrate([1.0, 8.0], 1e-5, 1.0, [1, 10], [accountant])
    assert [(row.epsilon, row.steps) for row in rows] == [(1.0, 1), (1.0, 10), (8.0, 1), (8.0, 10)]
    assert all(0.99 * row.epsilon < row.reached <= row.epsilon for row in rows)


def test_prv_that_takes_too_long_or_fails_is_replaced_by_rdp():
    release = [Release(1.0, 0.01, 1000)]
    late = bound(release, 1e-5, "prv", limit=0.05)
    assert (late.accountant, late.epsilon) == ("rdp", epsilon(release, 1e-5))
    huge = [Release(0.05, 1.0, 10**6)]
    assert bound(huge, 1e-5, "prv", limit=20.0).epsilon == pytest.approx(epsilon(huge, 1e-5))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("field", "ask"),
    [
        *(("noise_multiplier", lambda v=v: Release(v, 0.01)) for v in (NAN, INF, 0, -1, "1", True)),
        *(("rate", lambda v=v: Release(1.0, v)) for v in (NAN, INF, -0.1, 1.1, "x")),
        *(("steps", lambda v=v: Release(1.0, 0.1, v)) for v in (-1, 1.5, NAN, True)),
        *(("delta", lambda v=v: epsilon([Release(1.0, 0.1)], v)) for v in (0, 1, -1e-5, NAN, 2, "x")),
        *(("epsilon", lambda v=v: noise_multiplier(v, 1e-5, 0.1, 10)) for v in (0, -1, NAN, INF)),
        ("steps", lambda: noise_multiplier(1.0, 1e-5, 0.1, 0)),
        ("epsilon", lambda: noise_multiplier(1e-9, 1e-5, 1.0, 10**6)),
        ("accountant", lambda: epsilon([Release(1.0, 0.1)], 1e-5, "gdp")),
        ("accountant", lambda: epsilon([Release(1.0, 0.1)], 1e-5, "pld")),
        ("accountant", lambda: epsilon([Release(1.0, 0.1)], 1e-5, "gaussian")),
    ],
)
def test_input_that_accountants_hang_or_lie_on_is_refused(field, ask):
    with pytest.raises(BadValue) as raised:
        ask()
    assert raised.value.field == field


def test_advice_is_given_with_numbers():
    assert accounting.advice(60_000, 1e-5) == []
    assert "1 / N" in accounting.advice(546, 1e-2)[0]
    hopeless = accounting.signal_to_noise(546, 64 / 546, 5.0, 320_010)
    assert hopeless == pytest.approx(64 / (5.0 * math.sqrt(320_010)))
    assert "hopeless: 546 records" in accounting.advice(546, 1e-5, hopeless)[0]
