"""Experts: networks trained on all of the data, of which every epoch is kept, and the pool that lends stretches of it.

A folder of experts holds `index.json` (what they are of, and the SHA-256 of every snapshot) and a safetensors file for
each (see condense.snapshots). Files that the index does not name are never read: of trainings that are not finished.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, overload

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from condense import files, store
from condense.axes import Asset, Learner, Learners, Net, Pool, Schedule
from condense.checkpoint import Lock
from condense.component import Component, digest
from condense.errors import BadData, BadValue, Damaged, Diverged, shown
from condense.fit import Crowd, Fit, Loop, schedule
from condense.memory import together
from condense.program import hint
from condense.recipe import Reads, Recipe
from condense.rng import Rng
from condense.running import Run
from condense.snapshots import Dtype, Reader, Writer
from condense.synthetic import Synthetic
from condense.task import Task

from .flat import Flat, FlatTraining

INDEX, FORMAT = "index.json", 1
TRAIN = "experts train"


class About(BaseModel):
    """What experts are of: a run may use them where all of it is the run's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    network: dict[str, Any]
    classes: tuple[str, ...]
    source: str
    preprocessing: dict[str, Any]

    @classmethod
    def of(cls, run: Run, net: Net) -> Self:
        facts = json.loads(json.dumps({"preprocess": run.recipe.preprocess.dump(), **run.transform.describe()}))
        return cls(network=net.dump(), classes=run.task.classes, source=run.fingerprint, preprocessing=facts)

    def refuse(self, wanted: About, folder: Path) -> None:
        """Raises `BadValue`, naming the first thing in which the experts in `folder` are not what is `wanted`."""
        words = {
            "network": "of another network",
            "classes": "of other classes, or of these in another order",
            "preprocessing": "of another preprocessing",
            "source": "of other training data",
        }
        for key, problem in words.items():
            own, asked = getattr(self, key), getattr(wanted, key)
            if own != asked:
                remedy = f"The run's is {shown(asked)}. Train experts for it: {hint(TRAIN, 'NAME ...')}."
                raise BadValue(f"experts in {folder}", own, f"are {problem} than the run's", remedy)


