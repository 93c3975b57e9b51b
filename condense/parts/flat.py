"""Flat experts: training that prefers wide minima, by a second gradient at a place nearby."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from condense import execution
from condense.axes import Loss
from condense.data import Sampler
from condense.fit import Fit, Training, drawn
from condense.rng import Rng, seeded

EPS = 1e-12  # of the code, added to norms


class Flat(BaseModel):
    """How flat minima are looked for: GSAM (Zhuang et al., arXiv:2203.08065), as the experts of FTD are trained.

    The gradient is taken at w + e, where e points uphill and is `rho` long, and what is orthogonal to it of the
    gradient at w is subtracted, `alpha` times. adaptive: lengths are measured in units of |w|, number by number. Each
    step costs two passes. The defaults are those of DATM's experts. Source: FTD (Du et al., arXiv:2211.11004).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    rho: float = Field(default=0.01, gt=0)
    alpha: float = Field(default=0.3, ge=0)
    adaptive: bool = True

    def uphill(self, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """e: from w to where the second gradient is taken."""
        weights = {name: p.abs() if self.adaptive else torch.ones_like(p) for name, p in params.items()}
        scale = self.rho / (length({name: weights[name] * g for name, g in grads.items()}) + EPS)
        return {name: scale * weights[name].square() * g for name, g in grads.items()}

    def joined(self, here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The direction of the step, from the gradients at w and at w + e."""
        inner = torch.stack([(here[name] * g).sum() for name, g in there.items()]).sum()
        along = inner / (length(there).square() + EPS)
        return {name: g - self.alpha * (here[name] - along * g) for name, g in there.items()}


def length(grads: Mapping[str, Tensor]) -> Tensor:
    """The norm of all of them together, 0-d."""
    return torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()


class FlatTraining(Training):
    """A network under training that looks for flat minima: both gradients of a step are of one augmented batch."""

    def __init__(self, fit: Fit, module: nn.Module, rng: Rng, flat: Flat) -> None:
        self.flat = flat
        super().__init__(fit, module, rng)

    def step(self, data: Sampler, loss: Loss, lr: float | Tensor, progress: float) -> Tensor:
        batch, key = drawn(self.fit, data, self.rng, self.at, progress), self.rng.fold("loss", self.at)

        def gradients() -> tuple[Tensor, Mapping[str, Tensor]]:
            with seeded(self.rng.fold("global", self.at), data.device):
                return execution.current().gradients(self.module, loss, batch, data.task, key)

        value, here = gradients()
        kept = {name: p.detach().clone() for name, p in self.params.items()}
        with torch.no_grad():
            for name, away in self.flat.uphill(kept, here).items():
                self.params[name].add_(away)
        _, there = gradients()
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(kept[name])
        self.state = self.fit.rule.move(self.params, self.flat.joined(here, there), self.state, lr)
        return value
