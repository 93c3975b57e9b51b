"""The only training loop in the code base: how any network is trained on anything that draws."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from . import execution
from .axes import Augment, Learn, Loss, OwnLoss, Rule, Schedule, TaskLoss
from .data import Sampler
from .rng import Rng, seeded
from .task import Batch, Form


class Constant(Schedule):
    """The same number throughout; a plain number means this."""

    at: float

    def value(self, progress: float) -> float:
        return self.at


def schedule(value: float | Schedule) -> Schedule:
    return value if isinstance(value, Schedule) else Constant(at=value)


class Fit(Learn):
    """Train by `rule` for `epochs` (passes over the data) or `steps`, in batches without replacement.

    `loss`: what `OwnLoss` stands for in it is the loss of what is drawn, the set's own, else the task's. `augment`
    draws parameters of their own for each example. The last batch of an epoch may be short.
    """

    rule: Rule
    lr: Annotated[float, Field(ge=0)] | Schedule = 0.01
    epochs: int | None = Field(default=None, ge=0)
    steps: int | None = Field(default=None, ge=0)
    batch: int | None = Field(default=256, ge=1)
    loss: Loss = OwnLoss()
    augment: Augment | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Fit:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    def unrolled(self, items: int, most: int | None = None) -> int:
        """Examples that training on so many items passes through in `most` steps, or in all of them."""
        batch = min(self.batch or items, items)
        steps = self.steps if self.steps is not None else (self.epochs or 0) * -(-items // max(1, batch))
        return batch * min(steps, most or steps)

    def length(self, data: Sampler) -> int:
        """Training steps on `data`."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 0) * data.chunks(self.batch)

    def interval(self, data: Sampler, looks: int) -> int:
        return looks * (1 if self.epochs is None else data.chunks(self.batch))

    def begin(self, module: nn.Module, rng: Rng) -> Training:
        return Training(self, module, rng)

    def crowd(self, modules: Sequence[nn.Module], rngs: Sequence[Rng]) -> Crowd:
        return Crowd(self, modules, rngs)

    def together(self, module: nn.Module, data: Sampler) -> bool:
        return Crowd.fits(self, module, data)

    def unroll(
        self,
        module: nn.Module,
        params: Mapping[str, Tensor] | None,
        data: Sampler,
        rng: Rng,
        steps: int,
        graph_from: int = 0,
        segment: int | None = None,
    ) -> dict[str, Tensor]:
        """The parameters after `steps` steps on `data`, as a function of what is drawn. See `unrolling.unroll`."""
        from .unrolling import unroll

        return unroll(self, module, params, data, rng, steps, graph_from, segment)

    def __call__(self, module: nn.Module, data: Sampler, rng: Rng) -> Callable[[Any], Tensor]:
        self.begin(module, rng).advance(data, self.length(data))
        return module.eval()


def drawn(fit: Fit, data: Sampler, rng: Rng, at: int, progress: float) -> Batch:
    """The batch of training step `at` for the network with this key, augmented: a function of its arguments."""
    batch = data.draw(fit.batch, None, rng.fold("batch"), at=at)
    if fit.augment is None:
        return batch
    return fit.augment.sample(rng.fold("warp", at), len(batch), progress)(batch)


class Loop(ABC):
    """The training loop: for one network (`Training`), for many of one shape in step (`Crowd`), and for one whose
    training is differentiated (`unrolling.Unrolled`).
    """

    def __init__(self, fit: Fit) -> None:
        self.fit, self.at = fit, 0
        self.state = self.begun()

    def advance(self, data: Sampler, steps: int, of: int | None = None) -> Tensor:
        """`steps` more steps on `data`; returns the last step's mean loss of each network (detached).

        `of` is the length that schedules refer to; without it, the length of this call counted from the start.
        """
        total = of or self.at + steps
        rates = schedule(self.fit.lr)
        loss = loss_on(self.fit, data)
        value = torch.zeros((), device=data.device)
        self.train()
        for _ in range(steps):
            progress = self.at / total
            if rates.restarts((self.at - 1) / total, progress):
                self.state = self.begun()
            value = self.step(data, loss, rates.rate(progress, data, self.at), progress)
            self.at += 1
        return value

    @property
    @abstractmethod
    def passes(self) -> str:
        """How its passes are computed, for the record."""

    @abstractmethod
    def begun(self) -> dict[str, Tensor]:
        """The rule's state before its first update."""

    @abstractmethod
    def train(self) -> None:
        """Training mode."""

    @abstractmethod
    def step(self, data: Sampler, loss: Loss, lr: float | Tensor, progress: float) -> Tensor:
        """Draw, differentiate, update; returns the loss before the update. A function of the state and of `at`."""

    @abstractmethod
    def predict(self, x: Any, form: Form) -> Tensor:
        """Logits of one batch of examples in evaluation mode, (networks, N, outputs)."""


def loss_on(fit: Fit, data: Sampler) -> Loss:
    """The loss of training on `data`, with `OwnLoss` filled in, also where wrappers stand around it."""
    own = data.loss or TaskLoss()
    return own if isinstance(fit.loss, OwnLoss) else fit.loss.rewrite(OwnLoss, lambda _: own)


