"""Exact tangent kernels beside neural-tangents, turn by turn in one run.

    python -m tests.benchmarks.kernels [--turns 3] [--images 4] [--rows 2000] [--dtype float32] [--device cpu]

Convolutional: three blocks of convolution, ReLU and average pooling on images of 3 x 32 x 32, `images` against as many
others. Fully connected: depth 3 on 3,072 numbers, `rows` against as many others. Processor seconds of one thread (other
work on the machine stretches these too, less than wall time), after a first call that compiles; ratios are of turns
beside each other. The largest relative difference of values is printed with them.

neural-tangents runs in another python: that in CONDENSE_NEURAL_TANGENTS, else /tmp/p-nt/env/bin/python
(tests/reference/kernels/make.py says how one is made). Where there is none, ours is timed alone.
On a GPU (--device cuda): ours alone, 100 x 100 pairs, in wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from condense.machine import machine
from condense.parts.kernels import Infinite, InfiniteConvNet, InfiniteMLP
from condense.task import Batch

OTHER = Path(os.environ.get("CONDENSE_NEURAL_TANGENTS", "/tmp/p-nt/env/bin/python"))
SIDE = Path(__file__).with_name("neural_tangents_side.py")


def kernel(what: str, dtype: str) -> Infinite:
    if what == "dense":
        return InfiniteMLP(depth=3, dtype=dtype)
    return InfiniteConvNet(depth=3, extra=False, dtype=dtype)


def examples(n: int, m: int, dtype: str, device: str, seed: int) -> tuple[Batch, Batch]:
    """The images that the other side draws."""
    state = np.random.RandomState(seed)
    drawn = (state.standard_normal((k, 3, 32, 32)).astype(dtype) for k in (n, m))
    a, b = (Batch(torch.from_numpy(x).to(device), torch.zeros(len(x), dtype=torch.int64)) for x in drawn)
    return a, b


def ours(what: str, n: int, m: int, dtype: str, device: str, clock: Callable[[], float]) -> tuple[float, torch.Tensor]:
    a, b = examples(n, m, dtype, device, 0)
    began = clock()
    values = kernel(what, dtype)(None, a, b)
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began, values


class Other:
    """neural-tangents in its own process."""

    def __init__(self) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([str(OTHER), str(SIDE)], **pipes)

    def ask(self, **question: Any) -> tuple[float, np.ndarray]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**question, "depth": 3, "seed": 0}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["seconds"], np.array(answer["values"])


def compare(what: str, n: int, dtype: str, turns: int, other: Other | None) -> None:
    mine, theirs, worst = [], [], 0.0
    for _ in range(turns):
        seconds, values = ours(what, n, n, dtype, "cpu", time.process_time)
        mine.append(seconds)
        if other is not None:
            seconds, expected = other.ask(what=what, n=n, m=n, dtype=dtype)
            theirs.append(seconds)
            found = values.flatten()[: len(expected)].double().numpy()
            worst = max(worst, float(np.abs(found / expected - 1).max()))
    per, unit = (n * n / 1e3, "ms a pair") if what == "conv" else (1.0, f"s for {n} x {n}")
    print(f"{what}, {dtype}: ours {statistics.median(mine) / per:.3g} {unit}", end="")
    if theirs:
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        print(
            f"; neural-tangents {statistics.median(theirs) / per:.3g}; {statistics.median(ratios):.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f}); values differ by {worst:.1e} at most",
            end="",
        )
    print(flush=True)


def on_gpu(device: str) -> None:
    for dtype in ("float32", "float64"):
        ours("conv", 2, 2, dtype, device, time.monotonic)
        for n in (10, 100, 100):
            seconds, _ = ours("conv", n, n, dtype, device, time.monotonic)
            print(f"conv, {dtype}, {n} x {n} pairs on {device}: {seconds:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device(given.device)), f"torch {torch.__version__}", flush=True)
    if given.device != "cpu":
        on_gpu(given.device)
        return
    other = Other() if OTHER.exists() else None
    print(f"neural-tangents: {OTHER}" if other else "no neural-tangents here", flush=True)
    compare("conv", given.images, given.dtype, given.turns, other)
    compare("dense", given.rows, given.dtype, given.turns, other)


if __name__ == "__main__":
    main()
