"""Kernels of finite networks: what features of networks say of how alike examples are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from condense.axes import Kernel, Net, Objective, Term
from condense.errors import BadValue
from condense.execution import Calls
from condense.recipe import Reads, Recipe
from condense.running import Step
from condense.task import Batch, Task


def features(model: nn.Module, x: Any) -> Tensor:
    """The input of the network's head, (N, D), differentiable in the examples and not in the network."""
    fixed = {f"net.{name}": p.detach() for name, p in model.named_parameters()}
    found: Tensor = functional_call(Calls(model), fixed, ("features", x))
    return found


@final
class FeatureKernel(Kernel):
    """scale * phi(a) phi(b)^T + shift, float64, of the features phi (N, D) of the network that the step lends.

    mean: divided by D. FRePo (arXiv:2206.00719) takes the products as they are. With `mean`, scale 2 and shift 0.01 it
    is the NNGP kernel, up to the sample, of networks with Gaussian weights whose last layer has weights of variance 2/D
    and biases of variance 0.01 (RFAD, arXiv:2210.12067). Gradients go to examples and not to the network.
    """

    scale: float = Field(default=1.0, gt=0)
    shift: float = Field(default=0.0, ge=0)
    mean: bool = False

    def __call__(self, model: nn.Module | None, a: Batch, b: Batch) -> Tensor:
        return self.against(model, b)(a)

    def against(self, model: nn.Module | None, b: Batch) -> Callable[[Batch], Tensor]:
        """The features of b are made once. Raises `BadValue` where the step lends no network."""
        if model is None:
            raise BadValue("pool", None, "lends no network, whose features the kernel compares", "Use pool=fresh.")
        kept = features(model, b.x).double()
        weight = self.scale / kept.shape[1] if self.mean else self.scale

        def kernel(a: Batch) -> Tensor:
            mine = kept if a is b else features(model, a.x).double()
            return weight * (mine @ kept.T) + self.shift

        return kernel


@final
class Ensemble(Net):
    """`n` networks of one architecture side by side: features (N, n D) one after the other, logits their mean."""

    net: Net
    n: int = Field(default=8, ge=1)

    def build(self, task: Task) -> nn.Module:
        return _Ensemble([self.net.build(task) for _ in range(self.n)])


class _Ensemble(nn.Module):
    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def features(self, x: Any) -> Tensor:
        return torch.cat([member.features(x) for member in self.members], dim=1)  # type: ignore[operator]

    def forward(self, x: Any) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(dim=0)


@final
class LabelMargin(Objective):
    """-mean over the set's items of min(first - second of their targets, limit / K): learned labels stay decided.

    limit 1 is FRePo's (arXiv:2206.00719, in its code and not in its paper), 1/2 RCIG's.
    """

    limit: float = Field(default=1.0, gt=0)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        with torch.device("meta"):
            y = recipe.labels.blank(torch.zeros(1, dtype=torch.int64), task)
        if y.dim() != 2:
            raise BadValue("labels", recipe.labels.name, "are classes, and have no margin", "Use labels=learned.")

    def __call__(self, step: Step) -> list[Term]:
        return [Term({"margin": -margin(step.syn.y, self.limit).mean()})]


def margin(y: Tensor, limit: float) -> Tensor:
    """How far the largest of an item's targets (M, K) is above the second, at most limit / K: (M,)."""
    first, second = y.topk(2, dim=1).values.unbind(dim=1)
    return (first - second).clamp_max(limit / y.shape[1])
