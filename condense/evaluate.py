"""The judge: networks trained from scratch on a set by a protocol, then tested; each result is kept at once.

Network number i of seed s has the same weights, batches and warps whatever is judged: its key is (s, architecture, i).
Methods never see the test split; the judge reads it in whole ordered passes: after training, for the headline, and at
the points of the curve, by which nothing is selected. Where a protocol keeps the best weights, validation chooses them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from . import execution, files
from .axes import Learn, Net, Transform
from .checkpoint import private_folder
from .component import Component, digest
from .data import VALIDATE, Sampler, Source, Splits, TensorSampler, feed
from .errors import BadData, BadValue
from .fit import Loop
from .keeping import Best, interval
from .machine import fresh_peak, machine, peak_memory
from .memory import in_a_step, together
from .metrics import suspicions
from .plugins import software
from .protocol import Protocol
from .report import Kind, Report, Row
from .rng import Rng

if TYPE_CHECKING:
    from .artifact import Artifact

JUDGED = "judged.jsonl"
POINTS, SHARE = 10, 0.25  # of a curve that nobody asked for: at most so many, at most so much of the cost of training
CHUNK = {"cpu": 256}  # examples of the test split sent through at once; elsewhere 4096, shared by the networks


@dataclass(frozen=True)
class Candidate:
    """What is judged: a set as networks are trained on it, and the transform that its examples have been through.

    The splits that judge go through the same transform. data: examples in memory, or a source of real ones. kind,
    method: how rows call it. labels: the policy of its targets.
    """

    data: TensorSampler | Source
    transform: Transform
    method: str
    kind: Kind = "condensed"
    labels: str = "hard"

    @staticmethod
    def of(artifact: Artifact) -> Candidate:
        method = artifact.plan.method
        kind: Kind = "random" if method == "random" else "condensed"
        return Candidate(artifact.sampler(), artifact.transform, method, kind, artifact.recipe.labels.name)

    def about(self) -> dict[str, Any]:
        """The fields of a row that say what was judged."""
        return {
            "kind": self.kind,
            "method": self.method,
            "images": len(self.data),
            "labels": self.labels,
            **preprocessing(self.transform),
        }

    def to(self, device: torch.device) -> Candidate:
        """On `device`; a source stays where it was opened."""
        data = self.data
        if isinstance(data, Source):
            return self
        x, y = data.task.form.to(data.x, device), data.y.to(device)
        moved = TensorSampler(
            data.task,
            x,
            y,
            loss=data.loss,
            rate=lambda at: to(data.rate(at), device),
            turns=to(data.turns, device),
            initial=data.initial,
        )
        return replace(self, data=moved, transform=copy.deepcopy(self.transform).to(device))

    def digest(self, steps: int = 0) -> str:
        """Of every tensor (of a source: of its provenance), the classes in their order, the loss and the transform; and
        of what the set says of a training on it: step sizes for so many steps, batches, weights to start from.
        """
        data, loss = self.data, self.data.loss
        h = hashlib.sha256(repr((data.task.classes, loss and loss.dump(), self.transform.describe())).encode())
        examples = [] if isinstance(data, Source) else [*data.task.form.pack(data.x).values(), data.y]
        if isinstance(data, Source):
            h.update(digest(data.provenance()).encode())
        feed(h, (*examples, *self.transform.state_dict().values()))
        feed(h, (rate for at in range(steps) if (rate := data.rate(at)) is not None))
        feed(h, () if data.turns is None else (data.turns,))
        feed(h, () if data.initial is None else data.initial.weights.values())
        return h.hexdigest()[:16]


def to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)


def preprocessing(transform: Transform) -> dict[str, Any]:
    facts = transform.describe()
    return {"preprocessing": facts, "preprocessing_digest": digest(facts)}


@dataclass(frozen=True)
class Progress:
    """Where the judge is: networks done (fractions too) of how many, of which architecture; the last accuracy found."""

    net: str
    done: float
    of: int
    accuracy: float


class Trial(BaseModel):
    """One network, trained and tested: numbers at the end, (training step, headline metric) along the way."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    numbers: dict[str, float]
    curve: tuple[tuple[int, float], ...]
    warnings: dict[str, str]
    seconds: float
    passes: str
    peak_memory_bytes: int


