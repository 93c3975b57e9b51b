"""The judges of the code released with DC, DSA and DM (arXiv:2006.05929, 2102.08259, 2110.04181): `evaluate_synset`.

A network from scratch on the set: SGD 0.01 with momentum 0.9 and weight decay 5e-4, batches of 256 drawn anew for each
epoch, cross-entropy. For E epochs asked for, the code trains E + 1, numbered from 0; at the end of epoch E // 2 + 1
the rate falls to a tenth and the optimiser is made again, which loses its momentum. The last accuracy counts.

E is 300 without augmentation and 1000 with one, whatever the code's option says: it is always overwritten. The papers
report 5 experiments x 20 networks (DM's README 5 x 5). Seeds came from the clock there; here every network has its key.

Not followed: networks with batch norm are judged by the official code with DC under an augmentation of their own
(`dc-augment` with strategy crop_noise, 1000 epochs), and in its mode S replaced by their instance-norm twins.
"""

from __future__ import annotations

from typing import final

from pydantic import Field

from condense.axes import Augment, Loss, Net, OwnLoss, Rule
from condense.component import Component, named
from condense.data import Sampler
from condense.evaluate import Protocol
from condense.fit import Fit
from condense.parts.rules import SGD
from condense.parts.schedules import Drops


class VicoLike(Protocol):
    """What both share. `epochs` is E: E + 1 are trained. `augment`: each image with parameters of its own."""

    nets: tuple[Net, ...] = Field(default_factory=lambda: (named(Net, "conv-net"),), min_length=1)
    epochs: int = Field(default=300, ge=0)
    rule: Rule = SGD(momentum=0.9, weight_decay=5e-4)
    lr: float = Field(default=0.01, gt=0)
    batch: int = Field(default=256, ge=1)
    loss: Loss = OwnLoss()
    augment: Augment = Field(default_factory=lambda: named(Augment, "none"))

    def fit(self, data: Sampler) -> Fit:
        """The epochs up to and with number E // 2 + 1 at the full rate, the others at a tenth of it."""
        trained, before = self.epochs + 1, self.epochs // 2 + 2
        lr = Drops(start=self.lr, at=(before / trained,), factor=0.1, restart=True) if before < trained else self.lr
        return Fit(rule=self.rule, lr=lr, epochs=trained, batch=self.batch, loss=self.loss, augment=self.augment)


@final
class Vico(VicoLike):
    """DC's: no augmentation, E = 300. On MNIST the code augments and trains longer: augment=dc-augment, epochs=1000."""


@final
class VicoDSA(VicoLike):
    """DSA's and DM's: differentiable augmentation, E = 1000."""

    epochs: int = Field(default=1000, ge=0)
    augment: Augment = Field(default_factory=lambda: named(Augment, "dsa"))


def components() -> list[type[Component]]:
    return [Vico, VicoDSA]
