"""SAM's image encoder: a plain vision transformer with windowed attention (arXiv 2304.02643; ViTDet, arXiv 2203.16527).

Parameters have the names of the official files. Sizes are arguments, so that a pruned transformer (SlimSAM,
arXiv 2312.05284) is the same module.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.models.attention import RelativeAttention, resize_relative_positions
from medsaga.models.blocks import LayerNorm2d
from medsaga.models.encoders.base import EncoderSpec, ImageEncoder, State
from medsaga.models.lean import LeanMlp, lean_block

NORM_EPS = 1e-6
"""Of every norm in SAM's image encoder."""
INITIAL_SPREAD = 0.02
"""Standard deviation of random weights and absolute positions, as in ViT (arXiv 2010.11929)."""


@dataclass(frozen=True, kw_only=True)
class SamVitSpec(EncoderSpec):
    """What distinguishes one size of SAM from another.

    Attributes:
        hidden_size: channels of the tokens.
        layers: transformer blocks.
        heads: attention heads of a block.
        global_layers: blocks that attend to the whole image; the others attend within windows.
        window: side of an attention window in tokens.
        patch_size: side of a token in pixels.
        out_channels: of the image embeddings.
        mlp_dim: hidden size of the blocks' perceptrons; 0: four times ``hidden_size``.
        attention_size: channels of the queries of all heads; 0: ``hidden_size``.
    """

    hidden_size: int
    layers: int
    heads: int
    global_layers: tuple[int, ...]
    window: int = 14
    patch_size: int = 16
    out_channels: int = 256
    mlp_dim: int = 0
    attention_size: int = 0

    def build(self, *, image_size: int, in_channels: int) -> SamVit:
        """Make the encoder; see the base class."""
        return SamVit(self, image_size=image_size, in_channels=in_channels)

    def useful_image_sizes(self) -> list[int]:
        """Return the sides that windows fill without padding, and the spec's own."""
        window = self.window * self.patch_size
        return [*range(window, self.image_size, window), self.image_size]

    def sizes_of(self, state: State) -> tuple[int, int] | None:
        """Look at the patch embedding, the number of blocks, their widths, and the table of absolute positions."""
        patches, positions = state.get("patch_embed.proj.weight"), state.get("pos_embed")
        if patches is None or patches.dim() != 4:
            return None
        if (len(patches), count_blocks(state)) != (self.hidden_size, self.layers):
            return None
        widths = {
            "blocks.0.mlp.lin1.weight": self.mlp_dim or 4 * self.hidden_size,
            "blocks.0.attn.qkv.weight": 3 * (self.attention_size or self.hidden_size),
        }
        if any(name in state and len(state[name]) != width for name, width in widths.items()):
            return None
        if positions is None or positions.dim() != 4:
            return self.image_size, patches.shape[1]
        return positions.shape[1] * self.patch_size, patches.shape[1]


