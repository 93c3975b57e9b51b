"""What the networks of our own share: a trunk that makes features, one linear head, and what is refused.

Notation: N examples, K classes, C x H x W images, D features.
"""

from __future__ import annotations

import bisect
import functools
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self, final

import torch
from torch import Tensor, nn

from condense.axes import Net
from condense.errors import BadValue
from condense.task import Task

Shape = tuple[int, ...]
Norm = Literal["instance", "batch", "layer", "group", "none"]

LARGEST_SIDE_TRIED = 256  # a refusal looks this far for the smallest images that would fit


def norm_layer(kind: Norm, size: Shape) -> nn.Module | None:
    """The normalisation of maps of `size` (C, H, W); None for "none". The only place that makes one.

    "instance" is GroupNorm(C, C) with a learned scale and shift for each channel, as in the official code
    (`nn.InstanceNorm2d` has none by default); "group" is GroupNorm(4, C); "layer" scales and shifts each of the C x H x
    W values by itself.
    """
    match kind:
        case "instance":
            return nn.GroupNorm(size[0], size[0])
        case "group":
            return nn.GroupNorm(4, size[0])
        case "batch":
            return nn.BatchNorm2d(size[0])
        case "layer":
            return nn.LayerNorm(size)
        case "none":
            return None


def blind_to_one_pixel(layer: nn.Module) -> bool:
    """Does this layer give a constant for maps of one pixel? (Each channel of each image is normalised by itself.)"""
    return isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels


def grey_28(shape: Shape) -> bool:
    """The images that the official code pads to 32 x 32 in the first convolution.

    It pads whatever has one channel, and meets no such images but 28 x 28 ones; grey images of other sizes (8 x 8
    digits, which would become 12 x 12) are not padded here unless the network's `pad` says so.
    """
    return shape == (1, 28, 28)


@final
class Classifier(nn.Module):
    """trunk: (N, C, H, W) -> (N, ...); features: that, flattened to (N, D); forward: the head of it, (N, K)."""

    def __init__(self, trunk: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, outputs)

    def features(self, x: Tensor) -> Tensor:
        out: Tensor = self.trunk(x)
        return out.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x))
        return out


class Trunked(Net):
    """Abstract: a trunk and one linear head. Members say what the trunk is, and what to try where it does not fit."""

    takes_images: ClassVar[bool] = True

    @abstractmethod
    def trunk(self, shape: Shape) -> nn.Module:
        """A freshly initialised trunk for examples of `shape`; it may fail on what is too small."""

    def instead(self, shape: Shape) -> Iterable[tuple[str, Self]]:
        """(field, network with another value of it) pairs to propose where this one does not fit, best first."""
        return ()

    def build(self, task: Task) -> nn.Module:
        width = feature_width(self, task.shape)
        return Classifier(self.trunk(task.shape), width, task.outputs)


@functools.lru_cache(maxsize=1024)
def feature_width(net: Trunked, shape: Shape) -> int:
    """D for examples of `shape`, found by a pass on the meta device: no arithmetic, no random number, once per shape.

    Raises `BadValue` where the trunk leaves no pixel, or a normalisation only one.
    """
    if net.takes_images and len(shape) != 3:
        remedy = "Give examples of shape (channels, height, width), or use the net `mlp`."
        raise BadValue("task.shape", shape, f"{net.name} takes images", remedy)
    width, problem = tried(net, shape)
    if problem:
        raise refusal(net, shape, problem)
    return width


def tried(net: Trunked, shape: Shape) -> tuple[int, str]:
    """(D, "") where the trunk fits examples of `shape`, else (0, why not)."""
    try:
        with torch.device("meta"):
            trunk = net.trunk(shape)
            for layer in filter(blind_to_one_pixel, trunk.modules()):
                layer.register_forward_pre_hook(refuse_one_pixel)
            return trunk(torch.zeros(2, *shape)).flatten(1).shape[1], ""
    except OnePixel:
        return 0, "shrinks them to one pixel before its last instance norm, which then gives a constant"
    except (RuntimeError, ValueError):
        return 0, "shrinks them to nothing"


class OnePixel(Exception):
    """A layer for which `blind_to_one_pixel` holds was given maps of one pixel."""


def refuse_one_pixel(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs[0].shape[2:].numel() == 1:
        raise OnePixel


def refusal(net: Trunked, shape: Shape, problem: str) -> BadValue:
    """The error that names the field to change and a value that was tried and fits; failing that, a size."""
    problem = f"{net.name} {problem}, for images of {' x '.join(map(str, shape))}"
    larger = smallest_side(net)
    sizes = f"images of at least {larger} x {larger} pixels" if larger else "another net"
    for field, other in net.instead(shape):
        if not tried(other, shape)[1]:
            fitting = f"Use {field}={getattr(other, field)}, or {sizes}."
            return BadValue(f"net.{field}", getattr(net, field), problem, fitting)
    return BadValue("task.shape", shape, problem, f"Use {sizes}, or the net `mlp`.")


def smallest_side(net: Trunked) -> int | None:
    """The side from which on square images fit, by bisection; None where the largest that is tried does not fit.

    Tried on colour images: grey ones of 28 x 28 are padded and may fit where larger ones do not.
    """
    sides = range(1, LARGEST_SIDE_TRIED + 1)
    found = bisect.bisect_left(sides, True, key=lambda side: not tried(net, (3, side, side))[1])
    return sides[found] if found < len(sides) else None
