"""Published weights into a k-class model: the same numbers as transformers, and nothing left out."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from official import official_layout
from safetensors.torch import save_file
from sam_reference import normalised, random_reference
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamModel

from medsaga.errors import InputError
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights import registry
from medsaga.models.weights.loading import detect_architecture, load_model, load_pretrained, read_weights, save_model

pytestmark = pytest.mark.xdist_group("weights")

SIDE = 128
FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
THEIR_FREQUENCIES = "prompt_encoder.shared_embedding.positional_embedding"
PATCH = 8


@pytest.fixture(scope="module")
def reference() -> SamModel:
    """The model that all files of this module hold."""
    return random_reference("tiny", SIDE)


@pytest.fixture(scope="module")
def official(reference: SamModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference in a file like ``sam_vit_b_01ec64.pth``."""
    path = tmp_path_factory.mktemp("official") / "sam_tiny.pth"
    torch.save(official_layout(reference.state_dict()), path)
    return path


def build(
    classes: int = 4, image_size: int = SIDE, in_channels: int = 3, dtype: torch.dtype = torch.float32
) -> KClassSam:
    torch.manual_seed(7)
    return build_sam("tiny", classes=classes, image_size=image_size, in_channels=in_channels, dtype=dtype).eval()


def images(side: int = SIDE, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1)) * 255


@torch.no_grad()
def embeddings_and_masks(reference: SamModel, batch: Tensor) -> tuple[Tensor, Tensor]:
    """What transformers computes without prompts: embeddings, and all four masks."""
    embeddings = reference.get_image_embeddings(normalised(batch))
    masks = [reference(image_embeddings=embeddings, multimask_output=several).pred_masks for several in (False, True)]
    return embeddings, torch.cat(masks, dim=2)[:, 0]


@torch.no_grad()
def assert_computes_like(model: KClassSam, reference: SamModel) -> None:
    """The embeddings and the four classes of the model are what transformers computes."""
    batch = images(model.image_size)
    embeddings, masks = embeddings_and_masks(reference, batch)
    ours = model.encode(batch)
    torch.testing.assert_close(ours, (embeddings,), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode((embeddings,)), masks, rtol=1e-4, atol=1e-5)


def test_the_official_layout_gives_the_numbers_of_transformers(reference: SamModel, official: Path) -> None:
    names = set(torch.load(official, weights_only=True))
    assert {
        "image_encoder.blocks.3.attn.rel_pos_w",
        "image_encoder.blocks.0.norm2.bias",
        "image_encoder.neck.3.weight",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "prompt_encoder.mask_downscaling.6.weight",
        "mask_decoder.transformer.layers.1.norm4.weight",
        "mask_decoder.transformer.norm_final_attn.bias",
        "mask_decoder.output_upscaling.3.weight",
        "mask_decoder.output_hypernetworks_mlps.3.layers.2.bias",
        "mask_decoder.iou_prediction_head.layers.1.weight",
    } <= names
    model = build()
    info = load_pretrained(model, official)
    assert_computes_like(model, reference)
    assert dataclasses.asdict(info) == {
        "source": str(official),
        "file": "sam_tiny.pth",
        "sha256": hashlib.sha256(official.read_bytes()).hexdigest(),
        "layout": "official",
        "architecture": "tiny",
        "image_size": SIDE,
        "release": None,
        "episodic": False,
    }
    json.dumps(dataclasses.asdict(info))


def test_a_folder_of_transformers_gives_the_same(reference: SamModel, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path)
    model = build()
    assert load_pretrained(model, tmp_path).layout == "transformers"
    assert_computes_like(model, reference)
    assert detect_architecture(str(tmp_path)) == "tiny"


