"""The likelihood ratio attack (LiRA; Carlini et al., arXiv:2112.03570), as functions of scores and memberships.

Shadows come in pairs: the second is trained on exactly the records that the first was not. So every record is in half
of them, and where a pair is left out, as many of the others have it as have it not. (Leaving out one shadow of such a
design would not do: of the others, one fewer has a record that it has, which tells the attack what it should guess.)

A pair is attacked by the others: each of these in turn sets thresholds by its non-members, held against statistics of
the rest; the pair itself is held against as many. Nothing of a target enters what it is attacked by.

Notation: K shadows, Q queries of a record, N records. `scores` (K, Q, N), `member` (K, N) bool.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from condense.rng import Rng

LEAST = 8  # shadows: a pair under attack, one that sets thresholds, two for means and a deviation
OWN_VARIANCE = 32  # scores of a record from which on its own variance is trusted; 64 shadows, as in the paper
CONFIDENCE = 0.95  # of all intervals


def halves(groups: Tensor, shadows: int, rng: Rng) -> Tensor:
    """(K, N) bool: which records are in which shadow; each is in exactly K / 2.

    groups: (N,) int64: classes, or finer. Shadow 2j + 1 has what shadow 2j has not. Both have half of all records and,
    up to one, half of each group; of a pair, each record is in the first with probability 1/2, whatever the other pairs
    are.
    """
    n, rows = len(groups), []
    for pair in range(shadows // 2):
        key = rng.fold("pair", pair)
        shuffled = key.permutation(n)
        by_class = shuffled[torch.argsort(groups.cpu()[shuffled], stable=True)]
        inside = torch.zeros(n, dtype=torch.bool)
        inside[by_class[key.fold("first").choice(2) :: 2]] = True
        rows += [inside, ~inside]
    return torch.stack(rows)


def confidence(logits: Tensor, y: Tensor) -> Tensor:
    """log p_y - log of the sum of the other p_j, (..., N) float64, of logits (..., N, K) and classes y (N,).

    From the logits, so that no probability is rounded to 1. (The official code adds 1e-45 to both sums.)
    """
    z = logits.double()
    own = torch.zeros(z.shape[-2:], dtype=torch.bool, device=z.device).scatter_(1, y.unsqueeze(1), True)
    return z.masked_fill(~own, -math.inf).logsumexp(-1) - z.masked_fill(own, -math.inf).logsumexp(-1)


def standard(scores: Tensor, groups: Tensor) -> Tensor:
    """Scores (K, Q, N) less their mean over the records of a class, over their deviation, in each shadow and query.

    Ours. That a set is near to all records of a class tells nothing of one of them, and the mean needs no memberships.
    """
    found = scores.clone()
    for c in sorted(set(groups.tolist())):
        of = scores[..., groups == c]
        found[..., groups == c] = (of - of.mean(-1, keepdim=True)) / of.std(-1, correction=0, keepdim=True).clamp_min(
            1e-12
        )
    return found


# -- attacks: what is held against a threshold, (N,) for each target; higher means a member ----------------------------

Attack = Callable[[Tensor, Tensor, Tensor], Tensor]


def moments(scores: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (Q, N) and variance of the chosen scores (S, Q, N), chosen (S, N), as many of each record.

    The variance is one for all records, about each one's own mean, (Q, 1); from 32 scores on each record's own. (The
    official code takes the one about the mean of all, and that of members for non-members, too.)
    """
    weight = chosen.double().unsqueeze(1)
    n = weight.sum(dim=0)
    mean = (scores * weight).sum(dim=0) / n
    squares = ((scores - mean).square() * weight).sum(dim=0)
    if int(n.min()) >= OWN_VARIANCE:
        return mean, (squares / (n - 1)).clamp_min(1e-12)
    return mean, (squares.sum(dim=1, keepdim=True) / (n - 1).sum(dim=1, keepdim=True)).clamp_min(1e-12)


