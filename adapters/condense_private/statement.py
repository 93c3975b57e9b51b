"""The statement of a private run: what its artifact says of the guarantee, and of everything that was not noised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condense.task import Task

from . import accounting

if TYPE_CHECKING:
    from .account import Account

SIZES = "is made of a given size (data.size), not of the private ones'"


def statement(account: Account, task: Task) -> dict[str, Any]:
    """What an artifact says of its making, as plain JSON. Epsilon is an upper bound, by RDP and, in its time, PRV."""
    terms, ledger = account.terms, account.ledger
    entries = ledger.entries if ledger else []
    releases = ledger.releases() if ledger else []
    kinds = sorted({(entry.statistic, entry.bound) for entry in entries})
    bounds = accounting.bounds(releases, terms.delta)
    return {
        "sentence": sentence(account, bounds),
        "private": terms.noise_seed is None,
        "unit": "one labelled example",
        "neighbours": "one record added or removed",
        "mechanism": "Gaussian noise on sums of clipped records, of one Poisson sample for each measure",
        "releases": [{"noise_multiplier": r.sigma, "rate": r.q, "count": r.count} for r in releases],
        "statistics": [{"statistic": name, "clip": bound} for name, bound in kinds],
        "draws": len(entries),
        "requests": len({entry.request for entry in entries}),
        "delta": terms.delta,
        "epsilon": {bound.accountant: bound.epsilon for bound in bounds},
        "accountants": {bound.accountant: bound.version for bound in bounds},
        "asked": {"epsilon": terms.epsilon, "noise_multiplier": terms.noise_multiplier},
        "ledger": ledger.digest if ledger else "",
        "advice": account.advice,
        "not_noised": {
            "records": "their number is declared public",
            "classes": "their names and number are declared public",
            "shape": f"of an example, {list(task.shape)}, {SIZES if terms.size else 'is declared public'}",
            **({"scale": "images in [0, 1] by the public constants 0.5 and 0.5"} if len(task.shape) == 3 else {}),
            **({"counts": "class sizes are declared public"} if terms.public_counts else {}),
        },
    }


def sentence(account: Account, bounds: list[accounting.Bound]) -> str:
    """The guarantee in a line: `epsilon 7.98 (rdp), 7.41 (prv) at delta 1e-05, 200 measures`."""
    if account.terms.noise_seed is not None:
        return "not private: the noise was made from a known seed"
    said = ", ".join(f"{bound.epsilon:.3g} ({bound.accountant})" for bound in bounds)
    draws = len(account.ledger.entries) if account.ledger else 0
    return f"epsilon {said} at delta {account.terms.delta:g}, {draws:,} measures"
