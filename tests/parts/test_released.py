"""Sets that are released in another form than they are learned in: running means, and learned preconditioners."""

from __future__ import annotations

import pytest
import torch

import condense
from condense.api import carry_out
from condense.axes import Objective, Term
from condense.engine import condense as condensed
from condense.parts.parameterizations import Averaged, Pixels, Preconditioned
from condense.parts.rules import SGD, AdaBelief, Adam
from condense.recipe import Plan
from condense.rng import Rng
from condense.running import Limits, Paused
from condense.testing import Toy, toy_recipe, toy_run, toys

from .test_online import Stop

SEEN = []


class Wander(Objective):
    """The images as they are at each step are remembered; they move towards numbers of the step."""

    def __call__(self, step):
        SEEN.append(step.syn.x.detach().clone())
        aim = torch.randn(step.syn.x.shape, generator=step.rng.generator())
        yield Term({"away": (step.syn.x - aim).square().mean()})


def recipe(parameterization, steps=7, rule=None):
    groups = [{"role": "decoder", "rule": "sgd", "lr": 0.5}, {"role": "images", "rule": rule or SGD(), "lr": 50.0}]
    outer = {"steps": steps, "groups": groups}
    return toy_recipe(objective=Wander(), parameterization=parameterization, outer=outer)


def test_the_mean_is_released_and_the_steps_see_the_values():
    SEEN.clear()
    with toys(Wander):
        plain = condensed(toy_run(recipe(Pixels()))).freeze().x
        learned = [*SEEN[1:], plain]
        SEEN.clear()
        syn = condensed(toy_run(recipe(Averaged(decay=0.8))))
        assert all(torch.equal(a, b) for a, b in zip(SEEN[1:], learned[:-1], strict=True))
    weights = [0.2 * 0.8**k for k in range(7)][::-1]
    expected = sum(w * x for w, x in zip(weights, learned, strict=True)) / sum(weights)
    torch.testing.assert_close(syn.freeze().x, expected)
    assert not torch.allclose(syn.freeze().x, plain)


def test_before_the_first_step_the_mean_is_the_start():
    with toys(Wander):
        start = condensed(toy_run(recipe(Pixels(), steps=0))).freeze().x
        assert torch.equal(condensed(toy_run(recipe(Averaged(), steps=0))).freeze().x, start)


def test_the_product_with_the_matrix_is_learned_and_released_without_it():
    with toys(Wander):
        run = toy_run(recipe(Preconditioned()))
        syn = Preconditioned().empty(run.task, torch.arange(3), run.recipe.labels)
        start = torch.randn(3, 1, 8, 8, generator=Rng(0).generator())
        syn.fill(condense.task.Batch(start, torch.arange(3)))
        matrix = torch.randn(64, 64, generator=Rng(1).generator())
        with torch.no_grad():
            syn.matrix.copy_(matrix)
        expected = (start.flatten(1) @ matrix).view(3, 1, 8, 8)
        torch.testing.assert_close(syn.decode(None, Rng(0)).x, expected)
        torch.testing.assert_close(syn.decode(torch.tensor([2]), None).x, expected[2:])
        syn.release()
        torch.testing.assert_close(syn.freeze().x, expected)
        assert syn.state_dict()["matrix"].numel() == 0
        moved = condensed(run)
        assert not torch.equal(moved.freeze().x, condensed(toy_run(recipe(Pixels()))).freeze().x)


@pytest.mark.parametrize(
    "parameterization", [Averaged(decay=0.8), Preconditioned()], ids=["averaged", "preconditioned"]
)
def test_a_released_set_is_stored_and_a_paused_run_gives_the_same_bits(tmp_path, parameterization):
    with toys(Wander):
        plan = Plan(method="toy", data=Toy(), recipe=recipe(parameterization, rule=Adam()))
        whole = condense.load(carry_out(plan, tmp_path / "whole").path)
        with pytest.raises(Paused):
            carry_out(plan, tmp_path / "cut", observers=[Stop(after=3)], limits=Limits(steps=1))
        again = condense.load(carry_out(plan, tmp_path / "cut").path)
        assert torch.equal(whole.sampler().x, again.sampler().x)
        plain = carry_out(plan.model_copy(update={"recipe": recipe(Pixels(), rule=Adam())}), tmp_path / "plain")
        size = {path: (path / "tensors.safetensors").stat().st_size for path in (whole.path, plain.path)}
        assert size[whole.path] < size[plain.path] + 2000, "nothing is stored that only the learning needed"
        assert whole.stored["images"] == plain.stored["images"]


def test_adabelief_is_its_papers_algorithm():
    g = Rng(3).generator()
    p = torch.randn(5, generator=g, dtype=torch.float64)
    rule, state, ours = AdaBelief(), AdaBelief().init({"p": p}), p.clone()
    theirs, m, s = p.clone(), torch.zeros(5).double(), torch.zeros(5).double()
    for t in range(1, 8):
        grad = torch.randn(5, generator=g, dtype=torch.float64)
        m = 0.9 * m + 0.1 * grad
        s = 0.999 * s + 0.001 * (grad - m) ** 2 + 1e-16
        theirs = theirs - 0.1 * (m / (1 - 0.9**t)) / ((s / (1 - 0.999**t)).sqrt() + 1e-16)
        new, state = rule.update({"p": ours}, {"p": grad}, state, 0.1)
        ours = new["p"]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
