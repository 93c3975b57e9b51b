"""Sets of real images: random, herding and k-center, through the same door as the methods that are compared with them.

Herding and k-center choose within each class by the features of a network trained on the whole training split, as in
the coreset baselines of DC (arXiv:2006.05929, section 4.1); `scorer = null` chooses by the inputs themselves.
"""

from __future__ import annotations

from condense.axes import Asset, Augment, Init, Net, Preprocess
from condense.component import named
from condense.fit import Fit
from condense.hookspecs import hookimpl
from condense.parts.assets import Trained
from condense.parts.budgets import PerClass
from condense.parts.inits import Herding, KCenter
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels
from condense.parts.pools import NoModel
from condense.parts.rules import SGD
from condense.recipe import Outer, Published, Recipe, published


def coreset(per_class: int, init: Init) -> Recipe:
    """No objective, no network, no steps: what Init chooses is the set."""
    return Recipe(
        pool=NoModel(),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=init,
        labels=Hard(),
        augment=named(Augment, "none"),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=0),
    )


def scorer() -> Asset:
    return Trained(net=named(Net, "conv-net"), fit=Fit(rule=SGD(momentum=0.9, weight_decay=5e-4), lr=0.01, steps=1000))


@published(paper="arXiv:2006.05929", title="Random real images of each class", settings="published/baselines.toml")
def random(*, per_class: int = 10) -> Recipe:
    return coreset(per_class, named(Init, "real"))


@published(
    paper="doi:10.1145/1553374.1553517",
    title="Herding: real images whose running mean feature follows the class mean",
    settings="published/coresets.toml",
)
def herding(*, per_class: int = 10) -> Recipe:
    return coreset(per_class, Herding(scorer=scorer()))


@published(
    paper="arXiv:1708.00489",
    title="k-center: real images whose features cover their class",
    settings="published/coresets.toml",
)
def k_center(*, per_class: int = 10) -> Recipe:
    return coreset(per_class, KCenter(scorer=scorer()))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"random": random, "herding": herding, "k-center": k_center}
