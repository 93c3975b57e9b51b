"""The gradient of each example alone, for many at once: `torch.func.vmap` of `grad`, with fast convolutions.

Under `vmap` no example can look at another, whatever the network does: what private sources rely on. The weights'
gradient of a stacked convolution is one of as many groups as there are examples, which is slow on a CPU, and which no
compiler makes faster. `convolutions_as_products` makes it a product of matrices, the same sum in another order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function
from torch.func import grad, vmap
from torch.overrides import TorchFunctionMode

Tensors = Mapping[str, Tensor]
Pair = tuple[int, int]
CONV2D = {"input": None, "weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}


def gradients(value: Callable[[Tensors, Tensors, Tensor], Tensor]) -> Callable[[Tensors, Tensors, Tensor], Tensors]:
    """(params, x, y) -> the gradient of value(params, own x, own y), 0-d, for each entry of x and y: (N, *shape)."""
    return vmap(grad(value), in_dims=(None, 0, 0))  # type: ignore[no-any-return]


def convolutions_as_products() -> TorchFunctionMode:
    """A context in which two-dimensional convolutions without groups give their weights' gradient by `bmm`.

    Compiled, ConvNet-3's rows take 40 % less time so; eagerly, where the unfolding is a pass of its own, a little more.
    First derivatives only.
    """
    return _Products()


class _Products(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            asked = CONV2D | dict(zip(CONV2D, args, strict=False)) | (kwargs or {})
            if asked["input"].dim() == 4 and asked["groups"] == 1 and not isinstance(asked["padding"], str):
                how = [_pair(asked[key]) for key in ("stride", "padding", "dilation")]
                return _Convolution.apply(asked["input"], asked["weight"], asked["bias"], *how)
        return func(*args, **(kwargs or {}))


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    return torch.conv2d(x, weight, bias, stride, padding, dilation)


def _channels_last(value: Tensor) -> Tensor:
    """Channels last in memory, as the gradients of convolutions are: compiled, what mixes both orders gathers."""
    return value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def _pair(value: Any) -> Pair:
    first, *rest = (value,) if isinstance(value, int) else value
    return int(first), int(rest[0] if rest else first)


class _Convolution(Function):
    """conv2d of x (N, C, H, W), whose backward pass is written out; under `vmap` examples become part of the batch."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *how: Pair) -> Tensor:
        return _conv2d(x, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, *ctx.how = inputs
        ctx.biased = bias is not None
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (out,) = outer
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            rest = (None, *ctx.how, False, (0, 0), 1, (True, False, False))
            of_x = torch.ops.aten.convolution_backward(out, x, weight, *rest)[0]
        if ctx.needs_input_grad[1]:
            of_weight = _OfWeight.apply(x, out, tuple(weight.shape[2:]), *ctx.how)
        return of_x, of_weight, out.sum((0, 2, 3)) if ctx.biased else None, None, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *how: Pair) -> Any:
        if dims[1] is not None or dims[2] is not None or dims[0] is None:  # weights that are made of the example
            return torch.vmap(lambda x, w, b: _conv2d(x, w, b, *how), in_dims=dims[:3])(x, weight, bias), 0
        x = x.movedim(dims[0], 0)
        out = _Convolution.apply(_channels_last(x.flatten(0, 1)), _channels_last(weight), bias, *how)
        return _channels_last(out).view(*x.shape[:2], *out.shape[1:]), 0


class _OfWeight(Function):
    """The gradient (O, C, *kernel) of a convolution's weight, of its x (N, C, H, W) and its output's gradient."""

    @staticmethod
    def forward(x: Tensor, out: Tensor, kernel: Pair, *how: Pair) -> Tensor:
        return _products(x, out, kernel, *how).sum(dim=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: first derivatives only."""

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        raise NotImplementedError("second derivatives go the ordinary way")

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, out: Tensor, kernel: Pair, *how: Pair) -> Any:
        x, out = (
            value.unsqueeze(0).expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in ((x, dims[0]), (out, dims[1]))
        )
        each = _products(x.flatten(0, 1), out.flatten(0, 1), kernel, *how)
        return each if x.shape[1] == 1 else each.reshape(*x.shape[:2], *each.shape[1:]).sum(dim=1), 0


def _products(x: Tensor, out: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """`_OfWeight` of each of N alone, (N, O, C, *kernel)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    for side in (0, 1):  # (N, rows, columns, C, kernel rows, kernel columns)
        span = (kernel[side] - 1) * dilation[side] + 1
        padded = padded.unfold(1 + side, span, stride[side])[..., :: dilation[side]]
    n, channels = x.shape[:2]
    patches = padded.permute(0, 1, 2, 4, 5, 3).reshape(n, -1, kernel[0] * kernel[1] * channels)
    rows = torch.bmm(out.flatten(2), patches)  # channels last: what is copied lies side by side
    return rows.view(n, -1, *kernel, channels).permute(0, 1, 4, 2, 3)


__all__ = ["convolutions_as_products", "gradients"]
