"""SAM's mask decoder (arXiv 2304.02643, appendix A) with a mask token and a hypernetwork for each class.

Parameters have the names of the official files; those of the quality estimate are kept, but nothing computes with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.models.attention import attend_plainly
from medsaga.models.blocks import LayerNorm2d

LAYERS = 2
"""Blocks of the two-way transformer."""
HEADS = 8
CROSS_ATTENTION_RATE = 2
"""How many times fewer channels the queries, keys and values between classes and pixels have."""
QUALITY_SIZE = 256
"""Hidden size of the perceptron that estimates the quality of masks."""
UPSCALING_NORM_EPS = 1e-6


class MaskDecoder(nn.Module):
    """Lets classes and pixels attend to each other, upscales the pixels, and scores each of them for each class."""

    def __init__(self, channels: int, *, classes: int, mlp_dim: int) -> None:
        """Draw random weights from torch's global generator.

        Args:
            channels: of the image embeddings.
            classes: background included.
            mlp_dim: hidden size of the transformer's perceptrons.
        """
        super().__init__()
        quarter, half = channels // 4, channels // 8
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(classes, channels)
        self.transformer = TwoWayTransformer(channels, mlp_dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, quarter, kernel_size=2, stride=2),
            LayerNorm2d(quarter, eps=UPSCALING_NORM_EPS),
            nn.GELU(),
            nn.ConvTranspose2d(quarter, half, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(channels, channels, half) for _ in range(classes))
        self.iou_prediction_head = Mlp(channels, QUALITY_SIZE, classes)

    def attend(self, class_tokens: Tensor, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Let classes and pixels attend to each other.

        Args:
            class_tokens: ``(batch, classes, channels)``.
            embeddings: ``(batch, channels, height, width)``, of the image, with the dense prompt.
            positions: ``(1, channels, height, width)``.

        Returns:
            class tokens and pixels, ``(batch, classes, channels)`` and ``(batch, channels, height, width)``.
        """
        leading = self.leading_tokens()
        tokens = torch.cat((leading.expand(len(embeddings), -1, -1), class_tokens), dim=1)
        tokens, pixels = self.transformer(tokens, _as_tokens(embeddings), _as_tokens(positions))
        return tokens[:, len(leading) :], pixels.transpose(1, 2).reshape(embeddings.shape)

    def leading_tokens(self) -> Tensor:
        """Return the tokens before those of the classes, ``(number, channels)``: of them only attention makes use."""
        return self.iou_token.weight

    @property
    def skip_channels(self) -> tuple[int, int]:
        """Channels of the skips that :meth:`upscale` adds, the finer one first."""
        channels = self.mask_tokens.embedding_dim
        return channels // 8, channels // 4

    @property
    def narrowing(self) -> tuple[nn.Module, ...]:
        """The layers of :meth:`narrow`, which compute before any class has a part in it."""
        return ()

    def narrow(self, skips: Sequence[Tensor]) -> Sequence[Tensor]:
        """Give the encoder's finer maps the channels of :attr:`skip_channels`; here, they have them already."""
        return skips

    def masks(self, class_tokens: Tensor, pixels: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Score pixels: ``low_res_logits``, ``(batch, classes, 4 * height, 4 * width)``.

        Args:
            class_tokens: of :meth:`attend`.
            pixels: likewise.
            skips: as for :meth:`upscale`.
        """
        upscaled = self.upscale(pixels, skips)
        networks = self.output_hypernetworks_mlps
        kernels = torch.stack([network(class_tokens[:, c]) for c, network in enumerate(networks)], dim=1)
        return (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])

    def upscale(self, pixels: Tensor, skips: Sequence[Tensor] = ()) -> Tensor:
        """Upscale pixels fourfold: ``(batch, channels, h, w)`` to ``(batch, channels / 8, 4 * h, 4 * w)``.

        Args:
            pixels: of :meth:`attend`.
            skips: what the encoder saw finer, ``(batch, channels / 8, 4 * h, 4 * w)`` and
                ``(batch, channels / 4, 2 * h, 2 * w)``, added as in SAM 2 (arXiv 2408.00714); or none. Either may be
                folded into the channels of fewer pixels (``pixel_unshuffle``), and is then unfolded for the moment.
        """
        first, norm, activation, second, _ = self.output_upscaling
        fine, coarse = skips or (None, None)
        # One name for all of it, so that each step's input is gone when the next begins.
        pixels = add_skip(first(pixels), coarse)
        pixels = activation(norm(pixels))
        pixels = second(pixels)
        pixels = add_skip(pixels, fine)
        return activation(pixels)


class TwoWayTransformer(nn.Module):
    """Blocks in which tokens attend to each other and to pixels, and pixels to tokens."""

    def __init__(self, channels: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(channels, mlp_dim, first=n == 0) for n in range(LAYERS))
        self.final_attn_token_to_image = Attention(channels, CROSS_ATTENTION_RATE)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, pixels: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Change ``tokens`` and ``pixels``, each ``(batch, its number, channels)``; ``positions`` are of the pixels."""
        token_positions = tokens
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, token_positions, positions)
        attended = self.final_attn_token_to_image(tokens + token_positions, pixels + positions, pixels)
        return self.norm_final_attn(tokens + attended), pixels


