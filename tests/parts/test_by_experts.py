"""What experts say: labels that start from it, examples that they understand, and the loss on such labels."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from condense.axes import Net
from condense.engine import condense
from condense.errors import BadValue
from condense.fit import Fit
from condense.parts.by_experts import ExpertLogits, SoftTargets, Understood
from condense.parts.experts import Experts, Trajectories
from condense.parts.rules import SGD
from condense.parts.trajectory import Trajectory
from condense.recipe import Group, check_recipe
from condense.rng import Rng
from condense.task import Batch
from condense.testing import ToyNet, toy_recipe, toy_run, toy_splits
from condense_image.nets import ConvNet


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONDENSE_CACHE", str(tmp_path / "cache"))


def recipe(lr=0.5, epochs=3, count=3, steps=0, n=4):
    trained = Fit(rule=SGD(), lr=lr, epochs=epochs, batch=16)
    groups = tuple(Group(role=role, rule=SGD(), lr=rate) for role, rate in (("images", 1.0), ("labels", 2.0)))
    return toy_recipe(
        objective=Trajectory(fit=Fit(rule=SGD(), lr=0.1, steps=3, batch=None)),
        pool=Experts(experts=Trajectories(net=ToyNet(), fit=trained, count=count), below=1, span=1),
        budget={"name": "per-class", "n": n},
        init=Understood(),
        labels=ExpertLogits(),
        outer={"steps": steps, "groups": groups},
    )


def said(run, x):
    """What each expert says of x at its last epoch, by the files alone: (experts, N, K)."""
    net = ToyNet().make(run.task, Rng(0))
    like = {name: p.detach() for name, p in net.named_parameters()}
    readers = run.recipe.pool.readers(run)
    with torch.no_grad():
        return torch.stack([functional_call(net, r.get(len(r) - 1, like), (x,)) for r in readers])


def test_labels_start_as_the_mean_of_those_experts_that_are_right():
    run = toy_run(recipe())
    batch = run.splits.train.draw(20, None, Rng(3))
    found, logits = run.recipe.labels.start(batch, run), said(run, batch.x)
    kinds = set()
    for i in range(20):
        right = [e for e in range(3) if int(logits[e, i].argmax()) == int(batch.y[i])]
        kinds.add(len(right))
        expected = torch.stack([logits[e, i] for e in right or range(3)]).mean(dim=0)
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-6)
    assert len(kinds) > 1, "experts that are all alike would show nothing"
    wrong = Batch(batch.x, (logits[0].argmax(dim=1) + 1) % 3)
    none = torch.stack([logits[e].argmax(dim=1) != wrong.y for e in range(3)]).all(dim=0)
    assert bool(none.any())
    torch.testing.assert_close(run.recipe.labels.start(wrong, run)[none], logits.mean(dim=0)[none])


def test_a_set_starts_from_examples_that_an_expert_names_rightly():
    run = toy_run(recipe())
    groups = torch.arange(3).repeat_interleave(4)
    batch = run.recipe.init(run, groups)
    assert torch.equal(batch.y, groups)
    assert len(set(batch.index.tolist())) == 12
    logits = said(run, run.splits.train.x)
    for cls in range(3):
        ids = run.splits.train.ids(cls)
        for expert in range(3):
            able = set(ids[logits[expert, ids].argmax(dim=1) == cls].tolist())
            chosen = set(batch.index[groups == cls].tolist())
            if len(able) >= 4:
                assert chosen <= able
                break
            assert able <= chosen, "all that this one names rightly, then the next is asked"


def test_where_no_expert_is_right_others_fill_up():
    run = toy_run(recipe(lr=0.0, epochs=1, count=1))
    groups = torch.arange(3).repeat_interleave(4)
    batch = run.recipe.init(run, groups)
    assert torch.equal(batch.y, groups)
    assert len(set(batch.index.tolist())) == 12
    named = said(run, batch.x)[0].argmax(dim=1)
    assert bool((named != batch.y).any()), "an untrained network names one class only"


def test_the_loss_is_the_cross_entropy_with_their_softmax():
    task = toy_splits().task
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=g), 4 * torch.randn(5, 3, generator=g)
    found = SoftTargets()(lambda x: x, Batch(x, y), task, Rng(0))
    for i in range(5):
        p, q = y[i].exp() / y[i].exp().sum(), x[i].exp() / x[i].exp().sum()
        assert found[i].item() == pytest.approx(-(p * q.log()).sum().item(), rel=1e-5)


def test_labels_are_learned_with_the_images_and_trained_on_by_their_own_loss():
    start, end = (condense(toy_run(recipe(steps=steps))) for steps in (0, 2))
    assert not torch.equal(start.y, end.y)
    assert not torch.equal(start.freeze().x, end.freeze().x)
    assert torch.equal(start.freeze().groups, torch.arange(3).repeat_interleave(4))
    assert isinstance(end.freeze().loss, SoftTargets)


@pytest.mark.parametrize("part", [{"labels": ExpertLogits()}, {"init": Understood()}])
def test_without_experts_to_ask_they_are_refused(part):
    made = toy_recipe(**part)
    with pytest.raises(BadValue, match="asks the experts of the pool, and fresh has none"):
        check_recipe(made, toy_splits().task)


@pytest.mark.parametrize("part", [{"labels": ExpertLogits()}, {"init": Understood()}])
def test_experts_whose_statistics_are_not_kept_are_not_asked(part):
    asked = recipe().rewrite(Net, lambda _: ConvNet(norm="batch", depth=1, width=4))
    matched = asked.with_(labels="hard", init="real")
    check_recipe(matched, toy_splits().task)
    with pytest.raises(BadValue, match="of conv-net with batch norm no statistics are kept"):
        check_recipe(matched.with_(**part), toy_splits().task)
