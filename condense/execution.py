"""How passes through networks are computed. (eager only for now)"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .axes import Loss
from .rng import Rng
from .task import Batch, Task


class Passes:
    """Eager float32."""

    def gradients(
        self, module: nn.Module, loss: Loss, batch: Batch, task: Task, rng: Rng
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over the batch (0-d) and its gradient by parameter name; both detached."""
        params = dict(module.named_parameters())
        value = loss(module, batch, task, rng).mean()
        return value.detach(), dict(zip(params, torch.autograd.grad(value, list(params.values())), strict=True))

    def features(self, module: nn.Module, x: object) -> Tensor:
        """The input of the head, (N, D), detached."""
        with torch.no_grad():
            return module.features(x)  # type: ignore[operator,no-any-return]


_current: contextvars.ContextVar[Passes] = contextvars.ContextVar("condense_execution", default=Passes())  # noqa: B039


def current() -> Passes:
    return _current.get()


@contextmanager
def using(passes: Passes) -> Iterator[None]:
    token = _current.set(passes)
    try:
        yield
    finally:
        _current.reset(token)


_ = (Callable, Mapping)


def passes(how: object) -> Passes:
    """The passes for a run's `Execution`."""
    return Passes()
