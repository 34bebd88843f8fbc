"""Gradients that arrive in factors: the same projections and sketches as from the matrix, which never exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medsaga.models.int8 import Int8Weight, quantise_linears
from medsaga.models.lean import LeanMlp, lean_block
from medsaga.models.linear import Linear
from medsaga.optim.galore import GaLoreAdamW

OUT, IN, TOKENS, RANK = 48, 96, 40, 4


class Plain(nn.Module):
    """A linear layer under a function that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(IN, OUT)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens).sin()


class Perceptron(nn.Module):
    """A perceptron in a block that is computed twice; its tokens make several chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = LeanMlp(OUT, IN)

    def forward(self, tokens: Tensor) -> Tensor:
        return lean_block(self.mlp, tokens.unflatten(1, (-1, 2)))


def made(model: nn.Module, *, factors: bool, **how: Any) -> tuple[GaLoreAdamW, list[Tensor]]:
    """Return an optimizer of the matrices of a model, and these; without factors, their gradients are matrices."""
    weights: list[Tensor] = [weight for weight in model.parameters() if weight.dim() == 2]
    optimizer = GaLoreAdamW(weights, rank=RANK, refresh_every=2, lr=1e-2, **how)
    if not factors:
        optimizer.wants_factors = lambda weight, tokens: False  # type: ignore[method-assign]
    return optimizer, weights


def trained(kind: Callable[[], nn.Module], *, factors: bool, tokens: int = TOKENS, **how: Any) -> list[Tensor]:
    """Return all that arrives and all weights in four steps of two micro-batches."""
    torch.manual_seed(0)
    model = kind().double()
    optimizer, weights = made(model, factors=factors, **how)
    seen: list[Tensor] = []
    size = IN if kind is Plain else OUT
    for step in range(5):  # the first makes bases
        for part in range(2):
            inputs = torch.randn(2, tokens, size, generator=torch.Generator().manual_seed(2 * step + part)).double()
            model(inputs).square().sum().backward()
        seen += [tensor.clone() for tensor in optimizer.all_arrived()]
        optimizer.step()
        optimizer.zero_grad()
    optimizer.close()
    return [*seen, *weights]


@pytest.mark.parametrize("projection", ["std", "left", "right", "two_sided"])
def test_what_arrives_in_factors_is_what_arrives_as_a_matrix(projection: str) -> None:
    ours, theirs = (trained(Plain, factors=factors, projection=projection) for factors in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_chunks_of_a_perceptron_add_up() -> None:
    ours, theirs = (trained(Perceptron, factors=factors, tokens=1300) for factors in (True, False))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("kind", [Plain, Perceptron])
def test_no_matrix_of_the_gradient_is_ever_made(kind: Callable[[], nn.Module]) -> None:
    class Watch(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: set[tuple[int, ...]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and func not in (torch.ops.aten.detach.default, torch.ops.aten.t.default):
                self.shapes.add(tuple(result.shape))
            return result

    torch.manual_seed(0)
    model = kind()
    optimizer, _ = made(model, factors=True)
    inputs = torch.randn(1, TOKENS, IN if kind is Plain else OUT)
    for _ in range(2):
        with Watch() as watch:
            model(inputs).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {(OUT, IN), (IN, OUT)} & watch.shapes == set()
    optimizer.close()
    with Watch() as watch:
        model(inputs).square().sum().backward()
    assert (OUT, IN) in watch.shapes


def test_few_tokens_many_or_an_exact_basis_decide_which_way_is_shorter() -> None:
    optimizer, (weight,) = made(Plain(), factors=True)
    assert optimizer.wants_factors(weight, TOKENS)
    wide = GaLoreAdamW([nn.Parameter(torch.zeros(OUT, IN))], rank=OUT)
    (weight,) = wide.param_groups[0]["params"]
    assert not wide.wants_factors(weight, 100 * TOKENS)
    exact = GaLoreAdamW([nn.Parameter(torch.zeros(OUT, IN))], rank=RANK, refresh="exact")
    (weight,) = exact.param_groups[0]["params"]
    assert not exact.wants_factors(weight, TOKENS)


def test_codes_of_8_bits_are_trained_by_factors() -> None:
    moved = []
    for factors in (True, False):
        torch.manual_seed(0)
        model = Plain()
        quantise_linears(model)
        optimizer, (weight,) = made(model, factors=factors)
        for step in range(3):
            model(torch.randn(TOKENS, IN, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert isinstance(weight, Int8Weight)
        moved.append(weight.dequantise())
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-3)


def test_hooks_that_come_after_the_optimizer_are_called_once_with_factors_and_with_matrices() -> None:
    for factors in (True, False):
        model = Plain()
        optimizer, (weight,) = made(model, factors=factors)
        kept: list[int] = []

        def note(weight: Tensor, optimizer: GaLoreAdamW = optimizer, kept: list[int] = kept) -> None:
            kept.append(len(optimizer.arrived(weight)))

        weight.register_post_accumulate_grad_hook(note)
        model(torch.randn(TOKENS, IN)).sum().backward()
        assert kept == [1]


def test_an_optimizer_that_is_gone_leaves_ordinary_gradients() -> None:
    model = Plain()
    optimizer, (weight,) = made(model, factors=True)
    optimizer.close()
    model(torch.randn(TOKENS, IN)).sum().backward()
    assert weight.grad is not None
