"""Expert subspace projection (ESP; Ma et al., Sensors 23(19) 8148, 2023): stay where experts went, without unrolling.

The student's trajectory need not equal the expert's; it must only stay in the subspace that the expert's spans. That
is all that the abstract says, no code was published, and the paper's formula is not known here: the objective
`subspace` is our own reading of the sentence, and every setting below is ours. No figure of the paper is claimed, and
none of ours says anything about it. The parts besides the objective are MTT's, with a fixed step size.
"""

from __future__ import annotations

from condense.axes import Augment, Init, Preprocess
from condense.component import named
from condense.hookspecs import hookimpl
from condense.parts.augment import NoAugment
from condense.parts.budgets import PerClass
from condense.parts.experts import Experts
from condense.parts.labels import Hard
from condense.parts.parameterizations import Pixels
from condense.parts.rules import SGD
from condense.parts.subspace import Subspace
from condense.recipe import Group, Outer, Published, Recipe, published

from .mtt import experts


@published(
    paper="doi:10.3390/s23198148",
    title="ESP, in our own reading of its abstract: keep the set's gradients in the subspace of experts' steps",
    settings="published/esp.toml",
    protocol="vico-dsa",
)
def esp(*, per_class: int = 10, iterations: int = 5000) -> Recipe:
    return Recipe(
        objective=Subspace(augment=named(Augment, "dsa")),
        pool=Experts(experts=experts(), below=20, span=3),
        parameterization=Pixels(),
        budget=PerClass(n=per_class),
        init=named(Init, "real"),
        labels=Hard(),
        augment=NoAugment(),
        preprocess=named(Preprocess, "normalise"),
        outer=Outer(steps=iterations, groups=(Group(role="images", rule=SGD(momentum=0.5), lr=100.0),)),
    )


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"esp": esp}
