"""`Private(data)`: a data set that is never shown, only measured, with noise, and billed.

The sampled Gaussian mechanism (Abadi et al., arXiv:1607.00133; Mironov et al., arXiv:1908.10530) behind the one door
that a source opens to matching methods. Unit of privacy: one labelled example. Neighbours: one is added or removed. One
call of `measure` takes one Poisson sample of all records, computes the statistic of each alone, clips it to length C,
adds up those of each ask, adds Gaussian noise of deviation sigma C to every sum and divides by constants. A record is
part of one sum only, so the sensitivity of all sums together is C, and the call is billed once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, final

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from condense.axes import Net, Statistic, Transform
from condense.data import Ask, Class, Data, Source, Splits
from condense.errors import BadData, BadValue
from condense.given import Given
from condense.recipe import Recipe
from condense.rng import Rng
from condense.running import Run
from condense.task import Batch, Task

from . import accounting
from . import noise as keyed
from .account import Account
from .ledger import Entry
from .refusals import check_rows, measures, refuse_batch_norm, refuse_reads
from .sampling import Sampling, digest_of, setting_of

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
        from .rehearsal import first_question

        self._look()
        question = first_question(run, self)
        if question is not None:
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
        self.account.resume(int(state["taken"]))

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


def finite(source: Source) -> None:
    """Refuse records that hold NaN or infinity before any is sampled: a release that is not finite tells of them."""
    for batch in source.sweep(4096):
        for name, value in source.task.form.pack(batch.x).items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise BadData("data", name, "holds a record with NaN or infinity", "Drop or repair it.")


__all__ = ["Private", "PrivateSource"]
