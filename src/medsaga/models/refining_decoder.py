"""SAM's mask decoder with convolutions after each upscaling, for small encoders with skips.

SAM 2's decoder adds skips pixel by pixel (arXiv 2408.00714). Where images are few, it helps that the upscaled pixels
then look at their neighbours once more, as in a U-Net (arXiv 1505.04597); ``benchmarks/starter`` has by how much.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medsaga.models.blocks import ResidualConvolutions, convolution
from medsaga.models.decoder import MaskDecoder, add_skip


class RefiningMaskDecoder(MaskDecoder):
    """Lets upscaled pixels see their neighbours, at twice and at four times the side of the image embeddings.

    Attributes:
        refinement: the convolutions at strides of 4 and 2 pixels, where the embeddings have one of 8.
    """

    def __init__(self, channels: int, *, classes: int, mlp_dim: int) -> None:
        """Draw random weights from torch's global generator; see the base class."""
        super().__init__(channels, classes=classes, mlp_dim=mlp_dim)
        self.refinement = Refinement(channels)

    def upscale(self, pixels: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Upscale pixels fourfold, and refine them after each of the two steps; see the base class."""
        first, norm, activation, second, _ = self.output_upscaling
        fine, coarse = skips or (None, None)
        pixels = add_skip(first(pixels), coarse)
        pixels = activation(norm(pixels))
        # The norm leaves channels last in memory, and convolutions would copy every gradient back into their order.
        pixels = pixels.contiguous()
        pixels = pixels + self.refinement.stride_4(pixels)
        pixels = second(pixels)
        pixels = add_skip(pixels, fine)
        pixels = activation(pixels)
        return pixels + self.refinement.stride_2(pixels)


class Refinement(nn.Module):
    """Three convolutions for each of the two sizes, the last two beside the identity."""

    def __init__(self, channels: int) -> None:
        """Take the channels of the image embeddings."""
        super().__init__()
        half, quarter = channels // 8, channels // 4
        self.stride_2 = nn.Sequential(convolution(half, half), ResidualConvolutions(half))
        self.stride_4 = nn.Sequential(convolution(quarter, quarter), ResidualConvolutions(quarter))
