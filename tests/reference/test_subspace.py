"""The subspace of experts against projections written out, and its gradient against differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from condense.data import TensorSampler
from condense.errors import BadValue
from condense.fit import Fit
from condense.parts.experts import Experts, Trajectories
from condense.parts.rules import SGD
from condense.parts.subspace import Subspace
from condense.rng import Rng
from condense.running import Step
from condense.testing import Raw, ToyNet, toy_recipe, toy_run, toy_splits


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


class World:
    def __init__(self, augment=None):
        experts = Trajectories(net=ToyNet(dtype="float64"), fit=Fit(rule=SGD(), lr=0.3, epochs=4, batch=16), count=1)
        made = toy_recipe(
            objective=Subspace(augment=augment),
            pool=Experts(experts=experts, below=2, span=3),
            preprocess=Raw(dtype="float64"),
        )
        self.run = toy_run(made)
        self.learner = made.pool.learners(self.run, None).next(0)
        g = torch.Generator().manual_seed(3)
        self.x = torch.randn(6, 1, 8, 8, generator=g, dtype=torch.float64)
        self.y = torch.arange(3).repeat_interleave(2)

    def loss(self, x):
        step = Step(self.run, 0, self.learner, TensorSampler(self.run.task, x, self.y))
        (term,) = self.run.recipe.objective(step)
        return term.losses["subspace"]


def vector(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def test_it_is_the_share_of_the_gradient_that_no_step_of_the_expert_explains():
    """By least squares: what is left of g after the best combination of the steps, at one of the snapshots."""
    world = World()
    path = [dict(p) for p in world.learner.path]
    steps = torch.stack([vector(p.values()) - vector(path[0].values()) for p in path[1:]], dim=1)
    shares = []
    for weights in path[:-1]:
        leaves = {name: p.clone().requires_grad_() for name, p in weights.items()}
        value = F.cross_entropy(functional_call(world.learner.module, leaves, (world.x,)), world.y)
        g = vector(torch.autograd.grad(value, list(leaves.values())))
        left = g - steps @ torch.linalg.lstsq(steps, g[:, None]).solution[:, 0]
        shares.append(((left @ left) / (g @ g)).item())
    found = world.loss(world.x).item()
    assert 0 < found < 1
    assert min(abs(found - share) for share in shares) < 1e-9
    assert max(shares) - min(shares) > 1e-3


@pytest.mark.parametrize("augment", [None, "dsa"])
def test_its_gradient_equals_finite_differences(augment):
    """On 3 coordinates drawn by seed among those whose gradient is in the top tenth."""
    world = World(augment)
    x = world.x.clone().requires_grad_()
    flat = torch.autograd.grad(world.loss(x), x)[0].flatten()
    top = flat.abs().topk(len(flat) // 10).indices
    for i in top[torch.randperm(len(top), generator=Rng(11).generator())[:3]].tolist():
        sides = []
        for sign in (1, -1):
            moved = world.x.clone()
            moved.view(-1)[i] += sign * 1e-6
            sides.append(world.loss(moved).item())
        assert flat[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-4)


def test_it_asks_for_experts():
    made = toy_recipe(objective=Subspace())
    with pytest.raises(BadValue, match="asks the experts of the pool, and"):
        made.objective.check(made, toy_splits().task)
