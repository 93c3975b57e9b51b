"""Closed forms on a whole set: ridge regression with a kernel as a learner, the judge that asks it, and label solve.

A network of infinite width is a kernel. What training it on a set ends in is known without training: ridge regression
on the set. So `infinite-width` is a network whose head is solved for (`ridge`), and `krr` the protocol that does so.

Label solve turns that around. For fixed examples, predictions K_ts (K_ss + ridge tr(K_ss) / M I)^-1 y are linear in the
labels y of the set, so those that are nearest to the targets of all real examples are a least squares solution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from condense.axes import Kernel, Labels, Learn, Loss, Net
from condense.data import Sampler
from condense.errors import BadValue, NoRoom
from condense.evaluate import Protocol
from condense.fit import Loop
from condense.memory import available
from condense.recipe import Recipe
from condense.rng import Rng
from condense.running import Run
from condense.synthetic import Synthetic
from condense.task import Batch, Form, Task

from .kernels import Infinite, InfiniteMLP
from .ridge import CentredError, KernelRidge, alike, coded, most_alike, predict, solve

MATRICES = 4  # of M x M float64 numbers that a solution holds at once: kernel, with its ridge, factor, and one more


def solved(gram: Tensor, targets: Tensor, ridge: float, field: str) -> Tensor:
    """`solve`, which refuses a singular system: it names the two items that are alike. Waits for the device.

    Raises `BadValue` about `field`.
    """
    solution = solve(gram, targets, ridge)
    if bool(solution.isfinite().all()):
        return solution
    pair, cosine = most_alike(gram.double())
    i, j = (int(place) for place in pair)
    problem = f"leaves the system singular: {alike(i, j, float(cosine))}"
    raise BadValue(field, ridge, problem, "Drop one of them, or raise the ridge.")


# -- a learner ------------------------------------------------------------------------------------------------------


@final
class InfiniteWidth(Net):
    """A network of infinite width, as its kernel describes it: it predicts 0 until `ridge` has solved for it.

    kernel: one that needs no network. features: the kernel with the items of the set, (N, M).
    """

    kernel: Kernel = InfiniteMLP()

    def build(self, task: Task) -> nn.Module:
        with torch.device("meta"):
            tried = Batch(task.form.to(task.form.blank(task, 2), "meta"), torch.zeros(2, dtype=torch.int64))
            self.kernel(None, tried, tried)
        return Machine(self.kernel, task)


class Machine(nn.Module):
    """x to kernel(x, support) @ solution, (N, outputs)."""

    def __init__(self, kernel: Kernel, task: Task) -> None:
        super().__init__()
        self.kernel, self.task = kernel, task
        self.support: Batch | None = None
        self.solution: Tensor | None = None

    def learn(self, support: Batch, ridge: float) -> None:
        gram = self.kernel(None, support, support)
        self.support, self.solution = support, solved(gram, coded(support.y, self.task), ridge, "ridge")

    def features(self, x: Any) -> Tensor:
        if self.support is None:
            return torch.zeros(self._count(x), 0)
        y = torch.zeros(self._count(x), dtype=torch.int64, device=self.support.y.device)
        return self.kernel(None, Batch(x, y), self.support)

    def forward(self, x: Any) -> Tensor:
        if self.solution is None:
            first = next(iter(self.task.form.pack(x).values()))
            return first.new_zeros(self._count(x), self.task.outputs)
        return predict(self.features(x), self.solution)

    def _count(self, x: Any) -> int:
        return len(self.task.form.flat(x))


@final
class Ridge(Learn):
    """Ridge regression on all items at once: one step, without chance. The network is an `infinite-width` one.

    ridge: times the mean of the kernel matrix's diagonal. Targets are classes coded as one-hot - 1/K, or the set's own
    float labels. Raises `BadValue` for a singular system (naming the two items that are alike) and for a network that
    is no kernel, `NoRoom` for more items than there is memory for.
    """

    ridge: float = Field(default=1e-6, ge=0)

    def length(self, data: Sampler) -> int:
        return 1

    def begin(self, module: nn.Module, rng: Rng) -> Loop:
        return Solution(self, module, rng)

    def __call__(self, module: nn.Module, data: Sampler, rng: Rng) -> Callable[[Any], Tensor]:
        self.begin(module, rng).advance(data, 1)
        return module.eval()


class Solution(Loop):
    """The loop of `ridge`, which has one step."""

    def __init__(self, how: Ridge, module: nn.Module, rng: Rng) -> None:
        if not isinstance(module, Machine):
            problem = "is no kernel, which is what ridge solves"
            raise BadValue("net", type(module).__name__, problem, "Use infinite-width.")
        self.how, self.module, self.rng, self.at, self.state = how, module, rng, 0, {}

    @property
    def passes(self) -> str:
        return "closed form"

    def begun(self) -> dict[str, Tensor]:
        return {}

    def train(self) -> None:
        return

    def advance(self, data: Sampler, steps: int, of: int | None = None) -> Tensor:
        """Solve, if `steps` is not 0; returns the mean loss on the items themselves."""
        self.at += steps
        return self.step(data, CentredError(), 0.0, 0.0) if steps else torch.zeros((), device=data.device)

    def step(self, data: Sampler, loss: Loss, lr: float | Tensor, progress: float) -> Tensor:
        check_room(len(data), data.device)
        batch = data.draw(None, None, self.rng)
        with torch.no_grad():
            self.module.learn(batch, self.how.ridge)
            return loss(self.module, batch, data.task, self.rng).mean()

    def predict(self, x: Any, form: Form) -> Tensor:
        with torch.no_grad():
            scores: Tensor = self.module(x)
        return scores.unsqueeze(0)


def check_room(items: int, device: torch.device) -> None:
    """Refuse a regression whose matrices do not fit into what memory is free. Raises `NoRoom`."""
    needed, free = MATRICES * 8 * items**2, available(device)
    if needed > free:
        size = f"{needed / 2**30:.1f} GiB"
        problem = f"a regression on {items:,} items takes matrices of {size}, and {free / 2**30:.1f} GiB are free"
        raise NoRoom("memory", size, problem, "Use fewer items; leave the full-data reference out.")


# -- the judge ------------------------------------------------------------------------------------------------------


@final
class Krr(Protocol):
    """Kernel ridge regression on the set, in closed form: the judge of KIP (arXiv:2011.00050, 2107.13034).

    kernel: one that needs no network; ridge: times the mean of K_ss's diagonal. Asked for by name, both are those that
    the set was made with, if that was a kernel of infinite width. Fixed labels are coded as
    one-hot - 1/K, learned ones are taken as they are, and the highest prediction is the answer. There is no chance in
    it: however many repeats are asked for, one is judged, and n counts sets of several seeds. All real data are judged
    by the same rules where their kernel matrix fits into memory. A network asked for by name is refused.
    """

    whole: ClassVar[bool] = True
    kernel: Kernel = InfiniteMLP()
    ridge: float = Field(default=1e-6, ge=0)
    nets: tuple[Net, ...] = ()  # follows from the kernel
    repeats: int = Field(default=1, ge=1)
    record: int | None = Field(default=1, ge=1, le=1)
    keep: Literal["last"] = "last"

    @model_validator(mode="after")
    def _of_the_kernel(self) -> Self:
        other = [net.name for net in self.nets if not isinstance(net, InfiniteWidth)]
        if other:
            remedy = "Set protocol.kernel; a network that the set is made with has a path of its own (condense show)."
            raise BadValue("net", other[0], "is a network, and krr asks a kernel", remedy)
        object.__setattr__(self, "nets", (InfiniteWidth(kernel=self.kernel),))
        object.__setattr__(self, "repeats", 1)
        return self

    def following(self, recipe: Recipe) -> Self:
        """With the kernel and ridge by which the set was made, if it was by one of infinite width."""
        made = [part for part in recipe.walk() if isinstance(part, KernelRidge | Solved)]
        known = [part for part in made if isinstance(part.kernel, Infinite)]
        return self.with_(kernel=known[0].kernel, ridge=known[0].ridge) if known else self

    def fit(self, data: Sampler) -> Learn:
        return Ridge(ridge=self.ridge)


# -- labels ---------------------------------------------------------------------------------------------------------


@final
class Solved(Labels):
    """Targets (M, K) by which ridge regression on the set comes nearest to all real targets, in least squares.

    They are solved for after the last step; until then they are one-hot - 1/K. Of several solutions the shortest is
    taken. block: real examples at a time; the result does not depend on it, up to rounding. Raises `BadValue` for a
    singular system, naming the two items that are alike.
    Source: label solve of KIP (Nguyen et al., ICLR 2021, arXiv:2011.00050).
    """

    kernel: Kernel = InfiniteMLP()
    ridge: float = Field(default=1e-6, ge=0)
    block: int = Field(default=1000, ge=1)

    def blank(self, groups: Tensor, task: Task) -> Tensor:
        return coded(groups, task).float()

    def start(self, batch: Batch, run: Run) -> Tensor:
        return coded(batch.y, run.task).float()

    def loss(self) -> Loss:
        return CentredError()

    @torch.no_grad()
    def finish(self, syn: Synthetic, run: Run) -> None:
        support = syn.decode(None, None)
        gram = self.kernel(None, support, support)

        def rows(batch: Batch) -> tuple[Tensor, Tensor]:
            inverse = solve(gram, self.kernel(None, batch, support).double().T, self.ridge).T
            return inverse, coded(batch.y, run.task).double()

        solved(gram, gram.new_zeros(len(gram), 1), self.ridge, "labels.ridge")
        syn.y.copy_(least_squares(map(rows, run.splits.train.sweep(self.block)), len(support)))


def least_squares(blocks: Iterable[tuple[Tensor, Tensor]], width: int) -> Tensor:
    """The shortest y, (width, K) float64, with the least |A y - b|, for A (N, width) and b (N, K) in blocks of rows.

    By a triangle that is carried from block to block, so that no square of A is formed.
    """
    held: Tensor | None = None
    for a, b in blocks:
        rows = torch.cat([a, b], dim=1)
        held = torch.linalg.qr(rows if held is None else torch.cat([held, rows]), mode="r").R
    assert held is not None, "a source has examples"
    out: Tensor = torch.linalg.pinv(held[:, :width]) @ held[:, width:]
    return out
