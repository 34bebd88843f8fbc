"""Which attention kernel runs, and how far it is from attention written out in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.place import Place
from medsaga.models.attention import RelativeAttention, resize_relative_positions

CHANNELS, HEADS = 768, 12
"""ViT-B's."""


def attention(place: Place) -> dict[str, Any]:
    """Compare SAM's attention in bf16 and fp16 with the same written out in float32, and name its kernel.

    Returns:
        by precision: the kernels, the largest difference of the output and of the gradient with respect to the input,
        each as a share of the largest value of what is written out.
    """
    grid = 14 if place.small else 64
    torch.manual_seed(0)
    layer = RelativeAttention(CHANNELS, CHANNELS, heads=HEADS, grid=grid).to(place.device)
    for table in (layer.rel_pos_h, layer.rel_pos_w):
        torch.nn.init.normal_(table, std=0.1)
    hidden = torch.randn(1, grid, grid, CHANNELS, device=place.device)
    upstream = torch.randn_like(hidden)
    expected = _outcome(lambda given: written_out(layer, given), hidden, upstream)
    found: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        layer.to(dtype)
        with profile(activities=_activities(place)) as seen:
            outcome = _outcome(layer, hidden.to(dtype), upstream.to(dtype))
            place.synchronise()
        layer.float()
        off = [
            float((ours - theirs).abs().max() / theirs.abs().max())
            for ours, theirs in zip(outcome, expected, strict=True)
        ]
        kernels = sorted({event.key for event in seen.key_averages() if _is_attention(event.key)})
        found[name] = {"kernels": kernels, "output_off_by": off[0], "gradient_off_by": off[1]}
    return found


def written_out(layer: RelativeAttention, hidden: Tensor) -> Tensor:
    """Attend with the matrix of all pairs of tokens, as SAM's published code does."""
    batch, height, width, channels = hidden.shape
    size = channels // layer.heads
    query, key, value = layer.qkv(hidden).reshape(batch, height * width, 3, layer.heads, size).permute(2, 0, 3, 1, 4)
    scores = layer.scale * query @ key.transpose(-2, -1)
    rows, columns = (
        resize_relative_positions(table, side)[torch.arange(side)[:, None] - torch.arange(side)[None, :] + side - 1]
        for table, side in ((layer.rel_pos_h, height), (layer.rel_pos_w, width))
    )
    places = query.reshape(batch, layer.heads, height, width, size)
    bias = (
        torch.einsum("bnhwc,hkc->bnhwk", places, rows)[..., :, None]
        + torch.einsum("bnhwc,wkc->bnhwk", places, columns)[..., None, :]
    )
    weights = (scores + bias.reshape(scores.shape)).softmax(-1)
    return layer.proj((weights @ value).transpose(1, 2).reshape(hidden.shape))


def _outcome(attend: Any, hidden: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_()
    output = attend(hidden)
    (gradient,) = torch.autograd.grad(output, hidden, upstream)
    return output.detach().float(), gradient.float()


def _activities(place: Place) -> list[ProfilerActivity]:
    return [ProfilerActivity.CUDA if place.device.type == "cuda" else ProfilerActivity.CPU]


def _is_attention(name: str) -> bool:
    return any(word in name.lower() for word in ("fmha", "flash", "attention", "cutlassf", "cutlassb"))
