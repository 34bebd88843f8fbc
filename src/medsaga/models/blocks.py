"""Small parts that encoders and the mask decoder share."""

from __future__ import annotations

from torch import Tensor, nn

NORM_GROUPS = 8
"""Groups of the normalisation after each convolution."""


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation (arXiv 1607.06450) over the channels of each pixel."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise ``(batch, channels, height, width)``; the result has its channels last in memory."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