def replace_values(params: Mapping[str, Tensor], updated: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in params.items():
            parameter.copy_(updated[name])


class Training(Loop):
    """A network under training: can be carried on, stored and taken up again. Equal keys give equal training."""

    def __init__(self, fit: Fit, module: nn.Module, rng: Rng) -> None:
        self.module, self.rng, self.params = module, rng, dict(module.named_parameters())
        super().__init__(fit)

    @property
    def passes(self) -> str:
        return execution.current().kind

    def begun(self) -> dict[str, Tensor]:
        return self.fit.rule.init(self.params)

    def train(self) -> None:
        self.module.train()

    def step(self, data: Sampler, loss: Loss, lr: float | Tensor, progress: float) -> Tensor:
        """What reads torch's global generator (dropout) is seeded for each step: pauses and looks change nothing."""
        batch = drawn(self.fit, data, self.rng, self.at, progress)
        key = self.rng.fold("loss", self.at)
        with seeded(self.rng.fold("global", self.at), data.device):
            value, grads = execution.current().gradients(self.module, loss, batch, data.task, key)
        self.state = self.fit.rule.move(self.params, grads, self.state, lr)
        return value

    def predict(self, x: Any, form: Form) -> Tensor:
        self.module.eval()
        return execution.current().logits(self.module, x, form).unsqueeze(0)

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "rule": {name: value.clone() for name, value in self.state.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.at, self.state = state["at"], {name: value.clone() for name, value in state["rule"].items()}


class Crowd(Loop):
    """Networks of one shape, each with its own key, trained in step: what `Training` gives for each, in fewer passes.

    Their parameters are stacked, (networks, *shape), and become views of the stack. Each network has its own batches
    and its own warps. Ask `fits` first: it refuses what cannot be mapped.
    """

    def __init__(self, fit: Fit, modules: Sequence[nn.Module], rngs: Sequence[Rng]) -> None:
        self.modules, self.rngs = list(modules), list(rngs)
        named = [dict(module.named_parameters()) for module in modules]
        self.stack = {name: torch.stack([params[name].detach() for params in named]) for name in named[0]}
        for i, params in enumerate(named):
            for name, parameter in params.items():
                parameter.data = self.stack[name][i]
        super().__init__(fit)

    @staticmethod
    def fits(fit: Fit, module: nn.Module, data: Sampler) -> bool:
        """Can networks like this one be trained together, equal to one by one?

        Not with buffers (batch norm) or dropout, not under a loss that draws random numbers, not on examples that
        cannot be taken without their neighbours or differ in size, and not where torch.func cannot map the network.
        """
        dropout = any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules())
        alone = data.task.form.in_rows and isinstance(loss_on(fit, data), TaskLoss)
        if dropout or list(module.buffers()) or not alone:
            return False
        try:
            blank = data.task.form.to(data.task.form.blank(data.task, 2), data.device)
            Crowd(fit, [copy.deepcopy(module), copy.deepcopy(module)], []).predict(blank, data.task.form)
        except (RuntimeError, ValueError, NotImplementedError):
            return False
        return True

    @property
    def passes(self) -> str:
        return f"{execution.EAGER.kind}, together"

    def begun(self) -> dict[str, Tensor]:
        each = [self.fit.rule.init({name: p[i] for name, p in self.stack.items()}) for i in range(len(self.modules))]
        return {slot: torch.stack([state[slot] for state in each]) for slot in each[0]} if each else {}

    def train(self) -> None:
        for module in self.modules:
            module.train()

    def step(self, data: Sampler, loss: Loss, lr: float | Tensor, progress: float) -> Tensor:
        form, rule = data.task.form, self.fit.rule
        batches = [drawn(self.fit, data, rng, self.at, progress) for rng in self.rngs]
        packed = [form.pack(batch.x) for batch in batches]
        x = {key: torch.stack([tensors[key] for tensors in packed]) for key in packed[0]}
        y = torch.stack([batch.y for batch in batches])

        def mean_loss(params: dict[str, Tensor], x: dict[str, Tensor], y: Tensor) -> Tensor:
            batch = Batch(form.unpack(x), y)
            return loss(lambda x: self._logits(params, x), batch, data.task, self.rngs[0]).mean()

        grads, values = vmap(grad_and_value(mean_loss))(self.stack, x, y)
        updated, self.state = vmap(lambda p, g, s: rule.update(p, g, s, lr))(self.stack, grads, self.state)
        replace_values(self.stack, updated)
        means: Tensor = values.detach()
        return means

    def predict(self, x: Any, form: Form) -> Tensor:
        for module in self.modules:
            module.eval()
        with torch.no_grad():
            logits: Tensor = vmap(lambda params: self._logits(params, x))(self.stack)
        return logits

    def _logits(self, params: dict[str, Tensor], x: Any) -> Tensor:
        logits: Tensor = functional_call(self.modules[0], params, (x,))
        return logits
