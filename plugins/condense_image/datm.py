"""Difficulty-aligned trajectory matching (DATM; Guo et al., ICLR 2024, arXiv:2310.05773): MTT with a window and labels.

Small sets match early stretches of experts' training, large ones late stretches: starts come from a window, whose end
grows while the run goes on. Labels are learned with the images, soft, and start from what experts say.

Official code, followed here: flat experts as FTD trains them (GSAM, rho 0.01, alpha 0.3), 100 of 100 epochs; images
that an expert names rightly at the start; labels as logits, moved by SGD with momentum 0.9; soft cross-entropy in the
student and in the judge, which is MTT's with batches of 128; a stretch whose loss is above a limit moves nothing. There
the optimiser takes no step then; here momentum coasts on. The first configurations that were published differed from
the paper (issue 7 of that repository); the rows here are the later ones.

For other data sets and budgets, the settings of CIFAR-10 at 10 images per class, without whitening.
"""

from __future__ import annotations

from condense.axes import Augment, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.augment import NoAugment
from condense.parts.budgets import PerClass
from condense.parts.by_experts import ExpertLogits, Understood
from condense.parts.experts import Experts
from condense.parts.flat import Flat
from condense.parts.parameterizations import Pixels, WithRate
from condense.parts.rules import SGD
from condense.parts.schedules import Learned, Linear
from condense.parts.trajectory import Trajectory
from condense.recipe import Group, Outer, Published, Recipe, published

from .mtt import experts


@published(
    paper="arXiv:2310.05773",
    title="DATM: match stretches of experts' training of fitting difficulty, and learn soft labels",
    settings="published/datm.toml",
    protocol="mtt",
)
def datm(*, per_class: int = 10, iterations: int = 10_000, segment: int | None = None) -> Recipe:
    student = Fit(rule=SGD(), lr=Learned(), steps=80, batch=None, augment=named(Augment, "dsa"))
    groups = (
        Group(role="images", rule=SGD(momentum=0.5), lr=100.0),
        Group(role="labels", rule=SGD(momentum=0.9), lr=2.0),
        Group(role="rate", rule=SGD(momentum=0.5), lr=1e-5),
    )
    flat_ones = experts(epochs=100).with_(flat=Flat())
    window = Linear(start=10, to=20, until=0.1)
    return Recipe(
        objective=Trajectory(fit=student, segment=segment, limit=1.0),
        pool=Experts(experts=flat_ones, below=window, span=2),
        parameterization=WithRate(inner=Pixels(), start=0.01),
        budget=PerClass(n=per_class),
        init=Understood(),
        labels=ExpertLogits(),
        augment=NoAugment(),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=groups),
    )


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"datm": datm}
