"""Data: values that open to sources, and the samplers that everything trains and measures on."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .component import Component
from .errors import BadData
from .rng import Rng
from .task import Batch, Task

if TYPE_CHECKING:
    from .axes import Loss, Statistic, Transform, Warp
    from .running import Run

Class = int | Literal["each"] | None
VALIDATE = "Give the data a validation part (`val_mask` in arrays of your own; else --set data.validation=...)"


class Sampler(ABC):
    """Whatever a network trains on, or is compared on: sources, synthetic sets, artifacts.

    `take` is the primitive. `draw` is a function of its arguments: no state is kept between draws.
    """

    task: Task
    loss: Loss | None = None  # what networks are trained with on these targets; None: the task's own

    @property
    @abstractmethod
    def groups(self) -> Tensor:
        """(N,) int64: the class that each item is about."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def take(self, index: Tensor) -> Batch:
        """The items at `index` (int64, on the sampler's device), in that order."""

    def __len__(self) -> int:
        return len(self.groups)

    def rate(self, at: int) -> Tensor | None:
        """The learned step size of training step `at` on these items, where they bring one."""
        return None

    @property
    def turns(self) -> Tensor | None:
        """(S, B) int64 positions: the batches that networks are to be trained on, in this order, where the items have
        one.
        """
        return None

    @property
    def initial(self) -> Initial | None:
        """The weights that networks are to start from, where the items were made for some."""
        return None

    @cached_property
    def _table(self) -> tuple[Tensor, list[int]]:
        """Positions sorted by class (stable), and host-side offsets: a class is a slice, without a device sync."""
        order = torch.argsort(self.groups, stable=True)
        sizes = torch.bincount(self.groups, minlength=self.task.groups).tolist()
        offsets = [0]
        for size in sizes:
            offsets.append(offsets[-1] + size)
        return order, offsets

    def counts(self) -> list[int]:
        """Items of each class, in class order."""
        _, offsets = self._table
        return [b - a for a, b in itertools.pairwise(offsets)]

    def ids(self, cls: int | None) -> Tensor:
        """Positions of the items of one class (or of all), ascending."""
        order, offsets = self._table
        if cls is None:
            return torch.arange(len(self), device=self.device)
        return order[offsets[cls] : offsets[cls + 1]]

    def draw(self, n: int | None, cls: Class, rng: Rng, at: int | None = None) -> Batch:
        """n items of a class (None: of all classes; "each": n of every class, class-major), without replacement.

        Fewer where there are fewer; n=None takes all, in their order. With `at`, draws are the chunks of one
        permutation per epoch: draw number `at` is a function of (key, at), and the last chunk of an epoch may be short.
        With `at` and n=None, items that have `turns` give the one whose turn it is.
        """
        if cls == "each":
            return self.take(torch.cat([self._pick(n, c, rng.fold(c), at) for c in range(self.task.groups)]))
        return self.take(self._pick(n, cls, rng, at))

    def _pick(self, n: int | None, cls: int | None, rng: Rng, at: int | None) -> Tensor:
        ids = self.ids(cls)
        if n is None:
            return ids if at is None or cls is not None or self.turns is None else self.turns[at % len(self.turns)]
        if at is None:
            return ids[rng.permutation(len(ids), self.device)[:n]]
        epoch, chunk = divmod(at, self.chunks(n, cls))
        return ids[rng.fold("epoch", epoch).permutation(len(ids), self.device)[chunk * n : (chunk + 1) * n]]

    def chunks(self, n: int | None, cls: int | None = None) -> int:
        """Draws of n in one epoch."""
        if n is None:
            return 1 if cls is not None or self.turns is None else len(self.turns)
        total = len(self) if cls is None else self.counts()[cls]
        return max(1, -(-total // n))

    def sweep(self, n: int) -> Iterator[Batch]:
        """One ordered pass over all items, n at a time."""
        for index in torch.arange(len(self), device=self.device).split(n):  # type: ignore[no-untyped-call]
            yield self.take(index)


@dataclass(frozen=True)
class Initial:
    """Weights that networks of one architecture are to start from: those that a set was made for.

    network: the digest of the architecture. weights: a module's `state_dict`.
    """

    network: str
    weights: Mapping[str, Tensor]

    def put(self, net: Component, module: nn.Module) -> None:
        """Into `module`, if it is of this architecture; another one stays as it is."""
        if net.digest() == self.network:
            module.load_state_dict(self.weights)


@dataclass(frozen=True)
class Ask:
    """A question to a source: the statistic of n examples (None: all) of a class, averaged over the warps."""

    cls: int | None
    n: int | None
    warps: tuple[Warp, ...] = ()


class Source(Sampler):
    """Real data. `measure` is the only door that methods need, and the only one that a private source opens."""

    def measure(
        self, statistic: Statistic, model: nn.Module, asks: Sequence[Ask], rng: Rng
    ) -> Iterator[Mapping[str, Tensor]]:
        """The statistic for each ask, in order, lazily; detached. One call is one release.

        Ask number i draws with the key `rng.fold(i)`. Several warps are averaged before `finish`.
        """
        for i, ask in enumerate(asks):
            batch = self.draw(ask.n, ask.cls, rng.fold(i))
            views = [warp(batch) for warp in ask.warps] or [batch]
            means = [statistic.mean(model, view, self.task, live=False) for view in views]
            yield statistic.finish({key: torch.stack([mean[key] for mean in means]).mean(dim=0) for key in means[0]})

    @property
    def population(self) -> int:
        """Of how many items these are the ones to learn from: more where unlabelled ones come with them."""
        return len(self)

    def admit(self, recipe: Any) -> None:
        """Refuse, before anything is computed, a recipe that reads what this source does not give."""

    def rehearse(self, run: Run) -> None:
        """Refuse, before anything is written, a run that will ask what this source does not answer; warn of others."""

    def begin(self, folder: Path | None) -> None:
        """A run is about to take its first step, or to go on, in the private folder `folder` (None: it stores nothing).

        What must be on disk before the data are touched (a private source's ledger) is opened here.
        """

    def finish(self, folder: Path | None) -> None:
        """The run's artifact is complete on disk: what only a resume needed may go."""

    def account_for(self) -> dict[str, Any]:
        """What a run that ends owes its artifact besides `provenance`: of what was taken from the source."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """State of a source that keeps any (how often a private one was measured): part of every checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` gave."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Facts for the artifact: fingerprint, counts, classes. A private source leaves out what it must."""

    @abstractmethod
    def encoded(self, transform: Transform) -> Source:
        """The same source whose examples come through `transform`."""


class TensorSampler(Sampler):
    """Items held in memory. x is whatever the task's form says, already encoded."""

    def __init__(
        self,
        task: Task,
        x: Any,
        y: Tensor,
        *,
        loss: Loss | None = None,
        like: Sampler | None = None,
        rate: Callable[[int], Tensor | None] | None = None,
        turns: Tensor | None = None,
        initial: Initial | None = None,
    ) -> None:
        """`like`: a sampler with items about the same classes in the same order, whose table of classes is shared, and
        whose turns and initial weights are taken where none are given.
        """
        self.task, self.x, self.y, self.loss, self._rate = task, x, y, loss, rate
        self._turns = turns if turns is not None or like is None else like.turns
        self._initial = initial if initial is not None or like is None else like.initial
        self._groups = task.hard(y) if like is None else like.groups
        if like is not None:
            self._table = like._table

    @property
    def groups(self) -> Tensor:
        return self._groups

    @property
    def device(self) -> torch.device:
        return self.y.device

    def take(self, index: Tensor) -> Batch:
        return Batch(self.task.form.take(self.x, index), self.y[index], index)

    def rate(self, at: int) -> Tensor | None:
        return None if self._rate is None else self._rate(at)

    @property
    def turns(self) -> Tensor | None:
        return self._turns

    @property
    def initial(self) -> Initial | None:
        return self._initial


class TensorSource(Source):
    """Examples that live on the device once: uint8 where they are images, encoded as they are drawn."""

    def __init__(self, task: Task, x: Tensor, y: Tensor, transform: Transform | None = None) -> None:
        self.task, self.x, self.y, self.transform = task, x, y, transform

    @property
    def groups(self) -> Tensor:
        return self.task.hard(self.y)

    @property
    def device(self) -> torch.device:
        return self.y.device

    def take(self, index: Tensor) -> Batch:
        x = self.task.form.take(self.x, index)
        return Batch(x if self.transform is None else self.transform.encode(x), self.y[index], index)

    def encoded(self, transform: Transform) -> TensorSource:
        shape = tuple(transform.encode(self.x[:1]).shape[1:])
        return TensorSource(self.task.model_copy(update={"shape": shape}), self.x, self.y, transform)

    def subset(self, index: Tensor) -> TensorSource:
        return TensorSource(self.task, self.x[index], self.y[index], self.transform)

    def provenance(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "counts": self.counts(), "classes": list(self.task.classes)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shape, dtype and bytes of x and y, and the class names in order."""
        h = hashlib.sha256()
        feed(h, (self.x, self.y))
        h.update("\x1f".join(self.task.classes).encode())
        return h.hexdigest()


def feed(h: Any, tensors: Iterable[Tensor]) -> None:
    """Shape, dtype and bytes of each tensor into a hash of hashlib, wherever the tensor lies."""
    for tensor in tensors:
        h.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Facts:
    """What is known of a data set besides its examples. `mean` and `std` are per channel, of x in [0, 1].

    `extra["properties"]`, where it is given, says what the data is like: see `Form.properties`.
    """

    title: str = ""
    licence: str = "unknown"
    citation: str = ""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Splits:
    """What a `Data` opens to. Methods see `train`; selection uses `validation`; `test` is read by the judge, once."""

    train: Source
    test: Source
    validation: Source | None = None
    facts: Facts = Facts()

    @property
    def task(self) -> Task:
        return self.train.task

    def map(self, f: Callable[[Source], Source]) -> Splits:
        validation = None if self.validation is None else f(self.validation)
        return replace(self, train=f(self.train), test=f(self.test), validation=validation)


class Data(Component):
    """A value that opens to splits. Wrappers (`Private`, `Subset`, `Client`) take a Data and are one."""

    axis: ClassVar[str] = "data"
    embedded: ClassVar[bool] = False  # ships with a dependency: needs no files and no network
    form: ClassVar[str] = "tensors"  # the name of the form that its examples have: which methods are for it
    confidential: ClassVar[bool] = False  # no example is shown, and what is judged on it stays out of the artifact

    @abstractmethod
    def open(self, device: torch.device | str = "cpu") -> Splits:
        """Read the data where it lies (`CONDENSE_DATA`) and hold it on `device`.

        Raises `BadData` where files are missing (naming them and the folder to put them in) or malformed.
        """

    @classmethod
    def accept(cls, value: Any) -> Data | None:
        """A value of this class that holds a live object handed over from Python, if that is of a kind it knows."""
        return None

    @property
    def label(self) -> str:
        """How the data is called in folder names, tables and reports."""
        return self.name

    @property
    def published_as(self) -> str:
        """What published rows call it: its name, and where many sets share that, what comes after it."""
        return self.name

    @property
    def metric(self) -> str | None:
        """The metric by which the set is judged where a protocol names none (a benchmark's own); None: accuracy."""
        return None


def check_examples(x: Tensor, y: Tensor, classes: Sequence[str], where: str) -> None:
    """Refuse what no method can use: no rows, not one label for each, labels out of range, NaN, infinity."""
    if len(x) == 0:
        raise BadData(where, 0, "holds no examples", "Give at least one example of each class.")
    if len(x) != len(y):
        problem = f"has {len(x)} examples and {len(y)} labels"
        raise BadData(where, (len(x), len(y)), problem, "Give one label for each example.")
    if y.dim() != 1 or y.dtype != torch.int64:
        problem = "labels must be one whole number for each example, (N,) int64"
        raise BadData(
            where, (tuple(y.shape), str(y.dtype)), problem, "Squeeze (N, 1) labels; turn floats into integers."
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= len(classes):
        problem = f"labels must lie in 0..{len(classes) - 1}"
        raise BadData(where, (low, high), problem, "Number the classes from 0, or name all of them.")
    if x.is_floating_point():
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise BadData(where, f"example {row}", "holds NaN or infinity", "Drop or repair the examples that do.")
