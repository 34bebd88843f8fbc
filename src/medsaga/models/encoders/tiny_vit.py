"""TinyViT (arXiv 2207.10666) as MobileSAM has it under SAM's mask decoder (arXiv 2306.14289).

Convolutions at a quarter of the image's side, then transformer blocks within windows, with a depthwise convolution in
each. Parameters have the names of MobileSAM's file. Its batch norms keep their statistics.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.models.blocks import FrozenBatchNorm2d, folded, normalised_convolution
from medsaga.models.encoders.base import EncoderSpec, ImageEncoder, State
from medsaga.models.encoders.sam_vit import draw_weights, from_windows, neck, to_windows
from medsaga.models.lean import gelu_mlp, inside_lean_block, lean_block, recomputed
from medsaga.models.linear import Linear
from medsaga.models.window_attention import WindowAttention

PATCH_STRIDE = 4
"""Side in pixels of what the first stage sees as a cell."""
MERGING_STRIDES = (2, 2, 1)
"""Of the convolutions between the stages. TinyViT's last is 2; MobileSAM's is 1, for SAM's embeddings."""
EXPANSION = 4
"""How many times more channels the hidden layers have, of convolutions and of perceptrons."""
GROUP_ELEMENTS = 2**21
"""Elements of a hidden layer of convolutions that exist at a time."""
FIRST_KERNEL = "patch_embed.seq.0.c.weight"


@dataclass(frozen=True, kw_only=True)
class TinyVitSpec(EncoderSpec):
    """The sizes of a TinyViT.

    Attributes:
        widths: channels of the four stages.
        depths: blocks of the four stages.
        heads: attention heads of the last three stages.
        windows: sides of their windows in tokens.
        out_channels: of the image embeddings.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int]
    windows: tuple[int, int, int]
    out_channels: int = 256

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the four stages: the side in pixels of a cell."""
        return tuple(itertools.accumulate(MERGING_STRIDES, lambda stride, by: stride * by, initial=PATCH_STRIDE))

    def build(self, *, image_size: int, in_channels: int) -> TinyVit:
        """Make the encoder; see the base class."""
        return TinyVit(self, in_channels=in_channels)

    def useful_image_sizes(self) -> list[int]:
        """Return the sides that the windows of all stages fill without padding, and the spec's own."""
        sides = (window * stride for window, stride in zip(self.windows, self.strides[1:], strict=True))
        side = math.lcm(*sides)
        return [*range(side, self.image_size, side), self.image_size]

    def sizes_of(self, state: State) -> tuple[int, int] | None:
        """Look at the first kernel and at the last norm of each stage; no tensor knows the size of the image."""
        kernel = state.get(FIRST_KERNEL)
        if kernel is None or kernel.dim() != 4:
            return None
        last = ("conv3.bn.bias", *["mlp.norm.bias"] * 3)
        for n, (width, depth, leaf) in enumerate(zip(self.widths, self.depths, last, strict=True)):
            norm = state.get(f"layers.{n}.blocks.{depth - 1}.{leaf}")
            if norm is None or len(norm) != width or f"layers.{n}.blocks.{depth}.{leaf}" in state:
                return None
        return self.image_size, kernel.shape[1]


