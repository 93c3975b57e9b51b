"""MLP, LeNet, AlexNet and VGG11 as the literature judges with them (released code of DC, arXiv:2006.05929).

`pad` is the padding of the first convolution. None: for 1 x 28 x 28 images what makes them 32 x 32, else what the
official code takes for colour images; see `grey_28` on other grey images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self, final

from pydantic import Field
from torch import nn

from .trunk import Shape, Trunked, grey_28, norm_layer


@final
class MLP(Trunked):
    """Flattened examples of any shape, ReLU layers of the widths in `hidden`, one linear layer. D = 128."""

    name: ClassVar[str] = "mlp"
    takes_images: ClassVar[bool] = False
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(128, 128), min_length=1)

    def trunk(self, shape: Shape) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        before = math.prod(shape)
        for width in self.hidden:
            layers += [nn.Linear(before, width), nn.ReLU(inplace=True)]
            before = width
        return nn.Sequential(*layers)


@final
class LeNet(Trunked):
    """Two 5 x 5 convolutions (6, 16 channels) with max pooling, linear layers of 120 and 84. D = 84.

    Raises `BadValue` (`net.pad`) where the images are too small: unpadded, below 16 x 16.
    """

    name: ClassVar[str] = "lenet"
    pad: int | None = Field(default=None, ge=0)

    def trunk(self, shape: Shape) -> nn.Module:
        pad = (2 if grey_28(shape) else 0) if self.pad is None else self.pad
        height, width = (max(1, ((side + 2 * pad - 4) // 2 - 4) // 2) for side in shape[1:])
        return nn.Sequential(
            *(nn.Conv2d(shape[0], 6, 5, padding=pad), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(16 * height * width, 120), nn.ReLU(inplace=True)),
            *(nn.Linear(120, 84), nn.ReLU(inplace=True)),
        )

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return (("pad", self.with_(pad=pad)) for pad in range(1, 9))


@final
class AlexNet(Trunked):
    """Five convolutions (128, 192, 256, 192, 192), max pooling after the first, second and last. D = 192 * 4 * 4.

    `norm` "none" is the official AlexNet, "batch" its AlexNetBN. Raises `BadValue` (`net.pad`) below 8 x 8.
    """

    name: ClassVar[str] = "alexnet"
    shorthand: ClassVar[str | None] = "norm"
    norm: Literal["none", "batch"] = "none"
    pad: int | None = Field(default=None, ge=0)

    def trunk(self, shape: Shape) -> nn.Module:
        pad = (4 if grey_28(shape) else 2) if self.pad is None else self.pad
        return nn.Sequential(
            *(*self._block(shape[0], 128, 5, pad), nn.MaxPool2d(2)),
            *(*self._block(128, 192, 5, 2), nn.MaxPool2d(2)),
            *self._block(192, 256, 3, 1),
            *self._block(256, 192, 3, 1),
            *(*self._block(192, 192, 3, 1), nn.MaxPool2d(2)),
        )

    def _block(self, before: int, after: int, kernel: int, pad: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(after) if self.norm == "batch" else None
        layers = (nn.Conv2d(before, after, kernel, padding=pad), norm, nn.ReLU(inplace=True))
        return [layer for layer in layers if layer is not None]

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return (("pad", self.with_(pad=pad)) for pad in (4, 8))


@final
class VGG11(Trunked):
    """Eight 3 x 3 convolutions with norm and ReLU, five max poolings. D = 512 for 28 x 28 and 32 x 32.

    The official average pooling by 1 at the end does nothing and is left out. Raises `BadValue` below 32 x 32, where
    the five poolings leave nothing.
    """

    name: ClassVar[str] = "vgg11"
    shorthand: ClassVar[str | None] = "norm"
    norm: Literal["instance", "batch"] = "instance"
    pad: int | None = Field(default=None, ge=0)

    stages: ClassVar[tuple[tuple[int, ...], ...]] = ((64,), (128,), (256, 256), (512, 512), (512, 512))

    def trunk(self, shape: Shape) -> nn.Module:
        layers: list[nn.Module | None] = []
        before = shape[0]
        pad = (3 if grey_28(shape) else 1) if self.pad is None else self.pad
        for stage in self.stages:
            for after in stage:
                conv = nn.Conv2d(before, after, 3, padding=pad)
                layers += [conv, norm_layer(self.norm, (after, 0, 0)), nn.ReLU(inplace=True)]
                before, pad = after, 1
            layers.append(nn.MaxPool2d(2))
        return nn.Sequential(*(layer for layer in layers if layer is not None))

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return [("pad", self.with_(pad=3))]
