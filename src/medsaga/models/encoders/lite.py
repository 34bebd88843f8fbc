"""EfficientNet-Lite (arXiv 1905.11946) with a feature pyramid: a convolutional encoder that trains on a CPU.

It starts from ImageNet's weights, which anybody may use, and a few labelled images go further with it than with a
transformer of its size (``benchmarks/starter``). The "Lite" networks have neither squeeze-and-excitation nor swish.
A pyramid (arXiv 1612.03144) brings the coarse maps up to a stride of 8, where SAM's mask decoder attends to them; maps
of strides 4 and 2 are skips for its upscaling, as in SAM 2's decoder (arXiv 2408.00714).

Parameters of the network itself have the names of the published files, without their leading underscores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.models.blocks import (
    FrozenBatchNorm2d,
    PointwiseConvolution,
    ResidualConvolutions,
    convolution,
    normalised_convolution,
)
from medsaga.models.convolutions import PixelConvolution
from medsaga.models.decoder import MaskDecoder
from medsaga.models.encoders.base import EncoderSpec, ImageEncoder, State
from medsaga.models.lean import recomputed
from medsaga.models.refining_decoder import RefiningMaskDecoder

NORM_EPS = 1e-3
"""Of every batch norm in EfficientNet."""
STEM_CHANNELS = 32
LARGEST_STRIDE = 32
WIDTH_MULTIPLE = 8
"""What the channels of a stage are rounded to."""


class Stage(NamedTuple):
    """A row of table 1 of the paper: blocks of one size; the first of them has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""EfficientNet-Lite0."""


@dataclass(frozen=True, kw_only=True)
class LiteSpec(EncoderSpec):
    """The sizes of an EfficientNet-Lite and its pyramid.

    Attributes:
        width: factor of the channels.
        depth: factor of the blocks of a stage, but for the first and the last.
        out_channels: of the image embeddings.
    """

    width: float
    depth: float
    out_channels: int
    pixel_mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    pixel_std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    decoder: type[MaskDecoder] = RefiningMaskDecoder
    recomputed: bool = False

    def build(self, *, image_size: int, in_channels: int) -> LiteEncoder:
        """Make the encoder; see the base class."""
        del image_size  # a convolution has no positions
        return LiteEncoder(self, in_channels=in_channels)

    def useful_image_sizes(self) -> list[int]:
        """Return multiples of the largest stride."""
        return [*range(96, self.image_size, LARGEST_STRIDE), self.image_size]

    def sizes_of(self, state: State) -> tuple[int, int] | None:
        """Look at the stem and the last block of the network."""
        stem, *_, last = (state.get(name) for name in ("conv_stem.weight", f"blocks.{self._blocks - 1}.bn2.weight"))
        if stem is None or last is None or f"blocks.{self._blocks}.bn2.weight" in state:
            return None
        if len(last) != self.stages()[-1].channels:
            return None
        return self.image_size, stem.shape[1]

    def stages(self) -> list[Stage]:
        """Return the stages with their number of blocks and channels."""
        ends = (0, len(STAGES) - 1)
        return [
            stage._replace(
                repeats=stage.repeats if n in ends else -int(-stage.repeats * self.depth // 1),
                channels=_rounded(stage.channels * self.width),
            )
            for n, stage in enumerate(STAGES)
        ]

    @property
    def _blocks(self) -> int:
        return sum(stage.repeats for stage in self.stages())


class LiteEncoder(ImageEncoder):
    """Strides 2, 4 and 8: two skips, then the image embeddings, which also know strides 16 and 32."""

    pixel_kernels = ("conv_stem.weight",)

    def __init__(self, spec: LiteSpec, *, in_channels: int) -> None:
        """Build it with random weights from torch's global generator."""
        super().__init__()
        out = spec.out_channels
        self.strides, self.channels = (2, 4, 8), (out // 8, out // 4, out)
        self.conv_stem = nn.Conv2d(in_channels, STEM_CHANNELS, kernel_size=3, stride=2, bias=False)
        self.bn0 = FrozenBatchNorm2d(STEM_CHANNELS, eps=NORM_EPS)
        blocks = list(_blocks(spec.stages()))
        self.blocks = nn.ModuleList(blocks)
        following = [block.stride for block in blocks[1:]] + [2]
        self._ends = tuple(n for n, stride in enumerate(following) if stride == 2)
        self.pyramid = Pyramid([blocks[n].out_channels for n in self._ends], out)
        self._draw_weights()

    def _draw_weights(self) -> None:
        for module in (self.conv_stem, *self.blocks.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """``(batch, channels, image_size, image_size)`` to one map for each of ``strides``."""

        def call(layer: nn.Module, *inputs: Tensor) -> Tensor:
            result: Tensor = recomputed(layer, *inputs) if recompute else layer(*inputs)
            return result

        # Channels last in memory: depthwise convolutions with a stride are five times faster so, on a CPU.
        images = images.contiguous(memory_format=torch.channels_last)
        hidden = F.hardtanh(convolve_same(images, self.conv_stem, self.bn0), 0, 6, inplace=True)
        maps = []
        for number, block in enumerate(self.blocks):
            hidden = call(block, hidden)
            if number in self._ends:
                maps.append(hidden)
        half, quarter, *coarse = maps
        embeddings = coarse.pop()
        for level, finer in zip(self.pyramid.levels, reversed(coarse), strict=True):
            embeddings = call(level, embeddings, finer)
        return self.pyramid.stride_2(half), self.pyramid.stride_4(quarter), embeddings


class InvertedBottleneck(nn.Module):
    """Widen, convolve each channel by itself, narrow (MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.stride, self.out_channels = stride, out_channels
        self.residual = stride == 1 and in_channels == out_channels
        if expansion > 1:
            self.expand_conv = PointwiseConvolution(in_channels, hidden)
            self.bn0 = FrozenBatchNorm2d(hidden, eps=NORM_EPS)
        self.depthwise_conv = nn.Conv2d(hidden, hidden, kernel, stride=stride, groups=hidden, bias=False)
        self.bn1 = FrozenBatchNorm2d(hidden, eps=NORM_EPS)
        self.project_conv = PointwiseConvolution(hidden, out_channels)
        self.bn2 = FrozenBatchNorm2d(out_channels, eps=NORM_EPS)
        self.expansion = expansion

    def forward(self, inputs: Tensor) -> Tensor:
        """``(batch, in_channels, height, width)`` to ``(batch, out_channels, height / stride, width / stride)``."""
        hidden = inputs
        if self.expansion > 1:
            hidden = F.hardtanh(normalised_convolution(hidden, self.expand_conv, self.bn0), 0, 6, inplace=True)
        hidden = F.hardtanh(convolve_same(hidden, self.depthwise_conv, self.bn1), 0, 6, inplace=True)
        hidden = normalised_convolution(hidden, self.project_conv, self.bn2)
        return inputs + hidden if self.residual else hidden


class Pyramid(nn.Module):
    """Brings the network's maps to the channels and, where they are coarse, to the stride that the decoder wants."""

    def __init__(self, channels: list[int], out_channels: int) -> None:
        """Take the channels of the maps, the finest first, and those of the image embeddings."""
        super().__init__()
        half, quarter, *coarse = channels
        self.stride_2 = PixelConvolution(half, out_channels // 8)
        self.stride_4 = PixelConvolution(quarter, out_channels // 4)
        widths = [coarse.pop(), *[out_channels] * len(coarse)]
        self.levels = nn.ModuleList(
            Level(below, finer, out_channels) for below, finer in zip(widths, reversed(coarse), strict=False)
        )


class Level(nn.Module):
    """Adds a coarse map to one of half its stride, then looks at the neighbours of each pixel."""

    def __init__(self, coarse: int, fine: int, out_channels: int) -> None:
        """Take the channels of both maps and of the result."""
        super().__init__()
        self.from_coarse = PixelConvolution(coarse, out_channels)
        self.from_fine = PixelConvolution(fine, out_channels)
        self.refine = nn.Sequential(convolution(out_channels, out_channels), ResidualConvolutions(out_channels))

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """``(batch, channels, s / 2, s / 2)`` and ``(batch, channels, s, s)`` to ``(batch, out_channels, s, s)``."""
        upscaled = F.interpolate(self.from_coarse(coarse), fine.shape[-2:], mode="nearest")
        return self.refine(self.from_fine(fine) + upscaled)


def convolve_same(inputs: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    """Convolve as TensorFlow's "same" padding does: where zeros on both sides would be unequal, more are at the end."""
    padding: list[int] = []
    for size, kernel, stride in zip(inputs.shape[-2:], convolution.kernel_size, convolution.stride, strict=True):
        missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        padding = [missing // 2, missing - missing // 2, *padding]
    return normalised_convolution(F.pad(inputs, padding), convolution, norm)


def _blocks(stages: list[Stage]) -> Iterator[InvertedBottleneck]:
    channels = STEM_CHANNELS
    for stage in stages:
        for n in range(stage.repeats):
            yield InvertedBottleneck(
                channels,
                stage.channels,
                kernel=stage.kernel,
                stride=stage.stride if n == 0 else 1,
                expansion=stage.expansion,
            )
            channels = stage.channels


def _rounded(channels: float) -> int:
    """Round to a multiple of 8, but not down by more than a tenth."""
    nearest = max(WIDTH_MULTIPLE, int(channels + WIDTH_MULTIPLE / 2) // WIDTH_MULTIPLE * WIDTH_MULTIPLE)
    return nearest + WIDTH_MULTIPLE * (nearest < 0.9 * channels)
