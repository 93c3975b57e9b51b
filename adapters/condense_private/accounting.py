"""How much a run has spent: epsilon of sampled Gaussian releases, and the noise that a budget asks for.

Neighbours differ in one record, added or removed; samples are Poisson. Accountants: `rdp` (Mironov et al.,
arXiv:1908.10530, by opacus; conversion of Balle et al., arXiv:1905.09982), `prv` (Gopi et al., arXiv:2106.02848, by
opacus), `gaussian` (Balle and Wang, arXiv:1805.06530, exact, where every record is in every release). `gdp` is refused:
it can say less than the truth. Every number here is an upper bound.

Inputs are validated before an accountant sees them: NaN and infinity make opacus hang, a delta of 1 or a negative
number of steps make it answer with a negative epsilon (opacus 1.6.0).
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from condense.errors import BadValue
from condense.plugins import extra_hint

Accountant = Literal["rdp", "prv", "gaussian"]
FINE = np.concatenate([np.arange(1.02, 1.1, 0.02), np.arange(1.1, 11, 0.1), np.arange(11, 64)])
ORDERS = np.concatenate([FINE, 2.0 ** np.arange(6, 15, 0.5) // 1])  # whole beyond 64, where others cost too much
TIGHT = 1e-3  # relative: how close to the smallest noise a calibration comes, from above
LIMIT = 60.0  # seconds that PRV is given
HIGHEST = 1e6  # noise multiplier beyond which no budget is worth asking for
SIGNAL = 1.0  # length of a sum of clipped records over that of its noise, below which little can be learned


@dataclass(frozen=True)
class Release:
    """`count` sampled Gaussian releases: sigma in units of the sensitivity, q the Poisson rate.

    Raises `BadValue` for sigma that is not a positive number, q outside [0, 1], count that is no whole number >= 0.
    """

    sigma: float
    q: float
    count: int = 1

    def __post_init__(self) -> None:
        positive("noise_multiplier", self.sigma)
        if not (isinstance(self.q, int | float) and 0 <= self.q <= 1):
            raise BadValue("rate", self.q, "must be a share of the records, in [0, 1]", "A rate is the batch over N.")
        if not isinstance(self.count, int) or isinstance(self.count, bool) or self.count < 0:
            raise BadValue("steps", self.count, "must be a whole number of at least 0", "Give the number of releases.")


@dataclass(frozen=True)
class Bound:
    """An upper bound on epsilon, and who says so: the accountant that answered, and its version."""

    epsilon: float
    accountant: str
    version: str


def positive(name: str, value: Any) -> float:
    """`value`, if it is a finite number above 0; raises `BadValue`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise BadValue(name, value, "must be a number above 0", f"Give a positive {name}, as 1.0.")
    return float(value)


def probability(delta: Any) -> float:
    """`delta`, if it lies in (0, 1); raises `BadValue`."""
    if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 < delta < 1:
        raise BadValue("delta", delta, "must lie between 0 and 1", "Take less than 1 / N: 1e-5 for 60,000 records.")
    return float(delta)


def known(accountant: str) -> None:
    if accountant == "gdp":
        problem = "can say less than what was spent"
        raise BadValue("accountant", accountant, problem, "Use rdp, or prv, which is tighter and slower.")
    if accountant not in ("rdp", "prv", "gaussian"):
        raise BadValue("accountant", accountant, "is none that is known", "Use rdp, prv or gaussian.")


# -- RDP ------------------------------------------------------------------------------------------------------------


