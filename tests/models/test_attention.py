"""The fused attention against transformers' eager one: values, gradients and bytes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention

from medsaga.models.attention import (
    RelativeAttention,
    attend,
    attend_in_chunks,
    resize_relative_positions,
)

HEADS, HEAD_SIZE = 3, 20


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest storage that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at its results."""
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.nbytes = max([self.nbytes, *sizes])
        return result


@pytest.fixture
def softmax_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep transformers from computing softmax in float32 when everything else is float64."""
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype=None: torch.softmax(scores, dim))


def eager_attention(table_size: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Attention of transformers with random parameters everywhere and tables for ``table_size`` tokens."""
    torch.manual_seed(0)
    config = SamVisionConfig(
        hidden_size=HEADS * HEAD_SIZE, num_attention_heads=HEADS, num_hidden_layers=1, image_size=16 * table_size
    )
    attention = SamVisionAttention(config, window_size=0).to(dtype)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    return attention


def fused_like(eager: nn.Module) -> RelativeAttention:
    """Our attention with the parameters of transformers'."""
    tables = eager.get_parameter("rel_pos_h")
    fused = RelativeAttention(HEADS * HEAD_SIZE, HEADS * HEAD_SIZE, heads=HEADS, grid=(len(tables) + 1) // 2)
    fused.to(tables.dtype).load_state_dict(eager.state_dict())
    return fused


def results(attention: nn.Module, tokens: Tensor) -> list[Tensor]:
    """The output, and the gradients of a fixed function of it by the input and every parameter."""
    tokens = tokens.clone().requires_grad_()
    output = attention(tokens)
    output = output[0] if isinstance(output, tuple) else output
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    parameters = [parameter for _, parameter in sorted(attention.named_parameters())]
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), [tokens, *parameters])]


@pytest.mark.usefixtures("softmax_in_double")
@pytest.mark.parametrize(
    ("table_size", "height", "width"),
    [
        pytest.param(14, 14, 14, id="window of 14"),
        pytest.param(8, 8, 8, id="window of 8"),
        pytest.param(13, 13, 13, id="odd"),
        pytest.param(1, 1, 1, id="one token"),
        pytest.param(8, 7, 10, id="not square, tables resized"),
    ],
)
def test_outputs_and_gradients_equal_eager_attention(table_size: int, height: int, width: int) -> None:
    eager = eager_attention(table_size)
    fused = fused_like(eager)
    tokens = torch.randn(2, height, width, HEADS * HEAD_SIZE, dtype=torch.float64)
    for ours, theirs in zip(results(fused, tokens), results(eager, tokens), strict=True):
        assert torch.linalg.norm(ours - theirs) <= 1e-12 * torch.linalg.norm(theirs) + 1e-12


def test_float32_agrees_to_1e_5() -> None:
    eager = eager_attention(14, torch.float32)
    fused = fused_like(eager)
    tokens = torch.randn(2, 14, 14, HEADS * HEAD_SIZE)
    for ours, theirs in zip(results(fused, tokens), results(eager, tokens), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_eager(dtype: torch.dtype) -> None:
    exact = eager_attention(8)
    tokens = torch.randn(2, 8, 8, HEADS * HEAD_SIZE, dtype=torch.float64).to(dtype)
    truth = results(exact, tokens.double())
    eager = copy.deepcopy(exact).to(dtype)
    fused = fused_like(eager)
    for ours, theirs, true in zip(results(fused, tokens), results(eager, tokens), truth, strict=True):
        assert ours.dtype == dtype
        assert torch.linalg.norm(ours - true) <= 1.5 * torch.linalg.norm(theirs - true)


def test_checkpointing_changes_nothing() -> None:
    fused = fused_like(eager_attention(8))

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = fused

        def forward(self, tokens: Tensor) -> Any:
            return checkpoint(self.inner, tokens, use_reentrant=False)

    tokens = torch.randn(2, 8, 8, HEADS * HEAD_SIZE, dtype=torch.float64)
    for plain, again in zip(results(fused, tokens), results(Checkpointed(), tokens), strict=True):
        assert torch.equal(plain, again)


def test_no_tensor_of_all_token_pairs_exists() -> None:
    side = 32
    pairs = 4 * side**4
    eager = eager_attention(side, torch.float32)
    fused = fused_like(eager)
    tokens = torch.randn(1, side, side, HEADS * HEAD_SIZE)
    with LargestTensor() as with_eager:
        results(eager, tokens)
    with LargestTensor() as with_fused:
        results(fused, tokens)
    folded_size = 88  # 20 + 32 + 32, rounded up to a multiple of 8
    assert with_eager.nbytes == HEADS * pairs
    assert with_fused.nbytes == 4 * side**2 * HEADS * folded_size
    assert with_fused.nbytes < pairs / 3


def test_chunks_compute_the_same_within_their_limit() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 3, 256, 24, dtype=torch.float64).unbind(0)
    value = torch.randn(2, 3, 256, 16, dtype=torch.float64)
    inputs = tuple(tensor.requires_grad_() for tensor in (query, key, value))
    weights = torch.randn_like(value)
    fused = attend(query, key, value)
    limit = 2 * 3 * 256 * 100
    with LargestTensor() as largest:
        chunked = attend_in_chunks(query, key, value, limit)
        gradients = torch.autograd.grad((chunked * weights).sum(), inputs)
    torch.testing.assert_close(chunked, fused, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients, torch.autograd.grad((fused * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    assert largest.nbytes <= 8 * limit


def test_a_missing_kernel_is_an_error_and_not_a_quadratic_detour() -> None:
    query = torch.randn(1, 1, 16, 24, dtype=torch.complex64)
    with pytest.raises(RuntimeError):
        attend(query, query, query[..., :16])


def test_tables_of_the_right_size_are_not_touched() -> None:
    table = torch.randn(15, 4)
    assert resize_relative_positions(table, 8) is table
    assert resize_relative_positions(table, 12).shape == (23, 4)