class SamVit(ImageEncoder):
    """Patch embedding, absolute positions, transformer blocks, and a neck that narrows tokens to image embeddings."""

    pixel_kernels: tuple[str, ...] = ("patch_embed.proj.weight",)

    def __init__(self, spec: SamVitSpec, *, image_size: int, in_channels: int) -> None:
        """Build it with random weights from torch's global generator.

        Matrices and absolute positions have ViT's normal distribution, whose cut at two units nobody would notice;
        relative positions are zeros, as in ViTDet, and convolutions have PyTorch's defaults.
        """
        super().__init__()
        self.spec = spec
        self.tokens = image_size // spec.patch_size
        self.strides, self.channels = (spec.patch_size,), (spec.out_channels,)
        self.patch_embed = PatchEmbed(in_channels, spec.hidden_size, spec.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.tokens, self.tokens, spec.hidden_size))
        self.blocks = nn.ModuleList(
            Block(spec, grid=self.tokens, window=None if n in spec.global_layers else spec.window)
            for n in range(spec.layers)
        )
        self.neck = neck(spec.hidden_size, spec.out_channels)
        draw_weights(self, self.pos_embed)

    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """``(batch, channels, image_size, image_size)`` to one map, ``(batch, out_channels, tokens, tokens)``."""
        return (self.encode_tokens(self.embed(images), recompute=recompute),)

    def embed(self, images: Tensor) -> Tensor:
        """Turn images into tokens with their positions, ``(batch, tokens, tokens, hidden_size)``."""
        return self.patch_embed(images) + self.pos_embed

    def encode_tokens(self, hidden: Tensor, *, recompute: bool) -> Tensor:
        """Turn tokens into image embeddings, ``(batch, out_channels, tokens, tokens)``."""
        for block in self.blocks:
            hidden = lean_block(block, hidden) if recompute else block(hidden)
        return self.neck(hidden.permute(0, 3, 1, 2))

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention of each block."""
        return [block.get_submodule("attn") for block in self.blocks]

    def fit_positions(self, state: State) -> State:
        """Resize absolute positions bicubically and the relative positions of global blocks linearly."""
        fitted = dict(state)
        positions = state["pos_embed"]
        if positions.shape[1] != self.tokens:
            size = (self.tokens, self.tokens)
            resized = F.interpolate(positions.float().permute(0, 3, 1, 2), size=size, mode="bicubic")
            fitted["pos_embed"] = resized.permute(0, 2, 3, 1)
        for n in self.spec.global_layers:
            for name in (f"blocks.{n}.attn.rel_pos_h", f"blocks.{n}.attn.rel_pos_w"):
                fitted[name] = resize_relative_positions(state[name].float(), self.tokens)
        return fitted


def neck(channels: int, out_channels: int) -> nn.Sequential:
    """Return what narrows the channels of an encoder to those of image embeddings."""
    return nn.Sequential(
        nn.Conv2d(channels, out_channels, kernel_size=1, bias=False),
        LayerNorm2d(out_channels, eps=NORM_EPS),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out_channels, eps=NORM_EPS),
    )


class PatchEmbed(nn.Module):
    """Makes a token of each square of pixels."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, channels, side, side)`` to ``(batch, tokens, tokens, hidden_size)``."""
        return self.proj(images).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and beside the identity (arXiv 2010.11929)."""

    def __init__(self, spec: SamVitSpec, *, grid: int, window: int | None) -> None:
        """Take the side of the image in tokens, and that of a window; None attends to the whole image."""
        super().__init__()
        size = spec.hidden_size
        self.norm1 = nn.LayerNorm(size, eps=NORM_EPS)
        self.attn = RelativeAttention(size, spec.attention_size or size, heads=spec.heads, grid=window or grid)
        self.norm2 = nn.LayerNorm(size, eps=NORM_EPS)
        self.mlp = LeanMlp(size, spec.mlp_dim or 4 * size)
        self.window = window

    def forward(self, hidden: Tensor) -> Tensor:
        """Change tokens, ``(batch, height, width, hidden_size)``."""
        attended = self.norm1(hidden)
        # One name for all of it, so that each step's input is gone when the next begins.
        if self.window is not None:
            attended = to_windows(attended, self.window)
        attended = self.attn(attended)
        if self.window is not None:
            attended = from_windows(attended, hidden.shape[1:3])
        hidden = hidden + attended
        return hidden + self.mlp(self.norm2(hidden))


def draw_weights(encoder: nn.Module, *positions: nn.Parameter) -> None:
    """Draw linear layers and tables of positions from ViT's normal distribution, with biases of zero, in place."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=INITIAL_SPREAD)
            nn.init.zeros_(module.bias)
    for table in positions:
        nn.init.normal_(table, std=INITIAL_SPREAD)


def to_windows(hidden: Tensor, window: int) -> Tensor:
    """Cut a grid into windows, padded with zeros below and to the right where they do not fit.

    ``(batch, height, width, channels)`` to ``(batch * windows, window, window, channels)``.
    """
    batch, height, width, channels = hidden.shape
    below, right = -height % window, -width % window
    if below or right:
        hidden = F.pad(hidden, (0, 0, 0, right, 0, below))
    rows, columns = (height + below) // window, (width + right) // window
    cut = hidden.reshape(batch, rows, window, columns, window, channels)
    return cut.transpose(2, 3).reshape(-1, window, window, channels)


def from_windows(windows: Tensor, grid: Sequence[int]) -> Tensor:
    """Put the windows of :func:`to_windows` back together into a grid of height and width, without the padding."""
    (height, width), (window, channels) = grid, windows.shape[2:]
    rows, columns = -(-height // window), -(-width // window)
    cut = windows.reshape(-1, rows, columns, window, window, channels).transpose(2, 3)
    whole = cut.reshape(-1, rows * window, columns * window, channels)
    return whole[:, :height, :width].contiguous()


def count_blocks(state: State) -> int:
    """Return how many transformer blocks have tensors in a state."""
    numbers = [re.match(r"blocks\.(\d+)\.", name) for name in state]
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)
