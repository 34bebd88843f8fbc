"""Attention within small windows, with a learned bias for each distance between two tokens.

The bias is a number for each head, distance in rows and distance in columns (LeViT, arXiv 2104.01136, section 4.4; so
also in TinyViT, arXiv 2207.10666). Fused kernels take it as a mask, but few of them have a gradient of it. So forward
is such a kernel, which keeps no scores, and backward computes the scores of some windows at a time again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsaga.models.linear import Linear

CHUNK_SCORES = 2**20
"""Scores that exist at a time in backward."""


class WindowAttention(nn.Module):
    """Normalisation and multi-head self-attention of the tokens of a window.

    Attributes:
        qkv: to queries, keys and values: for one head after the other, a third each.
        qkv_groups: how many such groups the rows of ``qkv`` have.
        attention_biases: ``(heads, window * window)``, zeros at first: column ``rows * window + columns`` is for tokens
            that are so many rows and columns apart.
    """

    def __init__(self, channels: int, *, heads: int, window: int) -> None:
        """Take the channels of the tokens, and the side of a window in tokens."""
        super().__init__()
        assert channels % heads == 0
        self.window = window
        self.qkv_groups = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, windows: Tensor) -> Tensor:
        """Change ``(windows, window, window, channels)``."""
        tokens = self.norm(windows).flatten(1, 2)
        qkv = self.qkv(tokens).unflatten(2, (self.qkv_groups, 3, -1))
        return self.proj(attend_with_bias(qkv, spread_biases(self.attention_biases, self.window)).view_as(windows))


def spread_biases(table: Tensor, window: int) -> Tensor:
    """Return the bias of every pair of tokens, ``(heads, tokens, tokens)``, from ``(heads, window * window)``."""
    quarter = table.unflatten(1, (window, window))
    half = torch.cat((quarter[:, 1:].flip(1), quarter), dim=1)
    signed = torch.cat((half[:, :, 1:].flip(2), half), dim=2)
    # Views of a table with signed distances, not an index, whose gradient would add in no fixed order on threads.
    pairs = signed.unfold(1, window, 1).unfold(2, window, 1).flip(1, 2)
    return pairs.flatten(3, 4).flatten(1, 2)


def attend_with_bias(qkv: Tensor, bias: Tensor) -> Tensor:
    """Compute softmax(query . key / sqrt(size) + bias) . value within windows.

    Args:
        qkv: ``(windows, tokens, heads, 3, size)``.
        bias: ``(heads, tokens, tokens)``.

    Returns:
        ``(windows, tokens, heads * size)``.
    """
    output: Tensor = _Attend.apply(qkv, bias)
    return output.flatten(2)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(qkv, bias)
        query, key, value = _by_heads(qkv)
        if qkv.is_meta:  # see `medsaga.models.attention.attend_plainly`
            kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            output: Tensor = kernel(query, key, value)[0]
        else:
            output = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return output.transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor | None]:
        qkv, bias = ctx.saved_tensors
        wide = torch.promote_types(qkv.dtype, torch.float32)
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias, dtype=wide)
        windows = max(1, CHUNK_SCORES // bias.numel())
        for part, grad, grad_part in zip(*(t.split(windows) for t in (qkv, grad_output, grad_qkv)), strict=True):
            grads, grad_scores = _chunk_gradients(part.to(wide), bias, grad.to(wide))
            for into, value in zip(_by_heads(grad_part), grads, strict=True):
                into.copy_(value)
            grad_bias += grad_scores.sum(0)
        return grad_qkv, grad_bias.to(bias.dtype) if ctx.needs_input_grad[1] else None


def _chunk_gradients(qkv: Tensor, bias: Tensor, grad_output: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Return the gradients of queries, keys and values, and of the scores, ``(windows, heads, tokens, tokens)``."""
    query, key, value = _by_heads(qkv)
    scale = query.shape[-1] ** -0.5
    chances = (scale * query @ key.mT + bias).softmax(-1)
    grad = grad_output.transpose(1, 2)
    grad_scores = torch._softmax_backward_data(grad @ value.mT, chances, -1, qkv.dtype)
    return (scale * grad_scores @ key, scale * grad_scores.mT @ query, chances.mT @ grad), grad_scores


def _by_heads(qkv: Tensor) -> tuple[Tensor, ...]:
    """Divide ``(windows, tokens, heads, 3, size)`` into views ``(windows, heads, tokens, size)``."""
    return qkv.permute(3, 0, 2, 1, 4).unbind(0)
