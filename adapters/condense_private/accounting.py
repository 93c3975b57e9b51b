"""How much a run has spent: epsilon of sampled Gaussian releases, and the noise that a budget asks for.

Neighbours differ in one record, added or removed; samples are Poisson. Accountants: `rdp` (Mironov et al.,
arXiv:1908.10530, by opacus; conversion of Balle et al., arXiv:1905.09982), `prv` (Gopi et al., arXiv:2106.02848, by
opacus), `gaussian` (Balle and Wang, arXiv:1805.06530, exact, where every record is in every release). `gdp` is refused:
it can say less than the truth. Every epsilon here is an upper bound.

Inputs are validated before an accountant sees them: NaN and infinity make opacus hang, a delta of 1 or a negative
number of steps make it answer with a negative epsilon (opacus 1.6.0).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from condense.errors import BadValue
from condense.plugins import extra_hint

Accountant = Literal["rdp", "prv", "gaussian"]
Vector = np.ndarray[Any, np.dtype[np.float64]]

# opacus' own orders stop at 63, so that its epsilon is never below 0.1029 at delta 1e-5.
FINE = np.round(np.concatenate([np.arange(1.02, 1.1, 0.02), np.arange(1.1, 11, 0.1), np.arange(11, 64)]), 2)
ORDERS = np.unique(np.concatenate([FINE, 2.0 ** np.arange(6, 15, 0.5) // 1]))
LARGEST = 1024  # order up to which opacus' binomials are finite
SERIES = (0.05, 300.0)  # noise multipliers for which opacus' series for broken orders ends, and keeps its digits
LOOSE = 2e-12  # what the rounding of opacus can take from a moment's logarithm: measured up to 2e-13, and 1e-15 of it
TIGHT = 1e-3  # relative: how close to the smallest noise a calibration comes, from above
LIMIT = 60.0  # seconds that PRV is given
ERROR = (1e-3, 0.01)  # of PRV: a hundredth of the epsilon, within these; opacus' own is the second
LOWEST, HIGHEST = 0.01, 1e6  # the noise multipliers among which a calibration looks
LEAST = 1e-150  # a noise multiplier, or the inverse of one, whose square is still a number
MOST = 10**12  # releases: beyond, sums of float64 lose digits that are promised
SIGNAL = 1.0  # length of a sum of clipped records over that of its noise, below which nothing can be learned


@dataclass(frozen=True)
class Release:
    """`count` sampled Gaussian releases. sigma: noise's deviation over the L2 sensitivity. q: the Poisson rate.

    Raises `BadValue` for sigma that is no finite number above 0, q outside [0, 1], count that is no whole number >= 0.
    """

    sigma: float
    q: float
    count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", positive("noise_multiplier", self.sigma))
        object.__setattr__(self, "q", rate(self.q))
        object.__setattr__(self, "count", whole("steps", self.count))


@dataclass(frozen=True)
class Bound:
    """An upper bound on epsilon, and who says so: the accountant that answered, and its version.

    estimate: PRV's best guess of epsilon, which is no bound; None where there is none.
    """

    epsilon: float
    accountant: str
    version: str
    estimate: float | None = None


# -- what is let through ----------------------------------------------------------------------------------------------


def number(value: Any) -> float:
    """`value` as a float; NaN for what is no real number, or too large for one."""
    try:
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan


def positive(name: str, value: Any) -> float:
    """`value`, if it is a finite number above 0; raises `BadValue`."""
    if not 0 < number(value) < math.inf:
        raise BadValue(name, value, "must be a finite number above 0", f"Give a positive {name}, as 1.0.")
    return number(value)


def probability(delta: Any) -> float:
    """`delta`, if it lies in (0, 1); raises `BadValue`."""
    if not 0 < number(delta) < 1:
        raise BadValue("delta", delta, "must lie between 0 and 1", "Take less than 1 / N: 1e-5 for 60,000 records.")
    return number(delta)


def rate(q: Any) -> float:
    """`q`, if it lies in [0, 1]; raises `BadValue`."""
    if not 0 <= number(q) <= 1:
        raise BadValue("rate", q, "must be a share of the records, in [0, 1]", "A rate is the expected batch over N.")
    return number(q)


def whole(name: str, value: Any) -> int:
    """`value`, if it is a whole number from 0 to 10^12; raises `BadValue`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or not 0 <= int(value) <= MOST:
        problem = f"must be a whole number, from 0 to {MOST:.0e}"
        raise BadValue(name, value, problem, f"Give the number of {name}, as 1000.")
    return int(value)