def test_every_tensor_arrives(reference: SamModel, official: Path) -> None:
    model = build()
    load_pretrained(model, official)
    theirs = torch.load(official, weights_only=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_both_names_of_the_frequencies_are_understood(reference: SamModel, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items() if name != THEIR_FREQUENCIES}
    assert "shared_image_embedding.positional_embedding" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = build()
    load_pretrained(model, tmp_path)
    assert torch.equal(model.state_dict()[FREQUENCIES], reference.state_dict()[THEIR_FREQUENCIES])


@pytest.mark.parametrize("side", [32, 64, 208])
def test_another_image_size_equals_transformers_on_resized_tables(
    reference: SamModel, official: Path, side: int
) -> None:
    model = build(image_size=side)
    load_pretrained(model, official)
    resized = random_reference("tiny", side)
    state = copy.deepcopy(reference.state_dict())
    positions = state.pop("vision_encoder.pos_embed").permute(0, 3, 1, 2)
    tables = {name: state.pop(name) for name in list(state) if "rel_pos" in name}
    resized.load_state_dict(state, strict=False)
    tokens = side // PATCH
    positions = F.interpolate(positions, (tokens, tokens), mode="bicubic", align_corners=False)
    resized.vision_encoder.pos_embed = nn.Parameter(positions.permute(0, 2, 3, 1))
    for name, table in tables.items():
        # Left at the length of the file: transformers itself interpolates tables of another length in its forward.
        setattr(resized.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Parameter(table))
    assert_computes_like(model, resized)


@torch.no_grad()
@pytest.mark.parametrize("classes", [2, 7])
def test_classes_start_close_to_masks_of_sam_but_apart(reference: SamModel, official: Path, classes: int) -> None:
    model, twin = build(classes), build(classes)
    load_pretrained(model, official)
    load_pretrained(twin, official)
    embeddings, masks = embeddings_and_masks(reference, images())
    logits = model.decode((embeddings,))
    assert torch.equal(logits, twin.decode((embeddings,)))
    for c in range(classes):
        mask = masks[:, c % 4]
        # The tokens attend to each other: with more or fewer than SAM's four, even exact copies compute a little else.
        assert torch.linalg.norm(logits[:, c] - mask) < 0.1 * torch.linalg.norm(mask)
        assert all(torch.linalg.norm(logits[:, c] - logits[:, d]) > 1e-3 * torch.linalg.norm(mask) for d in range(c))


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_get_the_mean_kernel(reference: SamModel, official: Path, channels: int) -> None:
    model = build(in_channels=channels)
    load_pretrained(model, official)
    kernel = model.get_parameter("image_encoder.patch_embed.proj.weight")
    theirs = reference.vision_encoder.patch_embed.projection.weight
    assert kernel.shape[1] == channels
    torch.testing.assert_close(kernel.sum(1), theirs.sum(1))
    assert torch.equal(kernel[:, 0], kernel[:, 1])


def test_weights_take_the_type_of_the_model(reference: SamModel, official: Path) -> None:
    model = build(dtype=torch.bfloat16)
    load_pretrained(model, official)
    weight = model.get_parameter("image_encoder.blocks.0.mlp.lin1.weight")
    assert torch.equal(weight, reference.vision_encoder.layers[0].mlp.lin1.weight.bfloat16())
    assert model.state_dict()[FREQUENCIES].dtype == torch.float32


def test_missing_unexpected_and_misshapen_tensors_are_listed(official: Path, tmp_path: Path) -> None:
    state = torch.load(official, weights_only=True)
    del state["image_encoder.blocks.3.mlp.lin1.bias"]
    state["image_encoder.blocks.3.adapter.weight"] = torch.zeros(2)
    width = state["mask_decoder.iou_token.weight"].shape[1]
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 2 * width)
    torch.save(state, tmp_path / "odd.pth")
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError) as caught:
        load_pretrained(model, tmp_path / "odd.pth")
    message = str(caught.value)
    assert "1 missing: image_encoder.blocks.3.mlp.lin1.bias" in message
    assert "1 unexpected: image_encoder.blocks.3.adapter.weight" in message
    assert f"mask_decoder.iou_token.weight (1, {2 * width}) instead of (1, {width})" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_of_another_architecture_are_named(tmp_path: Path, official: Path) -> None:
    with torch.device("meta"):
        model = build_sam("vit_b", classes=2, image_size=64)
    with pytest.raises(InputError, match=r"weights of vit_b.*weights of tiny.*--model tiny"):
        load_pretrained(model, official)
    state = {
        "image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
        "image_encoder.blocks.11.norm1.weight": torch.zeros(768),
    }
    torch.save(state, tmp_path / "vit_b.pth")
    assert detect_architecture(tmp_path / "vit_b.pth") == "vit_b"
    torch.save(state | {"image_encoder.blocks.30.norm1.weight": torch.zeros(768)}, tmp_path / "odd.pth")
    with pytest.raises(InputError, match="31 layers with 768 channels"):
        detect_architecture(tmp_path / "odd.pth")


@pytest.mark.parametrize("state", [{}, {"fc.weight": torch.zeros(2)}, {"vision_encoder.x": torch.zeros(2)}])
def test_files_of_other_models_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth.*weights of SAM"):
        detect_architecture(tmp_path / "other.pth")


