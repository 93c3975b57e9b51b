"""What an epoch of GCond costs beside a naive version of the same mathematics, split by part, in one run.

    python -m tests.benchmarks.graphs [--data cora] [--nodes 70] [--epochs 3] [--naive 2]

An epoch is 20 outer steps, each with the real gradient of every class, and 15 steps of Adam on the synthetic graph
after all but the last. Naive: every pair of nodes side by side through the generator, once for each class and once for
each inner step, and every class through the network by itself; `--naive` of its outer steps are taken and counted up to
an epoch. Propagated real features are kept by both. Processor seconds of one thread (other work on the machine
stretches these too, less than wall time). Peak memory: of the process after our epochs, before the naive steps.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import condense
from condense import api, engine, fit
from condense.machine import machine, peak_memory
from condense.parts.distances import row_cosine
from condense.running import Limits, Run

PARTS = ("decode", "matching", "inner", "rest")
TURNS, INNER = 20, 15
Seconds = dict[str, float]


class Clock:
    """Processor seconds by part; what is called within another part counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: Seconds = dict.fromkeys(PARTS, 0.0)
        self.parts, self.since = ["rest"], time.process_time()

    def turn(self) -> None:
        now = time.process_time()
        self.seconds[self.parts[-1]] += now - self.since
        self.since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.turn()
        self.parts.append(name)
        try:
            yield
        finally:
            self.turn()
            self.parts.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


# -- ours -----------------------------------------------------------------------------------------------------------


class Epochs:
    """An observer that notes the seconds so far at the end of every epoch."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.marks = clock, [dict(clock.seconds)]

    @condense.hookimpl
    def condense_stepped(self, run: Any, index: int, losses: Any) -> None:
        if (index + 1) % TURNS == 0:
            self.clock.turn()
            self.marks.append(dict(self.clock.seconds))


@contextmanager
def watched(clock: Clock, run: Run) -> Iterator[None]:
    """Calls of the engine, the pool and the set, each under its part."""
    places = (
        (type(engine.open_set(run)), "freeze", "decode"),
        (engine.Decoded, "__init__", "decode"),
        (engine.Decoded, "pull", "decode"),
        (engine, "outer_step", "matching"),
        (engine.Updates, "apply", "rest"),
        (fit.Training, "advance", "inner"),
    )
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, part in places:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def open_run(data: str, nodes: int, epochs: int, phase: int) -> Run:
    """A run of GCond's defaults that starts `phase` outer steps into its turns."""
    settled = api.plan("gcond", data=data, total=nodes, device="cpu", steps=epochs * TURNS, published=False)
    groups = tuple(g.with_(phase=(g.phase - phase) % g.every) for g in settled.recipe.outer.groups)
    recipe = settled.recipe.with_(outer=settled.recipe.outer.with_(groups=groups), selection=None)
    return api.open_run(settled.model_copy(update={"recipe": recipe}), None, (), Limits())


def ours(data: str, nodes: int, epochs: int, phase: int) -> list[Seconds]:
    """Each epoch after the first."""
    run, clock = open_run(data, nodes, epochs + 1, phase), Clock()
    seen = Epochs(clock)
    run.hooks.register(seen)
    with watched(clock, run):
        engine.condense(run)
    marks = seen.marks[1:]
    return [{part: b[part] - a[part] for part in PARTS} for a, b in itertools.pairwise(marks)]


# -- naive ----------------------------------------------------------------------------------------------------------


class Pairs(nn.Module):
    """The generator on all pairs of nodes, written out."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        first = (nn.Linear(2 * features, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.layers = nn.Sequential(
            *first, nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        pairs = torch.cat([x.repeat_interleave(n, 0), x.repeat(n, 1)], dim=1)
        scores = self.layers(pairs).view(n, n)
        adj = torch.sigmoid((scores + scores.T) / 2) * (1 - torch.eye(n)) + torch.eye(n)
        root = adj.sum(1).rsqrt()
        return root[:, None] * adj * root[None, :]


def naive(run: Run, steps: int) -> Seconds:
    """One epoch, estimated from `steps` outer steps."""
    clock, train = Clock(), run.splits.train
    batch = run.recipe.init(run, run.recipe.budget.allot(train))
    x = batch.x.graph.x[batch.x.nodes].clone().requires_grad_()
    real = batch.x.graph.power(2)
    generator, net = Pairs(x.shape[1], 128), nn.Linear(x.shape[1], run.task.outputs)
    outer = torch.optim.Adam([x, *generator.parameters()], lr=1e-4)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        outer.zero_grad()
        for c in range(run.task.groups):
            with clock.part("matching"):
                nodes = train.nodes[train.ids(c)[:256]]
                loss = F.cross_entropy(net(real[nodes]), torch.full((len(nodes),), c))
                target = torch.autograd.grad(loss, list(net.parameters()))
            with clock.part("decode"):
                adj = generator(x)
            with clock.part("matching"):
                own = batch.y == c
                loss = F.cross_entropy((adj @ (adj @ net(x)))[own], batch.y[own])
                grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
                gap = torch.stack([row_cosine(a, b) for a, b in zip(target, grads, strict=True)]).sum()
            with clock.part("decode"):
                gap.backward(inputs=[x, *generator.parameters()])
        outer.step()
        for _ in range(INNER):
            with clock.part("decode"), torch.no_grad():
                adj = generator(x)
            with clock.part("inner"):
                loss = F.cross_entropy(net(adj @ (adj @ x.detach())), batch.y)
                grads = torch.autograd.grad(loss, list(net.parameters()))
                for parameter, grad in zip(net.parameters(), grads, strict=True):
                    parameter.grad = grad
                optimiser.step()
    clock.turn()
    return {part: seconds * TURNS / steps for part, seconds in clock.seconds.items()}


# -- the table ------------------------------------------------------------------------------------------------------


def line(name: str, epochs: list[Seconds]) -> str:
    """The median of each part over epochs, and of their sums."""
    middle = [statistics.median(epoch[part] for epoch in epochs) for part in PARTS]
    total = statistics.median(sum(epoch.values()) for epoch in epochs)
    return f"{name:24}" + "".join(f"{value:10.3f}" for value in (*middle, total))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", default="cora")
    options.add_argument("--nodes", type=int, default=70)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--naive", type=int, default=2)
    asked = options.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")), "torch", torch.__version__)
    print(f"{'processor seconds':24}" + "".join(f"{part:>10}" for part in (*PARTS, "epoch")))
    for name, phase in (("structure moves", 0), ("features move", 10 * TURNS)):
        print(line(name, ours(asked.data, asked.nodes, asked.epochs, phase)), flush=True)
    print(f"peak memory {peak_memory(torch.device('cpu')) / 2**20:.0f} MiB")
    if asked.naive:
        print(line("naive", [naive(open_run(asked.data, asked.nodes, 1, 0), asked.naive)]))


if __name__ == "__main__":
    main()
