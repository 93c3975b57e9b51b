"""KIP with convolutional kernels (Nguyen, Novak, Xiao and Lee, NeurIPS 2021, arXiv:2107.13034).

As `kip` and `label-solve`, with the tangent kernel of an infinitely wide ConvNet: one 3 x 3 convolution with ReLU in
front, then three of them with 2 x 2 average pooling, and a dense layer. Images are standardised by channel; those of
CIFAR and SVHN are whitened (`zca-kip`), by the rows beside the recipe. The judge is `krr` with the same kernel.

Its cost is that of the kernel (docs/speed.md): a step meets 5,000 real images with all of the set, and computes the
kernel of each pair twice, since intermediates are not kept for the backward pass. The authors used many machines.
`--set objective.n=10` takes 10 real images of each class instead of 500.
"""

from __future__ import annotations

from condense.axes import Preprocess
from condense.component import named
from condense.hookspecs import hookimpl
from condense.parts.kernels import InfiniteConvNet
from condense.recipe import Published, Recipe, published

from .kip import inducing_points, solved_labels


@published(
    paper="arXiv:2107.13034",
    title="KIP-conv: images and labels for regression with a convolutional tangent kernel",
    settings="published/kip_conv.toml",
    protocol="krr",
)
def kip_conv(*, per_class: int = 10, iterations: int = 1000) -> Recipe:
    return inducing_points(per_class, iterations, InfiniteConvNet(), named(Preprocess, "normalise"))


@published(
    paper="arXiv:2107.13034",
    title="Label solve with a convolutional tangent kernel",
    settings="published/label_solve_conv.toml",
    protocol="krr",
)
def label_solve_conv(*, per_class: int = 10) -> Recipe:
    return solved_labels(per_class, InfiniteConvNet(), named(Preprocess, "normalise"))


@hookimpl
def condense_recipes() -> dict[str, Published]:
    return {"kip-conv": kip_conv, "label-solve-conv": label_solve_conv}
