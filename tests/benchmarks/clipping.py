"""Per-example clipped gradient sums of ConvNet-3 beside opacus, in one run.

    python -m tests.benchmarks.clipping [--repeats 5] [--examples 256] [--groups 1] [--no-compile] [--no-peaks]

ConvNet-3, width 128, instance norm, images of 3 x 32 x 32, float32, one thread. Turn by turn: ours, eager and compiled;
opacus' `GradSampleModule` (hooks, each example's gradient kept) with its optimizer's clipping, and its ghost clipping
(norms first, then a second backward pass of the weighted losses). Theirs are of one group, in torch's own layers.
Processor seconds (other work on the machine stretches these too, less than wall time); ratios are of turns beside each
other, mean and deviation. Then the largest error of an example's whole gradient norm beside a micro-batch loop, and the
peak memory of a process that does nothing else, by chunk, beside that of one that has only loaded everything.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from condense import execution
from condense.clipping import lengths
from condense.machine import machine
from condense.parts.matching import Gradient
from condense.rng import Rng
from condense.task import Batch, Task
from condense_image.nets.conv_net import ConvNet

BOUND = 0.1
TASK = Task(classes=tuple("abcdefghij"), shape=(3, 32, 32))
COMPILED = execution.Compiled(half=False)


def examples(n: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    return Batch(torch.randn(n, *TASK.shape, generator=g), torch.arange(n) % 10)


def ours(net: nn.Module, batch: Batch, groups: int, passes: execution.Passes, chunk: int = 32) -> dict[str, Tensor]:
    with execution.using(passes):
        of = torch.arange(len(batch)) % groups
        return dict(Gradient().clipped_sums(net, [batch], TASK, of, groups, BOUND, chunk=chunk))


def plain(net: nn.Module) -> nn.Module:
    """The same weights in torch's own layers, which opacus has rules for; nothing in place, which its hooks refuse."""
    made: list[nn.Module] = []
    for layer in net.trunk:  # type: ignore[union-attr]
        if isinstance(layer, nn.Conv2d):
            copy = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding)  # type: ignore[arg-type]
            copy.load_state_dict(layer.state_dict())
            made.append(copy)
        elif isinstance(layer, nn.GroupNorm):
            norm = nn.GroupNorm(layer.num_groups, layer.num_channels)
            norm.load_state_dict(layer.state_dict())
            made.append(norm)
        else:
            made.append(nn.ReLU() if isinstance(layer, nn.ReLU) else nn.AvgPool2d(2))
    head = nn.Linear(net.head.in_features, net.head.out_features)  # type: ignore[union-attr, arg-type]
    head.load_state_dict(net.head.state_dict())  # type: ignore[union-attr]
    return nn.Sequential(*made, nn.Flatten(), head)


def hooks(net: nn.Module, batch: Batch) -> Callable[[], list[Tensor]]:
    """What opacus' DPOptimizer does with the `grad_sample` of its GradSampleModule."""
    from opacus import GradSampleModule

    module = GradSampleModule(plain(net), loss_reduction="sum")

    def run() -> list[Tensor]:
        for p in module.parameters():
            p.grad = p.grad_sample = None  # type: ignore[attr-defined]
        F.cross_entropy(module(batch.x), batch.y, reduction="sum").backward()
        rows = [p.grad_sample for p in module.parameters()]  # type: ignore[attr-defined]
        norms = torch.stack([row.flatten(1).norm(2, dim=-1) for row in rows], dim=1).norm(2, dim=1)
        factor = (BOUND / (norms + 1e-6)).clamp(max=1.0)
        return [torch.einsum("i,i...->...", factor, row) for row in rows]

    return run