class TinyVit(ImageEncoder):
    """Patch embedding, four stages, and SAM's neck."""

    pixel_kernels: tuple[str, ...] = (FIRST_KERNEL,)

    def __init__(self, spec: TinyVitSpec, *, in_channels: int) -> None:
        """Build it with random weights from torch's global generator.

        Norms change nothing at first, so that the kernels themselves have to keep the size of what goes through them
        (He et al., arXiv 1502.01852).
        """
        super().__init__()
        self.strides, self.channels = spec.strides[-1:], (spec.out_channels,)
        self.patch_embed = PatchEmbed(in_channels, spec.widths[0])
        self.layers = nn.ModuleList(Stage(spec, n) for n in range(len(spec.widths)))
        self.neck = neck(spec.widths[-1], spec.out_channels)
        self._draw_weights()

    def _draw_weights(self) -> None:
        draw_weights(self)
        for module in self.modules():
            if isinstance(module, ConvNorm):
                nn.init.kaiming_normal_(module.c.weight, nonlinearity=module.followed_by)

    @property
    def blocks(self) -> nn.ModuleList:
        """All that is computed again in backward, in order."""
        return nn.ModuleList(self._steps())

    def _steps(self) -> Iterator[nn.Module]:
        yield self.patch_embed
        for stage in self.layers:
            assert isinstance(stage, Stage)
            yield from stage.blocks
            if stage.downsample is not None:
                yield stage.downsample

    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """``(batch, channels, image_size, image_size)`` to one map, ``(batch, out_channels, tokens, tokens)``."""
        # With its channels last in memory, a map is a grid of tokens without a copy.
        hidden = images.contiguous(memory_format=torch.channels_last)
        for step in self._steps():
            hidden = lean_block(step, hidden) if recompute else step(hidden)
        return (self.neck(hidden),)

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention of each transformer block."""
        return [module for module in self.modules() if isinstance(module, WindowAttention)]


class ConvNorm(nn.Module):
    """A convolution and a norm with fixed statistics."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        side: int,
        stride: int = 1,
        depthwise: bool = False,
        last: bool = False,
    ) -> None:
        """Take the channels, the side of the kernel, and whether an activation follows (or the layer is the last)."""
        super().__init__()
        groups = channels if depthwise else 1
        self.c = nn.Conv2d(channels, out_channels, side, stride, side // 2, groups=groups, bias=False)
        self.bn = FrozenBatchNorm2d(out_channels)
        self.followed_by: Literal["linear", "relu"] = "linear" if last else "relu"

    def forward(self, inputs: Tensor) -> Tensor:
        """Change ``(batch, channels, height, width)``."""
        return normalised_convolution(inputs, self.c, self.bn)


class PatchEmbed(nn.Module):
    """Two convolutions to a quarter of the image's side."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        first = ConvNorm(in_channels, width // 2, side=3, stride=2)
        self.seq = nn.Sequential(first, nn.GELU(), ConvNorm(width // 2, width, side=3, stride=2, last=True))

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, in_channels, side, side)`` to ``(batch, width, side / 4, side / 4)``."""
        return self.seq(images)


class Bottleneck(nn.Module):
    """A pointwise, a depthwise and a pointwise convolution (MobileNetV2, arXiv 1801.04381).

    Each hidden channel depends on the inputs alone. So in a lean block, and where nothing is kept for backward at all,
    only some of them exist at a time.
    """

    def __init__(self, channels: int, hidden: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, hidden, side=1)
        self.conv2 = ConvNorm(hidden, hidden, side=3, stride=stride, depthwise=True)
        self.conv3 = ConvNorm(hidden, out_channels, side=1, last=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(batch, channels, height, width)`` to ``(batch, out_channels, height / stride, width / stride)``."""
        hidden, pixels = self.conv1.c.out_channels, inputs.numel() // inputs.shape[1]
        lean = inside_lean_block() or not torch.is_grad_enabled()
        at_once = max(1, GROUP_ELEMENTS // pixels) if lean else hidden
        (up, up_bias), (depthwise, depthwise_bias), (down, down_bias) = (
            folded(layer.c, layer.bn, inputs.dtype) for layer in (self.conv1, self.conv2, self.conv3)
        )
        kernels = (up, up_bias, depthwise, depthwise_bias)
        parts = zip(*(kernel.split(at_once) for kernel in kernels), down.split(at_once, dim=1), strict=True)
        again = at_once < hidden
        made = (recomputed(self._some, inputs, *part) if again else self._some(inputs, *part) for part in parts)
        output: Tensor = next(made) + down_bias.view(-1, 1, 1)
        for part in made:
            output += part
        return output

    def _some(self, inputs: Tensor, *kernels: Tensor) -> Tensor:
        """Compute what some hidden channels add to the output."""
        up, up_bias, depthwise, depthwise_bias, down = kernels
        hidden = F.gelu(F.conv2d(inputs, up, up_bias))
        stride, padding = self.conv2.c.stride, self.conv2.c.padding
        hidden = F.gelu(F.conv2d(hidden, depthwise, depthwise_bias, stride, padding, groups=len(depthwise)))
        return F.conv2d(hidden, down)


class MBConv(Bottleneck):
    """A bottleneck with more channels inside than outside, beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EXPANSION * channels, channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Change ``(batch, channels, height, width)``."""
        return F.gelu(inputs + super().forward(inputs))


class Mlp(nn.Module):
    """Norm - linear - GELU - linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = Linear(channels, EXPANSION * channels)
        self.fc2 = Linear(EXPANSION * channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change ``(..., channels)`` token by token."""
        return gelu_mlp(self.norm(tokens), self.fc1, self.fc2)


class TransformerBlock(nn.Module):
    """Attention within windows beside the identity, a depthwise convolution, a perceptron beside the identity."""

    def __init__(self, channels: int, *, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(channels, heads=heads, window=window)
        self.local_conv = ConvNorm(channels, channels, side=3, depthwise=True, last=True)
        self.mlp = Mlp(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Change ``(batch, channels, height, width)``."""
        hidden = maps.permute(0, 2, 3, 1)
        # The tokens that fill up windows are normalised like the others, and attended to.
        attended = self.attn(to_windows(hidden, self.attn.window))
        hidden = hidden + from_windows(attended, hidden.shape[1:3])
        del attended
        hidden = self.local_conv(hidden.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (hidden + self.mlp(hidden)).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks of one width, and the convolutions that lead to the next stage."""

    def __init__(self, spec: TinyVitSpec, n: int) -> None:
        """Take the number of the stage; the first has convolutions, the others have attention."""
        super().__init__()
        width, last = spec.widths[n], n + 1 == len(spec.widths)

        def block() -> nn.Module:
            if n == 0:
                return MBConv(width)
            return TransformerBlock(width, heads=spec.heads[n - 1], window=spec.windows[n - 1])

        self.blocks = nn.ModuleList(block() for _ in range(spec.depths[n]))
        following = 0 if last else spec.widths[n + 1]
        self.downsample = None if last else Bottleneck(width, following, following, stride=MERGING_STRIDES[n])
