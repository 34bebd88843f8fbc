"""SAMed's adapter: W + BA for queries and values, over any base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsaga.memory.tracker import TensorTracker
from medsaga.models import attention
from medsaga.models.encoders import ENCODERS
from medsaga.models.int8 import Int8Weight, quantise_linears
from medsaga.models.lora import (
    FACTORS,
    LoraQkv,
    add_lora,
    lora_parameters,
    merged_weights,
)
from medsaga.models.precision import set_precision
from medsaga.models.sam import KClassSam, build_sam

SIDE = 96
RANK = 4
TINY: Any = ENCODERS["tiny"]


def build(dtype: torch.dtype = torch.float32, *, seed: int = 0, image_size: int = SIDE, classes: int = 3) -> KClassSam:
    torch.manual_seed(seed)
    return build_sam("tiny", classes=classes, image_size=image_size, dtype=dtype)


def images() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 255


def qkvs(model: KClassSam) -> list[Any]:
    """The fused projection of each block."""
    blocks: Any = model.image_encoder.blocks
    return [block.get_submodule("attn.qkv") for block in blocks]


def freeze_base(model: KClassSam) -> None:
    """Train what SAMed trains."""
    model.image_encoder.requires_grad_(False)
    for factor in lora_parameters(model.image_encoder):
        factor.requires_grad_(True)


def with_updates(model: KClassSam, spread: float = 0.2) -> KClassSam:
    """The model with updates that change something, its base frozen."""
    add_lora(model.image_encoder, RANK)
    freeze_base(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for factor in lora_parameters(model.image_encoder):
            factor.copy_(spread * torch.randn(factor.shape, generator=generator))
    return model


def merged(model: KClassSam) -> KClassSam:
    """A plain model with the updates in its weights."""
    state = {name: v.dequantise() if isinstance(v, Int8Weight) else v for name, v in model.state_dict().items()}
    state |= {name: make() for name, make in merged_weights(model).items()}
    plain = build()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain


def gradients(model: KClassSam) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits = model(images())
    weights = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).roll(7).view_as(logits)
    (logits.double() * weights).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def test_is_w_plus_b_a_for_queries_and_values() -> None:
    torch.manual_seed(0)
    channels, rank = 10, 3
    layer = LoraQkv(nn.Linear(channels, 3 * channels).double(), rank)
    for name in FACTORS:
        nn.init.normal_(layer.get_parameter(name))
    hidden = torch.randn(2, 4, 5, channels, dtype=torch.float64)
    query, key, value = layer.weight.split(channels)
    bias = layer.bias.split(channels)
    expected = (
        hidden @ (query + layer.query_up @ layer.query_down).T + bias[0],
        hidden @ key.T + bias[1],
        hidden @ (value + layer.value_up @ layer.value_down).T + bias[2],
    )
    torch.testing.assert_close(layer(hidden), torch.cat(expected, -1))


def test_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    layer = LoraQkv(nn.Linear(4, 12).double(), 2)
    for name in FACTORS:
        nn.init.normal_(layer.get_parameter(name))
    names = [name for name, _ in layer.named_parameters()]

    def function(hidden: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (hidden,))

    hidden = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (hidden, *layer.parameters()))


def test_changes_nothing_at_first_and_is_drawn_as_samed_draws() -> None:
    model = build()
    with torch.no_grad():
        before = model(images())
        add_lora(model.image_encoder, RANK)
        assert torch.equal(model(images()), before)
    for qkv in qkvs(model):
        assert isinstance(qkv, LoraQkv)
        assert not qkv.query_up.any()
        assert not qkv.value_up.any()
        # Kaiming uniform with a = sqrt(5): uniform within 1 / sqrt(channels).
        bound = TINY.hidden_size**-0.5
        for down in (qkv.query_down, qkv.value_down):
            assert down.shape == (RANK, TINY.hidden_size)
            assert 0.97 * bound < down.abs().max() <= bound
            assert float(down.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.1)
        assert not torch.equal(qkv.query_down, qkv.value_down)


def test_has_the_published_number_of_parameters() -> None:
    # SAMed, arXiv 2304.13785: rank 4 on ViT-B; with nine classes 4.914 M parameters are trained in all.
    with torch.device("meta"):
        model = build_sam("vit_b", classes=9, image_size=512)
        names = list(model.state_dict())
        add_lora(model.image_encoder, RANK)
        freeze_base(model)
        factors = lora_parameters(model.image_encoder)
        assert model(torch.zeros(1, 3, 512, 512)).shape == (1, 9, 128, 128)
        changed = merged_weights(model)
    assert len(factors) == 12 * 4
    assert sum(factor.numel() for factor in factors) == 147_456
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_913_621
    added = [name for name in model.state_dict() if name not in names]
    assert added == [f"image_encoder.blocks.{n}.attn.qkv.{factor}" for n in range(12) for factor in FACTORS]
    assert list(changed) == [f"image_encoder.blocks.{n}.attn.qkv.weight" for n in range(12)]
    assert changed.keys() <= {*names}


def test_only_what_samed_trains_gets_gradients_and_merging_afterwards_changes_no_result() -> None:
    model = build()
    add_lora(model.image_encoder, RANK)
    freeze_base(model)
    base = {name: value.clone() for name, value in model.image_encoder.state_dict().items() if "_up" not in name}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    pixel = TINY.patch_size // 4  # side of a pixel of the logits in the image
    labels = (images().mean(1)[:, ::pixel, ::pixel] > 127).long()
    for _ in range(3):
        loss = functional.cross_entropy(model(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in model.image_encoder.named_parameters():
        is_factor = name.endswith(FACTORS)
        assert (parameter.grad is not None) == is_factor, name
        if "_down" not in name and "_up" not in name:
            assert torch.equal(parameter, base[name]), name
    decoder = model.get_parameter("mask_decoder.transformer.layers.0.self_attn.q_proj.weight")
    assert decoder.grad is not None
    assert all(factor.any() for factor in lora_parameters(model.image_encoder))
    with torch.no_grad():
        unmerged, (seen,) = model(images()), model.encode(images())
        plain = build()
        (without,) = plain.encode(images())
        assert relative(merged(model)(images()), unmerged) < 1e-5
    assert relative(without, seen) > 1e-3


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
def test_lean_blocks_and_groups_of_heads_change_nothing(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_updates(build(torch.float64))
    if int8:
        quantise_linears(model.image_encoder)
    logits, plain = gradients(model)
    monkeypatch.setattr(
        attention, "GROUP_ELEMENTS", 2 * (SIDE // TINY.patch_size) ** 2 * TINY.hidden_size // TINY.heads
    )
    model.checkpoint_blocks = True
    again, found = gradients(model)
    assert relative(again, logits) < 1e-12
    assert found.keys() == plain.keys()
    assert sum(name.endswith(FACTORS) for name in found) == TINY.layers * 4
    for name, gradient in plain.items():
        if "k_proj.bias" not in name:  # softmax takes it out, and the rest is rounding
            assert relative(found[name], gradient) < 1e-10, name


@pytest.mark.parametrize("quantised_first", [False, True])
def test_an_int8_base_is_seen_without_its_updates(quantised_first: bool) -> None:
    model = build()
    linears = sum(m.weight.numel() for m in model.image_encoder.modules() if isinstance(m, nn.Linear))
    if quantised_first:
        assert quantise_linears(model.image_encoder) == linears
        with_updates(model)
    else:
        with_updates(model)
        assert quantise_linears(model.image_encoder) == linears
    factors = lora_parameters(model.image_encoder)
    assert not any(isinstance(factor, Int8Weight) for factor in factors)
    assert {factor.dtype for factor in factors} == {torch.float32}
    dense = with_updates(build())
    state = {n: v.dequantise() if isinstance(v, Int8Weight) else v for n, v in model.state_dict().items()}
    dense.load_state_dict(state)
    logits, found = gradients(model)
    expected, theirs = gradients(dense)
    assert relative(logits, expected) < 1e-5
    assert found.keys() == theirs.keys()
    for name in found:
        if name.endswith(FACTORS):
            assert relative(found[name], theirs[name]) < 1e-3, name
    with torch.no_grad():
        assert relative(merged(model)(images()), logits) < 1e-5


def test_runs_in_the_precisions_of_a_run() -> None:
    expected, _ = gradients(with_updates(build(), 0.05))
    for precision, tolerance in (("bf16", 0.05), ("int8", 0.05), ("fp16", 0.01)):
        model = with_updates(build(), 0.05)
        set_precision(model, precision)
        logits, found = gradients(model)
        factors = [name for name in found if name.endswith(FACTORS)]
        assert len(factors) == TINY.layers * 4
        assert {found[name].dtype for name in factors} == {logits.dtype} != {torch.float32}
        assert relative(logits, expected) < tolerance
        with torch.no_grad():
            assert relative(merged(model)(images()), logits) < tolerance


def test_states_can_be_assigned() -> None:
    model = with_updates(build())
    with torch.device("meta"):
        twin = with_updates(build())
    twin.load_state_dict(model.state_dict(), assign=True)
    twin.make_constants()
    with torch.no_grad():
        assert torch.equal(twin(images()), model(images()))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_step_can_be_predicted_without_values(precision: str) -> None:
    with torch.device("meta"):
        model = build()
        add_lora(model.image_encoder, RANK)
        freeze_base(model)
        set_precision(model, precision)
        model.checkpoint_blocks = True
        model(torch.zeros(2, 3, SIDE, SIDE)).sum().backward()
    assert all(factor.grad is not None and factor.grad.is_meta for factor in lora_parameters(model.image_encoder))


def test_an_update_takes_no_second_projection() -> None:
    channels, tokens = 64, 4096
    layer = LoraQkv(nn.Linear(channels, 3 * channels), RANK)
    layer.weight.requires_grad_(False)
    hidden = torch.randn(1, 64, 64, channels)
    tracker = TensorTracker()
    tracker.assign([hidden, *layer.parameters()], "elsewhere")
    with tracker:
        output = layer(hidden)
    # Beside the result: what the thin matrices give, and the thin matrices side by side.
    assert tracker.peak_bytes - 4 * output.numel() <= 4 * (2 * RANK * tokens + 2 * RANK * 6 * channels)
