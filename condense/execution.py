"""How passes through networks are computed: eagerly in float32, or compiled, in bfloat16 where that loses nothing.

Everything that runs a network asks `current()` for the pass. What is compiled are pure functions of parameters and
examples, so one graph serves every network of an architecture. Measured on one core with AMX (ConvNet-3, width 128, 256
images of 3 x 32 x 32): cutting a batch into pieces that stay in the cache more than halves a compiled pass again (bf16
forward 120 to 53 ms). The gradient with respect to synthetic examples stays in float32: in bfloat16 its cosine to the
exact one is 0.97 to 0.99, against 0.9998.
"""

from __future__ import annotations

import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

from . import clipping, per_example
from .axes import Loss
from .errors import BadValue
from .machine import fast_bfloat16
from .recipe import Execution
from .rng import Rng
from .task import Batch, Form, Task

Tensors = Mapping[str, Tensor]
WORTH = 120.0  # estimated seconds of eager passes from which on compiling (about half a minute) is worth its time
PIECE = {"forward": 32, "backward": 20, "rows": 16}  # rows per compiled pass on a CPU: what stays in the cache


class Passes:
    """Eager passes, in float32."""

    @property
    def kind(self) -> str:
        """What stands beside a number that these passes gave."""
        return "eager float32"

    def gradients(
        self, module: nn.Module, loss: Loss, batch: Batch, task: Task, rng: Rng
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over the batch (0-d) and its gradient by parameter name; both detached."""
        params = dict(module.named_parameters())
        value = loss(module, batch, task, rng).mean()
        grads = torch.autograd.grad(value, list(params.values()), allow_unused=True, materialize_grads=True)
        return value.detach(), dict(zip(params, grads, strict=True))

    def clipped_gradients(
        self,
        module: nn.Module,
        loss: Loss,
        views: Sequence[Batch],
        task: Task,
        groups: Tensor,
        count: int,
        bound: float,
        chunk: int,
    ) -> dict[str, Tensor]:
        """`clipping.summed` of `gradient_rows`: (count, *parameter shape) by parameter name, float64, detached.

        In float32 whatever else passes are computed in. At least one example.
        """

        def rows(part: slice) -> Tensors:
            some = [Batch(task.form.take(view.x, part), view.y[part]) for view in views]
            return gradient_rows(module, loss, some, task)

        return clipping.summed(rows, groups, count, bound, chunk)

    def features(self, module: nn.Module, x: Any, form: Form) -> Tensor:
        """The input of the head, (N, D), detached."""
        with torch.no_grad():
            return module.features(x)  # type: ignore[operator,no-any-return]

    def logits(self, module: nn.Module, x: Any, form: Form) -> Tensor:
        """What the network says, (N, outputs), detached."""
        with torch.no_grad():
            return module(x)  # type: ignore[no-any-return]

    def gap(
        self, purpose: str, gap: Callable[..., Tensor], module: nn.Module, leaves: Tensors, constants: Tensors
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The value (0-d) of gap(model, leaves, constants), and cotangents of the leaves.

        Without cotangents the value is differentiable in the leaves itself. purpose: names all that `gap` closes over.
        """
        return gap(module, leaves, constants), []


class Bound:
    """A network with other parameters in place of its own: what functions that are to be compiled are written in."""

    def __init__(self, calls: Calls, params: Tensors, half: bool) -> None:
        self.calls, self.params, self.half = calls, params, half

    def __call__(self, x: Any) -> Tensor:
        return self._run("forward", x)

    def features(self, x: Any) -> Tensor:
        return self._run("features", x)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.params.items())

    def _run(self, method: str, x: Any) -> Tensor:
        with self._precision():
            out = functional_call(self.calls, {f"net.{key}": value for key, value in self.params.items()}, (method, x))
        return out.float() if self.half else out  # type: ignore[no-any-return]

    def _precision(self) -> AbstractContextManager[Any]:
        device = next(iter(self.params.values())).device.type
        return torch.autocast(device, torch.bfloat16) if self.half else nullcontext()


