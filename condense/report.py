"""Reports: what the judge found, as a frozen value and as JSON (`report.json`). Accuracies lie in [0, 1]."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from .errors import BadValue

Kind = Literal["condensed", "random", "full"]


class Row(BaseModel):
    """Networks of one architecture, trained on one set by one protocol, and tested.

    kind, method, images: what was judged (`full`: all real training data, by a fit of its own), and its examples, which
    are called `noun`.
    protocol, rules: name, and digest of all that it prescribes but nets and repeats. net, network: short and whole.
    tested: digest of the split's provenance. seed: network number i is a function of (seed, net, i).
    accuracies, bests: last and highest of each network; curves: for each, (training step, accuracy), the last included.
    numbers: every metric at the end, for each network. seconds: sum over the networks. warnings: named facts.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    kind: Kind = "condensed"
    method: str
    images: int
    noun: str = "images"
    protocol: str
    rules: str
    net: str
    network: dict[str, Any]
    labels: str
    preprocessing: dict[str, Any]
    preprocessing_digest: str
    classes: int
    split: str
    tested: str
    seed: int
    metric: str = "accuracy"
    accuracies: tuple[float, ...] = Field(min_length=1)
    bests: tuple[float, ...]
    curves: tuple[tuple[tuple[int, float], ...], ...]
    numbers: dict[str, tuple[float, ...]]
    seconds: float
    peak_memory_bytes: int
    hardware: dict[str, Any]
    versions: dict[str, str]
    warnings: dict[str, str] = {}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def n(self) -> int:
        return len(self.accuracies)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mean(self) -> float:
        """The headline: the mean over the networks of the last accuracy."""
        return math.fsum(self.accuracies) / self.n

    @computed_field  # type: ignore[prop-decorator]
    @property
    def std(self) -> float:
        """The population's standard deviation (divided by n, as numpy.std and the official code), 0 for one."""
        return math.sqrt(math.fsum((a - self.mean) ** 2 for a in self.accuracies) / self.n)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def best(self) -> float:
        """The mean over the networks of the highest accuracy on the curve: beside the headline, never instead of it."""
        return math.fsum(self.bests) / self.n

    @property
    def looked(self) -> bool:
        """Were networks tested before the end of their training, so that there is a best to tell?"""
        return any(len(curve) > 1 for curve in self.curves)

    @property
    def last(self) -> float | None:
        """The mean over the networks at the end of their training, where the headline is of weights chosen before."""
        found = self.numbers.get(f"last-{self.metric}")
        return math.fsum(found) / self.n if found else None

    def goes_on_from(self, other: Row) -> bool:
        """Are the networks of `other` the first of these?"""
        rules, seed = other.rules, other.seed
        return (self.rules, self.seed, self.accuracies[: other.n]) == (rules, seed, other.accuracies)

    @property
    def headline(self) -> str:
        """In per cent, as `52.1 +- 0.4 (n=5)`."""
        return f"{100 * self.mean:.1f} +- {100 * self.std:.1f} (n={self.n})"


class Report(BaseModel):
    """Rows judged under one protocol and tested on one split; rows of kind `full` are references beside them.

    uncovered: these numbers were read of confidential data, and no guarantee of the set covers them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    format: Literal[1] = 1
    rows: tuple[Row, ...] = ()
    uncovered: bool = False

    def caveats(self) -> list[str]:
        """What whoever reads the numbers should know of all of them."""
        return ["These numbers were read of confidential data: no epsilon covers them."] if self.uncovered else []

    def dump(self) -> dict[str, Any]:
        """Plain JSON data: `Report.model_validate` reads it back, equal."""
        return self.model_dump(mode="json")

    def merge(self, *others: Report) -> Report:
        """All rows; of two about the same set and network the later one stays, unless the earlier one goes on from it
        with more networks. Doubts are looked for again.

        Raises `BadValue` where rows were judged under two protocols, or tested on two splits.
        """
        found = [row for report in [self, *others] for row in report.rows]
        kept: dict[tuple[str, str, str], Row] = {}
        for row in found:
            about = (row.kind, row.method, row.net)
            kept[about] = kept[about] if about in kept and kept[about].goes_on_from(row) else row
        rows = list(kept.values())
        judged = {f"{row.protocol} {row.rules}" for row in rows if row.kind != "full"}
        remedy = "Judge both by one protocol, or keep two reports."
        if len(judged) > 1:
            raise BadValue("report", sorted(judged), "has rows judged under two protocols", remedy)
        tested = {f"{row.split} {row.tested}" for row in rows}
        if len(tested) > 1:
            raise BadValue("report", sorted(tested), "has rows tested on two sets", remedy)
        return Report(uncovered=self.uncovered, rows=tuple(doubted(row, rows) for row in rows))


def doubted(row: Row, rows: list[Row]) -> Row:
    """The row, with the fact `below-random` where it is far worse than random real data under the same network.

    Far: less than half as far above chance as these, which themselves lie at least 10 points above it.
    """
    chance = 1 / row.classes
    warnings = {name: text for name, text in row.warnings.items() if name != "below-random"}
    for other in rows:
        same = other.kind == "random" and row.kind == "condensed" and other.net == row.net
        if same and other.mean - chance >= 0.1 and row.mean - chance < 0.5 * (other.mean - chance):
            text = f"{100 * row.mean:.1f} against {100 * other.mean:.1f} for random real {row.noun}"
            warnings["below-random"] = f"{text}: are classes, scale and preprocessing those of the data set?"
    return row.model_copy(update={"warnings": warnings})
