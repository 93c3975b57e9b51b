"""Protocols: how a set is judged, as frozen named values. The judge itself is `condense.evaluate`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator

from .axes import Learn, Metric, Net
from .component import Component, digest
from .data import Sampler
from .errors import BadValue
from .metrics import Accuracy
from .task import Task

if TYPE_CHECKING:
    from .recipe import Recipe

Count = Annotated[int, Field(ge=1)]
MOST = 1_000_000  # networks that are trained alike


class Protocol(Component):
    """Networks trained from scratch on the set, then tested once each. Every number carries its protocol.

    nets: architectures, each judged by itself (cross-architecture: a list of several). repeats: networks of each.
    metrics: the first number of the first is the headline; where none are named, a plan takes the data's own
    (`Data.metric`). split: what they are tested on; "validation" to select.
    record: points of the accuracy curve, the end among them: how many, or the training steps themselves. None: up to
    10, as many as cost at most a quarter of the training; the end alone where weights are chosen. Nothing is selected
    by the curve.
    keep: which weights of a network the headline is of: the last, or the best: those with the highest headline metric
    on the validation split, of equal ones the first. Then `last-accuracy` (or what the metric is called) stands beside
    it. look: validation is looked at after every so many steps (epochs, if the fit counts these), and at the end.
    whole: are networks trained on all real data by these rules too, for the row `full`? Else by a fit of its own.
    """

    axis: ClassVar[str] = "protocol"
    whole: ClassVar[bool] = False
    nets: tuple[Net, ...] = Field(min_length=1)
    repeats: int = Field(default=5, ge=1, le=MOST)
    metrics: tuple[Metric, ...] = Field(default=(Accuracy(),), min_length=1)
    split: Literal["test", "validation"] = "test"
    record: Count | tuple[Count, ...] | None = None
    keep: Literal["last", "best"] = "last"
    look: int = Field(default=1, ge=1)

    @field_validator("nets")
    @classmethod
    def _each_once(cls, nets: tuple[Net, ...]) -> tuple[Net, ...]:
        names = [net.digest() for net in nets]
        twice = next((net for net in nets if names.count(net.digest()) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice.name} stands there twice: networks of one kind are counted by repeats")
        return nets

    @abstractmethod
    def fit(self, data: Sampler) -> Learn:
        """How a network is trained on the set `data`; counted in epochs, or in steps that may depend on its size."""

    def following(self, recipe: Recipe) -> Self:
        """This protocol for sets of `recipe`, where it was asked for by its name: itself, or with the settings that
        hang on how a set is made (the kernel of a regression, the rounds of a replay).
        """
        return self

    def rules(self) -> dict[str, Any]:
        """The protocol but for which networks and how many: numbers with equal rules may stand in one table.

        `keep` and `look` count where weights are chosen: what is judged by its last ones has the digest it always had.
        """
        without = {"nets", "repeats"} if self.keep == "best" else {"nets", "repeats", "keep", "look"}
        return {key: value for key, value in self.dump().items() if key not in without}

    def rules_digest(self) -> str:
        return digest(self.rules())

    def admit(self, task: Task) -> None:
        """Refuse, before anything is trained, networks that do not fit examples of this task. Raises `BadValue`."""
        with torch.device("meta"):
            for i, net in enumerate(self.nets):
                with below(f"protocol.nets.{i}"):
                    net.build(task)


@contextmanager
def below(path: str) -> Iterator[None]:
    """Of a network that is refused: where it stands, and what to type."""
    try:
        yield
    except BadValue as error:
        head, _, leaf = error.field.partition(".")
        if head != "net" or not leaf:
            raise
        remedy = error.remedy.replace(f"Use {leaf}=", f"Use --set {path}.{leaf}=", 1)
        raise BadValue(f"{path}.{leaf}", error.value, error.problem, remedy) from None
