"""DAE-Former (Azad et al., arXiv 2212.13504), a baseline: a U-shaped transformer without the matrix of all token pairs.

Written from the paper and from what the authors' public code (github.com/mindflow-institue/DAEFormer) computes, with
which it agrees. Where the two differ, this follows the code, because the published results and the 48.07 M parameters
are the code's:

- The paper gives the decoder a transformer at each of three scales. In the code the deepest only enlarges: it builds a
  cross-attention and two transformer blocks there and skips them, and every mix feed-forward holds two layer norms
  that it never calls. That is 18,382,864 of its 48,073,065 parameters. They are kept in ``idle``, frozen, so that the
  size is the published one; the other 29,690,201 (with nine classes) compute.
- All spatial attention has one head, channel attention has eight.
- The result of cross-attention is as wide as both its inputs together and is added to their concatenation.

Tokens lie in grids, ``(batch, height, width, channels)``, all the way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsaga.models.base import SegmentationModel
from medsaga.models.lean import recomputed

STAGE_CHANNELS = (128, 320, 512)
"""Channels at 1/4, 1/8 and 1/16 of the image's side."""
PATCHES = ((7, 4), (3, 2), (3, 2))
"""Kernel and stride, in pixels or tokens, of the patch embedding that begins each stage."""
CHANNEL_HEADS = 8


