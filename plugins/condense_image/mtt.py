"""Matching training trajectories (MTT; Cazenavette et al., CVPR 2022, arXiv:2203.11932).

Images and a step size such that a network, trained on them for a few steps from where an expert was, comes to where
that expert, trained on all of the data, was some epochs later.

Official code, followed here: 100 experts, 50 epochs of SGD 0.01 without momentum, each image augmented by itself; one
expert a step, in a new random order each time round; the student takes plain SGD steps on augmented images (not
siamese) at the learned rate; images and rate move by SGD with momentum 0.5, each at a rate of its own. Where paper and
code differ: the code's `lr_teacher` (0.001 or 0.01 in the table) is where the learned rate starts, and experts are
trained at 0.01. The code stores experts as parameters alone, without the statistics of batch norm; so it is here.

Settings by data set and budget are those that the author gave for DC-BENCH. For others, the defaults of the code: 20
steps, 3 epochs, starts before epoch 25, rate 1000 for the images, no whitening. A rate of the images that explodes is
the usual trouble; the author's advice is to begin with early starts (`pool.below=1`) and small rates.

`segment` records so many of the student's steps at a time, and computes them again for the gradient: the same set, to
rounding, in memory that hardly grows with the steps, for about half as much time again. (TESLA, arXiv:2211.10586, is
another way to constant memory.)

The judge `mtt` trains at the learned rate. The authors report the maximum over sets along the run; here the last set
counts, and the best point of each network's curve is stored beside its last (`protocol.record`: how many there are).
"""

from __future__ import annotations

from typing import final

from pydantic import Field

from condense.axes import Augment, Init, Net, Preprocess, Schedule
from condense.component import Component, named
from condense.data import Sampler
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.augment import NoAugment
from condense.parts.budgets import PerClass
from condense.parts.experts import Experts, Trajectories
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels, WithRate
from condense.parts.rules import SGD
from condense.parts.schedules import Learned
from condense.parts.trajectory import Trajectory
from condense.recipe import Group, Outer, Published, Recipe, published

from .protocols import VicoLike


@final
class AtLearnedRate(VicoLike):
    """MTT's: as `vico-dsa`, at the step size that the set brings, which falls to a tenth at half.

    On sets that bring none `lr` stands for it, as for random real images. Not followed: the code reports the maximum
    over the sets that a run passes through, judged every 100 steps by 5 networks.
    """

    name = "mtt"
    epochs: int = Field(default=1000, ge=0)
    augment: Augment = Field(default_factory=lambda: named(Augment, "dsa"))

    def fit(self, data: Sampler) -> Fit:
        falls = super().fit(data).lr
        times = falls.with_(start=1.0) if isinstance(falls, Schedule) else 1.0
        return super().fit(data).with_(lr=Learned(times=times, otherwise=self.lr))


def experts(count: int = 100, epochs: int = 50) -> Trajectories:
    """The experts of the official code: SGD 0.01 in batches of 256, every image augmented by itself."""
    fit = Fit(rule=SGD(), lr=0.01, epochs=epochs, batch=256, augment=named(Augment, "dsa"))
    return Trajectories(net=named(Net, "conv-net"), fit=fit, count=count)


@published(
    paper="arXiv:2203.11932",
    title="MTT: match stretches of experts' training, and learn the step size",
    settings="published/mtt.toml",
    protocol="mtt",
)
def mtt(*, per_class: int = 10, iterations: int = 5000, segment: int | None = None) -> Recipe:
    student = Fit(rule=SGD(), lr=Learned(), steps=20, batch=None, augment=named(Augment, "dsa"))
    groups = (
        Group(role="images", rule=SGD(momentum=0.5), lr=1000.0),
        Group(role="rate", rule=SGD(momentum=0.5), lr=1e-5),
    )
    return Recipe(
        objective=Trajectory(fit=student, segment=segment),
        pool=Experts(experts=experts(), below=25, span=3),
        parameterization=WithRate(inner=Pixels(), start=0.01),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=Hard(),
        augment=NoAugment(),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=groups),
    )


@hookimpl
def condense_components() -> list[type[Component]]:
    return [AtLearnedRate]


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"mtt": mtt}
