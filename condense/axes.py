"""The axes that a recipe varies along: abstract bases, one question each. Members are final and come from plugins.

Notation in docstrings: N examples, K classes, C x H x W images, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from . import clipping
from .component import Component, digest
from .data import Sampler, Source, Splits
from .errors import NotBuilt
from .rng import Rng
from .task import Batch, Task

if TYPE_CHECKING:
    from .fit import Loop
    from .recipe import Reads, Recipe
    from .running import Run, Step
    from .synthetic import Synthetic


class HandedTheSource(Component):
    """Base of the axes whose members are handed the real data: unless they say otherwise, they read examples."""

    def reads(self, recipe: Recipe) -> Reads:
        from .recipe import Reads

        return Reads(examples=True)


# -- what should agree, and how it is compared ----------------------------------------------------------------------


@dataclass
class Term:
    """One thing that should be small. The engine pushes it back before it asks for the next.

    losses: named 0-d tensors; their sum times `weight` is differentiated, and each is reported.
    role: glob over roles: what this term may update. cls: the class it is about; `Sum` merges terms alike in both.
    cotangents: (drawn tensor, its gradient) pairs; where given, they replace the backward pass of the losses.
    weight: 0-d tensor or number; 0 skips a term without a branch on the host.
    """

    losses: Mapping[str, Tensor]
    role: str = "*"
    cls: int | None = None
    weight: Tensor | float = 1.0
    cotangents: Sequence[tuple[Tensor, Tensor]] = ()


class Objective(HandedTheSource):
    """What should agree, or be small: the mathematics of a method, as terms."""

    axis: ClassVar[str] = "objective"

    def held(self, items: int) -> int:
        """Examples of a set of `items` whose passes are held for a gradient at once: steps that are unrolled times
        their batch; 0 where the largest batch of the recipe says it.
        """
        return 0

    @abstractmethod
    def __call__(self, step: Step) -> Iterable[Term]:
        """The terms of one outer step, lazily: with `commit="term"` the next term sees the last update."""


class Statistic(Component):
    """A mean over examples of something that a model says of each, and what is done to that mean afterwards."""

    axis: ClassVar[str] = "statistic"

    @abstractmethod
    def rows(self, model: nn.Module, batch: Batch, task: Task) -> Mapping[str, Tensor]:
        """Named parts, each (N, *shape): the statistic of each example alone."""

    @abstractmethod
    def mean(self, model: nn.Module, batch: Batch, task: Task, *, live: bool) -> Mapping[str, Tensor]:
        """`rows(...)` averaged over the examples, often faster. `live`: differentiable in the batch, else detached."""

    def means(
        self, model: nn.Module, batches: Sequence[Batch], task: Task, *, live: bool
    ) -> Sequence[Mapping[str, Tensor]]:
        """`mean` of each batch. Members answer in one pass where examples come with all of their neighbours anyway."""
        return [self.mean(model, batch, task, live=live) for batch in batches]

    def clipped_sums(
        self,
        model: nn.Module,
        views: Sequence[Batch],
        task: Task,
        groups: Tensor,
        count: int,
        bound: float,
        *,
        chunk: int = 32,
        dtype: torch.dtype = torch.float32,
    ) -> Mapping[str, Tensor]:
        """The rows of all examples, each clipped to L2 length `bound` and added up by group: parts (count, *shape),
        `dtype`, detached. All that private sources ask for.

        views: the same N examples under several warps, whose rows are averaged before they are clipped. The length is
        of all parts of an example together. groups: (N,) int64 in 0..count-1. At most `chunk` examples' rows are held
        at a time. Rows are added up in float64; what adds noise should ask for this `dtype`, because rounding many
        rows' sum to float32 moves it by more than `bound` times 1e-6. Where N is 0, zeros.

        A row that is not finite counts as zero: an error would tell that there is such an example. So errors are about
        the statistic, never about an example: `BadValue` for a bound, groups or views that do not fit, `NotBuilt` for a
        statistic without rows.
        """
        clipping.check_asked([len(view) for view in views], groups, count, bound, chunk)
        if not len(groups):
            rows = self._each(model, [_blank(views[0], task)], task)
            shapes = {part: row.shape[1:] for part, row in rows.items()}
            return {part: groups.new_zeros(count, *shape, dtype=dtype) for part, shape in shapes.items()}

        def rows_of(part: slice) -> Mapping[str, Tensor]:
            """Of the examples `part`, and of others that fill the last chunk up: compiled passes are of one size."""
            index = torch.arange(part.start, part.start + chunk, device=groups.device).remainder(len(groups))
            some = [Batch(task.form.take(view.x, index), view.y[index]) for view in views]
            rows = self._each(model, some, task)
            return {name: row[: part.stop - part.start] for name, row in rows.items()}

        sums = clipping.summed(rows_of, groups, count, bound, chunk)
        return {part: value.to(dtype) for part, value in sums.items()}

    def _each(self, model: nn.Module, views: Sequence[Batch], task: Task) -> Mapping[str, Tensor]:
        """The rows, averaged over the views."""
        try:
            return clipping.averaged([self.rows(model, view, task) for view in views])
        except NotBuilt:
            raise
        except NotImplementedError as error:
            problem = "says nothing of each example alone (it has no `rows`), so that no example can be clipped"
            raise NotBuilt("statistic", self.name, problem, "Use gradient or mean-feature.") from error

    def finish(self, mean: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Post-processing of a mean; identity by default."""
        return mean


