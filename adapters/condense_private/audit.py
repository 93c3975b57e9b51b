"""An audit: how much a private source gives away in fact, bounded from below, beside what its ledger claims.

Canaries are records that stand out as far as any record can. A run of the audit tosses a fair coin for each of them,
measures the source that holds those whose coin fell so, through the very `PrivateSource.measure` that recipes call, and
guesses each coin from what was released: by the projection of the released mean on the canary's row. Where the claim
(epsilon, delta) holds, no rule of guessing keeps both its rates of errors small:

    1 - missed - delta <= exp(epsilon) mistaken,   and   1 - mistaken - delta <= exp(epsilon) missed

(Kairouz et al., arXiv:1311.0776; so audited by Jagielski et al., arXiv:2006.07709). Clopper-Pearson bounds on the two
rates, which hold together at the stated confidence, therefore give a lower bound on epsilon. A bound above the claim
refutes it; one below proves nothing: it is what an attack of this kind was able to show.

What guessing looks at, and from which number on it says yes, is chosen on runs of their own, which are not counted.

Neighbours. N is declared public, so both worlds have N records: in place of a canary that is out stands the null
record, an example of zeros under a network without biases, whose row is zero. It adds nothing to any sum: this is
removing the record with N held (zero-out, Kairouz et al., arXiv:2103.00039), at exactly the rate that is billed.

Several canaries in one run. Their rows are orthogonal to each other, and each has a coin of its own: for any fixed
coins of the others, two worlds that differ in one coin are neighbours, so the inequalities above hold for each canary,
and for the averages of the rates over canaries. The counted guesses of one run are independent of each other where
`measure` is what it claims to be: samples take each record on its own, and the noise along orthogonal rows is
independent. So a correct source is accused no more often than the confidence says. Of a broken one, whose guesses may
depend on each other, the bound is an estimate; with one canary in a run it asks nothing of the code but fresh noise.

What this cannot see: canaries, statistics and tests that are not here; noise that is alike under two networks; anything
at probabilities far below one over the number of draws.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Statistic
from condense.data import Ask, Data, Splits, TensorSource
from condense.errors import BadValue, nearest
from condense.parts.matching import Gradient, MeanFeature
from condense.rng import Rng
from condense.task import Batch, Task

from . import accounting
from .accounting import Release, Spent
from .dp_dm import ClippedFeature
from .noisy_means import Example
from .private import Private, PrivateSource

CLASSES = 2
FAR = 30.0  # length of a canary, in units of the longest that an example may be (its number of inputs, square root)
OTHERS = 2  # records that are always there, one of each class
PILOT = 4  # one run that chooses the threshold for so many that are counted
CANDIDATES = 1000  # thresholds that are tried for each test

Vector = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A statistic as recipes measure it: for each class, or for all of them together (its rows then say of which)."""

    statistic: Statistic
    by_class: bool
    used_by: tuple[str, ...]


def cases(inputs: int = 1) -> dict[str, Case]:
    """What is audited, by name: every statistic that a private recipe measures, in the way that it does.

    inputs: the numbers of an example, which bound its length.
    """
    return {
        "gradient": Case(Gradient(), False, ("psg", "psg-prior", "dp-sgd")),
        "gradient-by-class": Case(Gradient(), True, ("dc", "dsa")),
        "mean-feature": Case(MeanFeature(), True, ("dm",)),
        "clipped-feature": Case(ClippedFeature(), True, ("dp-dm",)),
        "clipped-feature-labelled": Case(ClippedFeature(labelled=True), False, ("dp-merf",)),
        "example": Case(Example(bound=math.sqrt(inputs)), True, ("dp-random", "ldpdc")),
    }