def evaluate(
    judged: Artifact | Candidate,
    splits: Splits,
    protocol: Protocol,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    together: bool | None = None,
) -> Report:
    """One row for each of the protocol's architectures, over `protocol.repeats` networks.

    splits: the opened data set; its split `protocol.split` is read, and validation where that chooses the weights.
    folder: where finished networks are kept (`folder/.run/judged.jsonl`), so that after an interrupt the same call goes
    on; None: nowhere. together: train the networks of one architecture in step (equal to one by one; None: on a GPU);
    those that cannot be, and those whose weights are chosen, go one by one.
    Raises `BadValue` where a network does not fit, or there is no such split; `BadData` for other classes or sizes.
    """
    return begin(judged, splits, protocol, seed, device, folder, progress, together).report()


def begin(
    judged: Artifact | Candidate,
    splits: Splits,
    protocol: Protocol,
    seed: int,
    device: torch.device | str,
    folder: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    together: bool | None = None,
) -> Judge:
    """The judge of a set, with what it kept of earlier calls; nothing is trained yet. Arguments, errors: `evaluate`."""
    device = torch.device(device)
    candidate = (judged if isinstance(judged, Candidate) else Candidate.of(judged)).to(device)
    test = tested(splits, protocol, candidate)
    protocol.admit(candidate.data.task)
    chooser = splits.validation.encoded(candidate.transform) if protocol.keep == "best" and splits.validation else None
    read = [digest(source.provenance()) for source in (test, chooser) if source is not None]
    fit = protocol.fit(candidate.data)
    key = [protocol.rules_digest(), candidate.digest(fit.length(candidate.data)), *read, seed, hardware(device)]
    kept = Kept.within(folder, digest(key))
    together = device.type == "cuda" if together is None else together
    return Judge(candidate, test, chooser, protocol, fit, seed, kept, together, progress)


def held_out(splits: Splits, protocol: Protocol) -> Source:
    """The split that networks are tested on. Raises `BadValue` where it, or the one that weights are chosen by, is
    missing.
    """
    if protocol.keep == "best" and splits.validation is None:
        problem = "chooses weights on a validation split, which this data set does not have"
        remedy = f"{VALIDATE}, or judge the last weights: --set protocol.keep=last."
        raise BadValue("protocol.keep", protocol.keep, problem, remedy)
    found = splits.test if protocol.split == "test" else splits.validation
    if found is None:
        remedy = f"{VALIDATE}, or judge on test: --set protocol.split=test."
        raise BadValue("protocol.split", protocol.split, "is a split that this data set does not have", remedy)
    return found


def tested(splits: Splits, protocol: Protocol, candidate: Candidate) -> Source:
    """The split that networks are tested on, through the candidate's own transform, once classes and size agree."""
    test, task = held_out(splits, protocol).encoded(candidate.transform), candidate.data.task
    if test.task.classes != task.classes:
        remedy = "Name the classes of the set as the data set does, in the same order."
        problem = f"are not the classes of the data set in its order: {test.task.classes}"
        raise BadData("classes", task.classes, problem, remedy)
    if test.task.shape != task.shape:
        problem = f"is not the shape of the data set's examples, {test.task.shape}"
        raise BadData("shape", task.shape, problem, "Judge the set on the data that it was made from.")
    return test


def network_key(seed: int, net: Net, number: int) -> Rng:
    """The key of network `number`: `fold("make")` initialises it, `fold("train")` draws its batches and warps."""
    return Rng(seed).fold("judge", net.digest(), number)