def known(accountant: Any) -> None:
    """Raises `BadValue` for an accountant that is none of ours."""
    if accountant == "gdp":
        problem = "can say less than what was spent"
        raise BadValue("accountant", accountant, problem, "Use rdp, or prv, which is tighter and slower.")
    if accountant not in ("rdp", "prv", "gaussian"):
        raise BadValue("accountant", accountant, "is none that is known", "Use rdp, prv or gaussian.")


# -- RDP ------------------------------------------------------------------------------------------------------------


class Spent:
    """A running total in RDP. One more release of a kind that is known costs microseconds.

    Equal to the total of all releases at once, to the last bit: it counts them by kind.
    """

    def __init__(self, releases: Iterable[Release] = ()) -> None:
        self.counts: Counter[tuple[float, float]] = Counter()
        for release in releases:
            self.add(release)

    def add(self, release: Release) -> None:
        if release.count and release.q:
            self.counts[release.sigma, release.q] += release.count

    def after(self, release: Release) -> Spent:
        """What would be spent with this release, too."""
        found = Spent()
        found.counts = self.counts.copy()
        found.add(release)
        return found

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon over all orders; infinity where none tells. Raises `BadValue` for a bad delta."""
        delta = probability(delta)
        if not self.counts:
            return 0.0
        total = np.zeros(len(ORDERS))
        for kind, count in sorted(self.counts.items()):
            total = total + count * renyi(*kind)
        return float(max(0.0, np.min(total + conversion(delta))))


@functools.lru_cache(maxsize=64)
def conversion(delta: float) -> Vector:
    """What is added to the divergence at each of ORDERS to give an epsilon (arXiv:1905.09982, theorem 21)."""
    return np.asarray(np.log1p(-1 / ORDERS) - (math.log(delta) + np.log(ORDERS)) / (ORDERS - 1))


@functools.lru_cache(maxsize=4096)
def renyi(sigma: float, q: float) -> Vector:
    """The Renyi divergence of one release at each of ORDERS, from above; infinity where opacus has no answer.

    For a broken order opacus sums a series that goes on for hours where the noise is large and the rate is near a half,
    and that loses all digits where the noise is small: there only whole orders are used.
    """
    if q == 0:
        found = np.zeros(len(ORDERS))
    elif q == 1:
        with np.errstate(over="ignore"):
            found = ORDERS * 0.5 / sigma / sigma
    else:
        slack = LOOSE / (ORDERS - 1)
        found = np.array([divergence(sigma, q, order) for order in ORDERS.tolist()]) * (1 + LOOSE) + slack
    found.flags.writeable = False
    return found


def divergence(sigma: float, q: float, order: float) -> float:
    """The Renyi divergence of one release at one order, as opacus gives it; infinity where it fails."""
    rdp = opacus("accountants.analysis.rdp")
    if order > LARGEST or (not order.is_integer() and not SERIES[0] <= sigma <= SERIES[1]):
        return math.inf
    try:
        # Less noise than HIGHEST is a bound for more; there the square of sigma is still a number.
        found = float(rdp.compute_rdp(q=q, noise_multiplier=min(sigma, HIGHEST), steps=1, orders=order))
    except (ArithmeticError, ValueError):
        return math.inf
    return math.inf if math.isnan(found) else max(found, 0.0)


# -- the Gaussian mechanism --------------------------------------------------------------------------------------------


def merged(releases: Sequence[Release]) -> float:
    """The noise multiplier of one release that says as much as all of these, in each of which is every record."""
    if any(release.q != 1 for release in releases):
        problem = "is exact only where every record is in every release"
        raise BadValue("accountant", "gaussian", problem, "Use rdp or prv for samples.")
    length = math.hypot(*(math.sqrt(release.count) / release.sigma for release in releases))
    return 1 / max(length, LEAST)


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The exact epsilon of one Gaussian release of sensitivity 1 (Balle and Wang, theorem 8), from above."""
    if sigma < LEAST:
        return math.inf
    low, high = 0.0, 1.0
    if gaussian_delta(sigma, 0.0) <= delta:
        return 0.0
    while gaussian_delta(sigma, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(sigma, middle) > delta else (low, middle)
    return high * (1 + 1e-9)  # more than rounding can take


def gaussian_delta(sigma: float, epsilon: float) -> float:
    """The smallest delta at which one Gaussian release of sensitivity 1 keeps epsilon.

    Phi(a) - e^epsilon Phi(-b) for a = 1 / 2 sigma - epsilon sigma, b = 1 / 2 sigma + epsilon sigma. Both terms have the
    factor e^(-a^2 / 2), as b^2 = a^2 + 2 epsilon: taken out, nothing overflows.
    """
    from scipy.special import erfcx, ndtr

    a, b = 1 / (2 * sigma) - epsilon * sigma, 1 / (2 * sigma) + epsilon * sigma
    factor, second = math.exp(-a * a / 2) / 2, float(erfcx(b / math.sqrt(2)))
    return float(ndtr(a)) - factor * second if a > 0 else factor * (float(erfcx(-a / math.sqrt(2))) - second)


# -- PRV ------------------------------------------------------------------------------------------------------------


class Prv:
    """opacus' PRV accountant in a process of its own, which is ended where it takes too long: use it in a `with`.

    10^6 steps took it 10 minutes, and a large epsilon makes it overflow. limit: seconds for each answer. Once out of
    time it gives no more answers.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = min(positive("limit", limit), threading.TIMEOUT_MAX)
        self.late = False
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            for pipe in (self.child.stdin, self.child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # a question that nobody reads any more
                        pipe.close()
        self.child = None

    def __call__(self, releases: Sequence[Release], delta: float) -> Bound | None:
        """PRV's bound on all releases together; None where it fails or is late. Only releases that say something."""
        if self.late:
            return None
        error = min(max(Spent(releases).epsilon(delta) / 100, ERROR[0]), ERROR[1])
        history = [(each.sigma, each.q, each.count) for each in releases]
        asked = {"history": history, "delta": delta, "error": error}
        lines: list[str] = []
        try:
            asking = threading.Thread(target=self._ask, args=(self._started(), json.dumps(asked), lines), daemon=True)
        except OSError:
            return None
        asking.start()
        asking.join(self.limit)
        self.late = asking.is_alive()
        try:
            found = json.loads(lines[0])
            upper, estimate = float(found["upper"]), float(found["estimate"])
        except (IndexError, TypeError, ValueError):
            self.close()
            return None
        return Bound(upper, "prv", version(), estimate) if 0 <= upper < math.inf and estimate <= upper else None

    def _started(self) -> subprocess.Popen[str]:
        if self.child is None:
            pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
            command = [sys.executable, "-P", "-c", PRV]
            self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nowhere, text=True)
        return self.child

    @staticmethod
    def _ask(child: subprocess.Popen[str], asked: str, lines: list[str]) -> None:
        if child.stdin is None or child.stdout is None:
            raise AssertionError("both are pipes")
        try:
            child.stdin.write(asked + "\n")
            child.stdin.flush()
            lines.append(child.stdout.readline())
        except (OSError, ValueError):  # the process was ended
            return


