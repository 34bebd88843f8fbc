"""A small SAM that trains on a CPU: eight-pixel tokens, and a short pyramid of convolutions beside the transformer.

SAM's mask decoder upscales tokens without another look at the image. Where the encoder is small and images are few, the
pyramid finds edges from a handful of them, and the decoder adds what it found while it upscales, as SAM 2's decoder
adds the early stages of its encoder (arXiv 2408.00714). benchmarks/starter has what that, the tokens and the side of
192 px do.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from medsaga.models.blocks import ResidualConvolutions, convolution
from medsaga.models.decoder import MaskDecoder
from medsaga.models.encoders.sam_vit import SamVit, SamVitSpec
from medsaga.models.lean import recomputed
from medsaga.models.refining_decoder import RefiningMaskDecoder

PATCH_SIZE = 8
"""Side in pixels of the tokens that the pyramid fits."""


@dataclass(frozen=True, kw_only=True)
class TinySpec(SamVitSpec):
    """The sizes of a transformer with a pyramid.

    Attributes:
        pyramid_widths: channels of the convolutions at a half and at a quarter of the image's side.
    """

    pyramid_widths: tuple[int, int]
    patch_size: int = PATCH_SIZE
    decoder: type[MaskDecoder] = RefiningMaskDecoder
    recomputed: bool = False

    def __post_init__(self) -> None:
        """Check what the parts ask of each other."""
        assert self.patch_size == PATCH_SIZE

    def build(self, *, image_size: int, in_channels: int) -> SamVit:
        """Make the encoder; see the base class."""
        return TinyEncoder(self, image_size=image_size, in_channels=in_channels)


class TinyEncoder(SamVit):
    """Strides 2, 4 and 8: both levels of the pyramid, then the image embeddings of the transformer."""

    pixel_kernels = (*SamVit.pixel_kernels, "details.stride_2.0.0.weight")

    def __init__(self, spec: TinySpec, *, image_size: int, in_channels: int) -> None:
        """Build it with random weights from torch's global generator."""
        super().__init__(spec, image_size=image_size, in_channels=in_channels)
        out = spec.out_channels
        self.strides, self.channels = (2, 4, PATCH_SIZE), (out // 8, out // 4, out)
        self.details = Pyramid(in_channels, spec.pyramid_widths, spec.hidden_size, out)

    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """``(batch, channels, image_size, image_size)`` to one map for each of ``strides``."""
        made = recomputed(self.details, images) if recompute else self.details(images)
        for_tokens, half, quarter = made
        embeddings = self.encode_tokens(self.embed(images) + for_tokens, recompute=recompute)
        return half, quarter, embeddings


class Pyramid(nn.Module):
    """Four convolutions at a half of the image's side and four at a quarter: the beginning of a U-Net."""

    def __init__(self, in_channels: int, widths: tuple[int, int], hidden_size: int, out_channels: int) -> None:
        """Take the channels of the image, of the two levels, of the tokens and of the image embeddings."""
        super().__init__()
        half, quarter = widths
        self.stride_2 = nn.Sequential(
            convolution(in_channels, half, stride=2), convolution(half, half), ResidualConvolutions(half)
        )
        self.stride_4 = nn.Sequential(
            convolution(half, quarter, stride=2), convolution(quarter, quarter), ResidualConvolutions(quarter)
        )
        self.to_tokens = nn.Conv2d(quarter, hidden_size, kernel_size=2, stride=2)
        self.stride_2_to_decoder = nn.Conv2d(half, out_channels // 8, kernel_size=1)
        self.stride_4_to_decoder = nn.Conv2d(quarter, out_channels // 4, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Look at images, ``(batch, in_channels, 8 * tokens, 8 * tokens)``.

        Returns:
            what to add to the tokens, ``(batch, tokens, tokens, hidden_size)``; and the skips for the decoder,
            ``(batch, out_channels / 8, 4 * tokens, 4 * tokens)`` and ``(batch, out_channels / 4, 2 * tokens, 2 *
            tokens)``.
        """
        half = self.stride_2(images)
        quarter = self.stride_4(half)
        for_tokens = self.to_tokens(quarter).permute(0, 2, 3, 1)
        return for_tokens, self.stride_2_to_decoder(half), self.stride_4_to_decoder(quarter)