def stops(protocol: Protocol, fit: Learn, data: Sampler, test: Source) -> list[int]:
    """The training steps after which networks are tested, the last step at the end; see `Protocol.record`."""
    total = fit.length(data)
    affordable = SHARE * 3 * total * in_a_step(fit.batch, data) / len(test)  # one step costs three passes
    unasked = 1 if protocol.keep == "best" else max(1, min(POINTS, int(affordable)))
    points = protocol.record or unasked
    if isinstance(points, tuple):
        return sorted({*(point for point in points if point < total), total})
    points = max(1, min(points, total))
    return sorted({total * (i + 1) // points for i in range(points)})


def answers(loop: Loop, test: Source, networks: int = 1) -> tuple[Tensor, Tensor]:
    """One ordered pass over the test examples: scores (networks, N, K) and targets (N,)."""
    chunk = max(1, CHUNK.get(test.device.type, 4096) // networks)
    scores, targets = [], []
    for batch in test.sweep(chunk):
        scores.append(test.task.scores(loop.predict(batch.x, test.task.form)))
        targets.append(batch.y)
    return torch.cat(scores, dim=1), torch.cat(targets)


def measured(protocol: Protocol, scores: Tensor, y: Tensor, test: Source) -> dict[str, float]:
    """Every metric of the protocol by name, from scores (N, K)."""
    return {name: value for metric in protocol.metrics for name, value in metric(scores, y, test.task).items()}


def headline(protocol: Protocol, scores: Tensor, y: Tensor, test: Source) -> float:
    return next(iter(protocol.metrics[0](scores, y, test.task).values()))


@dataclass(frozen=True)
class Judge:
    """One set under one protocol. kept: what is judged already. chooser: the split by which weights are chosen."""

    candidate: Candidate
    test: Source
    chooser: Source | None
    protocol: Protocol
    fit: Learn
    seed: int
    kept: Kept
    together: bool
    progress: Callable[[Progress], None] | None

    @property
    def done(self) -> bool:
        """Is every network judged already?"""
        missing = (self.kept.find(net, i) is None for net in self.protocol.nets for i in range(self.protocol.repeats))
        return not any(missing)

    def report(self) -> Report:
        """One row for each architecture."""
        return Report(rows=tuple(self.row(net) for net in self.protocol.nets))

    def row(self, net: Net) -> Row:
        """All networks of one architecture; what is kept already is not trained again."""
        fresh_peak(self.test.device)
        trials = self.trials(net)
        about = {**self.candidate.about(), "protocol": self.protocol.name, "rules": self.protocol.rules_digest()}
        return as_row(about, net, self.test, self.protocol.split, self.seed, trials)

    def trials(self, net: Net) -> list[Trial]:
        numbers = range(self.protocol.repeats)
        missing = [i for i in numbers if self.kept.find(net, i) is None]
        for group in self._groups(net, missing):
            results = self._judge(net, group)
            for number, result in zip(group, results, strict=True):
                self.kept.add(net, number, result)
            self._tell(net, group, 1, [next(iter(result.numbers.values())) for result in results])
        return [found for i in numbers if (found := self.kept.find(net, i)) is not None]

    def _groups(self, net: Net, numbers: Sequence[int]) -> list[list[int]]:
        """Which networks are trained together."""
        data, size = self.candidate.data, 1
        if self.together and len(numbers) > 1 and self.chooser is None:
            module = net.make(data.task, network_key(self.seed, net, 0), data.device)
            if self.fit.together(module, data):
                size = together(net, data, self.fit.batch)
        return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]

    def _judge(self, net: Net, numbers: list[int]) -> list[Trial]:
        data, keys = self.candidate.data, [network_key(self.seed, net, i) for i in numbers]
        started = time.monotonic()
        modules = [net.make(data.task, key.fold("make"), data.device) for key in keys]
        if data.initial is not None:
            for module in modules:
                data.initial.put(net, module)
        trains = [key.fold("train") for key in keys]
        loop = self.fit.begin(modules[0], trains[0]) if len(keys) == 1 else self.fit.crowd(modules, trains)
        best = None if self.chooser is None else Best(modules[0])
        at = stops(self.protocol, self.fit, data, self.test)
        curves: list[list[tuple[int, float]]] = [[] for _ in numbers]
        for step in at:
            self._advance(loop, step, at[-1], best)
            scores, y = answers(loop, self.test, len(numbers))
            for curve, of_one in zip(curves, scores, strict=True):
                curve.append((step, headline(self.protocol, of_one, y, self.test)))
            if step < at[-1]:  # the end is told once it is kept
                self._tell(net, numbers, step / at[-1], [curve[-1][1] for curve in curves])
        last = None
        if best is not None:  # then there is one network
            best.restore()
            last, (scores, y) = scores[0], answers(loop, self.test)
        cost = ((time.monotonic() - started) / len(numbers), loop.passes)
        return [trial(self.protocol, *pair, y, self.test, *cost, last) for pair in zip(scores, curves, strict=True)]

    def _advance(self, loop: Loop, to: int, total: int, best: Best | None) -> None:
        """Train up to step `to` of `total`; `best` sees the network on the way."""
        data = self.candidate.data
        every = max(1, total) if best is None else interval(self.protocol, self.fit, data)
        while loop.at < to:
            step = min(to, (loop.at // every + 1) * every)
            loop.advance(data, step - loop.at, of=total)
            if best is not None and self.chooser is not None and (step % every == 0 or step == total):
                scores, y = answers(loop, self.chooser)
                best.see(headline(self.protocol, scores[0], y, self.chooser))

    def _tell(self, net: Net, numbers: list[int], share: float, latest: Sequence[float]) -> None:
        if self.progress is not None:
            done = min(numbers) + share * len(numbers)
            self.progress(Progress(shown(net), done, self.protocol.repeats, sum(latest) / len(latest)))


def trial(
    protocol: Protocol,
    scores: Tensor,
    curve: Sequence[tuple[int, float]],
    y: Tensor,
    test: Source,
    seconds: float,
    passes: str,
    last: Tensor | None = None,
) -> Trial:
    """One network's result from its scores (N, K) on the test examples. last: those of its last weights, where others
    were chosen.
    """
    numbers = measured(protocol, scores, y, test)
    if last is not None:
        numbers |= {f"last-{name}": value for name, value in measured(protocol, last, y, test).items()}
    warnings = suspicions(scores, test.task.hard(y))
    return Trial(
        numbers=numbers,
        curve=tuple(curve),
        warnings=warnings,
        seconds=seconds,
        passes=passes,
        peak_memory_bytes=peak_memory(test.device),
    )


def as_row(about: Mapping[str, Any], net: Net, test: Source, split: str, seed: int, trials: Sequence[Trial]) -> Row:
    """The row of one architecture. about: the fields that say what was judged, and by which rules."""
    fields = {
        "net": shown(net),
        "network": net.dump(),
        "noun": test.task.form.noun,
        "classes": len(test.task.classes),
        "split": split,
        "tested": digest(test.provenance()),
        "seed": seed,
        "metric": next(iter(trials[0].numbers)),
        "accuracies": [next(iter(t.numbers.values())) for t in trials],
        "bests": [max(next(iter(t.numbers.values())), *(value for _, value in t.curve)) for t in trials],
        "curves": [t.curve for t in trials],
        "numbers": {name: [t.numbers[name] for t in trials] for name in trials[0].numbers},
        "seconds": round(sum(t.seconds for t in trials), 2),
        "peak_memory_bytes": max(t.peak_memory_bytes for t in trials),
        "hardware": {**machine(test.device), "passes": " and ".join(sorted({t.passes for t in trials}))},
        "versions": software(),
        "warnings": {name: text for t in trials for name, text in t.warnings.items()},
    }
    return Row.model_validate({**about, **fields})


def hardware(device: torch.device) -> dict[str, Any]:
    return {**machine(device), "passes": execution.current().kind}


def shown(net: Component) -> str:
    """The architecture in short: its name, and what differs from its defaults, of its parts too."""
    settings = {k: v for k, v in net.model_dump(mode="json", exclude_defaults=True).items() if k != "name"}
    settings = {k: shown(part) if isinstance(part := getattr(net, k), Component) else v for k, v in settings.items()}
    return f"{net.name}({', '.join(f'{k}={v}' for k, v in settings.items())})" if settings else net.name


class Kept:
    """Trials by architecture and number. With a path, each is on disk before the next begins; without, in memory only.

    One line of JSON for each; lines of another key (another set, protocol, seed or device) are left alone, and a line
    that was cut short is passed over.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key = path, key
        self.trials: dict[tuple[str, int], Trial] = {}
        if path is not None and path.exists():
            for line in files.read(path, files.JSON_LIMIT).decode(errors="replace").splitlines():
                self._read(line)

    @classmethod
    def within(cls, folder: Path | None, key: str) -> Self:
        """Those of an artifact, or of another folder; None: in memory only."""
        return cls(None if folder is None else private_folder(folder) / JUDGED, key)

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if entry["key"] == self.key:
                self.trials[entry["net"], entry["number"]] = Trial.model_validate(entry["trial"])
        except (ValueError, TypeError, KeyError, ValidationError):
            return

    def find(self, net: Net, number: int) -> Trial | None:
        return self.trials.get((net.digest(), number))

    def add(self, net: Net, number: int, trial: Trial) -> None:
        self.trials[net.digest(), number] = trial
        if self.path is None:
            return
        entry = {"key": self.key, "net": net.digest(), "number": number, "trial": trial.model_dump(mode="json")}
        with files.writing(self.path):
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            try:
                os.write(
                    handle, f"\n{json.dumps(entry)}\n".encode()
                )  # the first newline ends a line that was cut short
                os.fsync(handle)
            finally:
                os.close(handle)


__all__ = ["Candidate", "Progress", "Protocol", "Trial", "evaluate"]
