"""PSG with the shape of a generator as a prior (Chen, Kerkouche and Fritz, NeurIPS 2022, arXiv:2211.04446).

The images are what a small network of transposed convolutions makes of fixed random codes and of their classes, and its
weights are learned, from a random start, in place of pixels. No data went into it: the prior is its structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from condense.axes import Labels, Parameterization
from condense.component import Component
from condense.errors import BadValue
from condense.hookspecs import hookimpl
from condense.parts.rules import Adam
from condense.recipe import Group, Published, Reads, Recipe, published
from condense.rng import Rng, seeded
from condense.synthetic import Synthetic
from condense.task import Batch, Task

from .psg import generation


@final
class Deconvolved(Parameterization):
    """Images made by a generator, whose weights are stored and learned (role `decoder`), of stored random codes.

    A code of `latent` normal numbers and the class, one-hot, become 4 x 4 x 4 `width` by a linear layer; three
    transposed convolutions make them 7 x 7 x 2 `width`, 11 x 11 x `width` and 28 x 28, each after ReLU and division by
    the root mean square over channels. No activation at the end. Images of other sizes are resized from 28 x 28,
    bilinearly, which is ours: the official code knows 28 x 28 only. What Init gives is not used, but for its labels.
    Raises `BadValue` for examples that are no images.
    """

    latent: int = Field(default=10, ge=1)
    width: int = Field(default=64, ge=1)

    def reads(self, recipe: Recipe) -> Reads:
        return Reads()

    def check(self, recipe: Recipe, task: Task) -> None:
        if len(task.shape) != 3 or set(task.form.pack(task.form.blank(task, 1))) != {"x"}:
            problem = "generates images, and these examples are none"
            raise BadValue("parameterization", self.name, problem, "Use --set parameterization=pixels.")

    def empty(self, task: Task, groups: Tensor, labels: Labels) -> Synthetic:
        return _Deconvolved(self, task, groups, labels)


class _Deconvolved(Synthetic):
    codes: Tensor

    def __init__(self, how: Deconvolved, task: Task, groups: Tensor, labels: Labels) -> None:
        super().__init__(task, groups, labels.blank(groups, task), labels.loss())
        self.decoder = Decoder(how.latent + task.groups, how.width, task.shape)
        self.register_buffer("codes", torch.zeros(len(groups), how.latent))

    def start(self, rng: Rng) -> None:
        with seeded(rng.fold("decoder")):
            fresh = self.decoder.drawn()
        self.decoder.load_state_dict(fresh.state_dict())
        self.codes.copy_(torch.randn(self.codes.shape, generator=rng.fold("codes").generator()))

    @torch.no_grad()
    def fill(self, batch: Batch) -> None:
        self.y.copy_(batch.y)

    def decode(self, index: Tensor | None, rng: Rng | None) -> Batch:
        at = slice(None) if index is None else index
        classes = F.one_hot(self.item_groups[at], self.task.groups).to(self.codes.dtype)
        return Batch(self.decoder(torch.cat([self.codes[at], classes], dim=1)), self.y[at], index)

    def roles(self) -> Mapping[str, list[nn.Parameter]]:
        labels = {"labels": [self.y]} if isinstance(self.y, nn.Parameter) else {}
        return {"decoder": list(self.decoder.parameters()), **labels}

    def stored(self) -> dict[str, int]:
        sizes = {"decoder": [*self.decoder.parameters(), self.codes], "labels": [self.y]}
        return {kind: sum(t.numel() * t.element_size() for t in tensors) for kind, tensors in sizes.items()}


class Decoder(nn.Module):
    """(N, given) -> (N, *shape): see `Deconvolved`."""

    def __init__(self, given: int, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.given, self.width, self.shape = given, width, shape
        self.spread = nn.Linear(given, 4 * width * 4 * 4)
        self.up = nn.ModuleList([nn.ConvTranspose2d(4 * width, 2 * width, 5), nn.ConvTranspose2d(2 * width, width, 5)])
        self.last = nn.ConvTranspose2d(width, shape[0], 8, stride=2)

    def drawn(self) -> Decoder:
        """Another one like this, with weights of its own, drawn from torch's generator."""
        return Decoder(self.given, self.width, self.shape)

    def forward(self, given: Tensor) -> Tensor:
        x = self.spread(given).unflatten(1, (-1, 4, 4))
        for layer in self.up:
            x = layer(scaled(x.relu()))[:, :, :11, :11]
            x = x[:, :, :7, :7] if x.shape[-1] == 8 else x
        made: Tensor = self.last(scaled(x.relu()))
        if made.shape[2:] != torch.Size(self.shape[1:]):
            made = F.interpolate(made, self.shape[1:], mode="bilinear", antialias=True)
        return made


def scaled(x: Tensor) -> Tensor:
    """x (N, C, H, W) over its root mean square over the channels, pixel by pixel."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


@published(
    paper="arXiv:2211.04446",
    title="PSG with a generator: match the noised gradient by the weights of a small network",
    settings="published/psg_prior.toml",
    protocol="vico",
)
def psg_prior(*, per_class: int = 10, iterations: int = 1000) -> Recipe:
    return generation(per_class, iterations, (2, 10), Deconvolved(), Group(rule=Adam(), lr=0.01))


@hookimpl
def condense_components() -> list[type[Component]]:
    return [Deconvolved]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"psg-prior": psg_prior}
