"""`Private(data)`: a data set that is never shown, only measured, with noise, and billed.

The sampled Gaussian mechanism (Abadi et al., arXiv:1607.00133; Mironov et al., arXiv:1908.10530) behind the one door
that a source opens to matching methods. Unit of privacy: one labelled example. Neighbours: one is added or removed. One
call of `measure` takes one Poisson sample of all records, computes the statistic of each alone, clips it to length C,
adds up those of each ask, adds Gaussian noise of deviation sigma C to every sum and divides by constants. A record is
part of one sum only, so the sensitivity of all sums together is C, and the call is billed once.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Net, Statistic, Transform
from condense.data import Ask, Class, Data, Source, Splits, feed
from condense.errors import BadData, BadValue
from condense.given import Given
from condense.recipe import Recipe
from condense.rng import Rng
from condense.task import Batch, Task

from . import accounting
from . import noise as keyed
from .ledger import LEDGER, Entry, Ledger
from .refusals import check_rows, measures, refuse_batch_norm, refuse_reads

HALF = 0.5  # the public mean and deviation that images in [0, 1] are scaled by, in place of their own
BOUND = 0.1  # length that rows are clipped to where neither the user nor the statistic says (PSG, arXiv:2211.04446)


class _Within:
    """The form of the data within; of the class itself, that of images."""

    def __get__(self, wrapped: Private | None, owner: type[Private]) -> str:
        return Data.form if wrapped is None else wrapped.data.form


@final
class Private(Data):
    """A data set whose training examples are only measured, under (epsilon, delta)-differential privacy.

    data: the set within. epsilon: of the whole run; the noise multiplier is calibrated for the measures that the recipe
    takes. noise_multiplier: the noise's deviation in units of the sensitivity, in place of a calibrated one; with both,
    the run ends where epsilon is used up. clip: L2 length that each record's part is clipped to; None: the statistic's
    own bound, else 0.1. accountant: `rdp`, `prv`, or `gaussian` (exact, where every record is in every measure).
    public_counts: are the class sizes public? Then each class is sampled at a rate of its own. N is always public.
    noise_seed: noise that everybody can repeat, for debugging; the artifact then says that it is not private.

    Raises `BadValue` for parameters out of range, nodes of one graph, and live data, whose fingerprint is no secret.
    """

    shorthand: ClassVar[str | None] = "data"
    confidential: ClassVar[bool] = True
    form: ClassVar[Any] = _Within()

    data: Data
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    noise_multiplier: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    accountant: Literal["rdp", "prv", "gaussian"] = "rdp"
    public_counts: bool = False
    noise_seed: int | None = None

    @property
    def label(self) -> str:
        return f"{self.data.label}-private"

    @property
    def published_as(self) -> str:
        return self.data.published_as

    @property
    def metric(self) -> str | None:
        return self.data.metric

    def open(self, device: torch.device | str = "cpu") -> Splits:
        if self.epsilon is None and self.noise_multiplier is None:
            remedy = "Give data.epsilon (8, say), or data.noise_multiplier."
            raise BadValue("data.epsilon", None, "is missing: a private run needs a budget", remedy)
        if isinstance(self.data, Private):
            raise BadValue("data", self.label, "is private twice", "Wrap it once.")
        if isinstance(self.data, Given):
            problem = "was handed over from Python, and a plan would publish its fingerprint"
            raise BadValue("data", self.data.label, problem, "Save it, and give it as npz:PATH or folder:PATH.")
        splits = self.data.open(device)
        if not splits.task.form.independent:
            problem = (
                f"holds {splits.task.form.noun} of one graph: what one of them adds reaches its neighbours, so that a "
                "record cannot be clipped alone"
            )
            remedy = "Condense sets of whole graphs privately; for nodes a bound on degrees would have to be proved."
            raise BadValue("data", self.data.label, problem, remedy)
        for advice in accounting.advice(len(splits.train), self.delta):
            warnings.warn(advice, UserWarning, stacklevel=2)
        shape = splits.task.shape
        halves = (HALF,) * shape[0] if len(shape) == 3 else None
        extra = {key: value for key, value in splits.facts.extra.items() if key == "mirror"}
        facts = replace(splits.facts, mean=halves, std=halves, extra=extra)
        return replace(splits, train=PrivateSource(splits.train, Account(self)), facts=facts)


class Account:
    """What a private source and its encoded forms share: the budget, the ledger, and where noise comes from."""

    def __init__(self, terms: Private) -> None:
        self.terms = terms
        self.measures = 0  # asked of the recipe: how many its run will take
        self.taken = 0  # measures of this run so far: the number of the next request
        self.sigma: dict[float, float] = {}  # by q
        self.ledger: Ledger | None = None
        self.noise = keyed.fresh() if terms.noise_seed is None else keyed.by_seed(terms.noise_seed)
        self.released: set[str] = set()  # requests answered by this process
        self.spent = accounting.Spent()

    def begin(self, folder: Path | None, records: int, fingerprint: str) -> None:
        """Open the ledger in the private folder `folder` (None: in memory), or go on with the one there."""
        if folder is not None and self.terms.noise_seed is None:
            self.noise = keyed.kept(folder)
        secret = self.noise.stream(fingerprint.encode(), "data").bytes(16).hex()
        terms = {"records": records, "delta": self.terms.delta, "data": secret}
        self.ledger = Ledger(None if folder is None else folder / LEDGER, terms)
        self.spent = accounting.Spent(self.ledger.releases())

    def multiplier(self, q: float) -> float:
        """The noise multiplier for measures at rate q."""
        if self.terms.noise_multiplier is not None:
            return self.terms.noise_multiplier
        if q not in self.sigma:
            if self.terms.epsilon is None:
                raise AssertionError("the plan was validated")
            asked = (self.terms.epsilon, self.terms.delta, q, max(1, self.measures), self.terms.accountant)
            self.sigma[q] = accounting.noise_multiplier(*asked)
        return self.sigma[q]

    def bill(self, entry: Entry) -> None:
        """Put the release down before it is made. Raises `BadValue` where the budget does not allow it."""
        if self.ledger is None:
            raise AssertionError("a source is begun before it is measured")
        if entry.request not in self.ledger.requests:
            release = accounting.Release(entry.sigma, entry.q)
            if not self.affords(release):
                problem = f"is used up after {len(self.ledger.entries):,} measures"
                remedy = "What has been released stays valid. Take fewer steps, or give a larger epsilon or more noise."
                raise BadValue("data.epsilon", self.terms.epsilon, problem, remedy)
            self.ledger.bill(entry)
            self.spent.add(release)
        self.released.add(entry.request)
        self.taken += 1

    def affords(self, release: accounting.Release) -> bool:
        """Does the budget allow one more? Calibrated noise does, as often as it was calibrated for.

        What RDP calibrated, and noise that was given, is held against the running total; noise that another accountant
        calibrated, for which RDP says too much, is counted, and all of it must be of one kind.
        """
        terms, entries = self.terms, self.ledger.entries if self.ledger else []
        if terms.epsilon is None:
            return True
        if terms.noise_multiplier is None and terms.accountant != "rdp":
            alike = all((entry.sigma, entry.q) == (release.sigma, release.q) for entry in entries)
            return alike and len(entries) < max(1, self.measures)
        return self.spent.after(release).epsilon(terms.delta) <= terms.epsilon

    def exhausted(self) -> bool:
        """Is there no room for another release like the last one, although the noise was given, not calibrated?"""
        if self.ledger is None or not self.ledger.entries or self.terms.noise_multiplier is None:
            return False
        last = self.ledger.entries[-1]
        return not self.affords(accounting.Release(last.sigma, last.q))


class PrivateSource(Source):
    """Real examples that nobody sees: every door is closed but `measure`."""

    def __init__(self, inner: Source, account: Account) -> None:
        self.inner, self.account = inner, account
        self.task: Task = inner.task
        self.tried: set[tuple[str, Any]] = set()

    # -- what is refused ----------------------------------------------------------------------------------------------

    def _refuse(self, what: str) -> NoReturn:
        problem = f"is private: it does not give {what}"
        remedy = "Use a method that only measures; docs/privacy.md lists them, and what to use in place of others."
        raise BadValue("data", self.account.terms.label, problem, remedy)

    @property
    def groups(self) -> Tensor:
        return self._refuse("the labels of its examples")

    def take(self, index: Tensor) -> Batch:
        return self._refuse("examples")

    def draw(self, n: int | None, cls: Class, rng: Rng, at: int | None = None) -> Batch:
        return self._refuse("examples")

    def sweep(self, n: int) -> Iterator[Batch]:
        return self._refuse("examples")

    def ids(self, cls: int | None) -> Tensor:
        return self._refuse("the places of a class")

    def counts(self) -> list[int]:
        return self.inner.counts() if self.account.terms.public_counts else self._refuse("the sizes of its classes")

    def admit(self, recipe: Recipe) -> None:
        """Refuse a recipe that reads examples, or whose networks look from one record at another."""
        refuse_reads(recipe)
        for net in (part for part in recipe.walk() if isinstance(part, Net)):
            refuse_batch_norm(net, self.task)
        self.account.measures = measures(recipe)

    # -- what is public ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.inner.device

    def __len__(self) -> int:
        return len(self.inner)

    def encoded(self, transform: Transform) -> PrivateSource:
        if transform.origin != "public":
            problem = "is fitted on private examples, and its constants would be published"
            raise BadValue("preprocess", type(transform).__name__, problem, "Use --set preprocess=normalise.")
        return PrivateSource(self.inner.encoded(transform), self.account)

    def provenance(self) -> dict[str, Any]:
        counts = {"counts": self.inner.counts()} if self.account.terms.public_counts else {}
        return {"classes": list(self.task.classes), "records": len(self), **counts}

    # -- a run's ledger ------------------------------------------------------------------------------------------------

    def begin(self, folder: Path | None) -> None:
        finite(self.inner)
        self.account.begin(folder, len(self), str(self.inner.provenance().get("fingerprint", "")))

    def finish(self, folder: Path | None) -> None:
        if folder is not None:
            keyed.forget(folder)

    def account_for(self) -> dict[str, Any]:
        from .statement import statement

        return {"privacy": statement(self.account, self.task)}

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.account.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.account.taken = int(state["taken"])

    # -- the door ------------------------------------------------------------------------------------------------------

    def measure(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], rng: Rng
    ) -> Iterator[Mapping[str, Tensor]]:
        """One release: the noised statistic for each ask, in their order. Nothing of it depends on `rng`.

        The expected number of examples of an ask is its n, of a class as of all; sums are divided by that constant,
        whatever the sample holds. With n None every record is taken, and the divisor is N, or N over the classes.
        Raises `BadValue` for asks that share records, warps that mix records, statistics that look from one record at
        another, and once the budget is used up.
        """
        if self.account.ledger is None:
            self.begin(None)
        plan = Sampling.of(asks, self)
        self._try(statistic, model)
        bound = self._bound(statistic)
        sigma = self.account.multiplier(plan.q)
        facts = {"statistic": statistic.dump(), "q": plan.q, "sigma": sigma, "bound": bound}
        request = digest_of(self.account.taken, facts, plan.asks, model)
        self.account.bill(Entry(request.hex(), statistic.name, plan.q, sigma, bound))
        return iter(self._release(statistic, model, plan, request, sigma * bound, bound))

    def _bound(self, statistic: Statistic) -> float:
        """The length that rows are clipped to. A statistic that bounds itself does so on the synthetic side, too."""
        asked, own = self.account.terms.clip, getattr(statistic, "bound", None)
        if asked is not None and own is not None and asked < own:
            problem = f"is below {own:g}, which {statistic.name} clips both sides to"
            raise BadValue("data.clip", asked, problem, f"Set objective.statistic.bound={asked:g} instead.")
        return float(own or asked or BOUND)

    def _release(
        self, statistic: Statistic, model: nn.Module, plan: Sampling, request: bytes, deviation: float, bound: float
    ) -> list[Mapping[str, Tensor]]:
        noise = self.account.noise
        batch, ask_of = plan.sample(self.inner, noise.stream(request, "sample"))
        found = []
        for i, ask in enumerate(plan.asks):
            own = (ask_of == i).nonzero().flatten()
            records = Batch(self.task.form.take(batch.x, own), batch.y[own])
            views = [warp(records) if len(records) else records for warp in ask.warps] or [records]
            group = torch.zeros(len(records), dtype=torch.int64, device=self.device)
            sums = statistic.clipped_sums(model, views, self.task, group, 1, bound, dtype=torch.float64)
            means = {}
            for part in sorted(sums):
                exact = sums[part][0]
                drawn = noise.stream(request, f"noise {i} {part}").standard_normal(tuple(exact.shape))
                added = torch.as_tensor(np.asarray(drawn), dtype=torch.float64, device=exact.device)
                means[part] = ((exact + deviation * added) / plan.divisors[i]).float()
            found.append(statistic.finish(means))
        return found

    def _try(self, statistic: Statistic, model: nn.Module) -> None:
        """Once for each statistic and architecture: on random public input, is each record's row its own?"""
        key = (statistic.digest(), getattr(model, "architecture", type(model)))
        if key not in self.tried:
            check_rows(statistic, model, self.task, self.device)
            self.tried.add(key)