def _blank(like: Batch, task: Task) -> Batch:
    """One example of zeros, on the device and of the types of `like`."""
    empty, blank = task.form.pack(like.x), task.form.pack(task.form.blank(task, 1))
    types = {key: empty[key].dtype if key in empty else value.dtype for key, value in blank.items()}
    x = {key: value.to(like.y.device, types[key]) for key, value in blank.items()}
    return Batch(task.form.unpack(x), like.y.new_zeros(1, *like.y.shape[1:]))


class Distance(Component):
    """How two statistics are compared. `over` says what of them it needs."""

    axis: ClassVar[str] = "distance"
    over: ClassVar[Literal["mean", "rows", "moments"]] = "mean"

    @abstractmethod
    def __call__(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """A 0-d tensor >= 0, 0 where the two are equal; differentiable in `synthetic`."""


@dataclass(frozen=True)
class Pair:
    """Which real examples meet which synthetic ones: an ask on each side, and the weight of their distance."""

    real: Any  # an Ask
    synthetic: Any  # an Ask
    weight: float = 1.0


class Pairing(HandedTheSource):
    """Which real examples meet which synthetic ones, and with what weight."""

    axis: ClassVar[str] = "pairing"

    @abstractmethod
    def pairs(self, step: Step) -> Iterable[Pair]:
        """The pairs of this step; each carries the warps of both sides (`step.augment`)."""


class Kernel(Component):
    """Similarity of examples for ridge regression; callable on blocks of rows."""

    axis: ClassVar[str] = "kernel"

    @abstractmethod
    def __call__(self, model: nn.Module | None, a: Batch, b: Batch) -> Tensor:
        """(len(a), len(b))."""

    def against(self, model: nn.Module | None, b: Batch) -> Callable[[Batch], Tensor]:
        """K(., b) as a function of a batch. Members keep what they make of b, where that is worth it."""
        return lambda a: self(model, a, b)


class Loss(Component):
    """A per-example loss of a callable model: calls `model(x)` only, never detaches x, works under `torch.func`.

    deterministic: does it draw nothing from `rng`? Only such losses are compiled, and computed in pieces.
    """

    axis: ClassVar[str] = "loss"
    deterministic: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, model: Callable[[Any], Tensor], batch: Batch, task: Task, rng: Rng) -> Tensor:
        """(N,); the caller takes the mean. `rng` is for losses that perturb (adversarial, curvature)."""


class TaskLoss(Loss):
    """The task's own loss of what the model says (cross-entropy for classes)."""

    deterministic: ClassVar[bool] = True

    def __call__(self, model: Callable[[Any], Tensor], batch: Batch, task: Task, rng: Rng) -> Tensor:
        return task.losses(model(batch.x), batch.y)


