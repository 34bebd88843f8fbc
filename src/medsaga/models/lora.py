"""SAMed's adapter (arXiv 2304.13785): a frozen image encoder, and a low-rank update of its queries and values.

LoRA (Hu et al., arXiv 2106.09685) adds to a matrix W the product of two thin ones: W + B A. SAMed does so to the query
and the value part of every fused query-key-value projection of SAM's image encoder, without a scaling factor. An
encoder without attention gets one on every pointwise convolution of its blocks in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.memory.meta import on_meta
from medsaga.models.blocks import PointwiseConvolution
from medsaga.models.encoders.base import ImageEncoder

FACTORS = ("query_down", "query_up", "value_down", "value_up")
"""What :class:`LoraQkv` adds to the parameters of a linear layer."""
POINTWISE_FACTORS = ("down", "up")
"""What :class:`LoraPointwise` adds to those of a convolution."""


class LoraQkv(nn.Linear):
    """A fused projection to queries, keys and values with a low-rank update of queries and values.

    ``weight`` and ``bias`` are those of the layer that it replaces, whatever they are stored as.

    Attributes:
        query_down: ``(rank, channels)``, A of the queries.
        query_up: ``(size, rank)``, B of the queries, zeros at first.
        value_down: ``(rank, channels)``, A of the values.
        value_up: ``(size, rank)``, B of the values, zeros at first.
        groups: of rows of ``weight``, each a third each queries, keys and values; the factors have no groups.
    """

    def __init__(self, qkv: nn.Linear, rank: int, groups: int = 1) -> None:
        """Take over a projection ``(3 * size, channels)``; what it computes does not change yet.

        The factors are of the weight's type and on its device; A is drawn from torch's global generator.

        Args:
            qkv: what it takes over.
            rank: of the update.
            groups: how many groups of rows the projection has, one after the other: of each a third each are queries,
                keys and values.
        """
        channels, size = qkv.in_features, qkv.out_features // 3
        assert qkv.out_features == 3 * size, "queries, keys and values are equally wide"
        assert rank >= 1
        super().__init__(channels, 3 * size, bias=qkv.bias is not None, device="meta", dtype=qkv.weight.dtype)
        self.weight, self.bias = qkv.weight, qkv.bias
        self.groups = groups
        # Not nn.Linear: what quantises or projects the encoder's linear layers is to see the base only.
        like: dict[str, Any] = {"dtype": qkv.weight.dtype, "device": qkv.weight.device}
        self.query_down = nn.Parameter(torch.empty(rank, channels, **like))
        self.query_up = nn.Parameter(torch.zeros(size, rank, **like))
        self.value_down = nn.Parameter(torch.empty(rank, channels, **like))
        self.value_up = nn.Parameter(torch.zeros(size, rank, **like))
        for down in (self.query_down, self.value_down):
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., channels)`` to ``(..., 3 * size)``."""
        tokens = hidden.flatten(0, -2)
        low = F.linear(tokens, torch.cat((self.query_down, self.value_down)))
        # In place: a second tensor of the projection's size would double what this layer takes.
        qkv = F.linear(tokens, self.weight, self.bias).addmm_(low, self._up().T)
        return qkv.view(*hidden.shape[:-1], -1)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return the projection with its update, ``(3 * size, channels)`` float32."""
        down = torch.cat((self.query_down, self.value_down))
        return self.weight.float() + self._up().float() @ down.float()

    def _up(self) -> Tensor:
        """``(3 * size, 2 * rank)``: both B, each in its rows and columns; the keys' rows are zeros."""
        size, rank = self.query_up.shape
        thirds = torch.cat((F.pad(self.query_up, (0, rank, 0, size)), F.pad(self.value_up, (rank, 0))))
        return thirds.unflatten(0, (3, self.groups, -1)).transpose(0, 1).flatten(0, 2)


class LoraPointwise(PointwiseConvolution):
    """A pointwise convolution with a low-rank update.

    ``weight`` is that of the layer that it replaces.

    Attributes:
        down: ``(rank, in_channels)``, A.
        up: ``(out_channels, rank)``, B, zeros at first.
    """

    def __init__(self, plain: PointwiseConvolution, rank: int) -> None:
        """Take over a convolution; what it computes does not change yet.

        The factors are of the weight's type and on its device; A is drawn from torch's global generator.
        """
        out, channels = plain.weight.shape[:2]
        with on_meta():
            super().__init__(channels, out)
        self.weight = plain.weight
        like: dict[str, Any] = {"dtype": plain.weight.dtype, "device": plain.weight.device}
        self.down = nn.Parameter(torch.empty(rank, channels, **like))
        self.up = nn.Parameter(torch.zeros(out, rank, **like))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def kernel(self) -> Tensor:
        """Return the weight with its update, ``(out, in, 1, 1)``."""
        return self.weight + (self.up @ self.down).view_as(self.weight)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return the weight with its update, ``(out, in, 1, 1)`` float32."""
        return self.weight.float() + (self.up.float() @ self.down.float()).view_as(self.weight)


def add_lora(encoder: ImageEncoder, rank: int) -> None:
    """Give the queries and values of every layer of an image encoder a low-rank update, in place.

    Where there is no attention, the pointwise convolutions of the blocks get them.

    Nothing is frozen here, and the encoder computes what it did. Layers may be quantised before or after.

    Args:
        encoder: has no such updates.
        rank: of each update; SAMed's is 4.
    """
    assert not lora_parameters(encoder), "the encoder has updates already"
    for attention in encoder.attentions():
        owner: Any = attention
        owner.qkv = LoraQkv(owner.qkv, rank, getattr(owner, "qkv_groups", 1))
    if not encoder.attentions():
        for owner, name, layer in _pointwise(encoder):
            setattr(owner, name, LoraPointwise(layer, rank))


def merged_weights(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Return what makes the weight with its update, float32, of every layer that has one, by the weight's name.

    A plain model with these weights, and with the other tensors of this one, computes the same.
    """
    return {
        f"{name}.weight": layer.merged_weight
        for name, layer in model.named_modules()
        if isinstance(layer, LoraQkv | LoraPointwise)
    }


def lora_parameters(encoder: nn.Module) -> list[nn.Parameter]:
    """Return all factors of an encoder, layer by layer; none when it has no updates."""
    added = {LoraQkv: FACTORS, LoraPointwise: POINTWISE_FACTORS}
    return [layer.get_parameter(name) for layer in encoder.modules() for name in added.get(type(layer), ())]


def updated_layers(model: nn.Module) -> str | None:
    """Return in words which layers of a model have updates; None if none has."""
    kinds = {type(layer) for layer in model.modules()}
    words = {LoraQkv: "queries and values", LoraPointwise: "pointwise convolutions"}
    return next((name for kind, name in words.items() if kind in kinds), None)


def _pointwise(encoder: ImageEncoder) -> list[tuple[nn.Module, str, PointwiseConvolution]]:
    """Return the pointwise convolutions of an encoder, each with its owner and its name there."""
    found = [
        (owner, name, layer)
        for owner in encoder.modules()
        for name, layer in owner.named_children()
        if isinstance(layer, PointwiseConvolution)
    ]
    assert found, "the encoder has neither attention nor pointwise convolutions"
    return found
