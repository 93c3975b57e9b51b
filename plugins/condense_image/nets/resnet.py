"""ResNet18 for small images, plain and with average pooling (released code of DC, arXiv:2006.05929)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self, final

import torch.nn.functional as F
from torch import Tensor, nn

from .trunk import Norm, Shape, Trunked, norm_layer

BlockNorm = Literal["instance", "batch"]


@final
class ResNet18(Trunked):
    """3 x 3 stem of stride 1, four stages of two basic blocks (64, 128, 256, 512), mean over the pixels. D = 512.

    `norm` "instance" is the official ResNet18, "batch" its ResNet18BN. The official average pooling by 4 is the mean
    over all pixels at 28 x 28 and 32 x 32, where alone it fits; here it is that mean at every size. Images are not
    padded.

    Raises `BadValue` (`net.norm`) where the last instance norms would see one pixel: at 8 x 8 and below.
    """

    name: ClassVar[str] = "resnet18"
    shorthand: ClassVar[str | None] = "norm"
    norm: BlockNorm = "instance"

    def trunk(self, shape: Shape) -> nn.Module:
        return nn.Sequential(*stages(shape[0], self.norm, average=False), nn.AdaptiveAvgPool2d(1))

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return [("norm", self.with_(norm="batch"))]


@final
class ResNet18AP(Trunked):
    """ResNet18 that halves by average pooling after a convolution of stride 1, and keeps all pixels. D = 512 * 4 * 4.

    At 28 x 28, D = 512 * 3 * 3. `norm` "batch" is the official ResNet18BN_AP.

    Raises `BadValue` (`net.norm`) where the last instance norms would see one pixel: below 16 x 16.
    """

    name: ClassVar[str] = "resnet18-ap"
    shorthand: ClassVar[str | None] = "norm"
    norm: BlockNorm = "instance"

    def trunk(self, shape: Shape) -> nn.Module:
        return nn.Sequential(*stages(shape[0], self.norm, average=True))

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return [("norm", self.with_(norm="batch"))]


def stages(channels: int, norm: BlockNorm, *, average: bool) -> list[nn.Module]:
    """The stem and the eight blocks; each stage but the first halves height and width in its first block."""
    layers = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), normed(norm, 64), nn.ReLU(inplace=True)]
    before = 64
    for after in (64, 128, 256, 512):
        layers += [Block(before, after, norm, average=average), Block(after, after, norm, average=average)]
        before = after
    return layers


def normed(norm: Norm, channels: int) -> nn.Module:
    """A norm of maps whose size does not matter to it."""
    return norm_layer(norm, (channels, 0, 0)) or nn.Identity()


@final
class Block(nn.Module):
    """Two convolutions and a shortcut. Where the channels grow, height and width are halved.

    average: halve by average pooling (after the first activation, and before the norm of the shortcut), not by stride.
    """

    def __init__(self, before: int, after: int, norm: BlockNorm, *, average: bool) -> None:
        super().__init__()
        halves = before != after
        stride = 2 if halves and not average else 1
        self.pool = nn.AvgPool2d(2) if halves and average else nn.Identity()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = normed(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = normed(norm, after)
        shortcut = (nn.Conv2d(before, after, 1, stride=stride, bias=False), self.pool, normed(norm, after))
        self.shortcut = nn.Sequential(*(shortcut if halves else ()))

    def forward(self, x: Tensor) -> Tensor:
        out = self.pool(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))