class Spent:
    """A running total in RDP: one more release costs an addition of vectors."""

    def __init__(self, releases: Iterable[Release] = ()) -> None:
        self.total = np.zeros(len(ORDERS))
        for release in releases:
            self.add(release)

    def add(self, release: Release) -> None:
        self.total = self.total + release.count * renyi(release.sigma, release.q)

    def after(self, release: Release) -> Spent:
        """What would be spent with this release, too."""
        found = Spent()
        found.total = self.total + release.count * renyi(release.sigma, release.q)
        return found

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon over all orders. Raises `BadValue` for a delta outside (0, 1)."""
        probability(delta)
        if not self.total.any():
            return 0.0
        found = self.total - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1) + np.log1p(-1 / ORDERS)
        return float(max(0.0, np.nanmin(found)))


@functools.lru_cache(maxsize=4096)
def renyi(sigma: float, q: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The Renyi divergence of one release at each of ORDERS."""
    if q == 0:
        return np.zeros(len(ORDERS))
    if q == 1:
        return np.asarray(ORDERS / (2 * sigma**2))
    rdp = opacus("accountants.analysis.rdp")
    return np.asarray(rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=list(ORDERS)), dtype=np.float64)


# -- all accountants ------------------------------------------------------------------------------------------------


def epsilon(releases: Sequence[Release], delta: float, accountant: Accountant = "rdp") -> float:
    """An upper bound on epsilon of all releases together, by the accountant, else by RDP where PRV has no answer."""
    return bound(releases, delta, accountant).epsilon


def bound(releases: Sequence[Release], delta: float, accountant: Accountant = "rdp", limit: float = LIMIT) -> Bound:
    """`epsilon`, and who says so. limit: seconds that PRV is given before RDP answers in its place.

    Raises `BadValue` for a delta outside (0, 1), `gaussian` where a release is of a sample, and unknown accountants.
    """
    probability(delta)
    known(accountant)
    counted = [release for release in releases if release.count and release.q]
    if not counted:
        return Bound(0.0, accountant, "")
    if accountant == "gaussian":
        return Bound(gaussian_epsilon(merged(counted), delta), "gaussian", "exact")
    if accountant == "prv" and (found := prv(counted, delta, limit)) is not None:
        return Bound(found, "prv", version())
    return Bound(Spent(counted).epsilon(delta), "rdp", version())


def bounds(releases: Sequence[Release], delta: float) -> list[Bound]:
    """By RDP and, where it answers in its time, by PRV; where all records are in all releases, the exact value too."""
    found = [bound(releases, delta, "rdp"), bound(releases, delta, "prv")]
    if releases and all(release.q == 1 for release in releases):
        found.append(bound(releases, delta, "gaussian"))
    return list({each.accountant: each for each in found}.values())


def prv(releases: Sequence[Release], delta: float, limit: float = LIMIT) -> float | None:
    """The upper bound of opacus' PRV accountant, in a process of its own; None where it fails or takes too long.

    10^6 steps took it 10 minutes, and a large epsilon makes it overflow.
    """
    history = [(release.sigma, release.q, release.count) for release in releases]
    try:
        done = subprocess.run(
            [sys.executable, "-c", PRV, json.dumps({"history": history, "delta": delta})],
            capture_output=True,
            timeout=limit,
            check=True,
        )
        answer = float(json.loads(done.stdout))
    except (subprocess.SubprocessError, OSError, ValueError):
        return None
    return answer if 0 <= answer < math.inf else None


PRV = """
import json, sys, warnings
warnings.simplefilter("ignore")
from opacus.accountants import PRVAccountant
asked = json.loads(sys.argv[1])
accountant = PRVAccountant()
accountant.history = [tuple(entry) for entry in asked["history"]]
print(json.dumps(float(accountant.get_epsilon(delta=asked["delta"]))))
"""