class Expert(BaseModel):
    """One file: its name, and the SHA-256 of each snapshot."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: str = Field(pattern=r"^expert-\d+\.safetensors$")
    snapshots: tuple[str, ...]


class Index(BaseModel):
    """What a folder of experts holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    about: About
    fit: dict[str, Any]
    flat: dict[str, Any] | None
    seed: int
    dtype: Dtype
    epochs: int
    experts: tuple[Expert, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `Damaged` where it is none, or is newer than this reader."""
        data = files.read_json(folder / INDEX)
        store.reader({FORMAT: None}, data.get("format") if isinstance(data, dict) else None, folder / INDEX)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            path, found = str(folder / INDEX), shown(error.errors(include_url=False)[0]["msg"])
            raise Damaged(path, found, "is no index of experts", files.REMEDY) from None

    def readers(self, folder: Path, count: int) -> list[Reader]:
        """The first `count` experts, or as many as there are. Raises `Damaged` for one that lacks snapshots."""
        for expert in self.experts[:count]:
            if len(expert.snapshots) != self.epochs + 1:
                problem = f"does not list {self.epochs + 1} snapshots of {expert.file}"
                raise Damaged(str(folder / INDEX), len(expert.snapshots), problem, files.REMEDY)
        return [Reader(folder / expert.file, expert.snapshots) for expert in self.experts[:count]]


class Trajectories(Asset):
    """`count` experts: networks trained on the training split by `fit`, kept at the start and after each epoch.

    They are found again by source, preprocessing, network, fit, `seed` (their own, not the run's) and `dtype`; a larger
    `count` trains what is missing. An interrupted training goes on after the last epoch that is on disk. On a GPU they
    are trained many at once, which gives what each gives alone, up to rounding. dtype: of storage; bfloat16 halves it.
    Parameters are kept, and no buffers (batch norm's statistics). flat: look for flat minima, one expert after the
    other. Source: MTT (arXiv:2203.11932), `buffer.py`; flat ones: FTD (arXiv:2211.11004).
    """

    net: Net
    fit: Fit
    count: int = Field(default=100, ge=1)
    seed: int = 0
    dtype: Dtype = "float32"
    flat: Flat | None = None

    @field_validator("fit")
    @classmethod
    def _in_epochs(cls, fit: Fit) -> Fit:
        if fit.epochs is None:
            raise ValueError("experts are kept after each epoch: give their fit `epochs`, not `steps`")
        return fit

    @property
    def epochs(self) -> int:
        return self.fit.epochs or 0

    def address(self, run: Run) -> dict[str, Any]:
        own = {key: value for key, value in self.dump().items() if key != "count"}
        return {"asset": own, "preprocessing": About.of(run, self.net).preprocessing}

    def made(self, folder: Path) -> bool:
        return (folder / INDEX).is_file() and len(Index.read(folder).experts) >= self.count

    def make(self, run: Run, folder: Path) -> None:
        """Raises `BadValue` for a folder of other experts, `Paused` between two epochs, `Diverged`, `InUse`."""
        folder.mkdir(parents=True, exist_ok=True)
        about = About.of(run, self.net)
        with Lock(folder):
            files.sweep(folder)
            flat = None if self.flat is None else self.flat.model_dump()
            how = {"fit": self.fit.dump(), "flat": flat, "seed": self.seed, "dtype": self.dtype}
            index = Index.model_validate({"about": about, "epochs": self.epochs, **how})
            if (folder / INDEX).is_file():
                index = self._goes_on(Index.read(folder), index, folder)
            else:  # from now on a training that was broken off is gone on with by its like only
                files.write_json(folder / INDEX, index.model_dump(mode="json"))
            for group in self._groups(run, range(len(index.experts), self.count)):
                found = tuple(self._train(run, folder, group))
                index = index.model_copy(update={"experts": (*index.experts, *found)})
                files.write_json(folder / INDEX, index.model_dump(mode="json"))
                Kept.sweep(folder)

    def load(self, folder: Path, run: Run) -> list[Reader]:
        """Raises `BadValue` where they are not of the run's network, classes, data or preprocessing."""
        index = Index.read(folder)
        index.about.refuse(About.of(run, self.net), folder)
        return index.readers(folder, self.count)

    def _goes_on(self, found: Index, wanted: Index, folder: Path) -> Index:
        """What was found, if more of the same can stand beside it."""
        found.about.refuse(wanted.about, folder)
        for key in ("fit", "flat", "seed", "dtype"):
            own, asked = getattr(found, key), getattr(wanted, key)
            if own != asked:
                remedy = "Give another folder with --out."
                raise BadValue(f"experts in {folder}", own, f"were trained with another {key}: {shown(asked)}", remedy)
        return found

    def _groups(self, run: Run, members: range) -> list[range]:
        """Which experts are trained in step."""
        size, data = 1, run.splits.train
        if run.device.type == "cuda" and len(members) > 1 and self.flat is None:
            module = self.net.make(run.task, Rng(self.seed).fold("expert", 0), run.device)
            if Crowd.fits(self.fit, module, data):
                size = together(self.net, data, self.fit.batch)
        return [members[i : i + size] for i in range(0, len(members), size)]

    def _train(self, run: Run, folder: Path, members: range) -> list[Expert]:
        loop, modules = self._begin(run, members)
        names = [f"expert-{member:04d}.safetensors" for member in members]
        weights = [dict(module.named_parameters()) for module in modules]
        writers = [
            Writer(folder / name, own, self.epochs + 1, self.dtype) for name, own in zip(names, weights, strict=True)
        ]
        kept = Kept(folder / f"training-{members[0]:04d}-{len(members)}.safetensors", loop, weights)
        Kept.sweep(folder, but=kept.path)  # of other groups: what they wrote is written over here
        sums = kept.taken_up() or [[writer.put(0, own)] for writer, own in zip(writers, weights, strict=True)]
        data, chunks = run.splits.train, run.splits.train.chunks(self.fit.batch)
        while loop.at < self.epochs * chunks:
            loss = loop.advance(data, chunks, of=self.epochs * chunks)
            epoch = loop.at // chunks
            self._finite(members, weights, epoch)
            for own, writer, of_one in zip(sums, writers, weights, strict=True):
                own.append(writer.put(epoch, of_one))
            kept.save(sums)
            self._tell(run, folder, members, epoch, loss)
        for writer in writers:
            writer.finish()
        return [Expert(file=name, snapshots=tuple(own)) for name, own in zip(names, sums, strict=True)]

    def work(self, run: Run) -> tuple[int, Callable[[int], object]]:
        """Training steps, of experts that are trained together one for all."""
        data, groups = run.splits.train, self._groups(run, range(self.count))
        loop, _ = self._begin(run, groups[0])
        each = self.fit.length(data)
        return each * len(groups), lambda steps: loop.advance(data, steps, of=each)

    def _begin(self, run: Run, members: range) -> tuple[Loop, list[nn.Module]]:
        rngs = [Rng(self.seed).fold("expert", member) for member in members]
        modules = [self.net.make(run.task, rng, run.device) for rng in rngs]
        if len(modules) > 1:
            return Crowd(self.fit, modules, rngs), modules
        if self.flat is not None:
            return FlatTraining(self.fit, modules[0], rngs[0], self.flat), modules
        return self.fit.begin(modules[0], rngs[0]), modules

    def _finite(self, members: range, weights: Sequence[Mapping[str, Tensor]], epoch: int) -> None:
        for member, own in zip(members, weights, strict=True):
            if not all(bool(torch.isfinite(p).all()) for p in own.values()):
                problem = f"expert {member} is not finite after epoch {epoch}"
                raise Diverged("experts", "NaN or infinity", problem, "Lower the `lr` of the experts' fit.")

    def _tell(self, run: Run, folder: Path, members: range, epoch: int, loss: Tensor) -> None:
        which = f"expert {members[0] + 1}" if len(members) == 1 else f"experts {members[0] + 1} to {members[-1] + 1}"
        text = f"{which} of {self.count}, epoch {epoch} of {self.epochs}, loss {float(loss.mean()):.3g}"
        run.hooks.hook.condense_made(run=run, text=text)
        if epoch < self.epochs or members[-1] + 1 < self.count:
            run.pause_between(text, f"The same call again goes on after this epoch. It lies in {folder}.")


class Kept:
    """Where a training stands, in a file of its own, so that it can go on after the last epoch that is on disk."""

    def __init__(self, path: Path, loop: Loop, weights: Sequence[Mapping[str, Tensor]]) -> None:
        self.path, self.loop, self.weights = path, loop, weights

    @staticmethod
    def sweep(folder: Path, but: Path | None = None) -> None:
        """Forget the trainings that were broken off in this folder."""
        for path in folder.glob("training-*.safetensors"):
            if path != but:
                path.unlink()

    def save(self, sums: list[list[str]]) -> None:
        own = [{name: p.detach() for name, p in each.items()} for each in self.weights]
        tree = {"at": self.loop.at, "rule": self.loop.state, "weights": own, "sums": sums}
        store.save(self.path, tree, "training")

    def taken_up(self) -> list[list[str]] | None:
        """The checksums of the snapshots that are written; None where none is."""
        if not self.path.is_file():
            return None
        tree = store.load(self.path, "training")
        for own, found in zip(self.weights, tree["weights"], strict=True):
            for name, p in own.items():
                p.data.copy_(found[name])
        device = next(iter(self.weights[0].values())).device
        self.loop.at = tree["at"]
        self.loop.state = {slot: value.to(device) for slot, value in tree["rule"].items()}
        sums: list[list[str]] = tree["sums"]
        return sums


# -- the pool -------------------------------------------------------------------------------------------------------


class Experts(Pool):
    """Stretches of experts' trainings: each step lends `span` epochs of one, from a random epoch of a window on.

    The start is drawn evenly from `first`..`below` - 1, where `below` may be a schedule (rounded down); experts come in
    a new random order each time round. The learner's `path` are the snapshots, start and end included; its module is a
    network of that kind in training mode, whose own weights mean nothing. Experts are trained where the cache has none;
    folder: where experts lie instead, of which up to `count` are used, however they were trained: their fit, seed and
    checksums are noted in the artifact's provenance, and a run goes on with no others.
    """

    experts: Trajectories
    folder: str | None = None
    first: int = Field(default=0, ge=0)
    below: int | Schedule = 20
    span: int = Field(default=2, ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads(examples=True)

    def check(self, recipe: Recipe, task: Task) -> None:
        if self.folder is None:
            self._check_window(self.experts.epochs)

    def admit(self, run: Run) -> None:
        if self.folder is not None:
            self._opened(run)

    def readers(self, run: Run) -> list[Reader]:
        """The experts, trained now where there are none."""
        if self.folder is not None:
            return self._opened(run)
        found: list[Reader] = run.assets.get(self.experts)
        return found

    def learners(self, run: Run, syn: Synthetic) -> Learners:
        readers = self.readers(run)
        if self.folder is not None:
            facts = Index.read(Path(self.folder)).model_dump(mode="json", include={"fit", "flat", "seed", "dtype"})
            run.note("experts", {"folder": self.folder, "count": len(readers), **facts, "sha256": seal(readers)})
        return _Stretches(self, run, readers)

    def window(self, progress: float) -> int:
        """The number of epochs that may be the start, at least one."""
        return max(1, int(schedule(self.below).value(progress)) - self.first)

    def _check_window(self, epochs: int) -> None:
        if min(schedule(self.below).value(progress) for progress in (0.0, 1.0)) < self.first + 1:
            problem = f"leaves no epoch to start from: `first` is {self.first}"
            raise BadValue("pool.below", self.below, problem, "Raise it, or lower `first`.")
        last = self.first + max(self.window(0.0), self.window(1.0)) - 1 + self.span
        if last > epochs:
            kept = "trained" if self.folder is None else "stored"
            problem = f"leads to epoch {last}, and {epochs} epochs of each expert are {kept}"
            raise BadValue("pool.below", self.below, problem, "Lower it, or `span`, or train experts for longer.")

    def _opened(self, run: Run) -> list[Reader]:
        folder = Path(str(self.folder))
        readers = self.experts.load(folder, run) if (folder / INDEX).is_file() else []
        if not readers:
            remedy = f"Train them there: {hint(TRAIN, '... --out DIR')}."
            raise BadValue("pool.folder", str(folder), "holds no experts", remedy)
        self._check_window(len(readers[0]) - 1)
        return readers


def check_pool(part: Component, recipe: Recipe) -> None:
    """Refuse a recipe whose pool has no experts that a part could ask. Raises `BadValue`."""
    if not isinstance(recipe.pool, Experts):
        problem = f"asks the experts of the pool, and {recipe.pool.name} has none"
        raise BadValue(part.axis, part.name, problem, "Use the pool `experts`, or another method.")


class _Stretches(Learners):
    def __init__(self, pool: Experts, run: Run, readers: Sequence[Reader]) -> None:
        self.pool, self.run, self.readers = pool, run, readers
        self.module = pool.experts.net.make(run.task, run.rng.fold("pool"), run.device)
        self.round, self.order = -1, list(range(len(readers)))

    def next(self, index: int) -> Learner:
        now, turn = divmod(index, len(self.readers))
        if now != self.round:
            self.round, self.order = now, self.run.rng.fold("pool", "order", now).order(len(self.readers))
        progress = index / max(1, self.run.recipe.outer.steps)
        choices = self.pool.window(progress)
        start = self.pool.first + self.run.rng.fold("pool", "start", index).choice(choices)
        self.module.train()
        reader = self.readers[self.order[turn]]
        return Learner(
            self.module, age=start, path=Stretch(reader, self.module, range(start, start + self.pool.span + 1))
        )

    def state_dict(self) -> dict[str, Any]:
        return {"experts": len(self.readers), "sha256": seal(self.readers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Experts of a folder must be those that the run began with; the cache finds its own by what they are."""
        remedy = "Restore them, or start a new run with --out."
        if state["experts"] != len(self.readers):
            problem = f"were {state['experts']} when the run began, and their order hangs on that"
            raise BadData("experts", len(self.readers), problem, remedy)
        if self.pool.folder is not None and state.get("sha256", seal(self.readers)) != seal(self.readers):
            problem = "holds other experts than those that the run began with"
            raise BadData("pool.folder", self.pool.folder, problem, remedy)


def seal(readers: Sequence[Reader]) -> str:
    """What tells these experts from any others: a digest of the checksums of all of their snapshots."""
    return digest([list(reader.sums) for reader in readers])


class Stretch(Sequence[Mapping[str, Tensor]]):
    """Snapshots of one expert, each read when it is asked for: copies that may be changed."""

    def __init__(self, reader: Reader, module: nn.Module, steps: range) -> None:
        self.reader, self.module, self.steps = reader, module, steps

    def __len__(self) -> int:
        return len(self.steps)

    @overload
    def __getitem__(self, at: int) -> Mapping[str, Tensor]: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Mapping[str, Tensor]]: ...

    def __getitem__(self, at: int | slice) -> Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]:
        if isinstance(at, slice):
            return Stretch(self.reader, self.module, self.steps[at])
        like = {name: p.detach() for name, p in self.module.named_parameters()}
        return self.reader.get(self.steps[at], like)