def log_normal(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * ((x - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def ratio(targets: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """log N(phi; in) - log N(phi; out), averaged over queries: the ratio of the paper (its online attack)."""
    inside, outside = moments(scores, member), moments(scores, ~member)
    return (log_normal(targets, *inside) - log_normal(targets, *outside)).mean(dim=1)


def one_sided(targets: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """By how many deviations a score is above those of non-members (the offline attack: monotone in its probability).

    It needs no second member to be like the first: of a set of ten real images, nobody has seen another.
    """
    mean, variance = moments(scores, ~member)
    return ((targets - mean) / variance.sqrt()).mean(dim=1)


def plain(targets: Tensor, scores: Tensor, member: Tensor) -> Tensor:
    """The score itself: one threshold for all records, and no statistics."""
    return targets.mean(dim=1)


ATTACKS: dict[str, Attack] = {"likelihood ratio": ratio, "one-sided": one_sided, "threshold": plain}


@dataclass(frozen=True)
class Trial:
    """A pair of shadows under attack: values and memberships, (2, N); those of the others, (K - 2, N)."""

    values: Tensor
    member: Tensor
    other_values: Tensor
    other_member: Tensor


def trials(scores: Tensor, member: Tensor, attack: Attack) -> list[Trial]:
    """Every pair attacked once. Its own values, too, are held against statistics without the pair after it: theirs are
    of the same kind then, of as many shadows.
    """
    pairs = len(member) // 2
    both = [[2 * p, 2 * p + 1] for p in range(pairs)]
    found = []
    for p in range(pairs):
        others = [i for q in range(pairs) if q != p for i in both[q]]

        def values(of: int, without: int, others: Sequence[int] = others) -> Tensor:
            rest = [i for i in others if i not in both[without]]
            return attack(scores[both[of]], scores[rest], member[rest])

        theirs = torch.cat([values(q, q) for q in range(pairs) if q != p])
        found.append(Trial(values(p, (p + 1) % pairs), member[both[p]], theirs, member[others]))
    return found


def combined(*attacks: Sequence[Trial]) -> list[Trial]:
    """Several attacks as one: each value becomes the share of non-members above it, and the smallest share counts.

    These non-members are those of the first shadow of each of the other pairs; thresholds then come from the second
    ones alone, whose records have not been ranked among themselves.
    """
    found = []
    for same in zip(*attacks, strict=True):
        values, others = [], []
        for trial in same:
            reference = trial.other_values[::2][~trial.other_member[::2]].sort().values
            values.append(-tails(trial.values, reference))
            others.append(-tails(trial.other_values[1::2], reference))
        one = same[0]
        found.append(
            Trial(torch.stack(values).amax(dim=0), one.member, torch.stack(others).amax(dim=0), one.other_member[1::2])
        )
    return found


def tails(values: Tensor, reference: Tensor) -> Tensor:
    """log of (1 + how many of the sorted `reference` are at least the value) / (1 + how many there are)."""
    above = len(reference) - torch.searchsorted(reference, values.contiguous())
    return ((1 + above).double() / (1 + len(reference))).log()


# -- figures -----------------------------------------------------------------------------------------------------------


def threshold(outside: Tensor, rate: float) -> float:
    """The smallest of these scores that at most `rate` of them exceed."""
    return float(outside.sort(descending=True).values[math.floor(rate * len(outside))])


def clopper_pearson(hits: int, n: int) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934), 95 %; (0, 1) of nothing."""
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def auc(inside: Tensor, outside: Tensor) -> float:
    """The probability that a member's value is above a non-member's; ties count one half."""
    order = outside.sort().values
    below = torch.searchsorted(order, inside.contiguous())
    upto = torch.searchsorted(order, inside.contiguous(), right=True)
    return float((below + upto).double().mean() / (2 * len(order)))


def auc_interval(area: float, members: int, others: int) -> tuple[float, float]:
    """About an area, 95 %, with the standard error of Hanley and McNeil (1982)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (members - 1) * (q1 - area**2) + (others - 1) * (q2 - area**2)
    reach = 1.959964 * math.sqrt(max(0.0, spread) / (members * others))
    return max(0.0, area - reach), min(1.0, area + reach)


__all__ = [
    "ATTACKS",
    "Trial",
    "auc",
    "auc_interval",
    "clopper_pearson",
    "combined",
    "confidence",
    "halves",
    "standard",
    "threshold",
    "trials",
]
