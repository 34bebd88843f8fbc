"""SAMed's adapter: W + BA for queries and values, over any base, and its small file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from official import official_layout
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sam_reference import random_reference
from torch import Tensor, nn
from torch.nn import functional

from medsaga.errors import InputError
from medsaga.memory.tracker import TensorTracker
from medsaga.models import attention
from medsaga.models.encoders import ENCODERS
from medsaga.models.int8 import Int8Weight, quantise_linears
from medsaga.models.lora import (
    FACTORS,
    LoraQkv,
    add_lora,
    load_adapter,
    lora_parameters,
    merge_lora,
    save_adapter,
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
        merged = copy.deepcopy(model)
        merge_lora(merged.image_encoder)
    assert len(factors) == 12 * 4
    assert sum(factor.numel() for factor in factors) == 147_456
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_913_621
    added = [name for name in model.state_dict() if name not in names]
    assert added == [f"image_encoder.blocks.{n}.attn.qkv.{factor}" for n in range(12) for factor in FACTORS]
    assert list(merged.state_dict()) == names
    assert all(type(qkv) is nn.Linear for qkv in qkvs(merged))
    assert lora_parameters(merged.image_encoder) == []


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
        merge_lora(model.image_encoder)
        merged = model(images())
    assert relative(merged, unmerged) < 1e-5
    assert relative(without, seen) > 1e-3
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(images()), merged)


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
    merge_lora(model.image_encoder)
    qkv = qkvs(model)[0].weight
    assert not isinstance(qkv, Int8Weight)
    with torch.no_grad():
        assert relative(model(images()), logits) < 1e-5


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
        merge_lora(model.image_encoder)
        assert qkvs(model)[0].weight.dtype == logits.dtype
        with torch.no_grad():
            assert relative(model(images()), logits) < tolerance


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


def test_an_adapter_comes_back_onto_its_base(tmp_path: Path) -> None:
    model = with_updates(build())
    with torch.no_grad():
        for parameter in model.mask_decoder.parameters():
            parameter.add_(0.01)
        expected = model(images())
    path = tmp_path / "deep" / "adapter.safetensors"
    save_adapter(path, model)
    names = set(load_file(path))
    assert {name.partition(".")[0] for name in names} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert sum(name.startswith("image_encoder") for name in names) == TINY.layers * 4

    other = build()
    load_adapter(path, other)
    with torch.no_grad():
        assert torch.equal(other(images()), expected)
    save_adapter(tmp_path / "again", other)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()

    in_half = build()
    set_precision(in_half, "int8")
    load_adapter(path, in_half)
    assert {p.dtype for p in lora_parameters(in_half.image_encoder)} == {torch.bfloat16}
    with torch.no_grad():
        assert relative(in_half(images()), expected) < 0.1


def test_a_file_of_vit_b_is_small(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_sam("vit_b", classes=9, image_size=512)
        add_lora(model.image_encoder, RANK)
    # Only what is written needs values.
    model.prompt_encoder.to_empty(device="cpu")
    model.mask_decoder.to_empty(device="cpu")
    for qkv in qkvs(model):
        for name in FACTORS:
            setattr(qkv, name, nn.Parameter(torch.empty_like(qkv.get_parameter(name), device="cpu")))
    save_adapter(tmp_path / "adapter", model)
    assert 19e6 < (tmp_path / "adapter").stat().st_size < 20e6


def assert_refused(path: Path, model: KClassSam, words: str) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        load_adapter(path, model)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_adapter_for_another_model_is_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", with_updates(build()))
    assert_refused(tmp_path / "a", build(classes=4), r"classes 4.*found.*classes 3")
    assert_refused(tmp_path / "a", build(image_size=64), r"image_size 64.*found.*image_size 96")


@pytest.mark.parametrize("rank", [RANK + 1, 0, -1, "4", 4.0, None])
def test_a_wrong_rank_is_refused(rank: Any, tmp_path: Path) -> None:
    description = {"architecture": "tiny", "classes": 3, "image_size": SIDE, "in_channels": 3, "rank": rank}
    save_adapter(tmp_path / "a", with_updates(build()))
    save_file(load_file(tmp_path / "a"), tmp_path / "b", {"medsaga_adapter": json.dumps(description)})
    channels = TINY.hidden_size
    misshapen = rf"of wrong shape.*query_down \(4, {channels}\) instead of \(5, {channels}\)"
    words = misshapen if rank == 5 else "an adapter of medsaga"
    assert_refused(tmp_path / "b", build(), words)


def test_files_that_are_no_adapters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert_refused(path, build(), "(?i)no such file")
    path.write_bytes(b"nothing")
    assert_refused(path, build(), "a whole safetensors file")
    save_file({"x": torch.zeros(1)}, path)
    assert_refused(path, build(), "an adapter of medsaga")
    save_file({"x": torch.zeros(1)}, path, {"medsaga_adapter": "[]"})
    assert_refused(path, build(), "an adapter of medsaga")
    model = with_updates(build())
    save_adapter(path, model)
    state = load_file(path)
    description = {"architecture": "tiny", "classes": 3, "image_size": SIDE, "in_channels": 3, "rank": RANK}
    metadata = {"medsaga_adapter": json.dumps(description)}
    missing = "image_encoder.blocks.2.attn.qkv.value_up"
    save_file({n: v for n, v in state.items() if n != missing} | {"x": torch.zeros(1)}, path, metadata)
    assert_refused(path, build(), f"1 missing: {missing}; 1 unexpected: x")


def test_an_adapter_of_an_earlier_version_comes_back(tmp_path: Path) -> None:
    """Those had transformers' names."""
    model = with_updates(build())
    save_adapter(tmp_path / "now", model)
    with safe_open(tmp_path / "now", framework="pt") as file:
        metadata = file.metadata()
    theirs = random_reference("tiny", SIDE).state_dict()
    earlier_name = {official: name for name in theirs for official in official_layout({name: theirs[name]})}
    earlier = {
        earlier_name.get(name, name.replace("image_encoder.blocks", "vision_encoder.layers")): tensor
        for name, tensor in load_file(tmp_path / "now").items()
    }
    assert "vision_encoder.layers.0.attn.qkv.query_down" in earlier
    assert "mask_decoder.upscale_conv2.weight" in earlier
    save_file(earlier, tmp_path / "then", metadata)
    other = build()
    load_adapter(tmp_path / "then", other)
    with torch.no_grad():
        assert torch.equal(other(images()), model(images()))
