"""What an epoch of GCond costs as the real graph grows: a small block model, then a large one, in one run.

    python -m tests.benchmarks.growth [--nodes 1000 170000] [--edges 7] [--features 100] [--budget 90] [--epochs 3]

`--edges` are undirected ones for each node (1.2 million for 170,000 nodes). An epoch is 20 outer steps with SGC, each
with the gradient of every class on up to 256 real nodes, and 15 inner steps after all but the last. Propagating the
real features is paid once and shown apart, with making and encoding the graph. Processor seconds of one thread; peak
memory of the process so far.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import condense
from condense import api, engine
from condense.component import named
from condense.data import Data
from condense.hookspecs import hookimpl
from condense.machine import machine, peak_memory
from condense.running import Limits, Run

TURNS, CLASSES = 20, 10


class Epochs:
    """An observer that keeps the processor time of every epoch, the first one's left out (it propagates)."""

    def __init__(self) -> None:
        self.at: list[float] = []

    @hookimpl
    def condense_stepped(self, run: Run, index: int) -> None:
        if index % TURNS == TURNS - 1:
            self.at.append(time.process_time())

    def each(self) -> list[float]:
        return [after - before for before, after in zip(self.at, self.at[1:], strict=False)]


def grown(nodes: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of opening, of the first propagation and of an epoch, for a graph of so many nodes; bytes at the peak."""
    sizes = [nodes // CLASSES] * CLASSES
    data = named(Data, "sbm", sizes=sizes, degree=2.0 * asked.edges, features=asked.features)  # type: ignore[type-abstract]
    started, clock = time.process_time(), Epochs()
    plan = condense.plan("gcond", data=data, total=asked.budget, steps=TURNS * (asked.epochs + 1), published=False)
    plan = plan.model_copy(update={"recipe": plan.recipe.with_(selection=None)})
    run = api.open_run(plan, None, [clock], Limits())
    graph = run.splits.train.graph  # type: ignore[attr-defined]
    opened = time.process_time()
    graph.power(plan.recipe.pool.net.hops)  # type: ignore[attr-defined]
    propagated = time.process_time()
    engine.condense(run)
    return {
        "nodes": nodes,
        "edges": graph.edges.shape[1] // 2,
        "opening": opened - started,
        "propagation": propagated - opened,
        "epoch": statistics.median(clock.each()),
        "peak": peak_memory(torch.device("cpu")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 170_000])
    parser.add_argument("--edges", type=int, default=7)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--budget", type=int, default=90)
    parser.add_argument("--epochs", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    rows = [grown(nodes, asked) for nodes in asked.nodes]
    for row in rows:
        print(
            f"{row['nodes']:>8,} nodes {row['edges']:>10,} edges: opening {row['opening']:.2f} s, propagation "
            f"{row['propagation']:.2f} s, an epoch {row['epoch']:.3f} s, peak memory {row['peak'] / 2**20:,.0f} MiB"
        )
    print(f"an epoch on the last beside the first: {rows[-1]['epoch'] / rows[0]['epoch']:.2f}x")


if __name__ == "__main__":
    main()
