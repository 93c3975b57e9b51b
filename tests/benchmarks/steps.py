"""How long an outer step takes beside the bare network passes that it needs, in one run.

    python -m tests.benchmarks.steps [--method dm dc dsa] [--steps 5] [--device cpu] [--per-class 10] [--shape 3 32 32]

Bare passes: the same network in eager contiguous float32, nothing else: for DM the features of all real batches and a
forward and backward pass of the synthetic ones; for DC and DSA a forward and backward pass of the real batches, a
double backward of the synthetic ones, and the training of the network on the set between two steps. Steps and bare
passes alternate; compile time is what the first step takes longer than the others. Random images: speed does not look
at them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import condense
from condense import api, execution
from condense.engine import condense as take_steps
from condense.machine import flags, fresh_peak, machine, peak_memory
from condense.running import Limits

REAL = 256


class Clock:
    """An observer that times steps, and lets the bare passes run between them."""

    def __init__(self, device: torch.device, bare: Callable[[], None]) -> None:
        self.device, self.bare = device, bare
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.since = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @condense.hookimpl
    def condense_started(self, run: Any) -> None:
        self.since = self.now()

    @condense.hookimpl
    def condense_stepped(self, run: Any, index: int, losses: Any) -> None:
        self.ours.append(self.now() - self.since)
        start = self.now()
        self.bare()
        self.theirs.append(self.now() - start)
        self.since = self.now()


def bare_passes(run: Any, per_class: int, epochs: int) -> Callable[[], None]:
    """The passes of one outer step, through a plain module."""
    task, device = run.task, run.device
    net = run.recipe.pool.net.make(task, run.rng, device)
    params = list(net.parameters())
    real = torch.randn(REAL, *task.shape, device=device)
    syn = torch.randn(per_class * task.groups, *task.shape, device=device)
    labels = torch.arange(task.groups, device=device).repeat_interleave(per_class)

    def of_features() -> None:
        for c in range(task.groups):
            with torch.no_grad():
                goal = net.features(real).mean(0)
            x = syn[c * per_class : (c + 1) * per_class].clone().requires_grad_()
            torch.autograd.grad((net.features(x).mean(0) - goal).square().sum(), x)

    def of_gradients() -> None:
        for c in range(task.groups):
            y = torch.full((REAL,), c, device=device)
            torch.autograd.grad(F.cross_entropy(net(real), y), params)
            x = syn[c * per_class : (c + 1) * per_class].clone().requires_grad_()
            grads = torch.autograd.grad(F.cross_entropy(net(x), y[:per_class]), params, create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in grads), x)
        for _ in range(epochs):
            torch.autograd.grad(F.cross_entropy(net(syn), labels), params)

    return of_gradients if epochs else of_features


def measure(method: str, shape: tuple[int, ...], per_class: int, steps: int, device: str) -> dict[str, Any]:
    """Times in seconds of the steps after the first, and of the bare passes beside them."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (10 * (REAL + 44), *shape), dtype=torch.uint8, generator=g)
    y = torch.arange(10).repeat(REAL + 44)
    settings = {"execution.compile": True}
    whole = api.plan(method, data=(x, y), per_class=per_class, steps=steps + 1, device=device, settings=settings)
    run = api.open_run(whole, None, (), Limits())
    inner = getattr(run.recipe.pool, "inner", None)
    clock = Clock(run.device, bare_passes(run, per_class, inner.epochs if inner else 0))
    run.hooks.register(clock)
    fresh_peak(run.device)
    with execution.using(execution.passes(run.plan.execution)):
        take_steps(run)
    ours, theirs = clock.ours[1:], clock.theirs[1:]
    return {
        "execution": run.plan.execution.model_dump(),
        "ours": ours,
        "bare": theirs,
        "first": clock.ours[0],
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "peak": peak_memory(run.device),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--method", nargs="+", default=["dm", "dc", "dsa"])
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--per-class", type=int, default=10)
    options.add_argument("--shape", type=int, nargs=3, default=(3, 32, 32))
    asked = options.parse_args()
    fast = sorted(flags() & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"})
    print(machine(torch.device(asked.device)), "flags:", " ".join(fast), "torch", torch.__version__)
    for method in asked.method:
        found = measure(method, tuple(asked.shape), asked.per_class, asked.steps, asked.device)
        ours, bare = statistics.median(found["ours"]), statistics.median(found["bare"])
        print(
            f"{method}: step {ours:.2f} s, bare passes {bare:.2f} s, ratio {found['ratio']:.2f} "
            f"(median of {len(found['ours'])} pairs); first step {found['first']:.1f} s; "
            f"peak {found['peak'] / 2**20:.0f} MiB; {found['execution']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
