"""Metrics: pure functions of what networks say of the test examples, and what the judge finds suspicious in it.

Notation: N examples, K classes. scores: (N, K) probabilities; y: (N,) int64 classes, or (N, K) float weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from .axes import Metric
from .errors import BadData
from .task import Task


@final
class Accuracy(Metric):
    """The share of examples whose highest score is that of their class."""

    def __call__(self, scores: Tensor, y: Tensor, task: Task) -> Mapping[str, float]:
        return {"accuracy": accuracy(scores, task.hard(y))}


def accuracy(scores: Tensor, y: Tensor) -> float:
    """In [0, 1]; y (N,) int64. Among equal scores the first class counts; NaN counts as the highest score."""
    return float((scores.argmax(dim=1) == y).double().mean())


@final
class RocAuc(Metric):
    """The area under the ROC curve: of the second class where there are two; of more, the mean over one against the
    rest of those classes that have examples among these (scikit-learn's ovr, macro). Key: `roc-auc`.

    Raises `BadData` where all examples are of one class.
    """

    def __call__(self, scores: Tensor, y: Tensor, task: Task) -> Mapping[str, float]:
        target = task.hard(y)
        classes = range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])
        areas = [area_under_roc(scores[:, c], target == c) for c in classes]
        known = [area for area in areas if not math.isnan(area)]
        if not known:
            problem = "are all of one class: there is no area under the ROC curve"
            raise BadData("examples", len(y), problem, "Judge by accuracy, or on a split with two classes.")
        return {"roc-auc": math.fsum(known) / len(known)}


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """How often a positive example scores above a negative one, ties counted half; NaN where either are missing.

    scores (N,) float, positive (N,) bool. The statistic of Mann and Whitney, by ranks. NaN is the highest score.
    """
    n, positives = len(scores), int(positive.sum())
    if positives in (0, n):
        return math.nan
    _, place, counts = torch.unique(scores.nan_to_num(nan=math.inf), return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0).double() - (counts - 1).double() / 2  # equal scores share the mean of their ranks
    above = float(ranks[place][positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * (n - positives))


def confusion(scores: Tensor, y: Tensor) -> Tensor:
    """(K, K) int64: how many examples of class j (column) were taken for class i (row)."""
    k = scores.shape[1]
    return torch.bincount(scores.argmax(dim=1) * k + y, minlength=k * k).view(k, k)


def suspicions(scores: Tensor, y: Tensor) -> dict[str, str]:
    """Named facts about one network that make its accuracy doubtful; y (N,) int64.

    not-finite: it says NaN or infinity. constant-prediction: it takes every example for the same class. class-order:
    its predictions would be right far more often (by 10 points) if its classes were another permutation of these.
    """
    if not bool(torch.isfinite(scores).all()):
        return {"not-finite": "the network says NaN or infinity: its training diverged"}
    table = confusion(scores, y)
    taken = table.sum(dim=1)
    if int((taken > 0).sum()) == 1 and int((table.sum(dim=0) > 0).sum()) > 1:
        return {"constant-prediction": f"every example is taken for class number {int(taken.argmax())}"}
    others = table.argmax(dim=1)
    found, permuted = int(table.diagonal().sum()), int(table.max(dim=1).values.sum())
    is_permutation = len(set(others.tolist())) == len(others)
    if is_permutation and permuted - found > 0.1 * len(y):
        pairs = ", ".join(f"{i} for {int(j)}" for i, j in enumerate(others) if i != int(j))
        return {"class-order": f"are the classes in another order? Mostly taken: {pairs}"}
    return {}
