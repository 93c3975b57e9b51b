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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, final

import numpy as np
import pluggy
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from condense import hookspecs
from condense.axes import Net, Statistic, Transform
from condense.data import Ask, Class, Data, Source, Splits, feed
from condense.engine import condense
from condense.errors import BadData, BadValue, Damaged, Exhausted
from condense.given import Given
from condense.recipe import Recipe
from condense.rng import Rng
from condense.running import Run
from condense.task import Batch, Task

from . import accounting
from . import noise as keyed
from .ledger import LEDGER, Entry, Ledger
from .refusals import check_rows, measures, refuse_batch_norm, refuse_reads

HALF = 0.5  # the public mean and deviation that images in [0, 1] are scaled by, in place of their own
BOUND = 0.1  # length that rows are clipped to where neither the user nor the statistic says (PSG, arXiv:2211.04446)


class Within:
    """The form of the data within; of the class itself, that of images."""

    def __get__(self, wrapped: Any, owner: type[Data]) -> str:
        return Data.form if wrapped is None else str(wrapped.data.form)


@final
class Private(Data):
    """A data set whose training examples are only measured, under (epsilon, delta)-differential privacy.

    data: the set within. epsilon: of the whole run; the noise multiplier is calibrated for the measures that the recipe
    takes. noise_multiplier: the noise's deviation in units of the sensitivity, in place of a calibrated one; with both,
    the run ends where epsilon is used up. clip: L2 length that each record's part is clipped to; None: the statistic's
    own bound, else 0.1. accountant: `rdp`, `prv`, or `gaussian` (exact, where every record is in every measure).
    public_counts: are the class sizes public? Then each class is sampled at a rate of its own. N is always public.
    size: where examples differ in size (graphs, by their nodes), that of a synthetic one, a public number; a mean of
    the private ones would be one more release.
    noise_seed: noise that everybody can repeat, for debugging; the artifact then says that it is not private.

    Raises `BadValue` for parameters out of range, nodes of one graph, and live data, whose fingerprint is no secret.
    """

    shorthand: ClassVar[str | None] = "data"
    confidential: ClassVar[bool] = True
    form: ClassVar[Any] = Within()

    data: Data
    epsilon: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    noise_multiplier: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    delta: float = Field(default=1e-5, gt=0, lt=1)
    clip: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    accountant: Literal["rdp", "prv", "gaussian"] = "rdp"
    public_counts: bool = False
    size: int | None = Field(default=None, ge=1)
    noise_seed: int | None = None

    @field_validator("epsilon", "noise_multiplier", "clip", mode="before")
    @classmethod
    def _positive(cls, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else accounting.positive(str(info.field_name), value)

    @field_validator("delta", mode="before")
    @classmethod
    def _probability(cls, value: Any) -> float:
        return accounting.probability(value)

    @field_validator("accountant", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        accounting.known(value)
        return value

    @property
    def label(self) -> str:
        return f"{self.data.label}-private"

    @property
    def published_as(self) -> str:
        return self.data.published_as

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
        shape = self._shape(splits.task)
        halves = (HALF,) * shape[0] if len(shape) == 3 else None
        extra = {key: value for key, value in splits.facts.extra.items() if key == "mirror"}
        facts = replace(splits.facts, mean=halves, std=halves, extra=extra)
        return replace(splits, train=PrivateSource(splits.train, Account(self)), facts=facts)

    def _shape(self, task: Task) -> tuple[int, ...]:
        """The shape of an example, as far as it is public. Raises `BadValue` where it is a mean of the data."""
        if task.form.stacked and self.size is None:
            return task.shape
        if task.form.stacked:
            problem = f"is for examples that differ in size, and all of these are {task.shape}"
            raise BadValue("data.size", self.size, problem, "Leave it out.")
        if self.size is None:
            problem = f"is missing: {task.form.noun} differ in size, and the mean of the private ones is not public"
            remedy = "Say how large a synthetic one shall be, by what everybody knows: --set data.size=20"
            raise BadValue("data.size", None, problem, f"{remedy} (or in `data`, from Python).")
        return (self.size, *task.shape[1:])


class Account:
    """What a private source and its encoded forms share: the budget, the ledger, and where noise comes from."""

    def __init__(self, terms: Private) -> None:
        self.terms = terms
        self.measures = 0  # asked of the recipe: how many its run will take
        self.taken = 0  # measures of this run so far: the number of the next request
        self.sigma: dict[float, float] = {}  # by q
        self.ledger: Ledger | None = None
        self.noise = keyed.fresh() if terms.noise_seed is None else keyed.by_seed(terms.noise_seed)
        self.starts = 0  # measures that the set starts from: without all of them there is none
        self.released: set[str] = set()  # requests answered by this process
        self.looked = False  # are all records known to be finite?
        self.advice: list[str] = []  # what whoever set the budget should know
        self.spent = accounting.Spent()

    def begin(self, folder: Path | None, records: int, fingerprint: str) -> None:
        """Open the ledger in the private folder `folder` (None: in memory), or go on with the one there."""
        if folder is not None and self.terms.noise_seed is None:
            if (folder / LEDGER).exists() and not (folder / keyed.KEY).exists():
                problem = "is gone, and the ledger beside it holds releases, which could not be made again"
                remedy = (
                    "Restore it from a copy, or start a new run in another folder, whose epsilon adds to this one's."
                )
                raise Damaged(str(folder / keyed.KEY), None, problem, remedy)
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
                problem = f"{self.terms.epsilon:g} is used up after {len(self.ledger.entries):,} measures"
                remedy = "What has been released stays valid. Take fewer steps, or give a larger epsilon or more noise."
                raise Exhausted("epsilon", self.terms.epsilon, problem, remedy)
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

    def check_start(self, release: accounting.Release) -> None:
        """Refuse given noise that does not keep epsilon for the releases that a run cannot do without."""
        least = replace(release, count=max(1, self.starts))
        if self.terms.epsilon is not None and self.terms.noise_multiplier is not None:
            after = accounting.Spent([least]).epsilon(self.terms.delta)
            if after > self.terms.epsilon:
                what = f"the {least.count} measures that the set starts from" if least.count > 1 else "a single measure"
                problem = (
                    f"does not allow {what}: noise of {least.sigma:g} at rate {least.q:.3g} gives epsilon {after:.3g}"
                )
                remedy = "Leave data.noise_multiplier out, so that it is calibrated, or give a larger one."
                raise BadValue("data.epsilon", self.terms.epsilon, problem, remedy)


class PrivateSource(Source):
    """Real examples that nobody sees: every door is closed but `measure`."""

    def __init__(self, inner: Source, account: Account) -> None:
        self.inner, self.account = inner, account
        size = account.terms.size
        shape = inner.task.shape if size is None else (size, *inner.task.shape[1:])
        self.task: Task = inner.task.model_copy(update={"shape": shape})
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
        self.account.measures, self.account.starts = measures(recipe), recipe.total_reads().once

    def rehearse(self, run: Run) -> None:
        """Take the run's first step up to its first measure, of which nothing is computed: can it be answered?

        Warns of budgets that cannot be meant. Raises `BadValue` where it asks for more than there is, where the noise
        for the budget is out of reach, and what `measure` refuses.
        """
        self._look()
        stage = Rehearsal(run.plan, replace(run.splits, train=_Asked(self)), run.transform, silent())
        try:
            condense(stage)
        except _Question as question:
            self.foresee(question.statistic, question.model, question.asks, lambda n: setting_of(run.recipe, n))

    def foresee(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], setting: Callable[[int], str]
    ) -> None:
        """What `rehearse` says of a run whose measures are all of this kind. setting: the name of that which is n."""
        plan = Sampling.of(asks, self, setting)
        self._try(statistic, model)
        account, terms = self.account, self.account.terms
        bound, count = self._bound(statistic), max(1, account.measures)
        release = accounting.Release(account.multiplier(plan.q), plan.q, count)
        account.check_start(release)
        nobody = torch.zeros(0, dtype=torch.int64, device=self.device)
        x = self.task.form.to(self.task.form.blank(self.task, 1), self.device)
        none = Batch(self.task.form.take(x, nobody), nobody)
        sums = statistic.clipped_sums(model, [none], self.task, nobody, 1, bound)
        share = max(1, round(plan.q * len(self) / max(plan.divisors)))
        account.advice = accounting.advice(
            len(self), terms.delta, release, sum(value.numel() for value in sums.values()), share
        )
        for text in account.advice:
            warnings.warn(text, UserWarning, stacklevel=2)

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
        self._look()
        self.account.begin(folder, len(self), str(self.inner.provenance().get("fingerprint", "")))

    def _look(self) -> None:
        """Once: are all records finite?"""
        if not self.account.looked:
            finite(self.inner)
            self.account.looked = True

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
        noise, form = self.account.noise, self.task.form
        batch, ask_of = plan.sample(self.inner, noise.stream(request, "sample"))
        asked = [self._seen(ask, batch, (ask_of == i).nonzero().flatten()) for i, ask in enumerate(plan.asks)]
        views = [
            Batch(form.join([v.x for v in all_]), torch.cat([v.y for v in all_])) for all_ in zip(*asked, strict=True)
        ]
        groups = torch.cat([torch.full((len(own[0]),), i, device=self.device) for i, own in enumerate(asked)])
        sums = statistic.clipped_sums(model, views, self.task, groups, len(asked), bound, dtype=torch.float64)
        found = []
        for i, divisor in enumerate(plan.divisors):
            means = {}
            for part, exact in sorted(sums.items()):
                drawn = noise.stream(request, f"noise {i} {part}").standard_normal(tuple(exact[i].shape))
                added = torch.as_tensor(np.asarray(drawn), dtype=torch.float64, device=exact.device)
                means[part] = ((exact[i] + deviation * added) / divisor).float()
            found.append(statistic.finish(means))
        return found

    def _seen(self, ask: Ask, batch: Batch, own: Tensor) -> list[Batch]:
        """The records of an ask under each of its warps; as they are where it has none."""
        records = Batch(self.task.form.take(batch.x, own), batch.y[own])
        return [warp(records) if len(records) else records for warp in ask.warps] or [records]

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
    def of(cls, asks: Sequence[Ask], source: PrivateSource, setting: Callable[[int], str] | None = None) -> Sampling:
        """Joint sampling at rate sum(n) / N; where class sizes are public, each class at n over its own size.

        setting: what n is called where somebody can change it. Raises `BadValue` where two asks share records, a warp
        mixes them, or more is asked than there is.
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
            raise plan.too_many(setting or (lambda n: PAIRED))
        return plan

    def too_many(self, setting: Callable[[int], str]) -> BadValue:
        """What to say where a rate is above 1."""
        asked, total = max(ask.n or 0 for ask in self.asks), len(self.source)
        name = setting(asked)
        if len(set(self.rates.values())) > 1 or self.source.account.terms.public_counts:
            most = min(self.source.counts()[cls] for cls in self.rates if cls is not None)
            problem = f"asks for {asked:,} records of each class in one sample, and the smallest class has {most:,}"
        elif len(self.asks) > 1:
            most = total // len(self.asks)
            problem = (
                f"asks for {asked:,} records of each of {len(self.asks)} classes in one sample, and there are "
                f"{total:,} in all"
            )
        else:
            most, problem = total, f"asks for {asked:,} records in one sample, and there are {total:,}"
        fewer = max(1, most // 5)
        spelt = f"--set {name}={fewer}" if "." in name else f"--{name} {fewer}"
        return BadValue(name, asked, problem, f"Take at most {most:,}; far fewer need less noise: {spelt}.")

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


PAIRED = "objective.pairing.n"  # where recipes mostly say how many real examples they ask for


def setting_of(recipe: Recipe, n: int) -> str:
    """The path of the setting by which a recipe asks for n real examples."""
    found = [path for path, value in leaves(recipe.dump()) if value == n and path.rpartition(".")[2] in ("n", "group")]
    return next((path for path in found if not path.startswith("budget")), PAIRED)


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested JSON data with their dotted paths."""
    if isinstance(tree, Mapping | list):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, tree


# -- rehearsals -------------------------------------------------------------------------------------------------------


class _Question(Exception):
    """The first measure of a run."""

    def __init__(self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask]) -> None:
        super().__init__("the first measure")
        self.statistic, self.model, self.asks = statistic, model, tuple(asks)


class _Asked(PrivateSource):
    """A private source that is only asked: the first measure ends the rehearsal."""

    def __init__(self, real: PrivateSource) -> None:
        super().__init__(real.inner, real.account)

    def measure(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], rng: Rng
    ) -> Iterator[Mapping[str, Tensor]]:
        raise _Question(statistic, model, asks)


class Rehearsal(Run):
    """A run of one step that stores nothing, and that no hook hears of."""

    def loop(self, name: str, steps: int, **state: Any) -> Iterator[int]:
        yield from range(min(steps, 1))


def silent() -> pluggy.PluginManager:
    """Hooks that nobody has taken."""
    hooks = pluggy.PluginManager("condense")
    hooks.add_hookspecs(hookspecs)
    return hooks


# -- what is released -------------------------------------------------------------------------------------------------


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
