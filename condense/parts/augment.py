"""Augmentations of any modality: none at all, and one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from pydantic import Field
from torch import Tensor

from condense.axes import Augment, Warp
from condense.errors import BadValue
from condense.rng import Rng
from condense.task import Batch, Form, Tensors


@dataclass(frozen=True)
class Identity(Warp):
    """The warp that gives back the batch it is given."""

    def __call__(self, batch: Batch) -> Batch:
        return batch

    def state(self) -> dict[str, Tensor]:
        return {}


@final
class NoAugment(Augment):
    """No augmentation."""

    name: ClassVar[str] = "none"

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        return Identity()

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        return Identity()


@dataclass(frozen=True, eq=False)
class Chain(Warp):
    """Several warps, the first one first. It mixes examples where one of them does."""

    warps: tuple[Warp, ...]
    mixes: bool

    def __call__(self, batch: Batch) -> Batch:
        for warp in self.warps:
            batch = warp(batch)
        return batch

    def state(self) -> dict[str, Tensor]:
        return {f"{i}/{key}": value for i, warp in enumerate(self.warps) for key, value in warp.state().items()}


@final
class Then(Augment):
    """One augmentation after the other, each with a key of its own: adding one at the end changes no draw before it."""

    augments: tuple[Augment, ...] = Field(min_length=1)

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        return chain(tuple(part.sample(rng.fold(i), n, progress) for i, part in enumerate(self.augments)))

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        """Raises `BadValue` for a state that this chain cannot have given."""
        states: list[dict[str, Tensor]] = [{} for _ in self.augments]
        for key, value in state.items():
            place, _, rest = key.partition("/")
            if not place.isdecimal() or int(place) >= len(states):
                remedy = "Replay it with the augmentation that drew it."
                raise BadValue("augment", key, f"is no state of a chain of {len(states)}", remedy)
            states[int(place)][rest] = value
        return chain(tuple(part.replay(own) for part, own in zip(self.augments, states, strict=True)))


@dataclass(frozen=True, eq=False)
class Joining(Warp):
    """A batch, and after it what another warp makes of it: (2N,) examples."""

    form: Form
    warp: Warp
    mixes: bool

    def __call__(self, batch: Batch) -> Batch:
        other = self.warp(batch)
        index = None if batch.index is None else torch.cat([batch.index, batch.index])
        return Batch(self.form.join([batch.x, other.x]), torch.cat([batch.y, other.y]), index)

    def state(self) -> dict[str, Tensor]:
        return self.warp.state()


@final
class Beside(Augment):
    """The examples, and after them what `augment` makes of them: N become 2N.

    For a set that is trained on, or regressed on, together with its mirror images, as FRePo's code and RCIG's do
    (arXiv:2206.00719, 2302.06755). form: what the examples are.
    """

    augment: Augment
    form: Form = Tensors()

    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        warp = self.augment.sample(rng, n, progress)
        return Joining(self.form, warp, warp.mixes)

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        warp = self.augment.replay(state)
        return Joining(self.form, warp, warp.mixes)


def chain(warps: tuple[Warp, ...]) -> Chain:
    return Chain(warps, any(warp.mixes for warp in warps))
