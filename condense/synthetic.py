"""Synthetic sets: what is stored, and how it decodes to examples."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .data import Initial, Sampler, TensorSampler
from .rng import Rng
from .task import Batch, Task

if TYPE_CHECKING:
    from .axes import Loss


class Synthetic(nn.Module, Sampler):
    """Storage that decodes to examples. Subclasses hold parameters and buffers, and say how they decode.

    `size` None means a distribution (a generator). Buffers and parameters are what an artifact stores.
    """

    size: int | None
    free: ClassVar[frozenset[str]] = frozenset()  # tensors whose sizes only what is stored knows; loading takes them up
    item_groups: Tensor
    y: Tensor

    def __init__(self, task: Task, groups: Tensor, y: Tensor, loss: Loss | None = None) -> None:
        super().__init__()
        self.task, self.loss = task, loss
        self.register_buffer("item_groups", groups)
        if isinstance(y, nn.Parameter):
            self.y = y
        else:
            self.register_buffer("y", y)
        self.size = len(groups)

    @property
    def groups(self) -> Tensor:
        return self.item_groups

    @property
    def device(self) -> torch.device:
        return self.item_groups.device

    def start(self, rng: Rng) -> None:
        """Before `fill`: what starts at random (the weights of a generator) is drawn. By default nothing does."""

    @abstractmethod
    def fill(self, batch: Batch) -> None:
        """Store so that decoding resembles `batch` (one example per item, in the order of `groups`)."""

    @abstractmethod
    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        """The items at `index` (None: all) as examples, differentiable. rng None: the released form."""

    @abstractmethod
    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters by role ("images", "labels", "rate", "decoder", "structure"): what outer groups name."""

    def take(self, index: Tensor) -> Batch:
        return self.decode(index, None)

    def freeze(self, rng: Rng | None = None) -> TensorSampler:
        """Decoded once and detached: what networks are trained on."""
        with torch.no_grad():
            batch = self.decode(None, rng)
        return self.sampler(Batch(self.task.form.detach(batch.x), batch.y.detach()), live=False)

    def sampler(self, batch: Batch, live: bool = True) -> TensorSampler:
        """The decoded set `batch` as a sampler with this set's groups, loss and rates (`live`: differentiable)."""

        def rate(at: int) -> Tensor | None:
            value = self.rate(at)
            return value if live or value is None else value.detach()

        like = self if len(batch) == len(self.item_groups) else None
        return TensorSampler(self.task, batch.x, batch.y, loss=self.loss, like=like, rate=rate)

    def problem(self) -> str | None:
        """What does not fit together in what was loaded; None: nothing. By default only sizes are held against."""
        return None

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any
    ) -> None:
        """Takes up the sizes of `free` first. What does not fit together is an error of loading."""
        for name in self.free & {key.removeprefix(prefix) for key in state_dict}:
            stored, own = torch.empty_like(state_dict[prefix + name], device=self.device), getattr(self, name)
            if own.shape != stored.shape:
                setattr(self, name, nn.Parameter(stored) if isinstance(own, nn.Parameter) else stored)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)  # type: ignore[no-untyped-call]
        if problem := self.problem():
            rest[-1].append(problem)

    def project(self, index: int) -> None:
        """After the update of step `index`: clamp, anneal, replace."""

    def release(self) -> None:
        """After the last step: drop what only the learning needed. The released form stays what it is."""

    def check(self) -> None:
        """Refuse values that are finite and make no sense; asked when a checkpoint is due. Raises `Diverged`."""

    def stored(self) -> dict[str, int]:
        """Bytes by kind: images, labels, decoder, external. The honest budget."""
        images = sum(p.numel() * p.element_size() for role, ps in self.roles().items() if role != "labels" for p in ps)
        return {"images": images, "labels": self.y.numel() * self.y.element_size()}


class Wrapped(Synthetic):
    """A set around another: everything is the other's, but for what a subclass says otherwise."""

    def __init__(self, inner: Synthetic) -> None:
        nn.Module.__init__(self)
        self.task, self.loss, self.size, self.inner = inner.task, inner.loss, inner.size, inner
        self.register_buffer("item_groups", inner.item_groups.clone())

    @property
    def y(self) -> Tensor:  # type: ignore[override]  # the other's own, wherever that is moved to
        return self.inner.y

    def start(self, rng: Rng) -> None:
        self.inner.start(rng)

    def fill(self, batch: Batch) -> None:
        self.inner.fill(batch)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        return self.inner.decode(index, rng)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return self.inner.roles()

    def rate(self, at: int) -> Tensor | None:
        return self.inner.rate(at)

    @property
    def turns(self) -> Tensor | None:
        return self.inner.turns

    @property
    def initial(self) -> Initial | None:
        return self.inner.initial

    def project(self, index: int) -> None:
        self.inner.project(index)

    def release(self) -> None:
        self.inner.release()

    def check(self) -> None:
        self.inner.check()

    def problem(self) -> str | None:
        return self.inner.problem()

    def stored(self) -> dict[str, int]:
        return self.inner.stored()
