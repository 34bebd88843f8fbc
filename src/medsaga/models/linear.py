"""Linear layers whose weights can take their gradient in factors, without the matrix that these make.

The gradient of a weight W of y = x W^T is G = Y^T X: the gradient of the outputs, (tokens, m), times the inputs,
(tokens, n). Who wants no more than P^T G (`medsaga.optim.galore`) is better off with (Y P)^T X, which needs r (m + n)
multiplications for a token in place of m n, and never has an (m, n) matrix.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from medsaga.models.int8 import Int8Weight

_TAKER = "factors_taker"


class FactorsTaker(Protocol):
    """Takes the gradient of one weight in factors.

    Hooks of the weight that torch calls after a gradient has been accumulated are called all the same, with none.
    """

    def wants(self, tokens: int) -> bool:
        """Whether it takes factors with so many rows; otherwise the gradient goes its usual way, to ``weight.grad``."""
        ...

    def take(self, grad_output: Tensor, inputs: Tensor) -> None:
        """Take ``(tokens, out)`` and ``(tokens, in)``: more of the gradient, their product."""
        ...


def give_factors(weight: Tensor, taker: FactorsTaker | None) -> None:
    """Have a weight's gradient go to a taker, as far as it wants it, or as usual again."""
    setattr(weight, _TAKER, taker)


def taker_of(weight: Tensor) -> FactorsTaker | None:
    """Return who takes a weight's gradient in factors, if anybody does."""
    return getattr(weight, _TAKER, None)


def dense(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight as a matrix of floats, of another tensor's type if it lives in codes."""
    return weight.dequantise(like.dtype) if isinstance(weight, Int8Weight) else weight


class Linear(nn.Linear):
    """``nn.Linear`` whose weight can take its gradient in factors."""

    def forward(self, input: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        taker = taker_of(self.weight)
        if taker is None or not torch.is_grad_enabled():
            return F.linear(input, self.weight, self.bias)
        result: Tensor = _Linear.apply(input, self.weight, self.bias, taker)
        return result


class _Linear(torch.autograd.Function):
    """A linear layer that keeps its input for backward, and hands the gradient of its weight over in factors."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, taker: FactorsTaker) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.taker = taker
        return F.linear(inputs, dense(weight, inputs), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias, _ = ctx.needs_input_grad
        rows, columns = grad_output.reshape(-1, grad_output.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        grad_input = grad_weight = None
        if needs_input:
            # In one expression, so that floats of codes are gone before the gradient of the weight is made.
            grad_input = (rows @ dense(weight, rows)).view(inputs.shape)
        if needs_weight and ctx.taker.wants(len(rows)):
            ctx.taker.take(rows, columns)
        elif needs_weight:
            grad_weight = (rows.T @ columns).to(weight.dtype)
        return grad_input, grad_weight, rows.sum(0) if needs_bias else None, None
