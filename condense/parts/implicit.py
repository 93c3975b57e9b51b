"""Implicit gradients through a convex inner problem: a network that is linear in all that is trained of it.

Around the weights theta of a network with features phi, the model is f(x) = J(x) w + W' phi(x): J is the derivative of
the logits with respect to the weights, w a shift of them, W a last layer on top. On M items x with targets y (M, K) and
a decay l, training minimises

    L(w, W) = (|y - f(x)|^2 + l |W|^2 + l |w|^2) / (2 M K),

of which W is solved for. With G = phi(x) phi(x)', A = (G + l)^-1 and r = y - J(x) w what is left is convex in w:

    L(w) = l (tr r' A r + |w|^2) / (2 M K)     gradient  l (w - J' A r) / (M K)     Hessian  H = l (1 + J' A J) / (M K)

What the set should be good for is a loss F of the predictions J(t) w + phi(t) phi(x)' A r for real examples t. Its
gradient with respect to the set is the direct one, dF at fixed w, and the implicit one, -d/d(x, y) <v, grad L>, where
H v = dF/dw. Both w and v minimise a quadratic of the Hessian H, and are found by the same descent from 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp

from condense.axes import Augment, Loss, Objective, Rule, TaskLoss, Term
from condense.execution import Calls
from condense.running import Run, Step
from condense.task import Batch, Form

from .features import margin
from .ridge import coded, drawn, identity
from .rules import Adam

Weights = dict[str, Tensor]
FASTER, SLOWER, MOST = 1.2, 0.7, 200  # how the first rates are looked for
EVERY = 50  # outer steps between two looks at how the descent fares


@final
class Implicit(Objective):
    """The loss on real examples of the linearised network that the set trains, with its implicit gradient.

    n: real examples of a step. decay: l, for each item of the set. rule, inner, inverse: how, and for how many steps,
    the shift w and the product v with the inverse Hessian are descended to. inner_rate, inverse_rate: the rates; None
    looks for them in the first step: from 1e-5 and 5e-5 on, each is raised by 1.2 as long as every step descends, then
    taken times 0.7. After each 50 steps the rate of w is lowered by 0.9 where 29 % of the descents ended above their
    start, and raised by 1.05 where 70 % fell in every step. clip: each part of the implicit gradient is at most as long
    as the direct one. margin: as `label-margin`. support: what is done to the items of the set before all of this.
    Predictions are multiplied by exp(t) before the loss, with t learned under the role "aux".

    Source: RCIG (Loo et al., ICML 2023, arXiv:2302.06755). Its code, which is followed, starts each descent with the
    step counter of the pool's training in Adam's bias correction, and lets w and v have parts for the last layer's
    weights, which W is there for; here counters start at 0, and neither has one.
    """

    n: int | None = Field(default=1024, ge=1)
    decay: float = Field(default=5e-4, gt=0)
    rule: Rule = Adam()
    inner: int = Field(default=20, ge=0)
    inverse: int = Field(default=20, ge=0)
    inner_rate: float | None = Field(default=None, gt=0)
    inverse_rate: float | None = Field(default=None, gt=0)
    clip: bool = True
    margin: float = Field(default=0.5, gt=0)
    target_loss: Loss = TaskLoss()
    support: Augment | None = None

    def state(self, run: Run) -> nn.Module:
        with warnings.catch_warnings():  # torch warns of itself when it first takes forward derivatives
            warnings.simplefilter("ignore", FutureWarning)
            jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
        return Rates(run.device)

    def __call__(self, step: Step) -> list[Term]:
        form, memory = step.syn.task.form, step.state(self)
        assert isinstance(memory, Rates)
        items = drawn(step, None)
        x = form.leaf(items.x)
        y = coded(items.y, step.syn.task).detach().to(next(step.model.parameters()).dtype)
        y.requires_grad_(items.y.requires_grad)
        support = Batch(x, y)
        if self.support is not None:
            support = self.support.sample(step.rng.fold("support"), None, step.progress)(support)
        inner = Inner(step.model, support, self.decay * len(items), form)
        shift = self.descended(inner, inner.right_side(), memory, 0, step.index, self.inner_rate, self.inner)
        value = self.value(step, inner, shift, memory.temperature, y)
        leaves = [leaf for leaf in (*form.pack(x).values(), y) if leaf.requires_grad]
        wanted = [*leaves, memory.temperature]
        found = torch.autograd.grad(value, [*wanted, *shift.values()], retain_graph=True)
        direct, slope = found[: len(wanted)], dict(zip(shift, found[len(wanted) :], strict=True))
        product = self.descended(inner, slope, memory, 1, step.index, self.inverse_rate, self.inverse)
        implicit = torch.autograd.grad(inner.along(product, shift), leaves)
        grads = [d - self.clipped(i, d) for d, i in zip(direct, implicit, strict=False)] + [direct[-1]]
        stored = [t for t in (*form.pack(items.x).values(), items.y) if t.requires_grad]
        return [
            Term({"implicit": value.detach()}, cotangents=list(zip([*stored, memory.temperature], grads, strict=True)))
        ]

    def value(self, step: Step, inner: Inner, shift: Weights, temperature: Tensor, y: Tensor) -> Tensor:
        """F, 0-d: differentiable in the set, the shift and the temperature."""
        real = step.real.draw(self.n, None, step.run.rng.fold("implicit"), at=step.index)
        scale = temperature.exp()
        losses = self.target_loss(
            lambda x: scale * inner.predicted(x, shift), real, step.syn.task, step.rng.fold("loss")
        )
        return losses.mean() - margin(y, self.margin).mean()

    def descended(
        self, inner: Inner, b: Weights, memory: Rates, which: int, index: int, rate: float | None, steps: int
    ) -> Weights:
        """The minimum of the quadratic with this right side, as near as `steps` at the remembered rate come."""
        if rate is not None:
            return {name: w.requires_grad_() for name, w in descend(inner.curved, b, self.rule, rate, steps)[0].items()}
        if index == 0:
            memory.set(which, first_rate(inner.curved, b, self.rule, START[which], steps))
        found, values = descend(inner.curved, b, self.rule, memory.rates[which], steps)
        if which == 0:
            memory.see(values, index)
        return {name: w.requires_grad_() for name, w in found.items()}

    def clipped(self, implicit: Tensor, direct: Tensor) -> Tensor:
        if not self.clip:
            return implicit
        length = torch.linalg.vector_norm(implicit)
        share = (torch.linalg.vector_norm(direct) / torch.where(length > 0, length, 1.0)).clamp_max(1.0)
        out: Tensor = (implicit * share).nan_to_num()
        return out


START = (1e-5, 5e-5)  # the first rates that are tried, of w and of v


class Rates(nn.Module):
    """The learned temperature; the rates of w and v, (2,), and how many descents of w fell throughout, or failed."""

    rates: Tensor
    tally: Tensor

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.zeros((), device=device))
        self.register_buffer("rates", torch.zeros(2, device=device))
        self.register_buffer("tally", torch.zeros(3, device=device))

    def set(self, which: int, rate: float) -> None:
        self.rates[which] = rate

    def see(self, values: Tensor, index: int) -> None:
        """The values of a descent of w in outer step `index`."""
        if len(values) < 2:
            return
        fell, rose = falls(values), values[-1] > values[0]
        self.tally += torch.stack([fell, rose & ~fell, torch.ones_like(fell)]).to(self.tally.dtype)
        if index and index % EVERY == 0:
            shares = self.tally[:2] / self.tally[2]
            slower, faster = shares[1] >= 0.29, shares[0] >= 0.7
            self.rates[0] *= torch.where(slower, 0.9, torch.where(faster, 1.05, 1.0))
            self.tally.zero_()


class Inner:
    """The inner problem of one network on a support: see the module. decay: l itself.

    What is needed again and again is computed once: the factor of G + l, and the backward pass through the logits.
    """

    def __init__(self, module: nn.Module, support: Batch, decay: float, form: Form) -> None:
        self.calls, self.support, self.decay = Calls(module), support, decay
        self.params = {name: p.detach() for name, p in module.named_parameters()}
        x = form.detach(support.x)
        self.moving = without_last_weight(module, form.take(x, slice(0, 1)))
        self.scale = decay / support.y.numel()
        with torch.no_grad():
            self.factor = torch.linalg.cholesky_ex(self._gram())[0]
        self._pull: Callable[[Tensor], tuple[Weights]] = vjp(lambda moving: self._logits(moving, x), self._theta)[1]

    @property
    def _theta(self) -> Weights:
        return {name: self.params[name] for name in self.moving}

    def _logits(self, moving: Mapping[str, Tensor], x: Any) -> Tensor:
        given = {f"net.{name}": p for name, p in {**self.params, **moving}.items()}
        found: Tensor = functional_call(self.calls, given, ("forward", x))
        return found

    def _features(self, x: Any) -> Tensor:
        given = {f"net.{name}": p for name, p in self.params.items()}
        found: Tensor = functional_call(self.calls, given, ("features", x))
        return found.double()

    def _gram(self) -> Tensor:
        rows = self._features(self.support.x)
        gram = rows @ rows.T
        return gram + self.decay * identity(gram)

    def shifted(self, x: Any, shift: Weights) -> Tensor:
        """J(x) w, (N, K)."""
        out: Tensor = jvp(lambda moving: self._logits(moving, x), (self._theta,), (shift,))[1]
        return out

    def pulled(self, rows: Tensor) -> Weights:
        """J(x)' rows on the support, for rows (M, K); no gradient goes through it."""
        with torch.no_grad():
            return self._pull(rows.to(self.support.y.dtype))[0]

    def solved(self, rows: Tensor) -> Tensor:
        """A rows, (M, K) float64; no gradient goes through A."""
        return torch.cholesky_solve(rows.double(), self.factor)

    @torch.no_grad()
    def curved(self, v: Weights) -> Weights:
        """H v."""
        back = self.pulled(self.solved(self.shifted(self.support.x, v)))
        return {name: self.scale * (value + back[name]) for name, value in v.items()}

    @torch.no_grad()
    def right_side(self) -> Weights:
        """b, for which H w = b is the inner problem's solution: l J' A y / (M K)."""
        return {name: self.scale * value for name, value in self.pulled(self.solved(self.support.y)).items()}

    def rest(self, shift: Weights) -> Tensor:
        """A (y - J(x) w), (M, K) float64: differentiable in the set and the shift."""
        left = self.support.y.double() - self.shifted(self.support.x, shift).double()
        return torch.cholesky_solve(left, torch.linalg.cholesky_ex(self._gram())[0])

    def predicted(self, x: Any, shift: Weights) -> Tensor:
        """J(t) w + phi(t) phi(x)' A r for examples t, (N, K): differentiable in the set and the shift."""
        cross = self._features(x) @ self._features(self.support.x).T
        out = self.shifted(x, shift)
        return out + (cross @ self.rest(shift)).to(out.dtype)

    def along(self, product: Weights, shift: Weights) -> Tensor:
        """<v, grad L(w)> up to what does not depend on the set, 0-d: differentiable in the set."""
        fixed = {name: value.detach() for name, value in shift.items()}
        ahead = self.shifted(self.support.x, {name: value.detach() for name, value in product.items()})
        return -self.scale * (ahead.double() * self.rest(fixed)).sum()


