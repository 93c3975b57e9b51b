"""Training that is differentiated: the loop of `fit`, recorded through its steps.

What comes out is differentiable in whatever the data draws (examples, soft labels, learned step sizes) and in the
parameters that it starts from. Memory grows with the steps that are recorded; `segment` bounds these: a training
in pieces keeps the state between two pieces only, and computes each piece again when its gradient is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .axes import Loss
from .data import Sampler, TensorSampler
from .fit import Fit, Loop, drawn
from .rng import Rng, seeded
from .task import Form

Tensors = dict[str, Tensor]


def unroll(
    fit: Fit,
    module: nn.Module,
    params: Mapping[str, Tensor] | None,
    data: Sampler,
    rng: Rng,
    steps: int,
    graph_from: int = 0,
    segment: int | None = None,
) -> Tensors:
    """The parameters of `module` after `steps` steps of `fit` on `data`, by name: differentiable from step `graph_from`
    on, in the tensors that `data` draws and in its rates.

    params: what to start from (None: the module's own values); differentiable, too, where they require a gradient and
    `graph_from` is 0. The steps before `graph_from` are those of a plain training, and give no gradient: with a window
    at the end this is truncated back-propagation. segment: record at most so many steps at a time; the
    gradients are the same, for one more forward and inner backward pass of each step. Schedules refer to all `steps`.
    The module's own parameters, buffers and gradients stay as they are. Equal keys give the batches and warps of
    `fit.begin(module, rng)`.
    """
    start = {name: p.detach() for name, p in module.named_parameters()} if params is None else dict(params)
    loop = Unrolled(fit, module, start, rng)
    if graph_from:
        loop.live = False
        loop.advance(data, graph_from, of=steps)
        loop.live = True
    if segment is None:
        loop.advance(data, steps - graph_from, of=steps)
        return loop.params
    after, state = ({name: p.detach() for name, p in loop.params.items()} if graph_from else start), loop.state
    for at in range(graph_from, steps, segment):
        piece = range(at, min(at + segment, steps))
        after, state = in_one_node(Piece(fit, module, rng, data, piece, steps), after, state)
    return after


class Unrolled(Loop):
    """One network under training, whose parameters and rule state are values: nothing is changed in place.

    live: are the steps differentiable? Else each starts from detached values.
    """

    def __init__(self, fit: Fit, module: nn.Module, params: Mapping[str, Tensor], rng: Rng) -> None:
        self.module, self.rng, self.live = module, rng, True
        self.params = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
        self.buffers = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        super().__init__(fit)

    @property
    def passes(self) -> str:
        return "eager float32, unrolled"

    def begun(self) -> Tensors:
        return self.fit.rule.init(self.params)

    def train(self) -> None:
        self.module.train()

    def step(self, data: Sampler, loss: Loss, lr: float | Tensor, progress: float) -> Tensor:
        batch, names = drawn(self.fit, data, self.rng, self.at, progress), list(self.params)
        with seeded(self.rng.fold("global", self.at), data.device):
            value = loss(self._logits, batch, data.task, self.rng.fold("loss", self.at)).mean()
            found = torch.autograd.grad(
                value, list(self.params.values()), create_graph=self.live, allow_unused=True, materialize_grads=True
            )
        with nullcontext() if self.live else torch.no_grad():
            grads = dict(zip(names, found, strict=True))
            after, self.state = self.fit.rule.update(self.params, grads, self.state, lr)
        self.params = after if self.live else {name: p.requires_grad_() for name, p in after.items()}
        return value.detach()

    def predict(self, x: Any, form: Form) -> Tensor:
        self.module.eval()
        with torch.no_grad():
            return self._logits(x).unsqueeze(0)

    def _logits(self, x: Any) -> Tensor:
        logits: Tensor = functional_call(self.module, {**self.buffers, **self.params}, (x,))
        return logits


# -- in pieces ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Some steps of a training of `total`, on this data."""

    fit: Fit
    module: nn.Module
    rng: Rng
    data: Sampler
    steps: range
    total: int

    def taken(self, params: Tensors, state: Tensors, data: Sampler, live: bool) -> tuple[Tensors, Tensors]:
        """Parameters and state after these steps on `data`, from those before them."""
        loop = Unrolled(self.fit, self.module, params, self.rng)
        loop.at, loop.state, loop.live = self.steps.start, state, live
        loop.advance(data, len(self.steps), of=self.total)
        return loop.params, loop.state


def in_one_node(piece: Piece, params: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
    """The steps of a piece as one node for autograd, that keeps its inputs and no step.

    Its inputs are the parameters, the rule's state, the tensors of the set, and the step sizes that the set brings.
    """
    given = Given(piece.data, piece.steps)
    names, slots = list(params), list(state)

    def run(tensors: Sequence[Tensor], live: bool) -> list[Tensor]:
        before = dict(zip([*names, *slots], tensors, strict=False))
        data = given.sampler(tensors[len(before) :])
        after = piece.taken({n: before[n] for n in names}, {s: before[s] for s in slots}, data, live)
        return [*(after[0][n] for n in names), *(after[1][s] for s in slots)]

    found = Node.apply(run, *params.values(), *state.values(), *given.tensors)
    return dict(zip(names, found, strict=False)), dict(zip(slots, found[len(names) :], strict=True))


class Given:
    """What a set gives to some steps of a training, as a list of tensors, and as a sampler made of such a list.

    Of real data nothing is asked for: it has no gradient.
    """

    def __init__(self, data: Sampler, steps: range) -> None:
        self.data, self.steps = data, steps
        self.packed: list[str] = []
        self.tensors: list[Tensor] = []
        self.paced = data.rate(steps.start) is not None
        if isinstance(data, TensorSampler):
            packed = data.task.form.pack(data.x)
            self.packed = list(packed)
            self.tensors = [*packed.values(), data.y]
        if self.paced:
            self.tensors += [rate for at in steps if (rate := data.rate(at)) is not None]

    def sampler(self, tensors: Sequence[Tensor]) -> Sampler:
        if not isinstance(self.data, TensorSampler):
            return self.data
        task, kept = self.data.task, len(self.packed) + 1
        x = task.form.unpack(dict(zip(self.packed, tensors, strict=False)))
        rates = tensors[kept:]

        def rate(at: int) -> Tensor | None:
            return rates[at - self.steps.start] if self.paced else None

        return TensorSampler(task, x, tensors[kept - 1], loss=self.data.loss, like=self.data, rate=rate)


class Node(torch.autograd.Function):
    """run(tensors, live) -> tensors: computed unrecorded, and recorded when the gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Sequence[Tensor], bool], list[Tensor]], *tensors: Tensor) -> Any:
        ctx.run = run
        ctx.save_for_backward(*tensors)
        with torch.enable_grad():
            return tuple(out.detach() for out in run([tensor.detach() for tensor in tensors], False))

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        inputs = [t.detach().requires_grad_(needed) for t, needed in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad():
            outputs = ctx.run(inputs, True)
        reached = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        asked = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(
            torch.autograd.grad([out for out, _ in reached], asked, [grad for _, grad in reached], allow_unused=True)
        )
        return None, *(next(found) if tensor.requires_grad else None for tensor in inputs)