def parameter_gradient(model: Any, value: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """The gradient of value(model), 0-d, with respect to the model's parameters, by name; itself differentiable."""
    if isinstance(model, Bound):
        gradient = torch.func.grad(lambda params: value(Bound(model.calls, params, model.half)))
        return gradient(dict(model.params))  # type: ignore[no-any-return]
    params = dict(model.named_parameters())
    grads = torch.autograd.grad(
        value(model), list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(params, grads, strict=True))


def parameter_gradients(model: nn.Module, values: Sequence[Tensor], *, live: bool) -> list[dict[str, Tensor]]:
    """The gradient of each value (0-d), all from one forward pass, with respect to the parameters, by name.

    live: itself differentiable, else detached.
    """
    params = dict(model.named_parameters())
    found = []
    for i, value in enumerate(values, 1):
        keep = live or i < len(values)
        grads = torch.autograd.grad(
            value,
            list(params.values()),
            retain_graph=keep,
            create_graph=live,
            allow_unused=True,
            materialize_grads=True,
        )
        found.append(dict(zip(params, grads, strict=True)))
    return found


def gradient_rows(module: nn.Module, loss: Loss, views: Sequence[Batch], task: Task) -> dict[str, Tensor]:
    """The gradient of each example alone, averaged over its views: (N, *parameter shape) by parameter name, detached.

    views: the same examples, under several warps. Eager, in the network's own precision. Where examples cannot be
    stacked (graphs of several sizes), or the network cannot be mapped (it draws random numbers, changes its buffers or
    branches on what it sees), one example after the other.
    """
    if task.form.in_rows:
        try:
            gradients = per_example.gradients(_value(Calls(module), loss, task))
            rows = gradients(_detached(module), *_stacked(views, task.form))
            return {name: row.detach() for name, row in rows.items()}
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a mistake of the network's own raises below, as itself
            pass
    each = []
    for i in range(len(views[0])):
        own = [Batch(task.form.take(view.x, slice(i, i + 1)), view.y[i : i + 1]) for view in views]
        each.append(clipping.averaged([EAGER.gradients(module, loss, one, task, Rng(0))[1] for one in own]))
    return {name: torch.stack([row[name] for row in each]) for name in each[0]}


def _value(calls: Calls, loss: Loss, task: Task) -> Callable[[Tensors, Tensors, Tensor], Tensor]:
    """(params, packed x (V, ...), y (V, ...)) -> the loss of one example, 0-d: the mean over V views, each alone."""

    def of_view(params: Tensors, x: Tensors, y: Tensor) -> Tensor:
        batch = Batch(task.form.unpack({key: value.unsqueeze(0) for key, value in x.items()}), y.unsqueeze(0))
        return loss(Bound(calls, params, half=False), batch, task, Rng(0)).sum()

    def of_example(params: Tensors, x: Tensors, y: Tensor) -> Tensor:
        if len(y) == 1:
            return of_view(params, {key: value[0] for key, value in x.items()}, y[0])
        return torch.func.vmap(of_view, in_dims=(None, 0, 0))(params, x, y).mean()

    return of_example


def _stacked(views: Sequence[Batch], form: Form) -> tuple[dict[str, Tensor], Tensor]:
    """The views of each example side by side: packed x, each (N, V, ...), and y (N, V, ...)."""
    packed = [form.pack(view.x) for view in views]
    x = {key: torch.stack([one[key] for one in packed], dim=1).detach() for key in packed[0]}
    return x, torch.stack([view.y for view in views], dim=1)


class Calls(nn.Module):
    """Sends a call to one of a network's methods, so that `functional_call` reaches all of them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.by_rows: bool | None = None  # does an example's answer not depend on its neighbours? None: not tried yet

    def forward(self, method: str, x: Any) -> Tensor:
        return getattr(self.net, method)(x)  # type: ignore[no-any-return]


class Compiled(Passes):
    """Compiled passes. Networks that keep state while they run (batch norm, dropout), that look from one example at
    another, and losses that draw random numbers, go the eager way."""

    def __init__(self, half: bool) -> None:
        self.half = half
        self.templates: dict[Any, Calls | None] = {}
        self.functions: dict[Any, Callable[..., Any]] = {}

    @property
    def kind(self) -> str:
        return f"compiled {'bfloat16' if self.half else 'float32'}"

    def gradients(
        self, module: nn.Module, loss: Loss, batch: Batch, task: Task, rng: Rng
    ) -> tuple[Tensor, dict[str, Tensor]]:
        template = self._template(module, batch.x, task.form) if loss.deterministic else None
        if template is None:
            return super().gradients(module, loss, batch, task, rng)

        def mean_loss(params: Tensors, x: Tensors, y: Tensor) -> Tensor:
            return loss(Bound(template, params, self.half), Batch(task.form.unpack(x), y), task, rng).mean()

        run = self._function(("gradient", template, loss.digest(), task), grad_and_value(mean_loss))
        params = _detached(module)
        total: dict[str, Tensor] = {}
        value = torch.zeros((), device=batch.y.device)
        for x, part, whole in _pieces(batch.x, task.form, "backward"):
            y = batch.y[part]
            grads, loss_value = run(params, x, y, plain=not whole)
            share = len(y) / len(batch)
            value = value + share * loss_value
            if not total:
                total = {key: share * grad for key, grad in grads.items()}
            else:
                torch._foreach_add_(list(total.values()), list(grads.values()), alpha=share)  # type: ignore[attr-defined]
        return value, total

    def clipped_gradients(
        self,
        module: nn.Module,
        loss: Loss,
        views: Sequence[Batch],
        task: Task,
        groups: Tensor,
        count: int,
        bound: float,
        chunk: int,
    ) -> dict[str, Tensor]:
        template = self._structure(module) if loss.deterministic and task.form.in_rows else None
        if template is None:
            return super().clipped_gradients(module, loss, views, task, groups, count, bound, chunk)
        rows = per_example.gradients(_value(template, loss, task))

        def clipped(params: Tensors, x: Tensors, y: Tensor, member: Tensor, bound: Tensor) -> dict[str, Tensor]:
            with per_example.convolutions_as_products():
                return clipping.clipped_sum(rows(params, x, y), member, bound)

        x, y = _stacked(views, task.form)
        n = len(groups)
        size = min(chunk, PIECE["rows"]) if y.device.type == "cpu" else chunk
        key = ("clipped", template, loss.digest(), task, len(views), tuple(y.shape[2:]), count, size)
        run = self._function(key, clipped, traced=True)
        params = _detached(module)
        limit = torch.tensor(bound, dtype=torch.float64, device=y.device)
        total: dict[str, Tensor] = {}
        for part in clipping.slices(n, size):
            rest = size - (part.stop - part.start)
            if rest > size // 2:  # too few for a compiled pass
                few = [Batch(task.form.take(view.x, part), view.y[part]) for view in views]
                more = super().clipped_gradients(module, loss, few, task, groups[part], count, bound, chunk)
            else:  # others fill it up, of no group
                index = torch.arange(part.start, part.start + size, device=y.device).remainder(n)
                some = {name: value[index] for name, value in x.items()}
                member = F.pad(clipping.memberships(groups[part], count), (0, rest))  # no view: strides are guarded
                more = run(params, some, y[index], member, limit)
            clipping.add(total, more)
        return total

    def features(self, module: nn.Module, x: Any, form: Form) -> Tensor:
        return self._rows("features", module, x, form)

    def logits(self, module: nn.Module, x: Any, form: Form) -> Tensor:
        return self._rows("forward", module, x, form)

    @torch.no_grad()
    def _rows(self, method: str, module: nn.Module, x: Any, form: Form) -> Tensor:
        template = self._template(module, x, form)
        if template is None:
            return super().features(module, x, form) if method == "features" else super().logits(module, x, form)

        def rows(params: Tensors, x: Tensors) -> Tensor:
            model = Bound(template, params, self.half)
            return model.features(form.unpack(x)) if method == "features" else model(form.unpack(x))

        run = self._function((method, template), rows)
        params = _detached(module)
        return torch.cat([run(params, some, plain=not whole) for some, _, whole in _pieces(x, form, "forward")])

    def gap(
        self, purpose: str, gap: Callable[..., Tensor], module: nn.Module, leaves: Tensors, constants: Tensors
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        template = self._structure(module)
        if template is None:
            return super().gap(purpose, gap, module, leaves, constants)

        def of_leaves(leaves: Tensors, params: Tensors, constants: Tensors) -> Tensor:
            return gap(Bound(template, params, half=False), leaves, constants)

        run = self._function(("gap", purpose, template), grad_and_value(of_leaves))
        moving = {key: _arranged(leaf.detach()) for key, leaf in leaves.items()}
        grads, value = run(moving, _detached(module), dict(constants))
        return value, [(leaf, grads[key]) for key, leaf in leaves.items()]

    def _function(self, key: Any, function: Callable[..., Any], *, traced: bool = False) -> Callable[..., Any]:
        if key not in self.functions:
            self.functions[key] = compiled(function, f"condense_{len(self.functions)}", traced=traced)
        return self.functions[key]

    def _structure(self, module: nn.Module) -> Calls | None:
        """The first network of this architecture that was seen, whose structure all passes of its like go through."""
        shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters())
        key = (getattr(module, "architecture", id(module)), shapes, module.training)
        if key not in self.templates:
            stateful = any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules())
            self.templates[key] = None if stateful or list(module.buffers()) else Calls(module)
        return self.templates[key]

    def _template(self, module: nn.Module, x: Any, form: Form) -> Calls | None:
        """`_structure`, for passes in pieces: only where an example's answer does not depend on its neighbours."""
        template = self._structure(module)
        if template is None or not form.in_rows:
            return None
        if template.by_rows is None:
            some = form.take(x, slice(0, 4))
            with torch.no_grad():
                both, alone = module(some), module(form.take(some, slice(0, 1)))
            template.by_rows = bool(torch.allclose(both[:1], alone, rtol=1e-3, atol=1e-4))
        return template if template.by_rows else None


def _pieces(x: Any, form: Form, direction: str) -> Iterator[tuple[Tensors, slice, bool]]:
    """x packed, in pieces; with each its rows, and whether it has the usual length (others are not worth a graph)."""
    packed = {key: _arranged(value) for key, value in form.pack(x).items()}
    one = next(iter(packed.values()))
    size = piece(len(one), PIECE[direction]) if one.device.type == "cpu" else len(one)
    for start in range(0, len(one), size):
        part = slice(start, start + size)
        yield {key: value[part] for key, value in packed.items()}, part, len(one[part]) == size


def piece(n: int, limit: int) -> int:
    """How many rows each piece of n has: the largest divisor of n in (limit / 4, limit], else `limit`."""
    if n <= limit:
        return max(1, n)
    return next((size for size in range(limit, limit // 4, -1) if n % size == 0), limit)


def _arranged(value: Tensor) -> Tensor:
    """Images with their channels last in memory, as compiled convolutions like them."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _detached(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


def compiled(function: Callable[..., Any], name: str, *, traced: bool = False) -> Callable[..., Any]:
    """`function` compiled at its first call; called with plain=True, or once compiling has failed, as it is.

    traced: taken apart into operations first, for functions of tensors that the compiler does not read as they are
    written; all calls that are not plain then have the shapes of the first one.
    """
    fast: list[Callable[..., Any] | None] = []

    def run(*args: Any, plain: bool = False) -> Any:
        if plain or fast == [None]:
            return function(*args)
        try:
            if not fast:
                made = make_fx(function, tracing_mode="fake")(*args) if traced else function
                fast.append(torch.compile(_named(made, name), dynamic=False, fullgraph=True))
            return fast[0](*args)  # type: ignore[misc]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            result = function(*args)  # a mistake of the function's own raises here, as itself
            fast[:] = [None]
            say_once(
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:200]
            )
            return result

    return run


def _named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`function` in a code object of its own: dynamo keeps its graphs by these."""

    def shim(*args: Any) -> Any:
        return function(*args)

    shim.__code__ = shim.__code__.replace(co_name=name)
    return shim


@functools.cache
def _said() -> list[str]:
    return []


def say_once(reason: str) -> None:
    """One warning for each process, however many functions could not be compiled."""
    if not _said():
        _said().append(reason)
        message = f"Networks are not compiled here, so passes take several times as long: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


# -- which passes a run takes ---------------------------------------------------------------------------------------


def settled(how: Execution, seconds: float) -> Execution:
    """`how` with what it leaves open decided: compile where `seconds` of eager passes are worth it, and in bfloat16
    where the device is fast at it. `precision` bfloat16 without compiling is refused on a CPU, where it is slower."""
    device = torch.device(how.device)
    compile = seconds >= WORTH if how.compile is None else how.compile
    precision = how.precision
    if precision == "auto":
        precision = "bfloat16" if compile and fast_bfloat16(device) else "float32"
    if precision == "bfloat16" and not compile:
        remedy = "Set execution.compile=true as well, or leave execution.precision alone."
        raise BadValue("execution.precision", precision, "needs compiled passes: eager ones are slower in it", remedy)
    return how.model_copy(update={"compile": compile, "precision": precision})


def passes(how: Execution) -> Passes:
    """The passes of a settled `Execution`; graphs are shared by all runs of this process."""
    return _compiled(how.precision == "bfloat16") if how.compile else EAGER


@functools.cache
def _compiled(half: bool) -> Compiled:
    return Compiled(half)


EAGER = Passes()
_current: contextvars.ContextVar[Passes] = contextvars.ContextVar("condense_execution", default=EAGER)


def current() -> Passes:
    """The passes in force."""
    return _current.get()


@contextmanager
def using(other: Passes) -> Iterator[None]:
    """Other passes for a while: an engine's, a judge's."""
    token = _current.set(other)
    try:
        yield
    finally:
        _current.reset(token)
