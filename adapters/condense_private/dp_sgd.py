"""DP-SGD, the yardstick: the judge's network trained on the private data themselves (Abadi et al., arXiv:1607.00133).

What condensation gives up is seen beside it: the same mechanism, the same door (`measure`) and the same epsilon, spent
on one network in place of a set that any network can be trained on. Every network is a release of its own: the epsilon
is that of each, and whoever publishes several adds theirs up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from condense import execution
from condense.axes import Net, Preprocess, Rule, Schedule
from condense.component import named
from condense.data import Ask, Source
from condense.errors import BadValue
from condense.fit import schedule
from condense.metrics import accuracy
from condense.parts.matching import Gradient
from condense.parts.rules import SGD
from condense.rng import Rng

from .private import Private, PrivateSource
from .refusals import refuse_batch_norm


@dataclass(frozen=True)
class Yardstick:
    """What networks trained with DP-SGD reach. accuracies: in [0, 1]. statements: of each network's ledger."""

    accuracies: tuple[float, ...]
    statements: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        return sum(self.accuracies) / len(self.accuracies)


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
    so ten times that of plain SGD at a clip of 0.1. folder: where ledgers are kept, one for each network (None: in
    memory). progress: told each network's number and accuracy. Settings chosen by the accuracy that they lead to on
    private data are not covered by epsilon: choose them on public data.
    Raises `BadValue` for numbers below 1, networks with batch norm, and what `Private` refuses.
    """
    for field, value in (("steps", steps), ("batch", batch), ("networks", networks)):
        if value < 1:
            raise BadValue(field, value, "is below 1", "Give a whole number from 1 on.")
    accuracies, statements = [], []
    for i in range(networks):
        splits = data.open(device)
        refuse_batch_norm(net, splits.task)
        transform = named(Preprocess, "normalise").fit(splits.train, splits.facts).to(torch.device(device))
        splits = splits.map(lambda source, by=transform: source.encoded(by))  # type: ignore[misc]
        source = splits.train
        if not isinstance(source, PrivateSource):
            raise BadValue("data", data.label, "opens to no private source", "Wrap it: Private(data=..., epsilon=8).")
        source.account.measures = steps
        source.begin(None if folder is None else folder / str(i))
        key = Rng(seed).fold("dp-sgd", i)
        module = net.make(splits.task, key, device)
        train(module, source, steps, batch, rule or SGD(momentum=0.9), schedule(lr))
        accuracies.append(tested(module, splits.test))
        statements.append(source.account_for()["privacy"])
        if progress is not None:
            progress(i, accuracies[-1])
    return Yardstick(tuple(accuracies), tuple(statements))


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


__all__ = ["Yardstick", "dp_sgd"]
