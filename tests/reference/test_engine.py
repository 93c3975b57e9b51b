"""Whole runs of DM and DC in miniature against plain loops over torch.optim, as the papers' algorithms are written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from condense.engine import condense
from condense.fit import Fit
from condense.parts.distances import RowCosine, SquaredError
from condense.parts.inits import Real
from condense.parts.matching import ClassWise, Gradient, Matching, MeanFeature
from condense.parts.pools import Fresh
from condense.parts.rules import SGD
from condense.recipe import Group, Outer
from condense.testing import ToyNet, toy_recipe, toy_run, toy_splits

STEPS, TURNS = 7, 3


def rows_apart(real, mine):
    """1 - cosine, row by row; vectors count nothing."""
    if real.dim() == 1:
        return 0.0
    dot, lengths = (real * mine).flatten(1).sum(1), real.flatten(1).norm(dim=1) * mine.flatten(1).norm(dim=1)
    return len(real) - (dot / (lengths + 1e-6)).sum()


def plain(run, compare, train, rate):
    """Fresh networks, one at a time; every `TURNS` updates of the images a new one; `train` in between."""
    rng, train_split = run.rng, run.splits.train
    images = Real()(run, torch.arange(3).repeat_interleave(2)).x.clone().requires_grad_()
    labels = torch.arange(3, device=images.device).repeat_interleave(2)
    optimiser = torch.optim.SGD([images], lr=rate, momentum=0.5)
    for t in range(STEPS):
        life, turn = divmod(t, TURNS)
        if turn == 0:
            net = ToyNet().make(run.task, rng.fold("pool", life), images.device)
        elif train:
            order = rng.fold("pool", life, "inner", "batch")
            for epoch in (2 * turn - 2, 2 * turn - 1):
                shuffled = order.fold("epoch", epoch).permutation(6, images.device)
                for index in shuffled.split(4):
                    grads = torch.autograd.grad(
                        F.cross_entropy(net(images.detach()[index]), labels[index]), list(net.parameters())
                    )
                    with torch.no_grad():
                        for parameter, grad in zip(net.parameters(), grads, strict=True):
                            parameter -= 0.05 * grad
        loss = 0.0
        for c in range(3):
            real = train_split.draw(8, c, rng.fold("step", t, "real", c))
            loss = loss + compare(net, real, images[2 * c : 2 * c + 2], labels[2 * c : 2 * c + 2])
        optimiser.zero_grad()
        loss.backward(inputs=[images])
        optimiser.step()
    return images.detach()


def features_apart(net, real, x, y):
    return (net.features(real.x).mean(0).detach() - net.features(x).mean(0)).square().sum()


def gradients_apart(net, real, x, y):
    goal = torch.autograd.grad(F.cross_entropy(net(real.x), real.y), list(net.parameters()))
    mine = torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters()), create_graph=True)
    return sum(rows_apart(a.detach(), b) for a, b in zip(goal, mine, strict=True))


INNER = Fit(rule=SGD(), lr=0.05, epochs=2, batch=4)
CASES = {
    "dm": (MeanFeature(), SquaredError(), None, features_apart, 100.0),
    "dc": (Gradient(), RowCosine(), INNER, gradients_apart, 0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_equals_the_plain_loop(case, device):
    statistic, distance, inner, compare, rate = CASES[case]
    recipe = toy_recipe(
        objective=Matching(statistic=statistic, distance=distance, pairing=ClassWise(n=8)),
        pool=Fresh(net=ToyNet(), turns=TURNS, inner=inner),
        init=Real(),
        outer=Outer(steps=STEPS, groups=(Group(rule=SGD(momentum=0.5), lr=rate),)),
    )
    run = toy_run(recipe, toy_splits(device))
    start = condense(toy_run(recipe.with_(outer=Outer(steps=0)), toy_splits(device))).freeze().x
    ours = condense(run).freeze().x
    slow = plain(run, compare, inner is not None, rate)
    torch.testing.assert_close(ours, slow, rtol=1e-4, atol=1e-5)
    assert float((ours - start).abs().max()) > 1e-3, "nothing moved: the comparison says nothing"
