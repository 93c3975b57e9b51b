"""Flat experts: a step of GSAM against its formula, and what a recipe's pool makes of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from condense.fit import Fit
from condense.parts.experts import Trajectories
from condense.parts.flat import Flat, FlatTraining
from condense.parts.rules import SGD
from condense.rng import Rng
from condense.testing import ToyNet, toy_recipe, toy_run, toy_splits

FIT = Fit(rule=SGD(momentum=0.9), lr=0.1, epochs=3, batch=16)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


def vector(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


@pytest.mark.parametrize("adaptive", [True, False])
def test_its_steps_are_those_of_the_formula(adaptive):
    """w + e with e = rho T^2 g / |T g|, T = |w| or 1; then g' - alpha (g - <g, g'> g' / |g'|^2), as one vector."""
    train = toy_splits().train
    ours, theirs = (ToyNet(dtype="float64").make(train.task, Rng(0)) for _ in range(2))
    rho, alpha, momentum = 0.4, 0.7, 0.0
    for at in range(3):
        batch = train.draw(16, None, Rng(1).fold("batch"), at=at)

        def gradient(batch=batch):
            value = F.cross_entropy(theirs(batch.x.double()), batch.y)
            return vector(torch.autograd.grad(value, list(theirs.parameters())))

        w, g = vector(theirs.parameters()), gradient()
        scale = w.abs() if adaptive else torch.ones_like(w)
        torch.nn.utils.vector_to_parameters(w + rho * scale**2 * g / (scale * g).norm(), theirs.parameters())
        there = gradient()
        across = g - (g @ there) / (there @ there) * there
        assert abs(across @ there) < 1e-9 * there.norm() ** 2
        momentum = 0.9 * momentum + there - alpha * across
        torch.nn.utils.vector_to_parameters(w - 0.1 * momentum, theirs.parameters())
    flat = Flat(rho=rho, alpha=alpha, adaptive=adaptive)
    FlatTraining(FIT, ours, Rng(1), flat).advance(Doubled(train), 3)
    torch.testing.assert_close(vector(ours.parameters()), vector(theirs.parameters()), rtol=1e-8, atol=1e-10)


class Doubled(type(toy_splits().train)):
    """A source in float64."""

    def __init__(self, source):
        super().__init__(source.task, source.x.double(), source.y)


def test_without_a_radius_to_speak_of_it_is_plain_training():
    train = toy_splits().train
    nets = [ToyNet().make(train.task, Rng(0)) for _ in range(2)]
    FlatTraining(FIT, nets[0], Rng(1), Flat(rho=1e-7, alpha=0.5)).advance(train, 4)
    FIT.begin(nets[1], Rng(1)).advance(train, 4)
    torch.testing.assert_close(vector(nets[0].parameters()), vector(nets[1].parameters()), rtol=1e-4, atol=1e-5)


def test_experts_are_flat_where_they_are_asked_to_be_and_kept_apart_from_others():
    run = toy_run(toy_recipe())
    plain = Trajectories(net=ToyNet(), fit=FIT, count=1)
    flat = plain.with_(flat={"rho": 0.1, "alpha": 0.3})
    assert run.assets.key(plain) != run.assets.key(flat)
    rng = Rng(0).fold("expert", 0)
    net = ToyNet().make(run.task, rng)
    FlatTraining(FIT, net, rng, flat.flat).advance(run.splits.train, 12)
    like = dict(net.named_parameters())
    found, others = (run.assets.get(asset)[0].get(3, like) for asset in (flat, plain))
    assert all(torch.equal(found[name], p) for name, p in like.items())
    assert not any(torch.equal(found[name], others[name]) for name in like)
    with pytest.raises(ValueError, match="were trained with another flat"):
        flat.with_(count=2).make(run, run.assets.folder(plain))
