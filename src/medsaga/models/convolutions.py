"""Convolutions in the forms that oneDNN computes fastest on a CPU, to the same values up to rounding.

What they are worth: ``benchmarks/step``. Where torch has no oneDNN, and on other devices, they are its usual ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SLOW_SIDE, _QUICK_SIDE = 5, 3
"""Of depthwise kernels: oneDNN makes the gradient of the first by general code, that of the second by its own."""


class PixelConvolution(nn.Conv2d):
    """A convolution of single pixels, ``(batch, in, height, width)`` to ``(batch, out, height, width)``.

    On one CPU thread torch computes it by a path of half the speed of oneDNN's, unless it is dilated, which does
    nothing to a single pixel.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight, bias, dilation=2 if _by_onednn(input) else 1)


def depthwise(inputs: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
    """Convolve each channel by itself, without padding.

    Args:
        inputs: ``(batch, channels, height, width)``.
        kernel: ``(channels, 1, side, side)``.
        bias: ``(channels,)``.
        stride: of rows and columns.
    """
    if kernel.shape[-1] == _SLOW_SIDE and inputs.dtype == torch.float32 and _by_onednn(inputs):
        result: Tensor = _Depthwise5.apply(inputs, kernel, bias, stride)
        return result
    return F.conv2d(inputs, kernel, bias, stride, groups=inputs.shape[1])


def _by_onednn(inputs: Tensor) -> bool:
    return inputs.device.type == "cpu" and torch.backends.mkldnn.is_available()


class _Depthwise5(torch.autograd.Function):
    """A depthwise convolution of 5 x 5, whose kernel's gradient is put together of four overlapping ones of 3 x 3.

    Element (i, j) of the gradient is the sum of the result's gradient times the inputs shifted by (i, j). So each part
    of the gradient is that of a smaller kernel for inputs that begin later.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(inputs, kernel)
        ctx.stride = stride
        return F.conv2d(inputs, kernel, bias, stride, groups=inputs.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        inputs, kernel = ctx.saved_tensors
        to_inputs, to_kernel, to_bias = ctx.needs_input_grad[:3]
        if inputs.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)

        def backward(inputs: Tensor, kernel: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
            strides, channels = [ctx.stride, ctx.stride], inputs.shape[1]
            found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
                gradient, inputs, kernel, [channels], strides, [0, 0], [1, 1], False, [0, 0], channels, wanted
            )
            return found

        of_inputs = backward(inputs, kernel, [True, False, False])[0] if to_inputs else None
        if not to_kernel:
            return of_inputs, None, gradient.sum((0, 2, 3)) if to_bias else None, None
        of_kernel, of_bias = torch.empty_like(kernel), None
        smaller = kernel.new_empty(*kernel.shape[:2], _QUICK_SIDE, _QUICK_SIDE)
        height, width = ((size - 1) * ctx.stride + _QUICK_SIDE for size in gradient.shape[-2:])
        starts = (0, _SLOW_SIDE - _QUICK_SIDE)
        for top in starts:
            for left in starts:
                shifted = inputs[..., top : top + height, left : left + width]
                wants_bias = to_bias and of_bias is None
                _, found, bias = backward(shifted, smaller, [False, True, wants_bias])
                assert found is not None, "it was asked for"
                of_kernel[..., top : top + _QUICK_SIDE, left : left + _QUICK_SIDE] = found
                of_bias = bias if wants_bias else of_bias
        return of_inputs, of_kernel, of_bias, None
