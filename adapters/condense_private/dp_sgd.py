"""DP-SGD, the yardstick: the judge's network trained on the private data themselves (Abadi et al., arXiv:1607.00133).

What condensation gives up is seen beside it: the same mechanism, the same door (`measure`) and the same epsilon, spent
on one network in place of a set that any network can be trained on. Every network is a release of its own: the epsilon
is that of each, and whoever publishes several adds theirs up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from condense import execution, files
from condense.axes import Net, Preprocess, Rule, Schedule
from condense.checkpoint import Lock
from condense.component import bad_value, named
from condense.data import Ask, Source
from condense.errors import BadValue
from condense.fit import schedule
from condense.machine import machine
from condense.metrics import accuracy
from condense.parts.matching import Gradient
from condense.parts.rules import SGD
from condense.plugins import software
from condense.rng import Rng

from . import noise as keyed
from .private import Private, PrivateSource
from .refusals import refuse_batch_norm

RESULT = "dp-sgd.json"


class Trained(BaseModel):
    """A network that was trained with DP-SGD. accuracy: on the test split, in [0, 1]. seconds: wall time.

    privacy: the statement of its own ledger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    accuracy: float
    seconds: float
    privacy: dict[str, Any]


class Yardstick(BaseModel):
    """What networks trained with DP-SGD reach, and how they were trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["dp-sgd"] = "dp-sgd"
    format: Literal[1] = 1
    settings: dict[str, Any]
    machine: dict[str, Any]
    versions: dict[str, str]
    networks: tuple[Trained, ...] = ()

    @property
    def accuracies(self) -> tuple[float, ...]:
        return tuple(network.accuracy for network in self.networks)


def dp_sgd(
    data: Private,
    net: Net,
    *,
    steps: int = 1000,
    batch: int = 256,
    rule: Rule | None = None,
    lr: float | Schedule = 1.0,
    networks: int = 5,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Yardstick:
    """Train `networks` networks with DP-SGD, each at the epsilon that `data` says, and test them on the test split.

    steps: noised gradients for each network, for which the noise is calibrated. batch: records expected in each.
    rule: by which they move the weights; None: SGD with momentum 0.9. lr: of a mean gradient no longer than the clip,
    so ten times that of plain SGD at a clip of 0.1. folder: where a ledger for each network and what is finished are
    kept: the same call goes on with the next network; one that was broken off repeats its own releases,
    which are not billed again (None: in memory). progress: told each network's number and accuracy. Settings chosen by
    the accuracy that they lead to on private data are not covered by epsilon: choose them on public data.
    Raises `BadValue` for numbers below 1, networks with batch norm, a folder of other settings, and what `Private`
    refuses; `InUse` where another process trains there.
    """
    for name, value in (("steps", steps), ("batch", batch), ("networks", networks)):
        if value < 1:
            raise BadValue(name, value, "is below 1", "Give a whole number from 1 on.")
    move, rates = rule or SGD(momentum=0.9), schedule(lr)
    numbers = {"steps": steps, "batch": batch, "seed": seed}
    parts = {"data": data, "net": net, "rule": move, "lr": rates}
    settings = {**numbers, **{name: part.dump() for name, part in parts.items()}}
    found = Yardstick(settings=settings, machine=machine(torch.device(device)), versions=software())
    first, _ = opened(data, net, device)
    first.account.measures = steps
    first.foresee(Gradient(), net.make(first.task, Rng(seed), device), [Ask(None, batch)], lambda n: "batch")
    with nullcontext() if folder is None else Lock(made(folder)):
        if folder is not None:
            found = gone_on(folder, found)
            for i in range(len(found.networks)):
                keyed.forget(folder / str(i))  # of one that was finished, and broken off before its key was gone
        for i in range(len(found.networks), networks):
            kept = None if folder is None else folder / str(i)
            start = time.monotonic()
            source, test = opened(data, net, device)
            source.account.measures = steps
            source.begin(kept)
            module = net.make(source.task, Rng(seed).fold("dp-sgd", i), device)
            train(module, source, steps, batch, move, rates)
            privacy = source.account_for()["privacy"]
            trained = Trained(accuracy=tested(module, test), seconds=time.monotonic() - start, privacy=privacy)
            found = found.model_copy(update={"networks": (*found.networks, trained)})
            if folder is not None:
                files.write_json(folder / RESULT, found.model_dump(mode="json"))
            source.finish(kept)
            if progress is not None:
                progress(i, trained.accuracy)
    return found


def made(folder: Path) -> Path:
    """The folder, made where there is none, for nobody else to read."""
    with files.writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def gone_on(folder: Path, asked: Yardstick) -> Yardstick:
    """What `folder` holds of the same settings, or `asked` where it holds nothing yet.

    Raises `BadValue` where it is of other settings, `Damaged` where it is none of ours.
    """
    if not (folder / RESULT).exists():
        files.write_json(folder / RESULT, asked.model_dump(mode="json"))  # before a first network that is broken off
        return asked
    try:
        known = Yardstick.model_validate(files.read_json(folder / RESULT))
    except ValidationError as error:
        raise bad_value(error, str(folder / RESULT)) from None
    wanted = asked.model_dump(mode="json")["settings"]
    differ = [name for name, value in wanted.items() if known.settings.get(name) != value]
    if differ:
        problem = f"holds networks that were trained otherwise: {', '.join(differ)}"
        raise BadValue("out", str(folder), problem, "Give the same settings, or another folder.")
    return known


def opened(data: Private, net: Net, device: torch.device | str) -> tuple[PrivateSource, Source]:
    """The private source, and the test split, both in the public scale. Raises `BadValue` for a net with batch norm."""
    splits = data.open(device)
    refuse_batch_norm(net, splits.task)
    transform = named(Preprocess, "normalise").fit(splits.train, splits.facts).to(torch.device(device))
    source = splits.train.encoded(transform)
    if not isinstance(source, PrivateSource):
        raise BadValue("data", data.label, "opens to no private source", "Wrap it: Private(data=..., epsilon=8).")
    return source, splits.test.encoded(transform)


def train(module: nn.Module, source: Source, steps: int, batch: int, rule: Rule, rates: Schedule) -> None:
    """`steps` updates by what `source` answers of the gradient of all classes together."""
    params: dict[str, Tensor] = dict(module.named_parameters())
    state = rule.init(params)
    module.train()
    for i in range(steps):
        (gradient,) = source.measure(Gradient(), module, [Ask(None, batch)], Rng(0))
        state = rule.move(params, gradient, state, rates.value(i / steps))


def tested(module: nn.Module, test: Source) -> float:
    """The accuracy on all test examples, in [0, 1]."""
    module.eval()
    rows = [(execution.current().logits(module, part.x, test.task.form), part.y) for part in test.sweep(1024)]
    return accuracy(torch.cat([scores for scores, _ in rows]), test.task.hard(torch.cat([y for _, y in rows])))


__all__ = ["Trained", "Yardstick", "dp_sgd"]
