"""RCIG: dataset distillation with convexified implicit gradients (Loo, Hasani, Lechner and Rus, ICML 2023,
arXiv:2302.06755).

A set that trains networks which are linear in their parameters, with the last layer solved for: a convex problem, whose
solution has an implicit gradient. The networks come from a pool of 30, trained on the set by 1 to 15 steps after each
of their turns; see `condense.parts.implicit` for the problem.

The official code is followed (yolky/RCIG, JAX, `configs_final/depth_3.txt`): labels are centred and learned; the set
is taken together with its mirror images; images and labels move by AdaBelief at 3e-3, the temperature at 0.03;
distilling networks have softplus units (beta 60) at depth 3; what is released is a running mean of the set (0.99).

Where it differs: see `Implicit`; AdaBelief is that of its paper, not optax's; real images are the chunks of a
permutation. The sub-sampling of gradients for large sets is not there. The code's number of steps is 10,000 for every
data set; the paper has a table of them, which is not among its files. Colour images are whitened, as rows beside the
recipe say for CIFAR and SVHN; other data are standardised: `--set preprocess=zca-frepo` whitens them.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Net, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.budgets import PerClass
from condense.parts.implicit import Implicit
from condense.parts.labels import LearnedLabels
from condense.parts.parameterizations import Averaged
from condense.parts.pools import Online
from condense.parts.rules import AdaBelief, Adam
from condense.recipe import Group, Outer, Published, Recipe, published

from .augment import mirrored


@published(
    paper="arXiv:2302.06755",
    title="RCIG: implicit gradients through linearised networks with a last layer in closed form",
    settings="published/rcig.toml",
    protocol="rcig",
)
def rcig(*, per_class: int = 10, iterations: int = 10_000) -> Recipe:
    groups = (Group(role="aux", rule=AdaBelief(), lr=0.03), Group(role="[!a]*", rule=AdaBelief(), lr=3e-3))
    inner = Fit(rule=Adam(), lr=5e-5, steps=1, batch=None, augment=mirrored())
    return Recipe(
        objective=Implicit(n=1024, decay=5e-4, inner=20, inverse=20, support=mirrored()),
        pool=Online(
            net=named(Net, "kernel-conv-net", activation="softplus", beta=60.0),
            inner=inner,
            most=15,
            size=30,
            max_age=100,
            staggered=False,
        ),
        parameterization=Averaged(decay=0.99),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=LearnedLabels(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=groups),
    )


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"rcig": rcig}