# opacus' `get_epsilon` in its two calls, for the estimate's sake. A large epsilon asks for more memory than there is.
PRV = """
import json, sys, warnings
answers, sys.stdout = sys.stdout, sys.stderr
warnings.simplefilter("ignore")
from opacus.accountants import PRVAccountant
try:
    import resource
    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, resource.getrlimit(resource.RLIMIT_DATA)[1]))
except (ImportError, OSError, ValueError):
    pass
for line in sys.stdin:
    asked, found = json.loads(line), None
    try:
        accountant, delta = PRVAccountant(), asked["delta"]
        accountant.history = [tuple(entry) for entry in asked["history"]]
        discrete = accountant._get_dprv(eps_error=asked["error"], delta_error=delta / 1000)
        _, estimate, upper = discrete.compute_epsilon(delta, delta / 1000, asked["error"])
        found = {"upper": float(upper), "estimate": float(estimate)}
    except Exception:
        pass
    print(json.dumps(found), file=answers, flush=True)
"""


# -- all accountants ------------------------------------------------------------------------------------------------


def epsilon(releases: Sequence[Release], delta: float, accountant: Accountant = "rdp") -> float:
    """An upper bound on epsilon of all releases together, by the accountant, else by RDP where PRV has no answer.

    Raises `BadValue` as `bound` does.
    """
    return bound(releases, delta, accountant).epsilon