@dataclass
class Sampling:
    """How one Poisson sample serves all asks: the rate of each record, and the constant that each sum is divided by."""

    asks: tuple[Ask, ...]
    source: PrivateSource
    divisors: list[float] = field(default_factory=list)
    rates: dict[int | None, float] = field(default_factory=dict)

    @classmethod
    def of(cls, asks: Sequence[Ask], source: PrivateSource) -> Sampling:
        """Joint sampling at rate sum(n) / N; where class sizes are public, each class at n over its own size.

        Raises `BadValue` where two asks share records, a warp mixes them, or more is asked than there is.
        """
        plan, classes, total = cls(tuple(asks), source), [ask.cls for ask in asks], len(source)
        if not asks or len(set(classes)) < len(classes) or (None in classes and len(classes) > 1):
            problem = "share records: a record may be part of one sum only"
            raise BadValue("objective.pairing", classes, problem, "Ask once for each class, or once for all.")
        if any(warp.mixes for ask in asks for warp in ask.warps):
            raise BadValue("augment", "mixing", "mixes records with each other", "Use --set augment=none or dsa.")
        if source.account.terms.public_counts and None not in classes:
            counts = source.counts()
            sizes = {c: counts[c] for c in classes if c is not None}
            plan.rates = {
                c: 1.0 if ask.n is None else ask.n / max(1, sizes[c]) for c, ask in zip(sizes, asks, strict=True)
            }
            plan.divisors = [float(ask.n or max(1, sizes[c])) for c, ask in zip(sizes, asks, strict=True)]
        else:
            share = total / (1 if None in classes else source.task.groups)
            every = any(ask.n is None for ask in asks)
            rate = 1.0 if every else sum(ask.n or 0 for ask in asks) / total
            plan.rates = dict.fromkeys(classes, rate)
            plan.divisors = [float(share if every else ask.n or 0) for ask in asks]
        if plan.q > 1:
            problem = f"asks for {plan.q:.3g} times the {total:,} records that there are"
            raise BadValue(
                "objective.pairing.n", [ask.n for ask in asks], problem, "Ask for fewer: a rate is at most 1."
            )
        return plan

    @property
    def q(self) -> float:
        """The largest rate at which a record is sampled."""
        return max(self.rates.values())

    def sample(self, source: Source, stream: np.random.Generator) -> tuple[Batch, Tensor]:
        """The records that are in, and for each the number of its ask (-1: none)."""
        draws = torch.as_tensor(stream.random(len(source)), device=source.device)
        classes = source.groups
        of = torch.full((source.task.groups,), -1, dtype=torch.int64)
        rates = torch.zeros(source.task.groups, dtype=torch.float64)
        for i, ask in enumerate(self.asks):
            which = slice(None) if ask.cls is None else ask.cls
            of[which], rates[which] = i, self.rates[ask.cls]
        inside = (draws < rates.to(source.device)[classes]).nonzero().flatten()
        return source.take(inside), of.to(source.device)[classes[inside]]


def digest_of(number: int, facts: Mapping[str, Any], asks: Sequence[Ask], model: nn.Module) -> bytes:
    """SHA-256 of a request: its number in the run, what is asked and how, and every weight of the network.

    The one place of a private step that waits for the device.
    """
    h = hashlib.sha256(json.dumps([number, facts, [[ask.cls, ask.n] for ask in asks]], sort_keys=True).encode())
    for ask in asks:
        for warp in ask.warps:
            for name, value in sorted(warp.state().items()):
                h.update(name.encode())
                feed(h, (value,))
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode())
        feed(h, (value,))
    return h.digest()


def finite(source: Source) -> None:
    """Refuse records that hold NaN or infinity before any is sampled: a release that is not finite tells of them."""
    for batch in source.sweep(4096):
        for name, value in source.task.form.pack(batch.x).items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise BadData("data", name, "holds a record with NaN or infinity", "Drop or repair it.")


__all__ = ["Account", "Private", "PrivateSource", "Sampling"]
