"""SAM's prompt encoder (arXiv 2304.02643, section 3) where there is no prompt.

What only points, boxes and masks use is kept, as in the official files, but nothing computes with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from medsaga.models.blocks import LayerNorm2d

POINT_KINDS = 4
"""Kinds of points that SAM has an embedding for: background, foreground, and two corners of a box."""
MASK_CHANNELS = 16
"""Widest layer between a mask that is a prompt and its embedding."""
NORM_EPS = 1e-6


class PromptEncoder(nn.Module):
    """Embeds the absence of a prompt, and the places of pixels."""

    def __init__(self, channels: int) -> None:
        """Take the channels of the image embeddings; draw random weights from torch's global generator."""
        super().__init__()
        self.pe_layer = FourierPositions(channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, MASK_CHANNELS // 4, kernel_size=2, stride=2),
            LayerNorm2d(MASK_CHANNELS // 4, eps=NORM_EPS),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS // 4, MASK_CHANNELS, kernel_size=2, stride=2),
            LayerNorm2d(MASK_CHANNELS, eps=NORM_EPS),
            nn.GELU(),
            nn.Conv2d(MASK_CHANNELS, channels, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(POINT_KINDS))
        self.not_a_point_embed = nn.Embedding(1, channels)

    def dense(self) -> Tensor:
        """Return what stands for "no mask" at every pixel of the image embeddings, ``(1, channels, 1, 1)``."""
        return self.no_mask_embed.weight.view(1, -1, 1, 1)

    def positions(self, height: int, width: int) -> Tensor:
        """Return Fourier features of the centres of a grid's cells, ``(1, channels, height, width)`` float32."""
        return self.pe_layer(height, width)


class FourierPositions(nn.Module):
    """Random Fourier features of places (arXiv 2006.10739)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        """Draw the frequencies, ``(2, channels / 2)`` float32: SAM never trains them, and bfloat16 would shift them."""
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2, dtype=torch.float32))

    def forward(self, height: int, width: int) -> Tensor:
        """Return the features of the centres of a grid's cells, ``(1, channels, height, width)`` float32."""
        frequencies = self.positional_encoding_gaussian_matrix
        y, x = (
            (torch.arange(size, device=frequencies.device, dtype=torch.float32) + 0.5) / size
            for size in (height, width)
        )
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        places = 2 * torch.stack((columns, rows), dim=-1) - 1
        angles = 2 * math.pi * (places @ frequencies)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).permute(2, 0, 1).unsqueeze(0)
