"""Any classification model of torchvision by name, adapted to small images: for judging across architectures."""

from __future__ import annotations

import functools
from typing import Any, ClassVar, final

import torch
from pydantic import field_validator
from pydantic_core import PydanticCustomError
from torch import nn

from condense.axes import Net
from condense.errors import BadValue, nearest
from condense.task import Task

from .tapped import Tapped, last_layer
from .trunk import Shape

SMALL = 64  # pixels; images with a side below this get the small stem
SMALL_PATCH = 4  # pixels; the patch of a vision transformer on small images


@final
class TorchVision(Net):
    """`torchvision:resnet18`, `torchvision:vgg11`, ...: a model of `torchvision.models`, untrained.

    The head has `task.outputs` outputs, the first convolution the channels of the images, auxiliary heads are left out.
    Where a side of the images is below 64 pixels, the stem keeps their size, as is usual for CIFAR: the first
    convolution becomes 3 x 3 of stride 1, and the first max pooling goes; a vision transformer gets patches of 4 x 4. A
    first convolution that is replaced has PyTorch's initialisation, everything else the model's own.

    Features: the flattened input of the last linear layer (of the last convolution in SqueezeNet, which has no linear
    one); dropout that stands before it acts on them while training.

    Raises `BadValue` (`net.model`) for a name that torchvision does not know, with the nearest, and where the images
    are too small for the model or of a size that it does not take.
    """

    name: ClassVar[str] = "torchvision"
    shorthand: ClassVar[str | None] = "model"
    model: str

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        if model not in known_models():
            context = {"model": repr(model), "remedy": nearest(model, known_models())}
            raise PydanticCustomError("component", "torchvision has no classification model {model}", context)
        return model

    def build(self, task: Task) -> nn.Module:
        problem = misfit(self.model, task.shape)
        if problem:
            raise BadValue("net.model", self.model, problem, "Use another model (resnet18 takes most sizes).")
        return adapted(self.model, task.shape, task.outputs)


@functools.cache
def known_models() -> tuple[str, ...]:
    from torchvision import models

    return tuple(models.list_models(module=models))


@functools.lru_cache(maxsize=256)
def misfit(name: str, shape: Shape) -> str:
    """Why the model cannot take examples of this shape, or "": a pass on the meta device, once per shape."""
    images = " x ".join(map(str, shape))
    if len(shape) != 3:
        return f"takes images (channels, height, width), not examples of {images}"
    try:
        with torch.device("meta"):
            adapted(name, shape, 2)(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        return f"cannot take images of {images}: {str(error).strip().splitlines()[0]}"
    return ""


def adapted(name: str, shape: Shape, outputs: int) -> nn.Module:
    """The model with the stem and the head for images of `shape` (C, H, W), and with `features`."""
    from torchvision import models

    small = min(shape[1:]) < SMALL
    # regnet computes its widths from tensors, which have no values on the meta device: made on the CPU, then moved
    with torch.device("cpu") if name.startswith("regnet") else torch.get_default_device():
        model = models.get_model(name, weights=None, num_classes=outputs, **arguments(name, shape, small))
    model = model.to(torch.get_default_device())
    if name.startswith("vit_"):
        repatch(model, shape, SMALL_PATCH if small else model.patch_size)
    else:
        restem(model, shape[0], small)
    head = last_layer(model, nn.Linear) or last_layer(model, nn.Conv2d)
    assert head is not None, "every model of torchvision has a convolution"
    return Tapped(model, head)


def arguments(name: str, shape: Shape, small: bool) -> dict[str, Any]:
    """What some families must be told: the size of the images, and to leave out auxiliary heads."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("maxvit"):
        return {"input_size": shape[1:]}
    if name.startswith("vit_"):
        patch = int(name.rpartition("_")[2])
        # as many positions as there will be patches; `repatch` then gives the patches their size
        return {"image_size": shape[1] // SMALL_PATCH * patch if small else shape[1]}
    return {}


def restem(model: nn.Module, channels: int, small: bool) -> None:
    """Give the first convolution this many input channels; for small images, make the stem keep their size."""
    name, conv = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    pool = next((n for n, m in model.named_modules() if isinstance(m, nn.MaxPool2d)), None)
    if small:
        stem = nn.Conv2d(channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None)
        model.set_submodule(name, stem)
        if pool:
            model.set_submodule(pool, nn.Identity())
    elif conv.in_channels != channels:
        model.set_submodule(name, with_channels(conv, channels))


def repatch(model: nn.Module, shape: Shape, patch: int) -> None:
    """Give a vision transformer square images of this shape, cut into patches of `patch` pixels."""
    channels, height, width = shape
    if height != width or height % patch:
        raise ValueError(f"a vision transformer takes square images, of a side that {patch} divides")
    conv: Any = model.conv_proj
    model.image_size, model.patch_size = height, patch  # type: ignore[assignment]
    if (conv.in_channels, conv.kernel_size) != (channels, (patch, patch)):
        model.conv_proj = nn.Conv2d(channels, conv.out_channels, patch, stride=patch)


def with_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """A fresh convolution like this one, but for its input channels."""
    kernel: Any = conv.kernel_size
    stride: Any = conv.stride
    padding: Any = conv.padding
    return nn.Conv2d(channels, conv.out_channels, kernel, stride, padding, bias=conv.bias is not None)
