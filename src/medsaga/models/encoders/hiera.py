"""SAM 2's image encoder: Hiera (arXiv 2306.00989) and a feature pyramid (SAM 2: arXiv 2408.00714), images only.

Four stages of transformer blocks, each with half the side and twice the channels of the one before: the first block of
a stage takes the maximum over 2 x 2 queries. Most blocks attend within windows. Parameters have the names of the
official files.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.models.attention import GROUP_ELEMENTS, attend
from medsaga.models.decoder import MaskDecoder
from medsaga.models.encoders.base import EncoderSpec, ImageEncoder, State
from medsaga.models.encoders.sam_vit import NORM_EPS, count_blocks, draw_weights, from_windows, to_windows
from medsaga.models.lean import gelu_mlp, inside_lean_block, lean_block, recomputed
from medsaga.models.linear import Linear
from medsaga.models.sam2_decoder import Sam2MaskDecoder

STRIDES = (4, 8, 16, 32)
"""Side in pixels of a token of each stage; the pyramid has the first three."""
PATCH_KERNEL = 7
POOL = 2
"""Side of the squares of queries of which the first block of a stage takes the maximum."""
TRUNK = "trunk."
"""How the names of all tensors but the pyramid's begin."""


@dataclass(frozen=True, kw_only=True)
class HieraSpec(EncoderSpec):
    """What distinguishes one size of SAM 2 from another.

    Attributes:
        embed_dim: channels of the tokens of the first stage.
        heads: attention heads of its blocks; channels and heads double with each stage.
        stages: number of blocks of each.
        global_blocks: blocks that attend to the whole image, counted over all stages.
        windows: side in tokens of the windows of each stage; the first block of a stage, whose queries are pooled, has
            those of the stage before.
        position_grid: side of the table of absolute positions.
        out_channels: of each map of the pyramid.
    """

    embed_dim: int
    heads: int
    stages: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    position_grid: int = 7
    out_channels: int = 256
    side_multiple: int = STRIDES[-1]
    decoder: type[MaskDecoder] = Sam2MaskDecoder

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the tokens of each stage."""
        return tuple(self.embed_dim * 2**stage for stage in range(len(self.stages)))

    def build(self, *, image_size: int, in_channels: int) -> Hiera:
        """Make the encoder; see the base class."""
        return Hiera(self, in_channels)

    def useful_image_sizes(self) -> list[int]:
        """Return the sides that the windows of all stages fill without padding, and the spec's own."""
        step = max(stride * window for stride, window in zip(STRIDES, self.windows, strict=True))
        return [*range(step, self.image_size, step), self.image_size]

    def sizes_of(self, state: State) -> tuple[int, int] | None:
        """Look at the patch embedding and the number of blocks; positions are the same for all sides of images."""
        patches = state.get(TRUNK + "patch_embed.proj.weight")
        if patches is None or patches.dim() != 4:
            return None
        trunk = {name.removeprefix(TRUNK): tensor for name, tensor in state.items() if name.startswith(TRUNK)}
        if (len(patches), count_blocks(trunk)) != (self.embed_dim, sum(self.stages)):
            return None
        return self.image_size, patches.shape[1]


