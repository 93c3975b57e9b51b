"""Distances against loops over numpy rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from condense.errors import BadValue
from condense.parts.distances import RowCosine, SquaredError, row_cosine, squared_error
from condense.parts.matching import ClassWise, Gradient, Matching, MeanFeature
from condense.recipe import check_recipe
from condense.testing import toy_recipe, toy_splits


def slow_row_cosine(real, synthetic, eps=1e-6):
    """DC's distance of one layer, as its code has it: rows by the first axis; vectors are skipped."""
    if real.ndim == 1:
        return 0.0
    total = 0.0
    for r, s in zip(real.reshape(len(real), -1), synthetic.reshape(len(synthetic), -1), strict=True):
        dot = sum(float(a) * float(b) for a, b in zip(r, s, strict=True))
        lengths = sum(float(a) ** 2 for a in r) ** 0.5 * sum(float(b) ** 2 for b in s) ** 0.5
        total += 1 - dot / (lengths + eps)
    return total


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2), (4, 3, 2, 2), (1, 7)])
def test_row_cosine_equals_the_loop(shape):
    g = np.random.default_rng(0)
    real, synthetic = g.normal(size=shape), 1e-3 * g.normal(size=shape)
    ours = row_cosine(torch.tensor(real), torch.tensor(synthetic))
    assert ours.dim() == 0
    assert float(ours) == pytest.approx(slow_row_cosine(real, synthetic), abs=1e-10)
    assert float(RowCosine()(torch.tensor(real), torch.tensor(synthetic))) == float(ours)


def test_row_cosine_counts_rows_not_layers():
    """Opposite rows cost 2 each, orthogonal ones 1, a row of zeros 1, whatever their lengths."""
    real = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).double()
    synthetic = torch.tensor([[1e3, 0.0], [-2.0, 0.0], [0.0, 5.0], [0.0, 0.0]]).double()
    assert float(row_cosine(real, synthetic)) == pytest.approx(0 + 2 + 1 + 1, abs=1e-5)


def test_vectors_count_nothing_and_pull_nothing():
    synthetic = torch.randn(6, requires_grad=True)
    distance = row_cosine(torch.randn(6), synthetic)
    assert float(distance) == 0.0
    assert not distance.requires_grad


def test_row_cosine_has_the_gradient_of_its_loop():
    g = torch.Generator().manual_seed(0)
    real = torch.randn(3, 2, 2, generator=g, dtype=torch.float64)
    synthetic = torch.randn(3, 2, 2, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: row_cosine(real, s), synthetic)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2, 2)])
def test_squared_error_is_a_sum_not_a_mean(shape):
    g = np.random.default_rng(1)
    real, synthetic = g.normal(size=shape), g.normal(size=shape)
    slow = sum((a - b) ** 2 for a, b in zip(real.ravel(), synthetic.ravel(), strict=True))
    assert float(squared_error(torch.tensor(real), torch.tensor(synthetic))) == pytest.approx(slow)
    assert float(SquaredError()(torch.tensor(real), torch.tensor(synthetic))) == pytest.approx(slow)


@pytest.mark.parametrize("distance", [RowCosine(), SquaredError()])
def test_equal_statistics_are_at_distance_zero_and_others_are_not(distance):
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(4, 6, generator=g), torch.randn(4, 6, generator=g)
    assert float(distance(a, a)) == pytest.approx(0, abs=1e-5)
    assert float(distance(a, b)) > 0.1


def test_row_cosine_of_mean_features_is_refused_because_it_would_be_blind():
    blind = Matching(statistic=MeanFeature(), distance=RowCosine(), pairing=ClassWise())
    with pytest.raises(BadValue, match=r"recipe.objective.distance.*0 on the vectors that mean-feature gives"):
        check_recipe(toy_recipe(objective=blind), toy_splits().task)
    seeing = Matching(statistic=Gradient(), distance=RowCosine(), pairing=ClassWise())
    check_recipe(toy_recipe(objective=seeing), toy_splits().task)
