"""The network of the literature: blocks of convolution, norm, activation and pooling, and one linear layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self, final

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import nn

from .layers import AvgPool2d, Conv2d
from .trunk import Norm, Shape, Trunked, grey_28, norm_layer

Pooling = Literal["avg", "max", "none"]
Activation = Literal["relu", "leaky-relu", "sigmoid", "swish"]


@final
class ConvNet(Trunked):
    """`depth` x [convolution 3 x 3 of `width` channels, norm, activation, pooling by 2], flattened, one linear layer.

    Source: the released code of DC (arXiv:2006.05929); its defaults are ours (depth 3, width 128, "instance", "avg",
    "relu"). D = width * 4 * 4 = 2048 for 32 x 32 images and for 28 x 28 grey ones.

    norm: "instance" is GroupNorm(C, C), "group" GroupNorm(4, C), both with learned scale and shift; see `norm_layer`.
    activation: "leaky-relu" has slope 0.01; "swish" is x * sigmoid(x).
    pad: padding of the first convolution; the others have 1. None: 3 for 1 x 28 x 28 images, which so become 32 x 32,
        else 1. The official code pads every one-channel input by 3, and knows no other than 28 x 28; other sizes (8 x 8
        digits, say, which pad=3 would make 12 x 12) are here left as they are unless `pad` is given. For three-channel
        28 x 28 images the official code computes the features of 32 x 32 and fails; here they are 28, 14, 7, 3.

    Raises `BadValue` (`net.depth`) where no pixel is left, or an instance norm would see only one.
    """

    name: ClassVar[str] = "conv-net"
    shorthand: ClassVar[str | None] = "norm"
    depth: int = Field(default=3, ge=1)
    width: int = Field(default=128, ge=1)
    norm: Norm = "instance"
    pooling: Pooling = "avg"
    activation: Activation = "relu"
    pad: int | None = Field(default=None, ge=0)

    @field_validator("norm")
    @classmethod
    def _divides(cls, norm: Norm, info: ValidationInfo) -> Norm:
        width = info.data.get("width", 4)
        if norm == "group" and width % 4:
            context = {"width": width, "remedy": f"Use width {width + -width % 4}, or another norm."}
            raise PydanticCustomError("component", "4 groups do not divide the width {width}", context)
        return norm

    def trunk(self, shape: Shape) -> nn.Module:
        channels, height, width = shape
        pad = (3 if grey_28(shape) else 1) if self.pad is None else self.pad
        layers: list[nn.Module | None] = []
        for _ in range(self.depth):
            layers.append(Conv2d(channels, self.width, kernel_size=3, padding=pad))
            channels, height, width = self.width, height + 2 * pad - 2, width + 2 * pad - 2
            layers += [norm_layer(self.norm, (channels, height, width)), activation(self.activation)]
            if self.pooling != "none":
                layers.append(AvgPool2d(2) if self.pooling == "avg" else nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            pad = 1
        return nn.Sequential(*(layer for layer in layers if layer is not None))

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return (("depth", self.with_(depth=depth)) for depth in range(self.depth - 1, 0, -1))


def activation(kind: Activation) -> nn.Module:
    match kind:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky-relu":
            return nn.LeakyReLU(0.01)
        case "sigmoid":
            return nn.Sigmoid()
        case "swish":
            return nn.SiLU()