@dataclass(frozen=True)
class Terms:
    """What an audit is made under.

    draws: guesses that are counted, in both worlds together. measures: releases of one run, under one network.
    canaries: guesses in one run. rate: at which records are sampled (1: all of them; else the nearest that whole
    numbers of records come to). noise_seed: noise that everybody can repeat, other noise for each seed of the coins;
    None: from the operating system, as in use. Raises `BadValue` for numbers out of range.
    """

    draws: int = 100_000
    measures: int = 5
    canaries: int = 62
    rate: float = 1.0
    noise_multiplier: float = 3.0
    delta: float = 1e-5
    confidence: float = 0.99
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("draws", 100), ("measures", 1), ("canaries", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise BadValue(name, value, f"must be a whole number of at least {least:,}", f"Give {least:,} or more.")
        accounting.positive("noise_multiplier", self.noise_multiplier)
        accounting.probability(self.delta)
        if not 0 < self.rate <= 1:
            raise BadValue(
                "rate", self.rate, "must be a share of the records, above 0 and at most 1", "Give 1 for all."
            )
        if not 0.5 <= self.confidence < 1:
            raise BadValue("confidence", self.confidence, "must lie between 0.5 and 1", "Give 0.99, say.")


@dataclass(frozen=True)
class Audit:
    """What was found. lower: the lower bound on epsilon; claimed: the upper ones, by accountant, for what was billed.

    out, mistaken: canaries that were out, and how many of them were said to be in. inside, missed: those that were in,
    and how many were said to be out. test: what the guess looked at (`sum` over the run's releases, `release K` alone,
    or `against the other class`). releases: what the ledger says of one run. clip: what rows were clipped to.
    """

    statistic: str
    seed: int
    terms: Terms
    releases: tuple[Release, ...]
    clip: float
    runs: int
    test: str
    out: int
    mistaken: int
    inside: int
    missed: int
    lower: float
    claimed: Mapping[str, float]

    @property
    def refuted(self) -> bool:
        """Does the bound exceed the smallest claim?"""
        return self.lower > min(self.claimed.values())

    def dump(self) -> dict[str, Any]:
        """As plain JSON."""
        said = {name: getattr(self, name) for name in ("statistic", "seed", "clip", "runs", "test", "lower", "refuted")}
        counts = {name: getattr(self, name) for name in ("out", "mistaken", "inside", "missed")}
        releases = [{"noise_multiplier": r.sigma, "rate": r.q, "count": r.count} for r in self.releases]
        return {**said, **counts, **vars(self.terms), "releases": releases, "claimed": dict(self.claimed)}


def audit(name: str, seed: int = 0, terms: Terms = Terms()) -> Audit:
    """Audit one statistic of `cases`. seed: of the coins; the noise is the operating system's, or as `terms` say.

    Raises `BadValue` for a statistic that is not known, and a rate that is not a record in each measure.
    """
    data = Canaries(number=terms.canaries)
    found = cases(data.inputs)
    if name not in found:
        raise BadValue("statistic", name, "is none that is audited", nearest(name, found))
    case = found[name]
    known = None if terms.noise_seed is None else terms.noise_seed + seed
    wrapped = Private(data=data, noise_multiplier=terms.noise_multiplier, delta=terms.delta, noise_seed=known)
    source = wrapped.open().train
    if not isinstance(source, PrivateSource):
        raise AssertionError("private data open to a private source")
    counted = -(-terms.draws // terms.canaries)
    pilot = -(-counted // PILOT)
    coins = torch.rand(pilot + counted, terms.canaries, generator=Rng(seed).fold("coins").generator()) < 0.5
    drawn, releases = draws(source, case, data, coins, terms)
    truth = coins.numpy()
    test, threshold = chosen(drawn[:, :pilot], truth[:pilot], terms)
    said, held = drawn[test, pilot:] >= threshold, truth[pilot:]
    mistaken, out, missed, inside = (int(m.sum()) for m in (said & ~held, ~held, ~said & held, held))
    lower = lower_bound(np.array(mistaken), out, np.array(missed), inside, terms)
    return Audit(
        statistic=name,
        seed=seed,
        terms=terms,
        releases=releases,
        clip=float(source.account.ledger.entries[-1].bound) if source.account.ledger else math.nan,
        runs=counted,
        test=tests(case, terms)[test],
        out=out,
        mistaken=mistaken,
        inside=inside,
        missed=missed,
        lower=float(lower),
        claimed=claimed(releases, terms.delta),
    )


# -- what is measured -----------------------------------------------------------------------------------------------


@final
class Canaries(Data):
    """`number` canaries and two other records, classes in turn. Canary j is `FAR` times the longest, along axis j.

    The others lie along an axis of their own. With one canary, the other record of its class lies opposite to it, a
    third as far: what clips sums or means, and not records, then gives it away most. Zeros stand in place of a canary
    that is out.
    """

    number: int = Field(ge=1)

    @property
    def inputs(self) -> int:
        return self.number + 1

    @property
    def task(self) -> Task:
        return Task(classes=tuple(str(c) for c in range(CLASSES)), shape=(self.inputs,))

    def rows(self) -> Batch:
        """All records, canaries first."""
        places = torch.arange(self.number + OTHERS)
        x = torch.zeros(len(places), self.inputs)
        x[places, places.clamp(max=self.number)] = FAR * math.sqrt(self.inputs)
        if self.number == 1:
            x[2] = -x[0] / 3
        return Batch(x, places % CLASSES)

    def open(self, device: torch.device | str = "cpu") -> Splits:
        records = self.rows()
        train = TensorSource(self.task, records.x.to(device), records.y.to(device))
        return Splits(train=train, test=train)


class Plain(nn.Module):
    """Features are the example itself; the head has no bias and says that all classes are as likely."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.head = nn.Linear(task.shape[0], task.outputs, bias=False)
        nn.init.zeros_(self.head.weight)

    def features(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x)
        return logits


def tests(case: Case, terms: Terms) -> list[str]:
    """What a guess may look at, in the order of `draws`."""
    alone = [f"release {i + 1}" for i in range(terms.measures)] if terms.measures > 1 else []
    return ["sum", *alone, *(["against the other class"] if case.by_class else [])]


def draws(
    source: PrivateSource, case: Case, data: Canaries, coins: Tensor, terms: Terms
) -> tuple[Vector, tuple[Release, ...]]:
    """Measure a source for each row of `coins` (runs, canaries): (tests, runs, canaries), and what a run was billed.

    Of runs that were billed differently, the one that was billed most counts.
    """
    records, model = data.rows(), Plain(data.task)
    asks = asked(case, len(records), terms.rate)
    with torch.no_grad():
        rows = case.statistic.rows(model, Batch(records.x[: data.number], records.y[: data.number]), data.task)
    along = torch.cat([rows[part].detach().double().flatten(1) for part in sorted(rows)], dim=1)
    along = along / along.norm(dim=1, keepdim=True)
    own = records.y[: data.number] if case.by_class else torch.zeros(data.number, dtype=torch.int64)
    found, billed = np.zeros((len(tests(case, terms)), *coins.shape)), set()
    source.begin(None)
    if source.account.ledger is None:
        raise AssertionError("a source that is begun has a ledger")
    entries = source.account.ledger.entries
    for run, toss in enumerate(coins):
        present = torch.cat([toss, torch.ones(OTHERS, dtype=torch.bool)])
        source.inner = TensorSource(data.task, records.x * present.unsqueeze(1), records.y)
        before = len(entries)
        shown = torch.stack([projections(source, case, model, asks, along) for _ in range(terms.measures)])
        found[:, run] = looked_at(shown, own, case.by_class).numpy()
        billed.add(tuple(sorted((entry.sigma, entry.q) for entry in entries[before:])))
    runs = [tuple(Release(sigma, q, run.count((sigma, q))) for sigma, q in sorted(set(run))) for run in billed]
    return found, max(runs, key=lambda run: Spent(run).epsilon(terms.delta))


def asked(case: Case, records: int, rate: float) -> list[Ask]:
    """As a pairing asks: of every class, or of all together."""
    classes: Sequence[int | None] = range(CLASSES) if case.by_class else (None,)
    n = None if rate == 1 else round(rate * records / len(classes))
    if n == 0:
        problem = f"is less than one of {records} records in each ask"
        raise BadValue("rate", rate, problem, "Give a larger rate, or more canaries.")
    return [Ask(c, n) for c in classes]


def projections(source: PrivateSource, case: Case, model: nn.Module, asks: Sequence[Ask], along: Tensor) -> Tensor:
    """One call of `measure`: every answer along every canary's row, (asks, canaries) float64."""
    answers = source.measure(case.statistic, model, asks, Rng(0))
    flat = [torch.cat([answer[part].flatten() for part in sorted(answer)]) for answer in answers]
    return torch.stack(flat).double() @ along.T


def looked_at(shown: Tensor, own: Tensor, by_class: bool) -> Tensor:
    """Numbers to guess from, (tests, canaries), of projections (measures, asks, canaries). own: each canary's ask."""
    places = torch.arange(len(own))
    mine = shown[:, own, places]
    alone = [mine] if len(mine) > 1 else []
    others = [(mine - shown[:, 1 - own, places]).sum(dim=0, keepdim=True)] if by_class else []
    return torch.cat([mine.sum(dim=0, keepdim=True), *alone, *others])


# -- what is concluded ----------------------------------------------------------------------------------------------


def chosen(drawn: Vector, inside: Counts, terms: Terms) -> tuple[int, float]:
    """The test and the threshold that give the largest bound on these draws, which are not counted.

    drawn: (tests, runs, canaries); inside: (runs, canaries). Of thresholds alike, the one in the widest gap.
    """
    best = (-1.0, 0, 0.0)
    for test, values in enumerate(drawn):
        grid = np.unique(np.quantile(values, np.linspace(0, 1, CANDIDATES + 1)))
        widths = np.diff(grid)
        middles = ((grid[1:] + grid[:-1]) / 2)[np.argsort(-widths, kind="stable")]
        if not len(middles):
            continue
        out, held = np.sort(values[~inside]), np.sort(values[inside])
        mistaken = len(out) - np.searchsorted(out, middles)
        missed = np.searchsorted(held, middles)
        bounds = lower_bound(mistaken, len(out), missed, len(held), terms)
        at = int(bounds.argmax())
        best = max(best, (float(bounds[at]), test, float(middles[at])), key=lambda each: each[0])
    return best[1], best[2]


def lower_bound(mistaken: Counts, out: int, missed: Counts, inside: int, terms: Terms) -> Vector:
    """The lower bound on epsilon that counts of errors prove, at `terms.confidence` for both rates together."""
    alpha = (1 - terms.confidence) / 2
    false_in, false_out = highest(mistaken, out, alpha), highest(missed, inside, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = [
            np.log(np.maximum(1 - terms.delta - rate, 0) / other)
            for rate, other in ((false_in, false_out), (false_out, false_in))
        ]
    bound: Vector = np.maximum(np.maximum(*found), 0.0)
    return bound


def highest(count: Counts, n: int, alpha: float) -> Vector:
    """The upper Clopper-Pearson bound on a rate that was seen `count` times of n: too low with chance `alpha`."""
    from scipy.stats import beta

    found: Vector = np.where(count >= n, 1.0, beta.ppf(1 - alpha, count + 1, np.maximum(n - count, 1)))
    return found


@functools.lru_cache(maxsize=64)
def claimed(releases: tuple[Release, ...], delta: float) -> Mapping[str, float]:
    """Upper bounds on epsilon, by accountant."""
    return {bound.accountant: bound.epsilon for bound in accounting.bounds(releases, delta)}


__all__ = ["Audit", "Case", "Terms", "audit", "cases"]
