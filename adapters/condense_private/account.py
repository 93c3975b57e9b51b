"""The account of a private source: its budget, its ledger, and where its noise comes from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from condense.errors import BadValue, Damaged, Exhausted

from . import accounting
from . import noise as keyed
from .ledger import LEDGER, Entry, Ledger

if TYPE_CHECKING:
    from .private import Private


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
                remedy = "Restore it from a copy, or start a new run in another folder: its epsilon adds to this one's."
                raise Damaged(str(folder / keyed.KEY), None, problem, remedy)
            self.noise = keyed.kept(folder)
        secret = self.noise.stream(fingerprint.encode(), "data").bytes(16).hex()
        terms = {"records": records, "delta": self.terms.delta, "data": secret}
        self.ledger = Ledger(None if folder is None else folder / LEDGER, terms)
        self.spent = accounting.Spent(self.ledger.releases())
        if self.terms.noise_multiplier is None:  # noise that was calibrated once stays, whatever an accountant says now
            self.sigma.update({entry.q: entry.sigma for entry in self.ledger.entries})

    def resume(self, taken: int) -> None:
        """Go on after so many measures of a checkpoint. Raises `Damaged` for a ledger that lacks some of them."""
        billed = 0 if self.ledger is None else len(self.ledger.entries)
        if billed < taken:
            problem = f"lists {billed:,} releases, and the checkpoint beside it was made after {taken:,}"
            remedy = "Restore both from one copy. Without it nobody knows what was released."
            raise Damaged(LEDGER, billed, problem, remedy)
        self.taken = taken

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


__all__ = ["Account"]
