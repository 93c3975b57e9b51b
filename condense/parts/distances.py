"""Distances between statistics: pure functions of tensors, and the components that name them."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from condense.axes import Distance
from condense.errors import BadValue
from condense.recipe import Recipe
from condense.task import Task


def row_cosine(real: Tensor, synthetic: Tensor, eps: float = 1e-6) -> Tensor:
    """sum over output rows of 1 - <r, s> / (|r| |s| + eps), 0-d; 0 for vectors (biases, norm scales).

    Tensors of three and more dimensions are rows by their first one: a convolution (out, in, h, w) has `out` rows.
    Source: DC (Zhao et al., arXiv:2006.05929), eq. 8; that one-dimensional parameters contribute 0 stands only in the
    code.
    """
    if real.dim() < 2:
        return torch.zeros((), dtype=synthetic.dtype, device=synthetic.device)
    r, s = real.flatten(1), synthetic.flatten(1)
    cosines: Tensor = (r * s).sum(-1) / (r.norm(dim=-1) * s.norm(dim=-1) + eps)
    return (1 - cosines).sum()


def squared_error(real: Tensor, synthetic: Tensor) -> Tensor:
    """sum of squared differences, 0-d."""
    total: Tensor = (real - synthetic).square().sum()
    return total


class RowCosine(Distance):
    """DC's distance of gradients, layer by layer: see `row_cosine`. Blind to vectors, as mean features are."""

    eps: float = 1e-6

    def __call__(self, real: Tensor, synthetic: Tensor) -> Tensor:
        return row_cosine(real, synthetic, self.eps)

    def check(self, recipe: Recipe, task: Task) -> None:
        blind = [p for p in recipe.walk() if getattr(p, "distance", None) == self and _gives_vectors(p)]
        if blind:
            problem = f"is 0 on the vectors that {blind[0].statistic.name} gives"  # type: ignore[attr-defined]
            raise BadValue("recipe.objective.distance", self.name, problem, "Use squared-error.")


def _gives_vectors(part: object) -> bool:
    return bool(getattr(getattr(part, "statistic", None), "vectors", False))


class SquaredError(Distance):
    """Sum of squared differences (DM's distance of mean features; `mse` among DC's options)."""

    over: ClassVar = "mean"

    def __call__(self, real: Tensor, synthetic: Tensor) -> Tensor:
        return squared_error(real, synthetic)
