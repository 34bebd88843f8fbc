"""AdamW as a pure function of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from medsaga.optim.rounding import write_weight


def adamw_direction(
    gradient: Tensor,  # (64, 3072), or any shape
    exp_avg: Tensor,  # the same
    exp_avg_sq: Tensor,  # the same
    step: int,  # 1 at the first update
    betas: tuple[float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # the same
    """Return Adam's direction M^ / (sqrt(V^) + eps), as ``torch.optim.AdamW`` computes it, and the moments after it."""
    beta1, beta2 = betas
    exp_avg = exp_avg.lerp(gradient, 1 - beta1)
    exp_avg_sq = exp_avg_sq.mul(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = exp_avg_sq.sqrt().div_((1 - beta2**step) ** 0.5).add_(eps)
    return torch.div(exp_avg, denominator, out=denominator).div_(1 - beta1**step), exp_avg, exp_avg_sq


def update_weight(
    weight: Tensor, direction: Tensor, lr: float, scale: float, weight_decay: float, generator: torch.Generator
) -> None:
    """Decay the weight and move it against the direction, in the direction's precision, whatever the weight's.

    The result is written into the weight's own type by `medsaga.optim.rounding.write_weight`.
    """
    precise = weight.to(direction.dtype)
    precise.mul_(1 - lr * weight_decay).add_(direction.reshape(weight.shape), alpha=-lr * scale)
    write_weight(weight, precise, generator)