def test_known_releases_are_recognised_whatever_their_name(official: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(official.read_bytes()).hexdigest()
    known = dataclasses.replace(registry.weights_named("sam_vit_b_01ec64"), sha256=digest)
    monkeypatch.setattr(registry, "known_weights", lambda: {known.name: known})
    assert load_pretrained(build(), official).release == "sam_vit_b_01ec64 (Meta AI, Apache-2.0)"


@pytest.mark.parametrize(("in_channels", "dtype"), [(1, torch.float32), (4, torch.bfloat16)])
def test_a_saved_model_comes_back_the_same(tmp_path: Path, in_channels: int, dtype: torch.dtype) -> None:
    model = build(classes=3, image_size=64, in_channels=in_channels, dtype=dtype)
    save_model(tmp_path / "model.safetensors", model)
    torch.manual_seed(99)
    generator_before = torch.get_rng_state()
    loaded = load_model(tmp_path / "model.safetensors").eval()
    assert torch.equal(torch.get_rng_state(), generator_before)
    described = [(m.architecture, m.classes, m.image_size, m.in_channels) for m in (model, loaded)]
    assert described[0] == described[1] == ("tiny", 3, 64, in_channels)
    for (name, ours), (other, theirs) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    batch = images(64, in_channels)
    logits = loaded(batch)
    assert torch.equal(logits, model(batch))
    logits.float().sum().backward()
    assert loaded.get_parameter("image_encoder.pos_embed").grad is not None


def test_a_model_of_an_earlier_version_comes_back(reference: SamModel, tmp_path: Path) -> None:
    """Those had transformers' names."""
    state = {name: tensor.contiguous() for name, tensor in reference.state_dict().items() if "shared_image" not in name}
    described = DESCRIPTION | {"classes": 4, "image_size": SIDE}
    save_file(state, tmp_path / "model.safetensors", {"medsaga": json.dumps(described)})
    loaded = load_model(tmp_path / "model.safetensors")
    assert isinstance(loaded, KClassSam)
    assert_computes_like(loaded.eval(), reference)
    del state["vision_encoder.layers.3.mlp.lin1.bias"]
    save_file(state, tmp_path / "less.safetensors", {"medsaga": json.dumps(described)})
    with pytest.raises(InputError, match=r"1 missing: image_encoder\.blocks\.3\.mlp\.lin1\.bias"):
        load_model(tmp_path / "less.safetensors")


def test_a_saved_model_is_a_source_of_weights(tmp_path: Path) -> None:
    model = build(classes=3)
    save_model(tmp_path / "model.safetensors", model)
    torch.manual_seed(99)
    other = build_sam("tiny", classes=3, image_size=SIDE).eval()
    load_pretrained(other, tmp_path / "model.safetensors")
    assert torch.equal(other(images()), model(images()))


DESCRIPTION = {"architecture": "tiny", "classes": 3, "image_size": 64, "in_channels": 3}


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(tmp_path / name, build(image_size=64))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"medsaga": "tiny"},
        {"medsaga": "[]"},
        {"medsaga": "{}"},
        {"medsaga": json.dumps(DESCRIPTION | {"architecture": "vit_x"})},
        {"medsaga": json.dumps(DESCRIPTION | {"classes": "three"})},
        {"medsaga": json.dumps(DESCRIPTION | {"image_size": 65})},
        {"medsaga": json.dumps(DESCRIPTION | {"classes": -1})},
        {"medsaga": json.dumps(DESCRIPTION | {"in_channels": 0})},
        {"medsaga": "[" * 200_000},
    ],
)
def test_a_file_that_is_no_saved_model_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", metadata)
    with pytest.raises(InputError, match="a model file of medsaga"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("wrong", [{"classes": 4}, {"architecture": "vit_b"}, {"image_size": 128}])
def test_a_description_that_the_tensors_contradict_is_refused(tmp_path: Path, wrong: dict[str, str | int]) -> None:
    state = {name: tensor.contiguous() for name, tensor in build(classes=3, image_size=64).state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", {"medsaga": json.dumps(DESCRIPTION | wrong)})
    with pytest.raises(InputError, match=r"missing|wrong shape"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn])
def test_tensors_that_nothing_can_be_computed_with_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.contiguous() for name, tensor in build(classes=3).state_dict().items()}
    state["mask_decoder.mask_tokens.weight"] = state["mask_decoder.mask_tokens.weight"].to(dtype)
    described = DESCRIPTION | {"image_size": SIDE}
    save_file(state, tmp_path / "model.safetensors", {"medsaga": json.dumps(described)})
    for read in (load_model, read_weights):
        with pytest.raises(InputError, match=r"1 of wrong type: mask_decoder\.mask_tokens\.weight (int64|float8)"):
            read(tmp_path / "model.safetensors")


def test_a_model_that_holds_nan_is_refused(tmp_path: Path) -> None:
    model = build(classes=3)
    with torch.no_grad():
        model.get_parameter("mask_decoder.mask_tokens.weight")[0, 0] = torch.nan
    save_model(tmp_path / "model.safetensors", model)
    with pytest.raises(InputError, match=r"finite numbers; found NaN or infinity in mask_decoder\.mask_tokens\.weight"):
        load_model(tmp_path / "model.safetensors")
