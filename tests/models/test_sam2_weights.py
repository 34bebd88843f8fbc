"""Files of SAM 2.1, official and from transformers, with the memory of a video: everything lands, or nothing does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from official import official_sam2_layout
from real_steps import measure
from resolved import resolved
from safetensors.torch import save_file
from sam2_reference import SMALL, all_masks, random_video_sam2
from sam_reference import normalised
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

from medsaga.data.augment import AUGMENTATIONS
from medsaga.errors import InputError
from medsaga.methods import METHODS, build_model, method_named, new_optimizer
from medsaga.methods.frozen import DecoderOnly
from medsaga.models.encoders import ENCODERS
from medsaga.models.int8 import float_state
from medsaga.models.precision import set_precision
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import detect_architecture, load_model, load_pretrained, save_model
from medsaga.models.weights.verification import convert, verify
from medsaga.planning.estimate import predict_memory
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.train import train
from medsaga.settings.options import Settings
from medsaga.training.loss import Objective
from medsaga.training.scaling import loss_scale_for
from medsaga.training.step import Batch, accumulate, update

pytestmark = pytest.mark.xdist_group("sam2_weights")

SIDE = 96
MEMORY = {
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
    "mask_downsample.weight",
    "obj_ptr_proj.layers.0.weight",
    "obj_ptr_tpos_proj.weight",
}
"""Some of the names of a video's memory in the official files; others begin with ``memory_``."""


@pytest.fixture(scope="module")
def small() -> Iterator[str]:
    """An architecture of small widths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENCODERS, "small_hiera", SMALL)
        yield "small_hiera"


@pytest.fixture(scope="module")
def reference(small: str) -> Sam2VideoModel:
    """The model that all files of this module hold."""
    return random_video_sam2(SMALL, SIDE)


@pytest.fixture(scope="module")
def official(reference: Sam2VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference in a file like ``sam2.1_hiera_tiny.pt`` and those of MedSAM2."""
    path = tmp_path_factory.mktemp("official") / "sam2.1_hiera_small.pt"
    state = official_sam2_layout(reference.state_dict())
    assert state.keys() >= MEMORY
    torch.save({"model": {name: tensor.clone() for name, tensor in state.items()}}, path)
    return path


def build(small: str, *, classes: int = 4, image_size: int = SIDE, in_channels: int = 3) -> KClassSam:
    torch.manual_seed(7)
    return build_sam(small, classes=classes, image_size=image_size, in_channels=in_channels).eval()


@torch.no_grad()
def assert_computes_like(model: KClassSam, reference: Sam2VideoModel) -> None:
    """The four classes of the model are the masks of transformers."""
    images = 255 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(images), all_masks(reference, normalised(images))[1], rtol=1e-3, atol=1e-3)


def test_the_official_layout_gives_the_numbers_of_transformers(
    small: str, reference: Sam2VideoModel, official: Path
) -> None:
    model = build(small)
    info = load_pretrained(model, official)
    assert_computes_like(model, reference)
    assert (info.layout, info.architecture, info.image_size) == ("official", small, SIDE)
    assert detect_architecture(official) == small


def test_every_tensor_arrives(small: str, official: Path) -> None:
    model = build(small)
    load_pretrained(model, official)
    theirs = torch.load(official, weights_only=True)["model"]
    same = {
        name.replace("sam_", "", 1).replace("mlp.layers.0", "mlp.lin1").replace("mlp.layers.1", "mlp.lin2"): tensor
        for name, tensor in theirs.items()
        if name.startswith("sam_")
    }
    same |= {name: tensor for name, tensor in theirs.items() if name.startswith("image_encoder.")}
    same["mask_decoder.no_mem_embed"] = theirs["no_mem_embed"]
    ours = model.state_dict()
    assert ours.keys() == same.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, same[name]), name