class OwnLoss(Loss):
    """A placeholder: the loss that the data brings (soft labels have their own), else the task's. `Fit` fills it in.

    So the loss of every training is a field that can be wrapped: `recipe.rewrite(Loss, Wrapper, field="loss")`.
    """

    deterministic: ClassVar[bool] = True

    def __call__(self, model: Callable[[Any], Tensor], batch: Batch, task: Task, rng: Rng) -> Tensor:
        return TaskLoss()(model, batch, task, rng)


# -- which models are asked, and how they are trained ---------------------------------------------------------------


class Net(Component):
    """An architecture. `build` reads torch's global generator; call `make`, which fences it."""

    axis: ClassVar[str] = "net"

    @abstractmethod
    def build(self, task: Task) -> nn.Module:
        """A freshly initialised module: `forward(x)` gives (N, task.outputs), `features(x)` the head's (N, D) input.

        Raises `BadValue` where the architecture does not fit the task's shape, naming the field to change.
        """

    def make(self, task: Task, rng: Rng, device: torch.device | str = "cpu") -> nn.Module:
        """`build`, seeded by `rng` and moved to `device`: equal keys give equal weights.

        The module's `architecture` is equal for networks that can share compiled passes.
        """
        from .rng import seeded

        with seeded(rng):
            module = self.build(task).to(device)
        module.architecture = digest([self.dump(), task.model_dump(mode="json")])  # type: ignore[assignment]
        return module

    def check(self, recipe: Recipe, task: Task) -> None:
        with torch.device("meta"):
            self.build(task)


@dataclass
class Learner:
    """What a pool lends for one outer step. `info`: 0-d facts (accuracy); `path`: expert snapshots t..t+M; `memo`: what
    was measured under this network, for pools that lend it again.
    """

    module: nn.Module | None
    age: int = 0
    info: Mapping[str, Tensor] = field(default_factory=dict)
    path: Sequence[Mapping[str, Tensor]] = ()
    memo: dict[str, Any] | None = None


class Learners(ABC):
    """The live side of a pool: lends one learner per outer step, and is part of every checkpoint."""

    @abstractmethod
    def next(self, index: int) -> Learner:
        """First finish the last learner's training on the set as it is now, then lend the learner of step `index`."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]: ...

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Pool(HandedTheSource):
    """Which network is asked now, and how networks are trained meanwhile."""

    axis: ClassVar[str] = "pool"

    def admit(self, run: Run) -> None:
        """Refuse, before anything is written, networks that are stored and do not fit this run."""

    @abstractmethod
    def learners(self, run: Run, syn: Synthetic) -> Learners:
        """Start lending. Nothing is trained after a learner's last turn."""


