"""The only training loop in the code base: how any network is trained on anything that draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from . import execution
from .axes import Augment, Learn, Loss, Rule, Schedule, TaskLoss
from .component import Component
from .data import Sampler
from .rng import Rng, seeded


class Constant(Schedule):
    """The same number throughout; a plain number means this."""

    at: float

    def value(self, progress: float) -> float:
        return self.at


def schedule(value: float | Schedule) -> Schedule:
    return value if isinstance(value, Schedule) else Constant(at=value)


class Fit(Learn):
    """Train by `rule` for `epochs` (passes over the data) or `steps`, in batches without replacement.

    `loss` None means the loss of what is drawn: the set's own, else the task's. `augment` draws parameters of their own
    for each example. The last batch of an epoch may be short.
    """

    rule: Rule
    lr: float | Schedule = 0.01
    epochs: int | None = Field(default=None, ge=0)
    steps: int | None = Field(default=None, ge=0)
    batch: int | None = Field(default=256, ge=1)
    loss: Loss | None = None
    augment: Augment | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Fit:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    def length(self, data: Sampler) -> int:
        """Training steps on `data`."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * data.chunks(self.batch)

    def begin(self, module: nn.Module, rng: Rng) -> Training:
        return Training(self, module, rng)

    def __call__(self, module: nn.Module, data: Sampler, rng: Rng) -> Callable[[Any], Tensor]:
        self.begin(module, rng).advance(data, self.length(data))
        return module.eval()


class Training:
    """A network under training: can be carried on, stored and taken up again. Equal keys give equal training."""

    def __init__(self, fit: Fit, module: nn.Module, rng: Rng) -> None:
        self.fit, self.module, self.rng = fit, module, rng
        self.at = 0
        self.state = fit.rule.init(self.params)

    @property
    def params(self) -> dict[str, Tensor]:
        return dict(self.module.named_parameters())

    def advance(self, data: Sampler, steps: int, of: int | None = None) -> Tensor:
        """`steps` more steps on `data`; returns the last step's mean loss (0-d, detached).

        `of` is the length that schedules refer to; without it, the length of this call counted from the start.
        """
        total = of or self.at + steps
        rates = schedule(self.fit.lr)
        loss = self.fit.loss or data.loss or TaskLoss()
        value = torch.zeros((), device=data.device)
        self.module.train()
        with seeded(self.rng.fold("global", self.at), data.device):
            for _ in range(steps):
                progress = self.at / total
                if rates.restarts((self.at - 1) / total, progress):
                    self.state = self.fit.rule.init(self.params)
                value = self._step(data, loss, rates.value(progress), progress)
                self.at += 1
        return value

    def _step(self, data: Sampler, loss: Loss, lr: float, progress: float) -> Tensor:
        batch = data.draw(self.fit.batch, None, self.rng.fold("batch"), at=self.at)
        if self.fit.augment is not None:
            batch = self.fit.augment.sample(self.rng.fold("warp", self.at), len(batch), progress)(batch)
        key = self.rng.fold("loss", self.at)
        value, grads = execution.current().gradients(self.module, loss, batch, data.task, key)
        params = self.params
        updated, self.state = self.fit.rule.update(params, grads, self.state, lr)
        with torch.no_grad():
            for name, parameter in params.items():
                parameter.copy_(updated[name])
        return value

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "rule": dict(self.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at, self.state = state["at"], dict(state["rule"])


_ = Component