def ghost(net: nn.Module, batch: Batch) -> Callable[[], list[Tensor]]:
    """opacus' fast gradient clipping: no example's gradient is kept, and the backward pass is taken twice."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Ghost

    module = Ghost(plain(net), loss_reduction="sum", max_grad_norm=BOUND, use_ghost_clipping=True)

    def run() -> list[Tensor]:
        module.zero_grad(set_to_none=True)
        module.enable_hooks()
        losses = F.cross_entropy(module(batch.x), batch.y, reduction="none")
        losses.sum().backward(retain_graph=True)
        factor = module.get_clipping_coef()
        for p in module.parameters():
            p.grad = None
        module.disable_hooks()
        (factor * losses).sum().backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    return run


def norm_error(net: nn.Module, passes: execution.Passes, n: int = 32) -> float:
    """The largest relative error of an example's whole gradient norm beside a loop over micro-batches of one."""
    batch = examples(n)
    loop = []
    for i in range(n):
        loss = F.cross_entropy(net(batch.x[i : i + 1]), batch.y[i : i + 1])
        grads = torch.autograd.grad(loss, list(net.parameters()))
        loop.append(torch.stack([grad.double().square().sum() for grad in grads]).sum().sqrt())
    norms = torch.stack(loop)
    with execution.using(passes):
        each = Gradient().clipped_sums(net, [batch], TASK, torch.arange(n), n, float("inf"))
    return float(((lengths(each) - norms) / norms).abs().max())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--examples", type=int, default=256)
    options.add_argument("--groups", type=int, default=1)
    options.add_argument("--no-compile", action="store_true")
    options.add_argument("--no-peaks", action="store_true")
    options.add_argument("--peak", type=int, default=None, help=argparse.SUPPRESS)
    asked = options.parse_args()
    torch.set_num_threads(1)
    net, batch = ConvNet().make(TASK, Rng(0)), examples(asked.examples)
    if asked.peak is not None:
        if asked.peak:
            ours(net, batch, asked.groups, execution.EAGER, asked.peak)
        print(peak())
        return
    print(machine(torch.device("cpu")), "torch", torch.__version__, "examples", asked.examples, "groups", asked.groups)
    turns: dict[str, Callable[[], Any]] = {"eager": lambda: ours(net, batch, asked.groups, execution.EAGER)}
    if not asked.no_compile:
        turns["compiled"] = lambda: ours(net, batch, asked.groups, COMPILED)
    turns |= {"opacus hooks": hooks(net, batch), "opacus ghost": ghost(net, batch)}
    compare(turns, asked.repeats)
    for kind in ("eager", "compiled"):
        if kind in turns:
            error = norm_error(net, COMPILED if kind == "compiled" else execution.EAGER)
            print(f"{kind}: whole gradient norms within {error:.1e} of a micro-batch loop's")
    if not asked.no_peaks:
        peaks(asked.examples)


def compare(turns: dict[str, Callable[[], Any]], repeats: int) -> None:
    """Print the seconds of each, and ours beside theirs."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(repeats + 1):
        for name, run in turns.items():
            start = time.process_time()
            run()
            if repeat:  # the first of each compiles, and warms up
                seconds[name].append(time.process_time() - start)
            else:
                print(f"{name}: first {time.process_time() - start:.1f} s", flush=True)
    for name, found in seconds.items():
        print(f"{name}: {statistics.mean(found):.2f} +- {statistics.stdev(found):.2f} s (n = {repeats})")
    for mine in (name for name in turns if not name.startswith("opacus")):
        for other in (name for name in turns if name.startswith("opacus")):
            ratios = [b / a for a, b in zip(seconds[mine], seconds[other], strict=True)]
            print(f"{mine}: {statistics.mean(ratios):.2f} +- {statistics.stdev(ratios):.2f} times as fast as {other}")


def peak() -> int:
    """Bytes: the largest resident size of this program (`getrusage` remembers that of the one that started it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def peaks(examples: int) -> None:
    """Print the peak memory of eager sums by chunk, each in a process of its own."""
    found = {}
    for chunk in (0, 8, 32, 128):
        command = [sys.executable, "-m", "tests.benchmarks.clipping", "--examples", str(examples), "--peak", str(chunk)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        found[chunk] = int(answer.stdout.split()[-1]) / 2**20
    for chunk in (8, 32, 128):
        print(f"chunk {chunk}: peak {found[chunk]:.0f} MiB, {found[chunk] - found[0]:.0f} above what is loaded")


if __name__ == "__main__":
    main()
