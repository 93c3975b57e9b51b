"""The network of the methods that regress on features: FRePo, RFAD and RCIG."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal, Self, final

from pydantic import Field
from torch import nn

from condense.task import Task

from .layers import AvgPool2d, Conv2d
from .trunk import Classifier, Shape, Trunked, feature_width, grey_28

Norm = Literal["none", "before", "after"]
CUT = 0.87962566103423978  # deviation of a standard normal that is cut at +-2


@final
class KernelConvNet(Trunked):
    """`depth` x [convolution 3 x 3, activation, average pooling by 2], flattened, one linear layer.

    Block i has width * growth^i channels; with growth 2 it is the `Conv` of the released code of FRePo
    (arXiv:2206.00719): 128, 256, 512. D = 512 * 4 * 4 = 8192 for 32 x 32 images, and for 28 x 28 grey ones.

    norm: batch norm in front of every convolution but the first ("before", FRePo while it distils), behind each
        convolution ("after", RCIG's code), or none. Running statistics keep a tenth of their past, as flax's
        momentum of 0.1 means; they take the unbiased variance of a batch (flax: the biased one).
    activation: "softplus" is log(1 + exp(beta x)) / beta, RCIG's (arXiv:2302.06755) for depth 3, with beta 60.
    init: "lecun" has weights of variance 1 / fan-in, from a normal distribution cut at two deviations, and biases of 0
        (flax's default); "gaussian" weights of variance 2 / fan-in and biases of deviation 0.1, as RFAD's code
        (arXiv:2210.12067) and the kernels of KIP.
    pad: padding of the first convolution, the others have 1. None: 3 for 1 x 28 x 28 images, else 1, as in `conv-net`.
        FRePo and RCIG pad whatever has one channel by 3, RFAD by 1.

    Raises `BadValue` (`net.depth`) where no pixel is left.
    """

    name: ClassVar[str] = "kernel-conv-net"
    depth: int = Field(default=3, ge=1)
    width: int = Field(default=128, ge=1)
    growth: int = Field(default=2, ge=1)
    norm: Norm = "none"
    activation: Literal["relu", "softplus"] = "relu"
    beta: float = Field(default=60.0, gt=0)
    init: Literal["lecun", "gaussian"] = "lecun"
    pad: int | None = Field(default=None, ge=0)

    def trunk(self, shape: Shape) -> nn.Module:
        channels, pad = shape[0], (3 if grey_28(shape) else 1) if self.pad is None else self.pad
        layers: list[nn.Module] = []
        for i in range(self.depth):
            if i and self.norm == "before":
                layers.append(nn.BatchNorm2d(channels, momentum=0.9))
            wide = self.width * self.growth**i
            layers.append(Conv2d(channels, wide, kernel_size=3, padding=pad))
            channels, pad = wide, 1
            if self.norm == "after":
                layers.append(nn.BatchNorm2d(channels, momentum=0.9))
            layers.append(nn.ReLU() if self.activation == "relu" else nn.Softplus(beta=self.beta))
            layers.append(AvgPool2d(2))
        return nn.Sequential(*layers)

    def build(self, task: Task) -> nn.Module:
        width = feature_width(self, task.shape)
        module = Classifier(self.trunk(task.shape), width, task.outputs)
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                initialise(layer, self.init)
        return module

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        return (("depth", self.with_(depth=depth)) for depth in range(self.depth - 1, 0, -1))


def initialise(layer: nn.Conv2d | nn.Linear, kind: Literal["lecun", "gaussian"]) -> None:
    """Draw weights and biases anew, from torch's global generator."""
    scale = 1 / math.sqrt(layer.weight[0].numel())
    assert layer.bias is not None, "every layer of ours has one"
    if kind == "lecun":
        std = scale / CUT
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
        nn.init.zeros_(layer.bias)
    else:
        nn.init.normal_(layer.weight, std=math.sqrt(2) * scale)
        nn.init.normal_(layer.bias, std=0.1)