def merged(releases: Sequence[Release]) -> float:
    """The noise multiplier of one release that says as much as all of these, in each of which is every record."""
    if any(release.q != 1 for release in releases):
        problem = "is exact only where every record is in every release"
        raise BadValue("accountant", "gaussian", problem, "Use rdp or prv for samples.")
    return 1 / math.sqrt(sum(release.count / release.sigma**2 for release in releases))


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The exact epsilon of one Gaussian release of sensitivity 1 (Balle and Wang, theorem 8), from above."""
    low, high = 0.0, 1.0
    if gaussian_delta(sigma, 0.0) <= delta:
        return 0.0
    while gaussian_delta(sigma, high) > delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(sigma, middle) > delta else (low, middle)
    return high


def gaussian_delta(sigma: float, epsilon: float) -> float:
    from scipy.stats import norm

    half = 1 / (2 * sigma)
    far = epsilon + float(norm.logcdf(-half - epsilon * sigma))
    return float(norm.cdf(half - epsilon * sigma)) - math.exp(min(far, 700.0))


# -- calibration ----------------------------------------------------------------------------------------------------


def noise_multiplier(epsilon: float, delta: float, q: float, count: int, accountant: Accountant = "rdp") -> float:
    """The smallest noise multiplier (to 0.1 %, never too small) for `count` releases at rate q within epsilon.

    Raises `BadValue` for inputs out of range, and for a budget that no noise below 10^6 keeps.
    """
    positive("epsilon", epsilon)
    probability(delta)
    known(accountant)
    if not count or not q:
        raise BadValue("steps", (count, q), "asks for no release, which needs no noise", "Give steps and a rate.")

    def fits(sigma: float) -> bool:
        return bound([Release(sigma, q, count)], delta, accountant).epsilon <= epsilon

    Release(1.0, q, count)
    high = 1.0
    while not fits(high):
        high *= 2
        if high > HIGHEST:
            problem = f"cannot be kept: {count:,} releases at rate {q:.3g} need a noise multiplier above {HIGHEST:g}"
            raise BadValue("epsilon", epsilon, problem, "Take fewer steps, a smaller rate or a larger epsilon.")
    low = high / 2
    while low > 1e-3 and fits(low):
        low, high = low / 2, low
    while high / low > 1 + TIGHT:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Calibrated:
    """A line of a calibration table."""

    epsilon: float
    delta: float
    rate: float
    steps: int
    accountant: str
    noise_multiplier: float
    reached: float


def calibrate(
    epsilons: Sequence[float], delta: float, rate: float, steps: Sequence[int], accountants: Sequence[Accountant]
) -> list[Calibrated]:
    """The noise multiplier for every epsilon, number of steps and accountant; `reached`: the epsilon that it gives."""
    found = []
    for target in epsilons:
        for count in steps:
            for accountant in accountants:
                sigma = noise_multiplier(target, delta, rate, count, accountant)
                reached = epsilon([Release(sigma, rate, count)], delta, accountant)
                found.append(Calibrated(target, delta, rate, count, accountant, sigma, reached))
    return found


def advice(records: int, delta: float, signal: float | None = None) -> list[str]:
    """Sentences that somebody who sets a budget should read; none where there is nothing to say.

    signal: the length of a sum of clipped records that all agree over that of its noise, where it is known.
    """
    found = []
    if delta > 1 / records:
        found.append(
            f"delta {delta:g} is above 1 / N = {1 / records:.2g} ({records:,} records): a mechanism that publishes "
            "one record in full, chosen at random, would keep it. Take a smaller delta."
        )
    if signal is not None and signal < SIGNAL:
        found.append(
            f"hopeless: {records:,} records that all agree make a sum {signal:.2g} times as long as its noise. "
            "Take a larger epsilon or fewer steps, or more records."
        )
    return found


def signal_to_noise(records: int, q: float, sigma: float, numbers: int) -> float:
    """The expected sum of clipped records that all point one way, over the length of the noise in so many numbers."""
    return records * q / (sigma * math.sqrt(numbers))


# -- opacus ---------------------------------------------------------------------------------------------------------


def opacus(module: str = "") -> Any:
    """opacus, or its submodule. Raises `BadValue` saying what to install."""
    try:
        return importlib.import_module(f"opacus.{module}".rstrip("."))
    except ModuleNotFoundError as error:
        problem = f"is needed for privacy, and cannot be imported: {error}"
        raise BadValue("opacus", module or None, problem, f"Install it{extra_hint('private')}") from None


def version() -> str:
    return f"opacus {opacus().__version__}"


__all__ = [
    "Bound",
    "Calibrated",
    "Release",
    "Spent",
    "advice",
    "bound",
    "bounds",
    "calibrate",
    "epsilon",
    "noise_multiplier",
]
