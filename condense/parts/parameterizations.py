"""Parameterizations that know no modality."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from condense.axes import Labels, Parameterization
from condense.errors import BadValue, Diverged
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.synthetic import Synthetic, Wrapped
from condense.task import Batch, Task


class Pixels(Parameterization):
    """The examples themselves, one stored for each item of the budget: any form whose packed tensors are floats."""

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Stored(task, groups, labels)


class _Stored(Synthetic):
    def __init__(self, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        packed = task.form.pack(task.form.blank(task, len(groups)))
        self.packed = nn.ParameterDict({key: nn.Parameter(value) for key, value in packed.items()})

    def fill(self, batch: Batch) -> None:
        with torch.no_grad():
            for key, value in self.task.form.pack(batch.x).items():
                self.packed[key].copy_(value)
            self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        x = self.task.form.unpack(dict(self.packed.items()))
        if index is None:
            return Batch(x, self.y)
        return Batch(self.task.form.take(x, index), self.y[index], index)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        roles = {"images": list(self.packed.values())}
        if isinstance(self.y, nn.Parameter):
            roles["labels"] = [self.y]
        return roles


class WithRate(Parameterization):
    """Another parameterization with a learned step size: how fast networks are to be trained on the set.

    One number for all steps, `start` at first, in the role "rate": stored in the artifact, and read by trainings whose
    `lr` is "learned". It is no part of an example. A run in which it falls to 0 or below, or rises above `explodes`
    times its start, has diverged.
    Source: MTT (Cazenavette et al., CVPR 2022, arXiv:2203.11932).
    """

    inner: Parameterization = Pixels()
    start: float = Field(default=0.01, gt=0)
    explodes: float = Field(default=1000.0, gt=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Rated(self, self.inner.empty(task, groups, labels))


class Paced(Wrapped):
    """A set with learned step sizes, which are watched: `pace` is what is learned of them, in the role "rate".

    limit: the run has diverged where a step size is above it, or not above 0.
    """

    bad: Tensor

    def __init__(self, inner: Synthetic, pace: Tensor, limit: float) -> None:
        super().__init__(inner)
        self.pace, self.limit = nn.Parameter(pace), limit
        self.register_buffer("bad", torch.tensor(-1), persistent=False)

    @property
    @abstractmethod
    def rates(self) -> Tensor:
        """All step sizes: 0-d, or one for each step."""

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {**self.inner.roles(), "rate": [self.pace]}

    @torch.no_grad()
    def project(self, index: int) -> None:
        """The first step after which the rate makes no sense is remembered on the device, as bad losses are."""
        super().project(index)
        sane = ((self.rates > 0) & (self.rates <= self.limit)).all()
        self.bad = torch.where((self.bad < 0) & ~sane, index, self.bad)

    def check(self) -> None:
        super().check()
        step = int(self.bad)
        if step >= 0:
            low, high = (float(value) for value in self.rates.detach().aminmax())
            value, how = (high, f"is above {self.limit:g}") if high > self.limit else (low, "is not above 0")
            remedy = "What was saved before is kept. Lower the `lr` of the group whose role is rate."
            raise Diverged("rate", value, f"the learned step size {how} since outer step {step}", remedy)

    def stored(self) -> dict[str, int]:
        return {**super().stored(), "rate": self.pace.numel() * self.pace.element_size()}


class _Rated(Paced):
    def __init__(self, how: WithRate, inner: Synthetic) -> None:
        super().__init__(inner, torch.tensor(how.start), how.start * how.explodes)

    @property
    def rates(self) -> Tensor:
        return self.pace

    def rate(self, at: int) -> Tensor:
        return self.pace


class Averaged(Parameterization):
    """Another parameterization, of which a running mean over the outer steps is released.

    The mean of examples and targets as they are stored, with weights that fall by `decay` from step to step and add up
    to 1; networks of a pool and objectives see the values of the step. Source: RCIG (Loo et al., arXiv:2302.06755),
    whose code evaluates a mean with decay 0.99.
    """

    inner: Parameterization = Pixels()
    decay: float = Field(default=0.99, ge=0, lt=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Averaged(self, self.inner.empty(task, groups, labels))


class _Averaged(Wrapped):
    """Running sums of the parameters' values, and what their weights add up to; empty once released."""

    weight: Tensor

    def __init__(self, how: Averaged, inner: Synthetic) -> None:
        super().__init__(inner)
        self.decay = how.decay
        self.learned = [name for name, _ in inner.named_parameters()]
        for i, name in enumerate(self.learned):
            self.register_buffer(f"sum{i}", torch.zeros_like(inner.get_parameter(name)))
        self.register_buffer("weight", torch.zeros(()))
        self.free = frozenset(f"sum{i}" for i in range(len(self.learned)))  # type: ignore[misc]

    @torch.no_grad()
    def project(self, index: int) -> None:
        super().project(index)
        for i, name in enumerate(self.learned):
            self.get_buffer(f"sum{i}").lerp_(self.inner.get_parameter(name), 1 - self.decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self.decay)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        """Before the first step, what the set starts from; a released set has the mean in place of its values."""
        if rng is not None or self._released():
            return self.inner.decode(index, rng)
        found: Batch = functional_call(_Decoder(self.inner), self._means(), (index,))
        return found

    def _released(self) -> bool:
        return any(not self.get_buffer(f"sum{i}").numel() for i in range(len(self.learned)))

    def _means(self) -> dict[str, Tensor]:
        """The mean of each parameter, by its name in a `_Decoder`."""
        means = {}
        for i, name in enumerate(self.learned):
            value = self.inner.get_parameter(name).detach()
            mean = self.get_buffer(f"sum{i}") / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)
            means[f"inner.{name}"] = torch.where(self.weight > 0, mean, value)
        return means

    @torch.no_grad()
    def release(self) -> None:
        if not self._released():
            for i, (name, mean) in enumerate(zip(self.learned, self._means().values(), strict=True)):
                self.inner.get_parameter(name).copy_(mean)
                setattr(self, f"sum{i}", mean.new_empty((0,) * mean.dim()))
        super().release()


