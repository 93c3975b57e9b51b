"""Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021, arXiv:2102.08259): DC with augmentation.

The same random differentiable augmentation is applied to real and synthetic images before their gradients are
compared; the training of networks on the synthetic set, between matching steps and by the judge, augments each image
on its own. Loops, rates and the rule for other numbers of images per class are DC's.
"""

from __future__ import annotations

from condense.axes import Augment, Init
from condense.component import named
from condense.hookspecs import hookimpl
from condense.recipe import Published, Recipe, published

from .dc import gradient_matching


@published(
    paper="arXiv:2102.08259",
    title="DSA: gradient matching under one differentiable augmentation of both sides",
    settings="published/dsa.toml",
    protocol="vico-dsa",
)
def dsa(*, per_class: int = 10, iterations: int = 1000) -> Recipe:
    return gradient_matching(per_class, iterations, named(Init, "real"), named(Augment, "dsa"))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"dsa": dsa}
