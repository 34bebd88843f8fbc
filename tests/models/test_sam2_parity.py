"""Our SAM 2.1 against transformers' eager one: outputs and gradients of every parameter, on random weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from official import official_sam2_layout
from sam2_reference import SMALL, all_masks, random_sam2
from sam_reference import normalised
from torch import Tensor

from medsaga.memory.tracker import TensorTracker
from medsaga.models.encoders import ENCODERS, hiera
from medsaga.models.encoders.hiera import bicubic_matrix, max_pool
from medsaga.models.int8 import quantise_linears
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.names import own_names

NOT_COMPUTED = ("iou_prediction_head", "pred_obj_score_head", "mask_downscaling", "point_embeddings", "not_a_point")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture of small widths; transformers' softmax keeps float64, which it would compute in float32."""
    monkeypatch.setitem(ENCODERS, "small_hiera", SMALL)
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype=None: torch.softmax(scores, dim))
    return "small_hiera"


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a lean block, attend within windows one after the other."""
    monkeypatch.setattr(hiera, "GROUP_ELEMENTS", 1)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("side", [96, 128], ids=["windows fit", "windows padded"])
@pytest.mark.usefixtures("few_at_a_time")
def test_outputs_and_gradients_are_those_of_transformers(small: str, side: int, recompute: bool) -> None:
    reference = random_sam2(SMALL, side).double()
    model = build_sam(small, classes=4, image_size=side, dtype=torch.float64)
    state = own_names(official_sam2_layout(reference.state_dict()))
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()})
    # Ours keeps the frequencies, and so the positions of the decoder, in float32.
    frequencies = reference.shared_image_embedding.positional_embedding
    frequencies.copy_(frequencies.float())
    model.checkpoint_blocks = recompute
    images = 255 * torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randn(2, 4, side // 4, side // 4, generator=torch.Generator().manual_seed(2)).double()

    logits = model(images)
    (logits * weights).mean().backward()
    theirs = normalised(images.float()).double()
    maps, expected = all_masks(reference, theirs)
    (expected * weights).mean().backward()

    # Positions and normalisation are float32.
    assert _distance(logits, expected) < 1e-6
    with torch.no_grad():
        made = model.image_encoder(theirs)
    assert [tuple(level.shape) for level in made] == [(2, 64, side // s, side // s) for s in (4, 8, 16)]
    assert all(_distance(ours, level) < 1e-6 for ours, level in zip(made, maps, strict=True))
    theirs_by_name = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    gradients = own_names(official_sam2_layout(theirs_by_name))
    ours_by_name = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours_by_name.keys() == {name for name in gradients if not any(part in name for part in NOT_COMPUTED)}
    assert {name for name, _ in model.named_parameters()} - ours_by_name.keys() == {
        name for name in state if any(part in name for part in NOT_COMPUTED)
    }
    for name, gradient in ours_by_name.items():
        assert _distance(gradient, gradients[name]) < 1e-5, name


@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
@pytest.mark.usefixtures("few_at_a_time")
def test_computing_blocks_again_changes_no_number(small: str, int8: bool) -> None:
    torch.manual_seed(0)
    model = build_sam(small, classes=3, image_size=128, dtype=torch.float64)
    if int8:
        assert quantise_linears(model.image_encoder) > 50_000
    images = 255 * torch.rand(2, 3, 128, 128)
    results = []
    for model.checkpoint_blocks in (False, True):
        model.zero_grad()
        logits = model(images)
        logits.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        results.append({"logits": logits.detach(), **gradients})
    plain, again = results
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        assert _distance(again[name], value) < 1e-10 or "k_proj.bias" in name, name


@pytest.mark.usefixtures("few_at_a_time")
def test_computed_again_the_encoder_keeps_the_tokens_between_blocks_only(small: str) -> None:
    side = 128
    encoder = build_sam(small, classes=3, image_size=side).image_encoder
    images = torch.randn(1, 3, side, side)
    kept = []
    for recompute in (False, True):
        tracker = TensorTracker()
        tracker.assign([images, *encoder.parameters()], "elsewhere")
        with tracker:
            maps = encoder(images, recompute=recompute)
            kept.append(sum(tracker._now[name] for name in tracker.breakdown))
        del maps
    # The patches and what each block makes of them; the positions' two steps; four lateral maps, and the sum of two.
    tokens = 2 * 16 * 32**2 + 2 * 32 * 16**2 + 3 * 64 * 8**2 + 2 * 128 * 4**2
    pyramid = 64 * (32**2 + 16**2 + 2 * 8**2 + 4**2)
    assert kept[1] <= 4 * (tokens + pyramid + 16 * 5 * 32 + 2 * 5 * 32)
    assert kept[0] > 4 * kept[1]


@pytest.mark.parametrize(("old", "new"), [(7, 256), (14, 8), (5, 5)])
def test_positions_are_stretched_as_torch_interpolates(old: int, new: int) -> None:
    table = torch.randn(3, old, old, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(table[None], size=(new, new), mode="bicubic")[0]
    matrix = bicubic_matrix(old, new)
    torch.testing.assert_close(matrix @ table @ matrix.T, expected)


def test_the_maximum_over_squares_and_its_gradient_are_those_of_torch() -> None:
    grids = torch.randn(2, 6, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(1))
    pooled = max_pool(grids, 2)
    expected = F.max_pool2d(grids.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    assert torch.equal(pooled, expected)
    ours, theirs = (torch.autograd.grad((made * weights).sum(), grids)[0] for made in (pooled, expected))
    assert torch.equal(ours, theirs)


def test_bfloat16_follows_float32(small: str) -> None:
    torch.manual_seed(0)
    exact = build_sam(small, classes=3, image_size=96)
    model = build_sam(small, classes=3, image_size=96, dtype=torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    images = 255 * torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert _distance(model(images).float(), exact(images)) < 0.03


@pytest.mark.parametrize(
    ("size", "encoder", "whole"),
    [
        ("tiny", 27_219_136, 31_440_721),
        ("small", 34_316_992, 38_538_577),
        ("base_plus", 69_106_816, 73_328_401),
        ("large", 212_703_280, 216_924_865),
    ],
)
def test_published_sizes_have_their_number_of_parameters(size: str, encoder: int, whole: int) -> None:
    with torch.device("meta"):
        model = build_sam(f"sam2.1_hiera_{size}", classes=4, image_size=1024)
    assert (_parameters(model.image_encoder), _parameters(model)) == (encoder, whole)


@pytest.mark.parametrize(("size", "step"), [("tiny", 224), ("large", 256)])
def test_useful_sizes_need_no_padding(size: str, step: int) -> None:
    *fitting, own = ENCODERS[f"sam2.1_hiera_{size}"].useful_image_sizes()
    assert own == 1024
    assert fitting == list(range(step, 1024, step))


def test_features_are_packed_with_the_channels_that_the_decoder_adds(small: str) -> None:
    torch.manual_seed(0)
    model: KClassSam = build_sam(small, classes=3, image_size=64)
    with torch.no_grad():
        features = model.encode(255 * torch.rand(2, 3, 64, 64))
        assert [made.shape[1] for made in features] == [8, 16, 64]
        packed = model.pack(features)
        assert packed.shape[1:] == model.packed_shape == (64 + 4 * 16 + 16 * 8, 4, 4)
        assert torch.equal(model.decode(model.unpack(packed)), model.decode(features))


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the size; of biases of keys, whose gradient is nothing but rounding, absolute."""
    return float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-9))