class _Decoder(nn.Module):
    """The released form of a set, as a module of its parameters."""

    def __init__(self, inner: Synthetic) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, index: Tensor | None) -> Batch:
        return self.inner.decode(index, None)


class Preconditioned(Parameterization):
    """Another parameterization, whose examples are multiplied by a learned matrix: a reshaped gradient, nothing more.

    x = stored @ T with flattened examples and T (D, D), the identity at first, under the role "decoder". What is
    released are the products; T is not stored. Source: the code of RFAD (Loo et al., NeurIPS 2022, arXiv:2210.12067).
    """

    inner: Parameterization = Pixels()

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        if not task.form.in_rows:
            problem = f"multiplies examples of one size, and these are {task.form.noun}"
            raise BadValue("parameterization", self.name, problem, "Use the inner one alone.")

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Preconditioned(self.inner.empty(task, groups, labels))


class _Preconditioned(Wrapped):
    """matrix: (D, D), or (0, 0) once released."""

    free: ClassVar[frozenset[str]] = frozenset({"matrix"})

    def __init__(self, inner: Synthetic) -> None:
        super().__init__(inner)
        blank = inner.task.form.flat(inner.task.form.blank(inner.task, 1))
        self.matrix = nn.Parameter(torch.eye(blank.shape[1]))

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        batch = self.inner.decode(index, rng)
        return batch if not len(self.matrix) else batch.with_x(self._product(batch.x))

    def _product(self, x: Any) -> Any:
        form = self.task.form
        packed = form.pack(x)
        whole = packed[form.content]
        return form.unpack({**packed, form.content: (whole.flatten(1) @ self.matrix).view(whole.shape)})

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        return {**self.inner.roles(), "decoder": [self.matrix]}

    @torch.no_grad()
    def release(self) -> None:
        super().release()
        self.inner.fill(self.decode(None, None))
        self.matrix = nn.Parameter(torch.empty(0, 0, device=self.device))
