"""What a plugin's own tests may look like: the checks that condense offers, then what is particular to this plugin."""

import pytest
import torch
from condense_tiny import HalfSize, PixelMoments, tiny_moments

from condense.axes import Labels
from condense.component import named
from condense.engine import condense
from condense.task import Batch
from condense.testing import check_component, check_method, toy_recipe, toy_run, toy_splits


@pytest.mark.parametrize("part", [PixelMoments(), HalfSize()])
def test_parts_are_values(part):
    check_component(part)


def test_the_recipe_keeps_the_promises_of_every_method():
    check_method(tiny_moments(per_class=2, iterations=2))


def test_half_size_stores_a_quarter_of_the_floats():
    task = toy_splits().task
    syn = HalfSize().empty(task, torch.arange(3), named(Labels, "hard"))
    flat = torch.full((3, *task.shape), 0.5)
    syn.fill(Batch(flat, torch.arange(3)))
    assert torch.equal(syn.decode(None, None).x, flat)
    assert syn.stored()["images"] == flat.numel() * flat.element_size() // 4


def test_the_objective_works_with_other_parameterizations_and_finds_the_class_means():
    adam = {"steps": 300, "groups": [{"rule": "adam", "lr": 0.05}]}
    run = toy_run(toy_recipe(objective=PixelMoments(), outer=adam, budget={"name": "per-class", "n": 4}))
    found = condense(run).freeze().draw(None, 0, run.rng).x.mean(dim=0)
    real = run.splits.train.draw(None, 0, run.rng).x.mean(dim=0)
    assert (found - real).abs().max() < 0.05
