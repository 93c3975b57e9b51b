"""Networks for images: those of the condensation literature, torchvision's, and the caller's own.

Shapes, layers and initialisation follow the code released with DC, DSA and DM (arXiv:2006.05929, 2102.08259,
2110.04181); initialisation is PyTorch's default, as there. Every network has `features(x)`, (N, D), beside
`forward(x)`, (N, K); it can be built on the meta device, differentiated twice, stacked and mapped with `torch.func`,
compiled whole, and run in channels-last memory.
"""

from __future__ import annotations

from condense.axes import Net

from .classic import MLP, VGG11, AlexNet, LeNet
from .conv_net import ConvNet
from .custom import Custom
from .kernel_conv_net import KernelConvNet
from .resnet import ResNet18, ResNet18AP
from .torch_vision import TorchVision


def components() -> list[type[Net]]:
    """The members of the axis Net that this package brings."""
    return [ConvNet, KernelConvNet, MLP, LeNet, AlexNet, VGG11, ResNet18, ResNet18AP, TorchVision, Custom]


__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "Custom",
    "KernelConvNet",
    "LeNet",
    "ResNet18",
    "ResNet18AP",
    "TorchVision",
    "components",
]
