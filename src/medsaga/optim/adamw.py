"""AdamW as a pure function of tensors, and for many weights in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from medsaga.models.int8 import Int8Weight
from medsaga.optim.rounding import precisely


def adamw_directions(
    gradients: list[Tensor],  # (64, 3072) each, or any shape; used up
    exp_avgs: list[Tensor],  # the same
    exp_avg_sqs: list[Tensor],  # the same
    step: int,  # 1 at the first update
    betas: tuple[float, float],
    eps: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:  # the same
    """Return Adam's directions M^ / (sqrt(V^) + eps), as ``torch.optim.AdamW`` has them, and the moments after them.

    The directions come into the memory of the gradients.
    """
    beta1, beta2 = betas
    exp_avgs = list(torch._foreach_lerp(exp_avgs, gradients, 1 - beta1))
    exp_avg_sqs = list(torch._foreach_mul(exp_avg_sqs, beta2))
    torch._foreach_addcmul_(exp_avg_sqs, gradients, gradients, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_div_(denominators, (1 - beta2**step) ** 0.5)
    torch._foreach_add_(denominators, eps)
    torch._foreach_zero_(gradients)
    torch._foreach_addcdiv_(gradients, exp_avgs, denominators)
    torch._foreach_div_(gradients, 1 - beta1**step)
    return gradients, exp_avgs, exp_avg_sqs


def update_weights(
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    lr: float,
    scale: float,
    weight_decay: float,
    generator: torch.Generator,
) -> None:
    """Decay weights and move them against the directions, in the directions' precision, whatever the weights'.

    The results are written into the weights' own type by `medsaga.optim.rounding.precisely`.
    """
    shaped = [direction.reshape(weight.shape) for direction, weight in zip(directions, weights, strict=True)]
    with precisely(weights, shaped[0].dtype, generator) as values:
        torch._foreach_mul_(values, 1 - lr * weight_decay)
        torch._foreach_add_(values, shaped, alpha=-lr * scale)


def is_simple(weight: Tensor, state: Mapping[str, Any]) -> bool:
    """Whether torch's fused kernel does for a weight what is done here: all float32, one number after the other."""
    if weight.grad is None or isinstance(weight, Int8Weight):
        return False
    moments = [state[name] for name in ("exp_avg", "exp_avg_sq") if name in state]
    return all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (weight, weight.grad, *moments))


def update_together(
    weights: Sequence[Tensor],
    states: Mapping[Tensor, dict[str, Any]],
    step: int,
    group: Mapping[str, Any],
    factor: Tensor | float,
) -> None:
    """Update simple weights of one device in place, all in one call of torch's fused kernel.

    A model has hundreds of small ones: one by one, most of the time goes into the calls. A weight without moments gets
    them; should memory run out on the way, no weight has moved.

    Args:
        weights: for which `is_simple`; their gradients are used up, so that no second call moves them again.
        states: ``exp_avg`` and ``exp_avg_sq`` of each, in float32; they are changed in place.
        step: 1 at the first update.
        group: ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        factor: of the gradients.
    """
    for weight in weights:
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in states[weight]:
                states[weight][name] = torch.zeros_like(weight)
    device = weights[0].device
    if device.type != "meta":
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        # The kernel counts the steps itself, for each weight.
        steps = list(torch.full((len(weights),), step - 1.0, device=device).unbind())
        # It would take a scale, too, but on MPS it ignores it. From here on nothing is allocated.
        torch._foreach_mul_(gradients, factor)
        adamw(
            list(weights),
            gradients,
            [states[weight]["exp_avg"] for weight in weights],
            [states[weight]["exp_avg_sq"] for weight in weights],
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
    for weight in weights:
        states[weight]["step"] = step
        weight.grad = None
