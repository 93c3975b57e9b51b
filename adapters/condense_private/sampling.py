"""What one measure asks for: the Poisson sample that serves all of its asks, and the digest that it is known by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from condense.data import Ask, Source, feed
from condense.errors import BadValue
from condense.recipe import Recipe
from condense.task import Batch

from .refusals import check_warps

if TYPE_CHECKING:
    from .private import PrivateSource


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
        does not map each record to one of its own, or more is asked than there is.
        """
        plan, classes, total = cls(tuple(asks), source), [ask.cls for ask in asks], len(source)
        if not asks or len(set(classes)) < len(classes) or (None in classes and len(classes) > 1):
            problem = "share records: a record may be part of one sum only"
            raise BadValue("objective.pairing", classes, problem, "Ask once for each class, or once for all.")
        check_warps([warp for ask in asks for warp in ask.warps], source.task)
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


def digest_of(number: int, facts: Mapping[str, Any], asks: Sequence[Ask], model: nn.Module) -> bytes:
    """SHA-256 of a request: its number in the run, what is asked and how, and the network with every weight.

    The one place of a private step that waits for the device.
    """
    network = [getattr(model, "architecture", type(model).__qualname__), model.training]
    h = hashlib.sha256(
        json.dumps([number, facts, network, [[ask.cls, ask.n] for ask in asks]], sort_keys=True).encode()
    )
    for ask in asks:
        for warp in ask.warps:
            for name, value in sorted(warp.state().items()):
                h.update(name.encode())
                feed(h, (value,))
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode())
        feed(h, (value,))
    return h.digest()


__all__ = ["Sampling", "digest_of", "setting_of"]