class TwoWayBlock(nn.Module):
    """Four steps beside the identity, each with a norm after it."""

    def __init__(self, channels: int, mlp_dim: int, *, first: bool) -> None:
        """The first block's tokens are their own positions, which its self-attention does not add again."""
        super().__init__()
        self.self_attn = Attention(channels, 1)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, CROSS_ATTENTION_RATE)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = TokenMlp(channels, mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, CROSS_ATTENTION_RATE)
        self.first = first

    def forward(
        self, tokens: Tensor, pixels: Tensor, token_positions: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Change tokens and pixels; shapes as in :class:`TwoWayTransformer`."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            query = tokens + token_positions
            tokens = tokens + self.self_attn(query, query, tokens)
        tokens = self.norm1(tokens)
        attended = self.cross_attn_token_to_image(tokens + token_positions, pixels + positions, pixels)
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        attended = self.cross_attn_image_to_token(pixels + positions, tokens + token_positions, tokens)
        return tokens, self.norm4(pixels + attended)


class Attention(nn.Module):
    """Multi-head attention whose queries, keys and values may have fewer channels than its input."""

    def __init__(self, channels: int, rate: int) -> None:
        """Take the channels, and how many times fewer the queries, keys and values have."""
        super().__init__()
        inner = channels // rate
        self.q_proj = nn.Linear(channels, inner)
        self.k_proj = nn.Linear(channels, inner)
        self.v_proj = nn.Linear(channels, inner)
        self.out_proj = nn.Linear(inner, channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Look from ``(batch, n, channels)`` at keys and values, ``(batch, m, channels)``; the result is like query."""
        inputs = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        query, key, value = (project(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for project, x in inputs)
        return self.out_proj(attend_plainly(query, key, value).flatten(2))


class TokenMlp(nn.Module):
    """Linear - ReLU - linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, hidden)
        self.lin2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Change ``(..., channels)``."""
        return self.lin2(F.relu(self.lin1(tokens)))


class Mlp(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(channels, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)))

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., channels)`` to ``(..., out)``."""
        first, middle, last = self.layers
        return last(F.relu(middle(F.relu(first(tokens)))))


def add_skip(pixels: Tensor, skip: Tensor | None) -> Tensor:
    """Add a skip, if there is one, to ``pixels``; one that is folded into its channels is unfolded first."""
    if skip is None:
        return pixels
    factor = pixels.shape[-1] // skip.shape[-1]
    return pixels + (F.pixel_shuffle(skip, factor) if factor > 1 else skip)


def _as_tokens(maps: Tensor) -> Tensor:
    """``(batch, channels, height, width)`` to ``(batch, height * width, channels)``."""
    return maps.flatten(2).transpose(1, 2)