class Hiera(ImageEncoder):
    """The trunk, and a pyramid over its stages; the coarsest level only adds to the next."""

    pixel_kernels = (TRUNK + "patch_embed.proj.weight",)

    def __init__(self, spec: HieraSpec, in_channels: int) -> None:
        """Build it with random weights from torch's global generator; matrices and positions as in `SamVit`."""
        super().__init__()
        self.strides, self.channels = STRIDES[:-1], (spec.out_channels,) * 3
        self.trunk = Trunk(spec, in_channels)
        self.neck = Neck(spec.widths, spec.out_channels)
        draw_weights(self, self.trunk.pos_embed, self.trunk.pos_embed_window)

    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """``(batch, channels, side, side)`` to one map for each of ``strides``; the side is a multiple of 32."""
        return self.neck(self.trunk(images, recompute=recompute))

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention of each block."""
        return [block.get_submodule("attn") for block in self.trunk.blocks]


class Trunk(nn.Module):
    """Patch embedding, absolute positions, and the blocks of four stages."""

    def __init__(self, spec: HieraSpec, in_channels: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, spec.embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.embed_dim, spec.position_grid, spec.position_grid))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, spec.embed_dim, spec.windows[0], spec.windows[0]))
        self.blocks = nn.ModuleList()
        self.stage_ends = [end - 1 for end in accumulate(spec.stages)]
        for stage, (blocks, width) in enumerate(zip(spec.stages, spec.widths, strict=True)):
            for number in range(blocks):
                before = max(0, stage - 1) if number == 0 else stage
                everywhere = len(self.blocks) in spec.global_blocks
                self.blocks.append(
                    Block(
                        spec.widths[before],
                        width,
                        heads=spec.heads * 2**stage,
                        window=None if everywhere else spec.windows[before],
                    )
                )

    def forward(self, images: Tensor, *, recompute: bool) -> list[Tensor]:
        """Return the tokens of each stage, ``(batch, side / stride, side / stride, width)``, the finest first."""
        hidden = self.patch_embed(images)
        hidden = (hidden + self.positions(hidden.shape[1])).contiguous()
        made = []
        for number, block in enumerate(self.blocks):
            hidden = lean_block(block, hidden) if recompute else block(hidden)
            if number in self.stage_ends:
                made.append(hidden)
        return made

    def positions(self, side: int) -> Tensor:
        """Return the positions of a grid of tokens, ``(side, side, embed_dim)``.

        A table is stretched over the whole image, and that of a window repeats itself (arXiv 2311.05613).
        """
        # As a product of matrices: the gradient of a bicubic interpolation adds in no fixed order on a GPU.
        stretch = bicubic_matrix(self.pos_embed.shape[-1], side).to(self.pos_embed)
        whole = torch.einsum("hi,cij,wj->hwc", stretch, self.pos_embed[0], stretch)
        window = self.pos_embed_window[0].permute(1, 2, 0)
        tiles = whole.unflatten(1, (-1, len(window))).unflatten(0, (-1, len(window)))
        return (tiles + window.unsqueeze(1)).view(whole.shape)


class PatchEmbed(nn.Module):
    """Makes a token of each 4 x 4 pixels and their neighbours."""

    def __init__(self, in_channels: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, PATCH_KERNEL, stride=STRIDES[0], padding=PATCH_KERNEL // 2)

    def forward(self, images: Tensor) -> Tensor:
        """``(batch, channels, side, side)`` to ``(batch, side / 4, side / 4, embed_dim)``."""
        return self.proj(images).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and beside the identity; with other widths, both are pooled."""

    def __init__(self, width_in: int, width: int, *, heads: int, window: int | None) -> None:
        """Take the channels of its input and of its result; a window of None attends to the whole image."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in, eps=NORM_EPS)
        self.attn = PooledAttention(width_in, width, heads=heads, pool=1 if width == width_in else POOL)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Perceptron(width)
        self.proj = Linear(width_in, width) if width != width_in else None
        self.window = window

    def forward(self, hidden: Tensor) -> Tensor:
        """Change tokens, ``(batch, height, width, width_in)``; where queries are pooled, to half the sides."""
        changed = self.norm1(hidden)
        if self.window is not None:
            changed = to_windows(changed, self.window)
        changed = _in_groups(self._attend, changed, self.attn.size)
        if self.window is not None:
            changed = from_windows(changed, [side // self.attn.pool for side in hidden.shape[1:3]])
        hidden = hidden + changed if self.proj is None else changed
        del changed
        return hidden + self.mlp(self.norm2(hidden))

    def _attend(self, windows: Tensor) -> Tensor:
        """Let the tokens of each window look at each other; what stands for the identity is pooled like them."""
        attended = self.attn(windows)
        return attended if self.proj is None else attended + max_pool(self.proj(windows), self.attn.pool)


class PooledAttention(nn.Module):
    """Multi-head self-attention over grids of tokens, whose queries may be pooled first.

    Attributes:
        qkv: to queries, keys and values, a third each.
        proj: from the attended values to the result.
    """

    def __init__(self, channels: int, size: int, *, heads: int, pool: int) -> None:
        """Take the channels of the tokens, those of the queries of all heads, and the side of the squares of queries.

        The result has as many channels as the queries.
        """
        super().__init__()
        assert size % heads == 0
        self.heads, self.size, self.pool = heads, size, pool
        self.scale = (size // heads) ** -0.5
        self.qkv = Linear(channels, 3 * size)
        self.proj = Linear(size, size)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(grids, height, width, channels)`` to ``(grids, height / pool, width / pool, size)``."""
        query, key, value = self.qkv(hidden).split(self.size, dim=-1)
        if self.pool > 1:
            query = max_pool(query, self.pool)
        grid = query.shape[:3]
        query, key, value = (
            tokens.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2) for tokens in (query, key, value)
        )
        attended = attend(query * self.scale, key, value)
        return self.proj(attended.transpose(1, 2).reshape(*grid, self.size))


class Perceptron(nn.Module):
    """Linear - GELU - linear, with a hidden layer of four times the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((Linear(channels, 4 * channels), Linear(4 * channels, channels)))

    def forward(self, hidden: Tensor) -> Tensor:
        """Change ``(..., channels)`` token by token."""
        return gelu_mlp(hidden, *self.layers)


class Neck(nn.Module):
    """A feature pyramid (arXiv 1612.03144) in which only the two coarsest levels are added up."""

    def __init__(self, widths: Sequence[int], out_channels: int) -> None:
        """Take the channels of the stages, the finest first; ``convs`` begins with the coarsest, as in the files."""
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(width, out_channels, kernel_size=1))) for width in reversed(widths)
        )

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return three maps, the finest first; the coarsest stage only adds to the third."""
        maps = [conv(tokens.permute(0, 3, 1, 2)) for conv, tokens in zip(self.convs, reversed(stages), strict=True)]
        coarsest, embeddings, *finer = maps
        return *reversed(finer), embeddings + F.interpolate(coarsest, scale_factor=2.0, mode="nearest")


def max_pool(grids: Tensor, side: int) -> Tensor:
    """Take the maximum over squares of tokens, whose channels are the last axis.

    ``(grids, height, width, channels)`` to ``(grids, height / side, width / side, channels)``. Where several are the
    largest, they share the gradient.
    """
    return grids.unflatten(2, (-1, side)).unflatten(1, (-1, side)).amax((2, 4))


def bicubic_matrix(old: int, new: int) -> Tensor:
    """Return the matrix that interpolates along one axis, ``(new, old)`` float32, as ``F.interpolate`` does."""
    unit = torch.eye(old, dtype=torch.float32)[None, None]
    return F.interpolate(unit, size=(new, old), mode="bicubic")[0, 0]


def _in_groups(function: Callable[[Tensor], Tensor], windows: Tensor, size: int) -> Tensor:
    """Apply a function to windows, ``(windows, height, width, channels)``; in a lean block, to some at a time.

    Args:
        function: of each window alone.
        windows: at least one.
        size: channels of the queries that the function makes.
    """
    group = max(1, GROUP_ELEMENTS // (windows[0, ..., 0].numel() * size))
    if not inside_lean_block() or len(windows) <= group:
        return function(windows)
    return torch.cat([recomputed(function, part) for part in windows.split(group)])
