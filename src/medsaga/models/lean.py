"""A block of the image encoder that is computed twice and keeps next to nothing in between.

Checkpointing keeps a block's input and computes the block again in backward. What the block then needs at its peak is
cut down here: the hidden layer of its perceptron exists for a chunk of tokens at a time, its attention for a group of
heads at a time (`medsaga.models.attention`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from medsaga.models.linear import FactorsTaker, Linear, dense, taker_of

CHUNK_TOKENS = 1024
"""Tokens of which the perceptron's hidden layer exists at a time."""

_now = threading.local()


def lean_block(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Compute a block of the encoder, ``(batch, height, width, channels)``, and keep only its input for backward.

    Backward goes through it once: there is no ``retain_graph``.
    """
    contexts = {"context_fn": lambda: (_inside(again=False), _inside(again=True))}
    output: Tensor = recomputed(layer, hidden, **contexts)
    return output


def recomputed(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    """Call a function, keep only its inputs for backward, and call it again there; it must draw no random numbers."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **options)


def inside_lean_block() -> bool:
    """Whether the code runs as a part of a :func:`lean_block`, for the first or the second time."""
    return getattr(_now, "inside", False)


@contextlib.contextmanager
def _inside(*, again: bool) -> Iterator[None]:
    _now.inside, _now.again = True, again
    try:
        yield
    finally:
        _now.inside, _now.again = False, False


class LeanMlp(nn.Module):
    """The perceptron of an encoder block, linear - GELU - linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = Linear(channels, hidden)
        self.lin2 = Linear(hidden, channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Change ``(..., channels)`` token by token."""
        return gelu_mlp(inputs, self.lin1, self.lin2)


def gelu_mlp(inputs: Tensor, up: nn.Module, down: nn.Module) -> Tensor:
    """Compute linear - GELU - linear; in a lean block, for a chunk of tokens at a time.

    It has to be the last in a block that keeps anything for backward.

    Args:
        inputs: ``(..., channels)``.
        up: a linear layer from the channels to the hidden layer.
        down: a linear layer from there back to the channels.
    """
    if not inside_lean_block():
        result: Tensor = down(F.gelu(up(inputs)))
        return result
    takers = tuple(taker_of(cast(Tensor, layer.weight)) for layer in (up, down))
    output: Tensor = _Mlp.apply(inputs.flatten(0, -2), up.weight, up.bias, down.weight, down.bias, takers, _now.again)
    return output.view_as(inputs)


class _Mlp(torch.autograd.Function):
    """Linear - GELU - linear over chunks of tokens; keeps its input only."""

    @staticmethod
    def forward(
        ctx: Any,
        tokens: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        takers: tuple[FactorsTaker | None, ...],
        again: bool,
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight1, bias1, weight2)
        ctx.takers = takers
        output = torch.empty_like(tokens)
        if again:  # this is the block's end: the second time, nobody reads it
            return output
        up, down = dense(weight1, tokens), dense(weight2, tokens)
        for inputs, outputs in zip(tokens.split(CHUNK_TOKENS), output.split(CHUNK_TOKENS), strict=True):
            outputs.copy_(F.linear(F.gelu(F.linear(inputs, up, bias1)), down, bias2))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight1, bias1, weight2 = ctx.saved_tensors
        up, down = dense(weight1, tokens), dense(weight2, tokens)
        grad_tokens = torch.empty_like(tokens)
        needed = ctx.needs_input_grad
        up_taker, down_taker = (
            taker if needs and taker is not None and taker.wants(len(tokens)) else None
            for taker, needs in zip(ctx.takers, (needed[1], needed[3]), strict=True)
        )
        needed = (needed[1] and up_taker is None, needed[2], needed[3] and down_taker is None, needed[4])
        grad_up, grad_bias1, grad_down, grad_bias2 = (
            like.new_zeros(like.shape) if needs else None
            for like, needs in zip((up, bias1, down, bias1.new_empty(len(down))), needed, strict=True)
        )
        parts = (tensor.split(CHUNK_TOKENS) for tensor in (tokens, grad_output, grad_tokens))
        for inputs, grad, grad_inputs in zip(*parts, strict=True):
            hidden = F.linear(inputs, up, bias1)
            if down_taker is not None:
                down_taker.take(grad, F.gelu(hidden))
            elif grad_down is not None:
                grad_down.addmm_(grad.T, F.gelu(hidden))
            if grad_bias2 is not None:
                grad_bias2 += grad.sum(0)
            grad_hidden = torch.ops.aten.gelu_backward(grad @ down, hidden)
            del hidden
            if up_taker is not None:
                up_taker.take(grad_hidden, inputs)
            elif grad_up is not None:
                grad_up.addmm_(grad_hidden.T, inputs)
            if grad_bias1 is not None:
                grad_bias1 += grad_hidden.sum(0)
            torch.mm(grad_hidden, up, out=grad_inputs)
        return grad_tokens, grad_up, grad_bias1, grad_down, grad_bias2, None, None
