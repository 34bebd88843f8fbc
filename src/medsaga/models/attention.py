"""Attention that never stores the matrix of all token pairs.

SAM adds to the attention score of query token i and key token j a bias for their distance in rows and one for their
distance in columns (decomposed relative positions: Li et al., MViTv2, arXiv 2112.01526, equation 4). Both are products
of the query with rows of two tables, so they fold into the dot product itself::

    q' = [scale * q, q . R_rows, q . R_columns]      k' = [k, onehot(row of the token), onehot(column of the token)]

and q' . k' is the biased score. Any fused kernel for plain attention then computes SAM's attention exactly.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from medsaga.models.lean import inside_lean_block, recomputed
from medsaga.models.linear import Linear

HEAD_ALIGNMENT = 8
"""The fused CUDA kernels want head sizes that are multiples of this in half precision."""
GROUP_ELEMENTS = 2**20
"""Elements of the queries of the heads that are attended to at a time in a lean block."""
CHUNK_ELEMENTS = 2**24
"""Scores that exist at a time where no fused kernel can run (64 MiB in float32)."""


class RelativeAttention(nn.Module):
    """Multi-head self-attention with decomposed relative positions over a grid of tokens, as in SAM's image encoder.

    Attributes:
        qkv: to queries, keys and values, a third each.
        proj: from the attended values back to the channels.
        rel_pos_h: ``(2 * grid - 1, head size)``, zeros at first: an embedding for each distance in rows.
        rel_pos_w: the same in columns.
    """

    def __init__(self, channels: int, size: int, *, heads: int, grid: int) -> None:
        """Take the channels of the tokens, those of the queries of all heads, and the side of the grid in tokens."""
        super().__init__()
        head_size = size // heads
        assert size == heads * head_size
        self.heads = heads
        self.scale = head_size**-0.5
        self.qkv = Linear(channels, 3 * size)
        self.proj = Linear(size, channels)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, head_size))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, head_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Let every token of a grid look at all tokens of the same grid.

        Args:
            hidden: ``(batch, height, width, channels)``, height and width in tokens; where the grid is another than the
                tables are for, these are interpolated.

        Returns:
            The result, of the same shape.
        """
        batch, height, width, _ = hidden.shape
        qkv = self.qkv(hidden).reshape(batch, height * width, 3, self.heads, -1)
        rows, columns = _distances(self.rel_pos_h, height), _distances(self.rel_pos_w, width)
        elements = qkv.numel() // 3
        if inside_lean_block() and elements > GROUP_ELEMENTS:
            group = max(1, self.heads * GROUP_ELEMENTS // elements)
            outputs = [recomputed(self._attend, part, rows, columns) for part in qkv.split(group, dim=3)]
            output = torch.cat(outputs, dim=2)
        else:
            output = self._attend(qkv, rows, columns)
        return self.proj(output.reshape(batch, height, width, -1))

    def _attend(self, qkv: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Attend with some heads: ``(batch, tokens, 3, heads, size)`` to ``(batch, tokens, heads, size)``."""
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        query, key = self._fold_positions(query, key, rows, columns)
        return attend(query, key, value).transpose(1, 2)

    def _fold_positions(self, query: Tensor, key: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Widen ``(batch, heads, tokens, head size)`` queries and keys so that their product holds the bias.

        ``rows`` and ``columns`` are the relative positions: see :func:`_distances`.
        """
        grid = height, width = len(rows), len(columns)
        on_grid = query.unflatten(2, grid)
        row_bias = torch.einsum("bnhwc,hkc->bnhwk", on_grid, rows).flatten(2, 3)
        column_bias = torch.einsum("bnhwc,wkc->bnhwk", on_grid, columns).flatten(2, 3)
        padding = -(query.shape[-1] + height + width) % HEAD_ALIGNMENT
        nothing = query.new_zeros(padding).expand(*query.shape[:3], padding)
        places = _one_hot_places(grid, padding, like=key).expand(*key.shape[:3], -1)
        return torch.cat((query * self.scale, row_bias, column_bias, nothing), -1), torch.cat((key, places), -1)


def resize_relative_positions(table: Tensor, size: int) -> Tensor:
    """Interpolate a table of relative positions ``(2 * old size - 1, head size)`` linearly for ``size`` tokens."""
    length = 2 * size - 1
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear")[0].T


def attend_plainly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend with the kernel that torch chooses, and with a fused one on the meta device.

    There, torch would choose the attention that keeps the matrix of all token pairs for backward, and a prediction of
    memory would count what a real step does not keep.

    Args:
        query: ``(batch, heads, tokens, head size)``; scores are scaled by the inverse root of the head size.
        key: ``(batch, heads, other tokens, head size)``.
        value: like ``key``.

    Returns:
        ``(batch, tokens, heads, head size)``.
    """
    if query.is_meta:
        kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output: Tensor = kernel(query, key, value)[0]
    else:
        output = F.scaled_dot_product_attention(query, key, value)
    return output.transpose(1, 2).contiguous()


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute softmax(query . key) . value without a tensor of tokens x tokens.

    Args:
        query: ``(batch, heads, tokens, folded size)``, already scaled.
        key: like ``query``.
        value: ``(batch, heads, tokens, head size)``.

    Returns:
        ``(batch, heads, tokens, head size)``.
    """
    # Naming the one kernel that fits turns the silent fall back to the quadratic one into an error.
    if query.device.type in ("cpu", "meta"):
        # The CPU kernel wants values of the keys' size; zeros only add output columns that are cut off again.
        size = value.shape[-1]
        value = F.pad(value, (0, query.shape[-1] - size))
        kernel: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        output: Tensor = kernel(query, key, value, scale=1.0)[0]
        return output[..., :size]
    if query.device.type == "cuda" and _memory_efficient_fits(query, key, value):
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return attend_in_chunks(query, key, value, CHUNK_ELEMENTS)


def attend_in_chunks(query: Tensor, key: Tensor, value: Tensor, elements: int) -> Tensor:
    """Like :func:`attend` with ordinary operations, for devices without a fused kernel (MPS; float64 on CUDA).

    At most ``elements`` scores exist at a time, or one row of them per head; backward computes them again.
    """
    batch, heads, tokens, _ = query.shape
    rows = max(1, elements // (batch * heads * key.shape[2]))
    if rows >= tokens:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    chunks = [
        recomputed(partial(F.scaled_dot_product_attention, scale=1.0), part, key, value)
        for part in query.split(rows, dim=2)
    ]
    return torch.cat(chunks, dim=2)


def _memory_efficient_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the CUDA kernel that takes values of another size than the keys' supports device, type and sizes."""
    return can_use_efficient_attention(SDPAParams(query, key, value, None, 0.0, False, False))


def _distances(table: Tensor, size: int) -> Tensor:
    """``(size, size, head size)``: entry (i, j) is the table's row for a query at i and a key at j, i - j apart."""
    # Windows over the reversed table, not an index: the gradient of indexing adds in no fixed order on threads,
    # and a resumed run has to be the same run bit for bit.
    return resize_relative_positions(table, size).flip(0).unfold(0, size, 1).flip(0).transpose(1, 2)


def _one_hot_places(grid: tuple[int, int], padding: int, *, like: Tensor) -> Tensor:
    """``(tokens, height + width + padding)``: one-hot row, one-hot column, zeros, in the type of ``like``."""
    height, width = grid
    row = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    column = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return F.pad(torch.cat((row, column), 1), (0, padding))
