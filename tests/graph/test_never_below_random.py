"""With its defaults GCond is never below random nodes, on graphs that nothing was tuned on. Minutes long."""

from __future__ import annotations

import pytest
import torch

import condense
from condense import api, execution
from condense.baselines import random_images
from condense.component import named
from condense.data import Data
from condense.engine import condense as take_steps
from condense.evaluate import Candidate, evaluate
from condense.running import Limits

BLOCKS = {
    "two-balanced": (8, {"sizes": [200, 200], "homophily": 0.9}),
    "four-1-to-20": (12, {"sizes": [400, 100, 50, 20], "homophily": 0.7, "seed": 1}),
    "ten-balanced": (30, {"sizes": [60] * 10, "homophily": 0.5, "seed": 2}),
    "six-heterophilous": (18, {"sizes": [100] * 6, "homophily": 0.3, "seed": 3}),
    "ten-1-to-20": (30, {"sizes": [400, 300, 200, 120, 80, 60, 40, 30, 20, 20], "homophily": 0.6, "seed": 4}),
}


def scores(data: Data, total: int, seed: int) -> tuple[list[float], list[float]]:
    """Test accuracies of networks trained on condensed nodes, and of as many on random ones, by the judge `graph`."""
    plan = condense.plan("gcond", data=data, total=total, seed=seed, device="cpu", published=False)
    run = api.open_run(plan, None, [], Limits())
    rules = plan.protocol.with_(repeats=5)
    with execution.using(execution.passes(run.plan.execution)):
        made = Candidate(take_steps(run).freeze(), run.transform, "gcond")
        rows = [evaluate(of, run.splits, rules, seed=seed).rows[0] for of in (made, random_images(run))]
    return list(rows[0].accuracies), list(rows[1].accuracies)


def mean(values: list[float]) -> float:
    return float(torch.tensor(values).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", list(BLOCKS))
def test_on_block_models(name):
    total, settings = BLOCKS[name]
    condensed, random = scores(named(Data, "sbm", **settings), total, 0)
    print(f"{name}: condensed {mean(condensed):.3f}, random {mean(random):.3f}")
    assert mean(condensed) >= mean(random)


@pytest.mark.slow
def test_on_karate():
    """Over five sets: 20 test nodes and one of each class to learn from make any one set a matter of luck."""
    pairs = [scores(named(Data, "karate"), 4, seed) for seed in range(5)]
    condensed, random = (mean([value for pair in pairs for value in pair[i]]) for i in (0, 1))
    print(f"karate: condensed {condensed:.3f}, random {random:.3f}, by seed {[(mean(a), mean(b)) for a, b in pairs]}")
    assert condensed >= random