def bound(releases: Sequence[Release], delta: float, accountant: Accountant = "rdp", limit: float = LIMIT) -> Bound:
    """`epsilon`, and who says so. limit: seconds that PRV is given before RDP answers in its place.

    Raises `BadValue` for a delta outside (0, 1), `gaussian` where a release is of a sample, and unknown accountants.
    """
    with Prv(limit) as prv:
        return answered(releases, probability(delta), accountant, prv)


def answered(releases: Sequence[Release], delta: float, accountant: Accountant, prv: Prv) -> Bound:
    """`bound`, by a PRV process that serves several questions."""
    known(accountant)
    spent = Spent(releases)
    counted = [Release(sigma, q, count) for (sigma, q), count in sorted(spent.counts.items())]
    if not counted:
        return Bound(0.0, accountant, "")
    if accountant == "gaussian":
        return Bound(gaussian_epsilon(merged(counted), delta), "gaussian", "exact")
    if accountant == "prv" and (found := prv(counted, delta)) is not None:
        return found
    return Bound(spent.epsilon(delta), "rdp", version())


def bounds(releases: Sequence[Release], delta: float, limit: float = LIMIT) -> list[Bound]:
    """By RDP and, where it answers in its time, by PRV; where all records are in all releases, the exact value too."""
    found = [bound(releases, delta, "rdp"), bound(releases, delta, "prv", limit)]
    if releases and all(release.q == 1 for release in releases):
        found.append(bound(releases, delta, "gaussian"))
    return list({each.accountant: each for each in found}.values())


# -- calibration ----------------------------------------------------------------------------------------------------


def noise_multiplier(
    epsilon: float,
    delta: float,
    q: float,
    count: int,
    accountant: Accountant = "rdp",
    *,
    fixed: Sequence[Release] = (),
    limit: float = LIMIT,
) -> float:
    """The smallest noise multiplier (to 0.1 %, never too small, at least 0.01) for `count` releases at rate q.

    Together with the `fixed` releases they keep epsilon. limit: seconds for each answer of PRV; where it has none for
    the noise that RDP asks for, that noise is given.

    Raises `BadValue` for inputs out of range, and for a budget that no noise up to 10^6 keeps.
    """
    epsilon, delta = positive("epsilon", epsilon), probability(delta)
    known(accountant)
    if not rate(q) or not whole("steps", count):
        problem = "asks for no release, which needs no noise"
        raise BadValue("steps" if q else "rate", count if q else q, problem, "Give steps and a rate above 0.")
    with Prv(limit) as prv:

        def found(sigma: float, by: Accountant) -> Bound:
            return answered([*fixed, Release(sigma, q, count)], delta, by, prv)

        def fits(sigma: float, by: Accountant) -> bool:
            answer = found(sigma, by)
            return answer.accountant == by and answer.epsilon <= epsilon

        direct: Accountant = "rdp" if accountant == "prv" else accountant
        least = found(HIGHEST, direct).epsilon
        if least > epsilon:
            alone = answered(fixed, delta, direct, prv).epsilon
            problem = (
                f"cannot be kept: {count:,} releases at rate {q:.3g} with a noise multiplier of {HIGHEST:g} still give "
                f"{least:.3g} by {direct}" + (f", and what is fixed gives {alone:.3g} alone" if fixed else "")
            )
            raise BadValue("epsilon", epsilon, problem, "Take fewer steps, a smaller rate or a larger epsilon.")
        sigma = smallest(lambda value: fits(value, direct))
        if accountant != "prv" or found(sigma, "prv").accountant != "prv":
            return sigma
        if not fits(4 * sigma, "prv"):  # PRV's own error, or a failure: RDP's answer stands
            return sigma
        return min(
            sigma, smallest(lambda value: fits(value, "prv"), sigma)
        )  # PRV may run out of time while it is searched