def test_a_folder_of_transformers_gives_the_same(small: str, reference: Sam2VideoModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    model = build(small)
    assert load_pretrained(model, tmp_path).layout == "transformers"
    assert_computes_like(model, reference)
    assert detect_architecture(str(tmp_path)) == small


@pytest.mark.parametrize(
    "name",
    ["no_mem_embed", "image_encoder.trunk.pos_embed_window", "sam_mask_decoder.obj_score_token.weight"],
)
def test_a_tensor_that_is_missing_is_an_error(small: str, official: Path, tmp_path: Path, name: str) -> None:
    state = torch.load(official, weights_only=True)["model"]
    del state[name]
    state["memory_bank.weight"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "less.pt")
    ours = name.replace("sam_mask", "mask").replace("no_mem_embed", "mask_decoder.no_mem_embed")
    with pytest.raises(InputError) as caught:
        load_pretrained(build(small), tmp_path / "less.pt")
    assert f"1 missing: {ours}; 1 unexpected: memory_bank.weight" in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize("classes", [2, 6])
def test_classes_start_close_to_masks_of_sam_2_but_apart(
    small: str, reference: Sam2VideoModel, official: Path, classes: int
) -> None:
    model = build(small, classes=classes)
    load_pretrained(model, official)
    images = 255 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    masks, logits = all_masks(reference, normalised(images))[1], model(images)
    for c in range(classes):
        mask = masks[:, c % 4]
        assert torch.linalg.norm(logits[:, c] - mask) < 0.2 * torch.linalg.norm(mask)
        assert all(torch.linalg.norm(logits[:, c] - logits[:, d]) > 1e-3 * torch.linalg.norm(mask) for d in range(c))


def test_other_channels_and_sizes_fit(small: str, official: Path) -> None:
    model = build(small, image_size=64, in_channels=2)
    load_pretrained(model, official)
    theirs = torch.load(official, weights_only=True)["model"]["image_encoder.trunk.patch_embed.proj.weight"]
    kernel = model.get_parameter("image_encoder.trunk.patch_embed.proj.weight")
    torch.testing.assert_close(kernel.sum(1), theirs.sum(1))
    with pytest.raises(InputError, match=r"--image-size.*multiple of 32"):
        build(small, image_size=80)


def test_models_are_saved_converted_and_verified(small: str, official: Path, tmp_path: Path) -> None:
    model = build(small, classes=3)
    save_model(tmp_path / "own.safetensors", model)
    loaded = load_model(tmp_path / "own.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    convert(official, tmp_path / "converted.safetensors")
    one, other = verify(official), verify(tmp_path / "converted.safetensors")
    same = ("architecture", "image_size", "in_channels", "masks", "tensors", "parameters", "types", "layout")
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert one["parameters"] == sum(parameter.numel() for parameter in build(small).state_dict().values())


@pytest.mark.parametrize(
    ("name", "tensor", "found"),
    [
        ("image_encoder.trunk.body.stem.conv1.c.weight", "EdgeTAM", "sam2.1_hiera_tiny.pt"),
        ("mask_decoder.final_output_upscaling_layers.0.0.weight", "EfficientSAM", "sam2.1_hiera_tiny.pt"),
        ("mask_decoder.hf_token.weight", "SAM-HQ", "SAM or of SAM 2.1"),
        ("detector.backbone.vision_backbone.trunk.pos_embed", "SAM 3", "sam2.1_hiera_large.pt"),
    ],
)
def test_other_models_are_named(tmp_path: Path, name: str, tensor: str, found: str) -> None:
    state = {"image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16), name: torch.zeros(1)}
    state["image_encoder.blocks.11.norm1.weight"] = torch.zeros(768)  # as in SAM's ViT-B
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=rf"other\.safetensors.*weights of {tensor}.*{found}"):
        detect_architecture(tmp_path / "other.safetensors")


def test_a_trunk_of_another_size_is_described(tmp_path: Path) -> None:
    state: dict[str, Tensor] = {
        "image_encoder.trunk.patch_embed.proj.weight": torch.zeros(80, 3, 7, 7),
        "image_encoder.trunk.blocks.9.norm1.weight": torch.zeros(80),
    }
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(InputError, match="10 layers with 80 channels"):
        detect_architecture(tmp_path / "odd.pt")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("medsaga", {}),
        ("medsaga", {"precision": "int8", "state_bits": 8}),
        ("samed", {"rank": 2}),
        ("frozen", {}),
        ("full", {"precision": "bf16"}),
    ],
    ids=["galore", "int8", "lora", "frozen", "bf16"],
)
def test_a_step_moves_what_the_method_trains(small: str, method: str, changes: dict[str, Any]) -> None:
    of = dataclasses.replace(
        resolved(Settings(image_size=64, batch_size=2, rank=4, checkpointing="blocks")),
        method=method,
        model=small,
        encoder_lr=1.0,  # so that a step is larger than what bfloat16 and int8 round to
        decoder_lr=1.0,
        weight_decay=0.0,
        **changes,
    )
    torch.manual_seed(0)
    model: Any = build_model(of, classes=3, in_channels=3)
    method_named(method).adapt(model, of)
    set_precision(model, of.precision)
    model.checkpoint_blocks = True
    optimizer = new_optimizer(model, of)
    before = {name: tensor.clone() for name, tensor in float_state(model).items()}
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(3, (2, 64, 64), dtype=torch.uint8)
    part = model
    if method == "frozen":
        part = DecoderOnly(model)
        with torch.no_grad():
            images = model.pack(model.encode(images.float()))
    scale = loss_scale_for(of.precision)
    batch = Batch(images, labels, seed=0, step=0, strength=AUGMENTATIONS["none"])
    accumulate(part, optimizer, batch, micro_batch_size=2, scale=scale, objective=Objective.of(of))
    assert update(optimizer, max_gradient_norm=1.0, scale=scale)
    after = float_state(model)
    moved = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    encoder = {name for name in before if name.startswith("image_encoder.")}
    if method == "frozen":
        assert not moved & encoder
    elif method == "samed":
        # A zero factor gives the other one no gradient yet.
        assert moved & encoder == {name for name in before if name.endswith(("query_up", "value_up"))}
    else:
        assert moved >= encoder
    decoder = {name for name in before if name.startswith("mask_decoder.transformer")}
    assert {name for name in decoder if "k_proj.bias" not in name} <= moved
    # The 1 x 1 convolutions of the skips run where features are encoded: frozen caches what they make.
    assert ("mask_decoder.conv_s0.weight" in moved) == (method != "frozen")
    assert "mask_decoder.pred_obj_score_head.layers.0.weight" not in moved


@pytest.mark.exhaustive
def test_a_run_learns_and_predicts(
    small: str, official: Path, toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Methods took the table as it was when they were imported.
    monkeypatch.setitem(METHODS, "medsaga", dataclasses.replace(METHODS["medsaga"], architectures=(small,)))
    result = train(toy, tmp_path / "run", dataclasses.replace(quick, model=str(official), steps=1, evaluate_every=1))
    assert result["projected_parameters"] > 0
    assert Segmenter.load(tmp_path / "run").model.architecture == small


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16", "state_bits": 8, "checkpointing": "blocks"},
        pytest.param({"checkpointing": "none", "batch_size": 2}, marks=pytest.mark.exhaustive),
    ],
    ids=["lean", "plain"],
)
def test_a_prediction_of_memory_is_what_real_steps_take(small: str, changes: dict[str, Any]) -> None:
    given = {"image_size": 128, "batch_size": 1, "rank": 4, "augmentation": "none", **changes}
    of = dataclasses.replace(resolved(**given), model=small)
    predicted = predict_memory(of, classes=3, in_channels=3)
    real = measure(of, classes=3, in_channels=3)
    assert predicted.peak_bytes == pytest.approx(real.peak_bytes, rel=5e-3)
