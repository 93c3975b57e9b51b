"""The judges of the released code of the methods: DC's, DSA's and DM's; FRePo's; RCIG's.

The first are of the code released with DC, DSA and DM (arXiv:2006.05929, 2102.08259, 2110.04181): `evaluate_synset`.

A network from scratch on the set: SGD 0.01 with momentum 0.9 and weight decay 5e-4, batches of 256 drawn anew for each
epoch, cross-entropy. For E epochs asked for, the code trains E + 1, numbered from 0; at the end of epoch E // 2 + 1
the rate falls to a tenth and the optimiser is made again, which loses its momentum. The last accuracy counts.

E is 300 without augmentation and 1000 with one, whatever the code's option says: it is always overwritten. The papers
report 5 experiments x 20 networks (DM's README 5 x 5). Seeds came from the clock there; here every network has its key.

Not followed: networks with batch norm are judged by the official code with DC under an augmentation of their own
(`dc-augment` with strategy crop_noise, 1000 epochs), and in its mode S replaced by their instance-norm twins.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, final

from pydantic import Field

from condense.axes import Augment, Loss, Net, OwnLoss, Rule
from condense.component import Component, named
from condense.data import Sampler
from condense.evaluate import Protocol
from condense.fit import Fit
from condense.parts.augment import Then
from condense.parts.ridge import CentredError
from condense.parts.rules import SGD, Adam
from condense.parts.schedules import Drops, WarmCosine

from .augment import mirrored


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


class FRePoLike(Protocol):
    """What FRePo and RCIG share: Adam on half the squared distance to centred targets, learned ones or coded classes.

    The rate rises for `warm` steps and falls to a hundredth by a cosine; shorter trainings only rise. steps: None for
    those of the code, by the size of the set, which it goes through in one order, and here in a new one each time.
    Networks have no norm. The last accuracy counts: the code of FRePo picks the best of the checkpoints of a set by
    their test accuracy, and so do the figures of its paper; the running mean of weights (0.995) is of its looks while
    it distils, not of this judge.
    """

    nets: tuple[Net, ...] = Field(default_factory=lambda: (named(Net, "kernel-conv-net"),), min_length=1)
    lr: float = Field(default=3e-4, gt=0)
    warm: int = Field(default=500, ge=0)
    steps: int | None = Field(default=None, ge=0)
    batch: int = Field(default=500, ge=1)
    loss: Loss = CentredError()
    augment: Augment = Field(default_factory=lambda: named(Augment, "frepo-augment"))

    @abstractmethod
    def length(self, size: int) -> int:
        """Training steps on a set of so many items."""

    def fit(self, data: Sampler) -> Fit:
        steps = self.length(len(data)) if self.steps is None else self.steps
        lr = WarmCosine(start=self.lr, warm=min(1.0, self.warm / max(1, steps)), to=0.01 * self.lr)
        return Fit(rule=Adam(), lr=lr, steps=steps, batch=self.batch, loss=self.loss, augment=self.augment)


@final
class FRePo(FRePoLike):
    """The judge of FRePo's released code (arXiv:2206.00719, `script/eval.py`): Adam 3e-4, batches of 500.

    Steps by the size of the set: 10: 1,000, 100: 2,000, 200: 20,000, 400 and 500: 5,000, 1,000: 10,000, from 2,000 on
    40,000; for other sizes, which the code refuses, those of the nearest of these by ratio (ours).
    """

    name: ClassVar[str] = "frepo"

    def length(self, size: int) -> int:
        return FREPO_STEPS[min(FREPO_STEPS, key=lambda listed: (abs(math.log(listed / max(1, size))), listed))]


FREPO_STEPS = {10: 1000, 100: 2000, 200: 20_000, 400: 5000, 500: 5000, 1000: 10_000, 2000: 40_000, 5000: 40_000}


@final
class RCIG(FRePoLike):
    """The judge of RCIG's released code (arXiv:2302.06755, `eval.py`), with augmentation: Adam 1e-4, batches of 256.

    1,000 steps on 10 items, 2,000 on any other number. On the images and their mirror images (not on grey ones). The
    code mirrors first, draws batches of at most 256 from images and mirror images, and augments each by itself; here
    batches are of images, each beside its mirror image, augmented alike: sets of more than 256 items are trained on in
    batches of twice as many. It also reports a judge without augmentation, which is not this one.
    """

    name: ClassVar[str] = "rcig"
    lr: float = Field(default=1e-4, gt=0)
    batch: int = Field(default=256, ge=1)
    augment: Augment = Field(
        default_factory=lambda: Then(augments=(named(Augment, "frepo-augment", each=True), mirrored()))
    )

    def length(self, size: int) -> int:
        return 1000 if size == 10 else 2000


def components() -> list[type[Component]]:
    return [Vico, VicoDSA, FRePo, RCIG]
