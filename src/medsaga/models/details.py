"""Features finer than SAM's tokens, for the small architecture.

SAM's mask decoder upscales tokens without another look at the image. Where the encoder is small and images are few, a
short pyramid of convolutions beside it finds edges from a handful of them, and the decoder adds what it found while it
upscales, as SAM 2's decoder adds the early stages of its encoder (arXiv 2408.00714).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS = 8
"""Groups of the normalisation after each convolution."""
PATCH_SIZE = 8
"""Side in pixels of the tokens that details can be added to."""


class DetailEncoder(nn.Module):
    """Four convolutions at a half of the image's side and four at a quarter: the beginning of a U-Net."""

    def __init__(self, in_channels: int, widths: tuple[int, int], hidden_size: int, decoder_size: int) -> None:
        """Take the channels of the image, of the two levels, of the tokens and of the mask decoder."""
        super().__init__()
        half, quarter = widths
        self.stride_2 = nn.Sequential(
            _convolution(in_channels, half, stride=2), _convolution(half, half), _Residual(half)
        )
        self.stride_4 = nn.Sequential(
            _convolution(half, quarter, stride=2), _convolution(quarter, quarter), _Residual(quarter)
        )
        self.to_tokens = nn.Conv2d(quarter, hidden_size, kernel_size=2, stride=2)
        self.stride_2_to_decoder = nn.Conv2d(half, decoder_size // 8, kernel_size=1)
        self.stride_4_to_decoder = nn.Conv2d(quarter, decoder_size // 4, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Find the details of images, ``(batch, in_channels, 8 * tokens, 8 * tokens)``, normalised.

        Returns:
            what to add to the patch embedding, ``(batch, tokens, tokens, hidden_size)``; and the details of both
            levels for the decoder, folded into the channels of ``(batch, 3 * decoder_size, tokens, tokens)``.
        """
        half = self.stride_2(images)
        quarter = self.stride_4(half)
        for_decoder = (
            F.pixel_unshuffle(self.stride_2_to_decoder(half), 4),
            F.pixel_unshuffle(self.stride_4_to_decoder(quarter), 2),
        )
        return self.to_tokens(quarter).permute(0, 2, 3, 1), torch.cat(for_decoder, dim=1)


class DetailDecoder(nn.Module):
    """Adds the details while a mask decoder upscales, and lets each pixel see its neighbours at each level."""

    def __init__(self, decoder_size: int) -> None:
        """Take the channels of the mask decoder."""
        super().__init__()
        half, quarter = decoder_size // 8, decoder_size // 4
        self.stride_2 = nn.Sequential(_convolution(half, half), _Residual(half))
        self.stride_4 = nn.Sequential(_convolution(quarter, quarter), _Residual(quarter))

    def forward(self, mask_decoder: Any, pixels: Tensor, details: Tensor) -> Tensor:
        """Do what SAM's upscaling does, with details.

        Args:
            mask_decoder: has the layers of SAM's upscaling.
            pixels: ``(batch, decoder_size, tokens, tokens)``.
            details: of :class:`DetailEncoder`, folded.

        Returns:
            ``(batch, decoder_size / 8, 4 * tokens, 4 * tokens)``.
        """
        channels = pixels.shape[1]
        half, quarter = details.split((2 * channels, channels), dim=1)
        upscaled = mask_decoder.upscale_conv1(pixels) + F.pixel_shuffle(quarter, 2)
        # SAM's norm leaves channels last in memory, and convolutions would copy every gradient back into their order.
        upscaled = mask_decoder.activation(mask_decoder.upscale_layer_norm(upscaled)).contiguous()
        upscaled = upscaled + self.stride_4(upscaled)
        upscaled = mask_decoder.activation(mask_decoder.upscale_conv2(upscaled) + F.pixel_shuffle(half, 4))
        return upscaled + self.stride_2(upscaled)


class _Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.convolutions(inputs)


def _convolution(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1),
        nn.GroupNorm(NORM_GROUPS, out_channels),
        nn.GELU(),
    )