class DAEFormer(SegmentationModel):
    """Dual attention encoder, cross-attention on the skips, one logit per class and pixel; trained from scratch.

    With ``checkpoint_blocks`` of each stage only the input is kept for backward.

    Attributes:
        idle: what the public code builds and never uses. Frozen; only the number of parameters knows it.
    """

    def __init__(self, *, classes: int, image_size: int = 224, in_channels: int = 3) -> None:
        """Build a model with random weights, drawn from torch's global generator, on torch's default device.

        Args:
            classes: number of classes, background included.
            image_size: side of the square input in pixels, a multiple of 16; the paper's is 224.
            in_channels: channels of the input; 1 is shown as grey RGB.

        Raises:
            InputError: the image size is no multiple of 16.
        """
        super().__init__("daeformer", classes=classes, image_size=image_size, in_channels=in_channels)
        fine, middle, coarse = STAGE_CHANNELS
        inputs = (3 if in_channels == 1 else in_channels, fine, middle)
        self.encoder = nn.ModuleList(
            EncoderStage(channels_in, channels, kernel, stride)
            for channels_in, channels, (kernel, stride) in zip(inputs, STAGE_CHANNELS, PATCHES, strict=True)
        )
        self.decoder = nn.ModuleDict(
            {
                "expand_coarse": PatchExpand(coarse, coarse // 2, factor=2),
                "middle": DecoderStage(coarse // 2, middle),
                "expand_middle": PatchExpand(middle, middle // 2, factor=2),
                "fine": DecoderStage(middle // 2, fine),
                "expand_fine": PatchExpand(fine, fine, factor=4),
                "head": nn.Linear(fine, classes),
            }
        )
        self.idle = nn.ModuleList([DecoderStage(coarse, coarse)])
        self.decoder.apply(_initialise)
        self.idle.extend([nn.LayerNorm(m.norm.normalized_shape) for m in self._feed_forwards() for _ in range(2)])
        self.idle.requires_grad_(False)

    def encoded_and_logits(self, images: Tensor, *, decode: bool) -> tuple[Tensor, Tensor | None]:
        """See the base class; the stages of this encoder have their channels last."""
        grid, logits = super().encoded_and_logits(images, decode=decode)
        return grid.movedim(3, 1), logits

    def forward(self, images: Tensor) -> Tensor:
        """Segment images.

        Args:
            images: ``(batch, in_channels, image_size, image_size)``, grey values or colours in 0..255.

        Returns:
            Logits, ``(batch, classes, image_size, image_size)``, in the parameters' type.
        """
        expected = (self.in_channels, self.image_size, self.image_size)
        assert tuple(images.shape[1:]) == expected, f"images {tuple(images.shape)} are not (batch, *{expected})"
        hidden = self._normalise(images).movedim(1, 3)
        skips: list[Tensor] = []
        for stage in self.encoder:
            hidden = self._through(stage, hidden)
            skips.append(hidden)
        parts = self.decoder
        hidden = parts["expand_coarse"](hidden)
        hidden = parts["expand_middle"](self._through(parts["middle"], hidden, skips[1]))
        hidden = parts["expand_fine"](self._through(parts["fine"], hidden, skips[0]))
        return parts["head"](hidden).movedim(3, 1)

    def _through(self, stage: nn.Module, *grids: Tensor) -> Tensor:
        return recomputed(stage, *grids) if self.recomputes() else stage(*grids)

    def _normalise(self, images: Tensor) -> Tensor:
        """Shift and scale 0..255 to -1..1 in float32, as the public code does, then take the parameters' type."""
        scaled = (images.float() / 127.5 - 1).to(self.get_parameter("decoder.head.weight").dtype)
        return scaled.expand(-1, 3, -1, -1) if self.in_channels == 1 else scaled

    def _feed_forwards(self) -> list[MixFeedForward]:
        return [module for module in self.modules() if isinstance(module, MixFeedForward)]


class EncoderStage(nn.Module):
    """Overlapping patch embedding (patch merging, in later stages), two dual transformer blocks, layer norm."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2)
        self.patches_norm = nn.LayerNorm(channels)
        self.blocks = nn.Sequential(DualTransformerBlock(channels), DualTransformerBlock(channels))
        self.norm = nn.LayerNorm(channels)

    def forward(self, grid: Tensor) -> Tensor:
        """``(batch, height, width, channels_in)`` to ``(batch, height / stride, width / stride, channels)``."""
        patches = self.patches(grid.movedim(3, 1)).movedim(1, 3)
        return self.norm(self.blocks(self.patches_norm(patches)))


class DecoderStage(nn.Module):
    """Bring the coarser scale to this one's width, fuse it with the skip, and apply two dual transformer blocks."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.widen = nn.Linear(channels_in, channels)
        self.cross = SkipCrossAttentionBlock(channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.blocks = nn.Sequential(DualTransformerBlock(channels), DualTransformerBlock(channels))

    def forward(self, coarser: Tensor, skip: Tensor) -> Tensor:
        """Enlarged tokens ``(batch, height, width, channels_in)`` and the skip's to ``(.., channels)``."""
        return self.blocks(self.narrow(self.cross(self.widen(coarser), skip)))


class DualTransformerBlock(nn.Module):
    """Efficient attention, then channel attention, a mix feed-forward after each.

    ``a = E(LN(x)) + x``; ``b = FFN(LN(a)) + a``; ``c = C(LN(b)) + b``; result ``FFN(LN(c)) + c``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        parts = (EfficientAttention, MixFeedForward, ChannelAttention, MixFeedForward)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in parts)
        self.parts = nn.ModuleList(part(channels) for part in parts)

    def forward(self, grid: Tensor) -> Tensor:
        """``(batch, height, width, channels)`` to the same."""
        for norm, part in zip(self.norms, self.parts, strict=True):
            grid = grid + part(norm(grid))
        return grid


class EfficientAttention(nn.Module):
    """Spatial attention at a cost linear in the tokens (Shen et al., arXiv 1812.01243), one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keys = nn.Linear(channels, channels)
        self.queries = nn.Linear(channels, channels)
        self.values = nn.Linear(channels, channels)
        self.reprojection = nn.Linear(channels, channels)

    def forward(self, grid: Tensor) -> Tensor:
        """``(batch, height, width, channels)`` to the same."""
        tokens = grid.flatten(1, 2)
        attended = efficient_attention(self.queries(tokens), self.keys(tokens), self.values(tokens))
        return self.reprojection(attended).view_as(grid)


class ChannelAttention(nn.Module):
    """Transpose attention: channels look at channels, over all tokens (El-Nouby et al., XCiT, arXiv 2106.09681).

    ``C(Q, K, V) = V softmax(K^T Q / tau)`` per head, with every channel of K and Q a unit vector over the tokens; the
    parameter ``temperature`` is ``1 / tau``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(CHANNEL_HEADS, 1, 1))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.reprojection = nn.Linear(channels, channels)

    def forward(self, grid: Tensor) -> Tensor:
        """``(batch, height, width, channels)`` to the same."""
        qkv = self.qkv(grid).flatten(1, 2).unflatten(2, (3, CHANNEL_HEADS, -1))
        # (batch, heads, channels of a head, tokens)
        query, key, value = qkv.permute(2, 0, 3, 4, 1).unbind(0)
        scores = functional.normalize(query, dim=-1) @ functional.normalize(key, dim=-1).mT
        attended = (scores * self.temperature).softmax(-1) @ value
        return self.reprojection(attended.flatten(1, 2).mT).view_as(grid)


class SkipCrossAttentionBlock(nn.Module):
    """Skip connection cross attention (SCCA): the skip says where to look, the coarser scale what is seen there.

    With ``x1`` from the coarser scale and ``x2`` from the encoder: keys and queries are ``LN(x2)``, values ``LN(x1)``,
    one layer norm for both and no projections. The attended values, projected to twice the width, are added to
    ``[x1, x2]``, and a mix feed-forward follows.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_inputs = nn.LayerNorm(channels)
        self.reprojection = nn.Linear(channels, 2 * channels)
        self.reprojection_norm = nn.LayerNorm(2 * channels)
        self.norm = nn.LayerNorm(2 * channels)
        self.feed_forward = MixFeedForward(2 * channels, hidden=4 * channels)

    def forward(self, coarser: Tensor, skip: Tensor) -> Tensor:
        """Two ``(batch, height, width, channels)`` to ``(batch, height, width, 2 * channels)``."""
        where = self.norm_inputs(skip).flatten(1, 2)
        attended = efficient_attention(where, where, self.norm_inputs(coarser).flatten(1, 2))
        projected = self.reprojection_norm(self.reprojection(attended))
        fused = torch.cat((coarser, skip), dim=3)
        fused = fused + projected.view_as(fused)
        return fused + self.feed_forward(self.norm(fused))


class MixFeedForward(nn.Module):
    """Perceptron that mixes neighbours: ``FC(GELU(LN(DWConv(h) + h)))`` with ``h = FC(x)`` (MISSFormer, 2109.07162)."""

    def __init__(self, channels: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or 4 * channels
        self.widen = nn.Linear(channels, hidden)
        self.mix = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.norm = nn.LayerNorm(hidden)
        self.narrow = nn.Linear(hidden, channels)

    def forward(self, grid: Tensor) -> Tensor:
        """``(batch, height, width, channels)`` to the same."""
        hidden = self.widen(grid)
        mixed = self.mix(hidden.movedim(3, 1)).movedim(1, 3)
        return self.narrow(functional.gelu(self.norm(mixed + hidden)))


class PatchExpand(nn.Module):
    """Enlarge a grid: every token is widened, and cut into ``factor`` x ``factor`` tokens (Swin-Unet, 2105.05537)."""

    def __init__(self, channels_in: int, channels: int, *, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels_in, factor * factor * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, grid: Tensor) -> Tensor:
        """``(batch, height, width, channels_in)`` to ``(batch, factor * height, factor * width, channels)``."""
        cells = self.expand(grid).unflatten(3, (self.factor, self.factor, -1))
        return self.norm(cells.transpose(2, 3).flatten(3, 4).flatten(1, 2))


def efficient_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute ``E(Q, K, V) = rho_q(Q) (rho_k(K)^T V)`` (Shen et al., arXiv 1812.01243).

    ``rho_q`` is the softmax of each query over its channels, ``rho_k`` the softmax of each channel over all keys.

    Args:
        query: ``(batch, tokens, key channels)``.
        key: ``(batch, tokens, key channels)``.
        value: ``(batch, tokens, value channels)``.

    Returns:
        ``(batch, tokens, value channels)``.
    """
    context = key.softmax(1).mT @ value
    return query.softmax(2) @ context


def _initialise(module: nn.Module) -> None:
    """Draw the decoder as the public code does (Glorot); the encoder keeps PyTorch's defaults, as there."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
