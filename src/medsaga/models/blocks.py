"""Small parts that encoders and the mask decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsaga.models.convolutions import PixelConvolution, depthwise

NORM_GROUPS = 8
"""Groups of the normalisation after each convolution."""


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation (arXiv 1607.06450) over the channels of each pixel."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(batch, channels, height, width)``; the result has its channels last in memory."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation (arXiv 1502.03167) whose statistics are those of pre-training; scale and shift learn.

    A run has few cases and small micro-batches, whose statistics would be noise, and would change with their size.
    Tensors have the names of ``nn.BatchNorm2d``.

    Attributes:
        weight: ``(channels,)``.
        bias: ``(channels,)``.
        running_mean: ``(channels,)`` float32.
        running_var: ``(channels,)`` float32.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        """Take the number of channels and what is added to the variance; the norm changes nothing yet."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels, dtype=torch.float32))
        self.register_buffer("running_var", torch.ones(channels, dtype=torch.float32))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return what a channel is multiplied by and what is then added, ``(channels,)`` each, in float32."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class PointwiseConvolution(PixelConvolution):
    """A convolution of single pixels, without a bias: a matrix, which LoRA may update."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, bias=False)

    def kernel(self) -> Tensor:
        """Return what pixels are multiplied by, ``(out, in, 1, 1)``."""
        return self.weight


def normalised_convolution(inputs: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    """Convolve and normalise in one operation: the norm is folded into the kernel, so that nothing else is kept.

    The gradients of the kernel, of scale and of shift are those of a convolution followed by a norm.

    Args:
        inputs: ``(batch, in_channels, height, width)``, in the type of the kernel.
        convolution: without a bias.
        norm: of its results.

    Returns:
        ``(batch, out_channels, height / stride, width / stride)``.
    """
    kernel, bias = folded(convolution, norm, inputs.dtype)
    if convolution.groups == inputs.shape[1] and convolution.padding == (0, 0):
        return depthwise(inputs, kernel, bias, convolution.stride[0])
    return convolution._conv_forward(inputs, kernel, bias)


def folded(convolution: nn.Conv2d, norm: FrozenBatchNorm2d, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return kernel and bias of the convolution that does what a convolution without bias and a norm do."""
    scale, shift = norm.scale_and_shift()
    kernel = convolution.kernel() if isinstance(convolution, PointwiseConvolution) else convolution.weight
    assert convolution.bias is None
    return (kernel * scale.view(-1, 1, 1, 1)).to(dtype), shift.to(dtype)


class ResidualConvolutions(nn.Module):
    """Two convolutions beside the identity (arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(convolution(channels, channels), convolution(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        """Change ``(batch, channels, height, width)``."""
        return inputs + self.convolutions(inputs)


def convolution(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """Return a 3 x 3 convolution with group normalisation (arXiv 1803.08494) and GELU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1),
        nn.GroupNorm(NORM_GROUPS, out_channels),
        nn.GELU(),
    )