def without_last_weight(module: nn.Module, x: Any) -> list[str]:
    """The names of all parameters but the matrix of the last layer: that on which logits depend and features do not."""
    params = {name: p.detach().requires_grad_() for name, p in module.named_parameters()}
    rows = functional_call(Calls(module), {f"net.{name}": p for name, p in params.items()}, ("features", x))
    found = torch.autograd.grad(rows.sum(), list(params.values()), allow_unused=True)
    return [name for (name, p), grad in zip(params.items(), found, strict=True) if grad is not None or p.dim() < 2]


# -- the descent ------------------------------------------------------------------------------------------------------


def descend(
    curved: Callable[[Weights], Weights], b: Weights, rule: Rule, rate: float | Tensor, steps: int
) -> tuple[Weights, Tensor]:
    """x after `steps` steps of `rule` from 0 on <x, H x> / 2 - <b, x>, and that value before each step, (steps,)."""
    x = {name: torch.zeros_like(value) for name, value in b.items()}
    state, values = rule.init(x), []
    with torch.no_grad():
        for _ in range(steps):
            hx = curved(x)
            values.append(sum((x[name] * (0.5 * hx[name] - b[name])).sum() for name in x))
            x, state = rule.update(x, {name: hx[name] - b[name] for name in x}, state, rate)
    return x, torch.stack([torch.as_tensor(value) for value in values]) if values else torch.zeros(0)


def falls(values: Tensor) -> Tensor:
    """Does every value lie below the one before it? 0-d, bool."""
    return (values[1:] < values[:-1]).all()


def first_rate(curved: Callable[[Weights], Weights], b: Weights, rule: Rule, start: float, steps: int) -> float:
    """The rate to begin with: see `Implicit`. Waits for the device, in the first step only."""
    rate = start
    for _ in range(MOST):
        values = descend(curved, b, rule, rate, steps)[1]
        rate *= FASTER
        if len(values) < 2 or not bool(falls(values)):
            break
    return rate * SLOWER