def smallest(fits: Callable[[float], bool], first: float = 1.0) -> float:
    """The smallest noise multiplier that fits, to TIGHT, from above, searched from `first`. HIGHEST must fit."""
    high = first
    while not fits(high) and high < HIGHEST:
        high = min(1.25 * high, HIGHEST)
    low = high / 1.25
    while low > LOWEST and fits(low):
        low, high = low / 1.25, low
    low = max(low, LOWEST)
    while high / low > 1 + TIGHT:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Calibrated:
    """A line of a calibration table. reached: the epsilon that the noise gives, as `accountant` says.

    accountant: the one that answered: `rdp` where `prv` was asked and had no answer.
    """

    epsilon: float
    delta: float
    rate: float
    steps: int
    accountant: str
    noise_multiplier: float
    reached: float


def calibrate(
    epsilons: Sequence[float],
    delta: float,
    q: float,
    counts: Sequence[int],
    accountants: Sequence[Accountant],
    *,
    limit: float = LIMIT,
) -> list[Calibrated]:
    """The noise multiplier for every epsilon, number of releases and accountant, in this order; a grid for a table."""
    found = []
    for target in epsilons:
        for count in counts:
            for accountant in accountants:
                sigma = noise_multiplier(target, delta, q, count, accountant, limit=limit)
                reached = bound([Release(sigma, q, count)], delta, accountant, limit)
                line = Calibrated(target, delta, q, count, reached.accountant, sigma, reached.epsilon)
                found.append(line)
    return found


# -- advice -----------------------------------------------------------------------------------------------------------


def advice(
    records: int, delta: float, release: Release | None = None, numbers: int | None = None, sums: int = 1
) -> list[str]:
    """Sentences that somebody who sets a budget should read; none where there is nothing to say.

    records: N. release: all releases of the run, where they are known, and numbers: how many numbers each one has.
    sums: into how many sums of so many numbers, class by class, the records of a release are divided.
    """
    found = []
    records = whole("records", records)
    if probability(delta) * records > 1:
        found.append(
            f"delta {delta:g} is above 1 / N = {1 / records:.2g} ({records:,} records): a mechanism that publishes one "
            "record in full, chosen at random, would keep it. Take a smaller delta."
        )
    if release is not None and numbers is not None:
        signal = signal_to_noise(records, release, numbers) / whole("sums", sums)
        if signal < SIGNAL:
            divided = f", in {sums} sums," if sums > 1 else ""
            found.append(
                f"hopeless: {records:,} records sampled at rate {release.q:.3g}{divided} are too few for noise of "
                f"{release.sigma:.3g} on {numbers:,} numbers: even if all of them agreed, the mean of "
                f"{release.count:,} releases would be {signal:.2g} times as long as its noise. Take a larger epsilon, "
                "a smaller network, or more records."
            )
    return found


def signal_to_noise(records: int, release: Release, numbers: int) -> float:
    """How much longer the mean of all releases is than its noise, if all clipped records point one way every time.

    A release is then N q long (in units of the clip), its noise sigma sqrt(numbers), and the mean of `count` of them
    has sqrt(count) times less noise. Real records agree less: this is the most that can be hoped for.
    """
    noise = release.sigma * math.sqrt(positive("numbers", numbers))
    return whole("records", records) * release.q * math.sqrt(release.count) / noise


# -- opacus ---------------------------------------------------------------------------------------------------------


def opacus(module: str = "") -> Any:
    """opacus, or its submodule. Raises `BadValue` saying what to install."""
    try:
        return importlib.import_module(f"opacus.{module}".rstrip("."))
    except ModuleNotFoundError as error:
        problem = f"is needed for privacy, and cannot be imported: {error}"
        raise BadValue("opacus", module or None, problem, f"Install it{extra_hint('private')}") from None


def version() -> str:
    """What an artifact says of the accountants' maker: `opacus 1.6.0`."""
    return f"opacus {opacus().__version__}"


__all__ = [
    "Bound",
    "Calibrated",
    "Prv",
    "Release",
    "Spent",
    "advice",
    "bound",
    "bounds",
    "calibrate",
    "epsilon",
    "noise_multiplier",
    "signal_to_noise",
]
