"""Blocks computed twice give the same numbers, and between forward and backward they keep their input only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.sam.configuration_sam import SamVisionConfig
from transformers.models.sam.modeling_sam import SamMLPBlock

from medsaga.memory.tracker import TensorTracker
from medsaga.models import attention, lean
from medsaga.models.attention import RelativeAttention
from medsaga.models.encoders import ENCODERS
from medsaga.models.encoders.sam_vit import SamVitSpec
from medsaga.models.int8 import Int8Weight, quantise_linears
from medsaga.models.lean import LeanMlp, inside_lean_block, lean_block
from medsaga.models.sam import KClassSam, build_sam

TINY = ENCODERS["tiny"]
assert isinstance(TINY, SamVitSpec)
CHANNELS, HEADS, LAYERS = TINY.hidden_size, TINY.heads, TINY.layers
GRID = 10
"""Tokens along a side, which windows of 4 do not divide: the image is padded to 9 windows."""
SIDE = GRID * TINY.patch_size
TOKENS = 2 * GRID**2
CHUNK = 90


class Hidden(TorchDispatchMode):
    """Remembers how many tokens each GELU of an encoder's perceptron sees, in either direction."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[int] = []
        self.backward: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at its input."""
        if func is torch.ops.aten.gelu.default and args[0].shape[-1] == 4 * CHANNELS:
            self.forward.append(args[0].numel() // args[0].shape[-1])
        if func is torch.ops.aten.gelu_backward.default and args[0].shape[-1] == 4 * CHANNELS:
            self.backward.append(args[0].numel() // args[0].shape[-1])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def heads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make groups of heads and chunks of tokens small; list the heads of every call of the attention."""
    seen: list[int] = []
    original = RelativeAttention._attend

    def noted(self: RelativeAttention, qkv: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        seen.append(qkv.shape[3])
        return original(self, qkv, rows, columns)

    monkeypatch.setattr(RelativeAttention, "_attend", noted)
    monkeypatch.setattr(attention, "GROUP_ELEMENTS", TOKENS * CHANNELS // HEADS)
    monkeypatch.setattr(lean, "CHUNK_TOKENS", CHUNK)
    return seen


def _model(dtype: torch.dtype = torch.float64, *, int8: bool = False) -> KClassSam:
    torch.manual_seed(0)
    model = build_sam("tiny", classes=3, image_size=SIDE, dtype=dtype)
    blocks: Any = model.image_encoder.blocks
    for layer in blocks:  # biases and relative positions start at 0, and would hide mistakes
        for parameter in layer.parameters():
            if parameter.dim() == 1 or parameter.shape[-1] == CHANNELS // HEADS:
                nn.init.normal_(parameter, std=0.1)
    if int8:
        quantise_linears(model.image_encoder)
    return model


def _results(model: KClassSam) -> dict[str, Tensor]:
    """The logits, and the gradients of a fixed function of them by every parameter that gets one.

    Not those of the keys' biases in the decoder: softmax takes them out, and the rest is rounding.
    """
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 255
    logits = model(images)
    weights = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    model.zero_grad()
    (logits.double() * weights.roll(7)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if "k_proj.bias" not in name}
    return {"logits": logits.detach()} | {name: grad for name, grad in gradients.items() if grad is not None}


def _assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        distance = float(torch.linalg.vector_norm(ours[name] - value))
        assert distance <= tolerance * float(torch.linalg.vector_norm(value)), name


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_logits_and_gradients_are_those_of_plain_blocks(int8: bool, heads_at_a_time: list[int]) -> None:
    model = _model(int8=int8)
    plain = _results(model)
    assert len(plain) > 100
    assert set(heads_at_a_time) == {HEADS}
    heads_at_a_time.clear()
    model.checkpoint_blocks = True
    with Hidden() as hidden:
        again = _results(model)
    _assert_close(again, plain, 1e-12)

    # Forward, and twice in backward: once for the block, and once for the group of heads.
    assert heads_at_a_time == [1] * (LAYERS * HEADS * 3)
    # Windows hold 2 x 9 x 16 tokens with their padding, but the perceptron comes after it has been cut off.
    assert hidden.backward == [CHUNK, CHUNK, TOKENS - 2 * CHUNK] * LAYERS
    assert hidden.forward == [CHUNK, CHUNK, TOKENS - 2 * CHUNK] * 2 * LAYERS  # in backward for the gradient of lin2


def test_float32_agrees_up_to_its_rounding(heads_at_a_time: list[int]) -> None:
    model = _model(torch.float32)
    plain = _results(model)
    model.checkpoint_blocks = True
    again = _results(model)
    assert 1 in heads_at_a_time
    _assert_close(again, plain, 1e-5)


def test_without_gradients_nothing_is_computed_twice(heads_at_a_time: list[int]) -> None:
    model = _model(torch.float32)
    model.checkpoint_blocks = True
    with torch.no_grad():
        model(torch.zeros(2, 3, SIDE, SIDE))
    assert heads_at_a_time == [HEADS] * LAYERS
    assert not inside_lean_block()


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_frozen_perceptrons_get_no_gradient_and_pass_it_on(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", 7)
    mlp = _mlp(torch.float64, int8=int8)
    inputs = torch.randn(2, 3, 5, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(inputs)
    names = [name for name, _ in mlp.named_parameters()]
    for trained in ([], ["lin1.weight"], ["lin2.weight"], ["lin1.bias"], ["lin2.bias"], names):
        for name, parameter in mlp.named_parameters():
            parameter.requires_grad_(name in trained)
        wanted: list[Tensor] = [inputs, *(mlp.get_parameter(name) for name in trained)]
        expected = torch.autograd.grad((mlp(inputs) * weights).sum(), wanted)
        for value in (inputs, *mlp.parameters()):
            value.grad = None
        (lean_block(mlp, inputs) * weights).sum().backward()
        for tensor, gradient in zip(wanted, expected, strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad, gradient, rtol=1e-12, atol=1e-13)
        assert [name for name, parameter in mlp.named_parameters() if parameter.grad is not None] == trained


def test_gradients_agree_with_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CHUNK_TOKENS", 2)
    mlp = _mlp(torch.float64, channels=3, hidden=4)
    inputs = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    arguments: Any = (inputs, mlp.lin1.weight, mlp.lin1.bias, mlp.lin2.weight, mlp.lin2.bias, (None, None), False)
    # The function alone: a block that is computed again goes backward once.
    assert torch.autograd.gradcheck(lean._Mlp.apply, arguments)


def test_an_error_inside_leaves_no_block_open() -> None:
    class Fails(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            assert inside_lean_block()
            raise torch.OutOfMemoryError("no more")

    with pytest.raises(torch.OutOfMemoryError):
        lean_block(Fails(), torch.zeros(1, requires_grad=True))
    assert not inside_lean_block()


# Memory


def _mlp(dtype: torch.dtype, channels: int = 16, hidden: int = 256, *, int8: bool = False) -> LeanMlp:
    torch.manual_seed(0)
    mlp = LeanMlp(channels, hidden).to(dtype)
    if int8:
        quantise_linears(mlp)
        assert isinstance(mlp.lin1.weight, Int8Weight)
    return mlp


def _kept_and_peak(block: Any, inputs: Tensor, weights: nn.Module) -> tuple[int, int]:
    """Bytes that forward leaves behind, its output among them, and the peak of both passes; without the weights."""
    tracker = TensorTracker()
    tracker.assign([inputs, *weights.parameters()], "elsewhere")
    with tracker:
        output = block(inputs)
        kept = sum(tracker._now[name] for name in tracker.breakdown)
        output.sum().backward()
    return kept, tracker.peak_bytes


def test_the_hidden_layer_never_exists_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, channels, hidden, chunk = 4096, 16, 256, 128
    monkeypatch.setattr(lean, "CHUNK_TOKENS", chunk)
    mlp = _mlp(torch.float32, channels, hidden)
    twin = copy.deepcopy(mlp)
    inputs = torch.randn(1, 64, 64, channels, requires_grad=True)
    size, whole, part = 4 * tokens * channels, 4 * tokens * hidden, 4 * chunk * hidden
    gradients = 4 * (2 * channels * hidden + channels + hidden)
    kept, peak = _kept_and_peak(lambda x: lean_block(mlp, x), inputs, mlp)
    assert kept == size  # the output
    # Outputs of both passes, the gradients of output and input, and of a chunk: hidden layer, its GELU and gradients.
    bound = 4 * size + gradients + 4 * part
    assert peak <= bound < whole
    inputs.grad = None
    kept, peak = _kept_and_peak(twin, inputs, twin)
    assert kept >= 2 * whole
    assert peak >= 2 * whole


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_blocks_keep_their_inputs_only(int8: bool) -> None:
    model = _model(torch.float32, int8=int8)
    layers: Any = model.image_encoder.blocks

    def encoder(hidden: Tensor) -> Tensor:
        for layer in layers:
            hidden = lean_block(layer, hidden)
        return hidden

    inputs = torch.randn(1, GRID, GRID, CHANNELS, requires_grad=True)
    size = 4 * inputs.numel()
    kept, peak = _kept_and_peak(encoder, inputs, layers)
    assert kept == len(layers) * size  # the inputs, whose first lay there before, and the output
    inputs.grad = None
    for parameter in layers.parameters():
        parameter.grad = None
    plain = nn.Sequential(*layers)
    kept_plain, peak_plain = _kept_and_peak(plain, inputs, layers)
    assert kept_plain > 10 * kept
    assert peak < peak_plain


def test_gelu_is_the_exact_one_of_transformers() -> None:
    mlp = _mlp(torch.float64)
    tokens = torch.randn(3, 16, dtype=torch.float64)
    reference = SamMLPBlock(SamVisionConfig(hidden_size=16, mlp_dim=256)).double()
    reference.load_state_dict(mlp.state_dict())
    assert torch.equal(mlp(tokens), reference(tokens))
    with torch.no_grad():
        by_hand = mlp.lin2(F.gelu(mlp.lin1(tokens)))
    assert torch.equal(mlp(tokens), by_hand)