class Rule(Component):
    """A pure update rule: the same one steps synthetic sets and networks, and unrolls inside an objective."""

    axis: ClassVar[str] = "rule"

    @abstractmethod
    def init(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """State for these parameters, named `<parameter>/<slot>`; empty where the rule has none."""

    @abstractmethod
    def update(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: Mapping[str, Tensor], lr: float | Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """New parameters and new state; nothing is changed in place, and all of it is differentiable."""

    def move(
        self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], state: Mapping[str, Tensor], lr: float | Tensor
    ) -> dict[str, Tensor]:
        """One `update` in place, up to rounding: the new state, which may be the old one overwritten."""
        with torch.no_grad():
            updated, after = self.update(params, grads, state, lr)
            for name, p in params.items():
                p.copy_(updated[name])
        return after


class Schedule(Component):
    """A number that depends on progress in [0, 1), evaluated on the host. A plain number is a constant schedule."""

    axis: ClassVar[str] = "schedule"

    @abstractmethod
    def value(self, progress: float) -> float: ...

    def rate(self, progress: float, data: Sampler, at: int) -> float | Tensor:
        """The step size of training step `at` on `data`: the value, unless that is for the data to say."""
        return self.value(progress)

    def restarts(self, before: float, now: float) -> bool:
        """Does the rule's state start afresh between these two points? (vico re-creates its optimiser.)"""
        return False


class Learn(Component):
    """How a network becomes a predictor on a sampler: `Fit` trains it, `Ridge` solves for it.

    batch: examples of one step; None: all.
    """

    axis: ClassVar[str] = "learn"
    batch: int | None = Field(default=None, ge=1)

    @abstractmethod
    def length(self, data: Sampler) -> int:
        """Steps on `data`."""

    @abstractmethod
    def begin(self, module: nn.Module, rng: Rng) -> Loop:
        """The loop that takes these steps for one network."""

    def crowd(self, modules: Sequence[nn.Module], rngs: Sequence[Rng]) -> Loop:
        """One loop for many networks of one shape; asked for only where `together`."""
        raise NotBuilt("learn", self.name, "takes one network at a time", "Ask with together=False.")

    def together(self, module: nn.Module, data: Sampler) -> bool:
        """Can networks like this one be taken through these steps together, equal to one by one?"""
        return False

    def interval(self, data: Sampler, looks: int) -> int:
        """Steps between two looks at validation, of which there is one after every `looks` epochs, or steps."""
        return looks

    @abstractmethod
    def __call__(self, module: nn.Module, data: Sampler, rng: Rng) -> Callable[[Any], Tensor]:
        """Train on `data`; the returned predictor maps x to logits (N, task.outputs)."""


# -- what is stored -------------------------------------------------------------------------------------------------


class Parameterization(HandedTheSource):
    """What is stored, and how it decodes to examples."""

    axis: ClassVar[str] = "parameterization"

    @abstractmethod
    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        """Storage for one item per entry of `groups` (int64 classes), not filled: opens artifacts, prices runs."""


class Budget(HandedTheSource):
    """How many items may be stored, and of which classes."""

    axis: ClassVar[str] = "budget"

    @property
    def asked(self) -> dict[str, Any]:
        """The arguments of `condense.plan` that ask for it: `{"per_class": 10}`; empty where these can not."""
        return {}

    @abstractmethod
    def allot(self, source: Source) -> Tensor:
        """(M,) int64: the class of each item that may be stored, class-major."""

    def items(self, source: Source) -> int:
        """How many items `allot` will give: asked before anything of that size is made."""
        return len(self.allot(source))


class Init(HandedTheSource):
    """Where storage starts."""

    axis: ClassVar[str] = "init"

    @abstractmethod
    def __call__(self, run: Run, groups: Tensor) -> Batch:
        """One decoded example for each entry of `groups`, with its label: images and labels come together."""

    def admit(self, source: Source, groups: Tensor) -> None:
        """Refuse, before anything is computed, a source that has too few examples for these groups."""


class Labels(HandedTheSource):
    """The targets of the set, and the loss that networks are trained with on them."""

    axis: ClassVar[str] = "labels"

    @abstractmethod
    def blank(self, groups: Tensor, task: Task) -> Tensor:
        """Targets of the right shape before anything is known of the images; learned ones are a `nn.Parameter`."""

    def start(self, batch: Batch, run: Run) -> Tensor:
        """Targets for the images that Init chose."""
        return batch.y

    def encode(self, y: Tensor, task: Task) -> Tensor:
        """Real targets, coded as the set's are."""
        return y

    def loss(self) -> Loss | None:
        """None: the task's own."""
        return None

    def finish(self, syn: Synthetic, run: Run) -> None:
        """Relabel after the last step."""


class Selection(HandedTheSource):
    """Which of the sets that a run passes through is released: the best of those looked at, the first one included."""

    axis: ClassVar[str] = "selection"

    @abstractmethod
    def looks(self, done: int, steps: int) -> bool:
        """Is the set looked at once `done` of `steps` outer steps are taken?"""

    @abstractmethod
    def score(self, run: Run, syn: Synthetic) -> float:
        """How good the set is, as it would be released now; higher is better."""

    def admit(self, splits: Splits) -> None:
        """Refuse, before anything is computed, data on which sets cannot be scored."""


# -- what is done to both sides -------------------------------------------------------------------------------------


class Warp(ABC):
    """A drawn augmentation: a value that maps batches to batches. `state` and `Augment.replay` store it."""

    mixes: bool = False  # does one example's result depend on another's? (CutMix)

    @abstractmethod
    def __call__(self, batch: Batch) -> Batch: ...

    @abstractmethod
    def state(self) -> dict[str, Tensor]: ...


class Augment(Component):
    """What is done to both sides alike. One warp is drawn for both, so that they are siamese by themselves."""

    axis: ClassVar[str] = "augment"

    @abstractmethod
    def sample(self, rng: Rng, n: int | None = None, progress: float = 0.0) -> Warp:
        """n=None: one warp with the same parameters for every example (siamese); n: parameters of their own for n."""

    def replay(self, state: Mapping[str, Tensor]) -> Warp:
        """The warp whose `state()` this is."""
        from .errors import NotBuilt

        raise NotBuilt("augment", self.name, "does not store its warps", "Use an augmentation that defines `replay`.")


class Transform(nn.Module, ABC):
    """A fitted preprocessing: raw examples to network inputs and back. Its buffers are stored in the artifact."""

    origin: Literal["public", "data"] = "public"

    @abstractmethod
    def encode(self, raw: Tensor) -> Tensor:
        """uint8 (0..255) or float ([0, 1]) examples to float32 network inputs."""

    @abstractmethod
    def decode(self, x: Tensor) -> Tensor:
        """Network inputs to float examples; [0, 1] is the displayable range, not clamped."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Facts for the artifact: what it does and with which constants."""


class Preprocess(Component):
    """The scale of network inputs, and whitening: fitted on train, stored in the artifact, undone for pictures."""

    axis: ClassVar[str] = "preprocess"

    @abstractmethod
    def fit(self, train: Source, facts: Any) -> Transform:
        """Fitted on train; applied by the judge to test. `facts` carries the data set's published constants."""

    @abstractmethod
    def blank(self, task: Task) -> Transform:
        """The transform before it is fitted: what an artifact's stored buffers are loaded into."""


# -- made once, and judged ------------------------------------------------------------------------------------------


class Asset(HandedTheSource):
    """An expensive thing made once: addressed by content, resumable by itself, named in checkpoints by digest."""

    axis: ClassVar[str] = "asset"

    def address(self, run: Run) -> dict[str, Any]:
        """What of its settings, and of the run, it is found again by, besides source, preprocessing and versions."""
        return {"asset": self.dump(), "seed": run.plan.seed}

    def made(self, folder: Path) -> bool:
        """Does `folder` hold all of it? What is there and lacks units is handed to `make` again."""
        return folder.is_dir()

    @abstractmethod
    def make(self, run: Run, folder: Path) -> None:
        """Write it into `folder`, unit by unit; each unit is renamed into place when it is complete."""

    @abstractmethod
    def load(self, folder: Path, run: Run) -> Any: ...

    def work(self, run: Run) -> tuple[int, Callable[[int], object]] | None:
        """How many like pieces `make` consists of, and a function that does so many of them and stores nothing, for
        whoever wants to know how long it takes. None: not known.
        """
        return None


class Metric(Component):
    """What is measured of a network's scores on the split that judges."""

    axis: ClassVar[str] = "metric"

    @abstractmethod
    def __call__(self, scores: Tensor, y: Tensor, task: Task) -> Mapping[str, float]:
        """Named numbers from probabilities (N, K) and targets."""


class Attack(Component):
    """How a judge perturbs test examples; attacks see raw units only."""

    axis: ClassVar[str] = "attack"

    @abstractmethod
    def __call__(self, predict: Callable[[Tensor], Tensor], raw: Tensor, y: Tensor, task: Task, rng: Rng) -> Tensor:
        """Attacked raw examples inside the transform's bounds; `predict` maps raw examples to logits."""


class Evaluator(Component):
    """A judge of another kind than training and testing (membership inference, continual, federated ...)."""

    axis: ClassVar[str] = "evaluator"

    @abstractmethod
    def __call__(self, artifact: Any, folder: Path, progress: Callable[[str], None] | None = None) -> Any:
        """A `Report`."""


__all__ = [name for name, value in list(globals().items()) if getattr(value, "__module__", None) == __name__]
_ = Iterator
