"""The k-class model: shapes, sizes, types, memory, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from medsaga.errors import InputError
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import KClassSam, build_sam

TINY = ENCODERS["tiny"]
ONLY_FOR_PROMPTS = ("point_embeddings.", "not_a_point_embed.", "mask_downscaling.", "iou_prediction_head.")


def small(classes: int = 3, in_channels: int = 3, image_size: int = 96, architecture: str = "tiny") -> KClassSam:
    torch.manual_seed(0)
    return build_sam(architecture, classes=classes, image_size=image_size, in_channels=in_channels)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 255


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("architecture", "count"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)]
)
def test_published_architectures_have_the_official_number_of_parameters(architecture: str, count: int) -> None:
    with torch.device("meta"):
        model = build_sam(architecture, classes=4, image_size=1024)
    assert parameters(model) == count


def test_samed_counts_are_reached() -> None:
    # SAMed (arXiv 2304.13785) trains 4.914 M parameters: prompt encoder, decoder for 9 classes, 147,456 in LoRA.
    with torch.device("meta"):
        model = build_sam("vit_b", classes=9, image_size=512)
    assert parameters(model.prompt_encoder) + parameters(model.mask_decoder) + 147_456 == 4_913_621


def test_tiny_is_tiny() -> None:
    assert 4e5 < parameters(small(classes=4, image_size=TINY.image_size)) < 6e5


@pytest.mark.parametrize(("classes", "in_channels", "image_size"), [(2, 3, 64), (5, 1, 80), (9, 4, 128)])
def test_every_class_has_a_map_of_half_the_side(classes: int, in_channels: int, image_size: int) -> None:
    model = small(classes, in_channels, image_size)
    logits = model(images(2, in_channels, image_size, image_size))
    assert logits.shape == (2, classes, image_size // 2, image_size // 2)
    assert (model.classes, model.in_channels, model.image_size) == (classes, in_channels, image_size)
    assert model.architecture == "tiny"


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["tiny", "lite"])
def test_forward_is_decode_of_encode_and_images_do_not_mix(architecture: str) -> None:
    model = small(architecture=architecture).eval()
    batch = images(3, 3, 96, 96)
    features = model.encode(batch)
    encoder = model.image_encoder
    for made, stride, channels in zip(features, encoder.strides, encoder.channels, strict=True):
        assert made.shape == (3, channels, 96 // stride, 96 // stride)
    logits = model(batch)
    assert torch.equal(logits, model.decode(features))
    torch.testing.assert_close(logits[1:2], model(batch[1:2]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["tiny", "lite"])
def test_packed_features_are_decoded_to_the_same(architecture: str) -> None:
    model = small(architecture=architecture)
    features = model.encode(images(2, 3, 96, 96))
    packed = model.pack(features)
    assert packed.shape[1:] == model.packed_shape
    assert torch.equal(packed[:, : model.class_tokens.shape[1]], features[-1]), "class tokens are compared with these"
    assert torch.equal(model.decode(model.unpack(packed)), model.decode(features))


@torch.no_grad()
def test_grey_is_seen_as_rgb_with_equal_channels() -> None:
    grey_model, rgb_model = small(in_channels=1), small(in_channels=3)
    rgb_model.load_state_dict(grey_model.state_dict())
    grey = images(2, 1, 96, 96)
    torch.testing.assert_close(grey_model(grey), rgb_model(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("size", [0, -16, 250, 1])
def test_an_impossible_image_size_names_possible_ones(size: int) -> None:
    with pytest.raises(InputError, match=r"--image-size.*multiple of 16.*224") as caught:
        build_sam("tiny", classes=2, image_size=size)
    if size == 250:
        assert "240 and 256" in str(caught.value)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="vit_h"):
        build_sam("vit_x", classes=2, image_size=64)


def test_constants_are_no_parameters_and_the_normalisation_is_not_saved() -> None:
    model = small()
    state = model.state_dict()
    assert not [name for name in state if "pixel" in name]
    frequencies = [name for name in state if "gaussian" in name]
    assert frequencies == ["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    assert frequencies[0] not in dict(model.named_parameters())


def test_all_parameters_get_gradients_but_those_of_prompts_and_quality() -> None:
    model = small()
    model(images(1, 3, 96, 96)).square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {
        name for name in dict(model.named_parameters()) if any(part in name for part in ONLY_FOR_PROMPTS)
    }


def saved_bytes(model: KClassSam, batch: Tensor) -> int:
    """Bytes that autograd keeps for backward, parameters not counted."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept_alive = model.encode(batch)
    total = sum(storages.values())
    del kept_alive
    return total


def test_checkpointing_changes_no_number_and_saves_most_of_the_memory() -> None:
    model = small()
    batch = images(2, 3, 96, 96)
    gradients, logits, sizes = [], [], []
    for model.checkpoint_blocks in (False, True):
        sizes.append(saved_bytes(model, batch))
        model.zero_grad()
        logits.append(model(batch))
        logits[-1].square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert torch.equal(*logits)
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert sizes[1] < sizes[0] / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_runs_on_fake_tensors(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        model = build_sam("tiny", classes=4, image_size=256, in_channels=1, dtype=dtype)
        model.checkpoint_blocks = True
        logits = model(torch.rand(2, 1, 256, 256))
        logits.float().sum().backward()
        assert logits.shape == (2, 4, 128, 128)
        assert logits.dtype == dtype
        assert {p.grad.dtype for p in model.image_encoder.parameters() if p.grad is not None} == {dtype}
    assert torch.get_default_dtype() == torch.float32


def test_bfloat16_follows_float32() -> None:
    exact = small()
    torch.manual_seed(0)
    model = build_sam("tiny", classes=3, image_size=96, dtype=torch.bfloat16)
    model.load_state_dict(exact.state_dict())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    name = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(model.state_dict()[name], exact.state_dict()[name])
    with torch.no_grad():
        batch = images(1, 3, 96, 96)
        error = torch.linalg.norm(model(batch).float() - exact(batch)) / torch.linalg.norm(exact(batch))
    assert error < 0.03


@pytest.mark.exhaustive
def test_tiny_learns_from_scratch() -> None:
    torch.manual_seed(0)
    model = build_sam("tiny", classes=3, image_size=64, in_channels=1)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centres = torch.tensor([[20, 22], [40, 36], [30, 44], [44, 20]])
    truth = torch.stack([((y - a) ** 2 + (x - b) ** 2 < 144).long() + (y > 52).long() * 2 for a, b in centres])
    truth = truth.clamp(max=2)
    batch = 60.0 * truth[:, None] + images(4, 1, 64, 64) / 10
    low_res_truth = truth[:, 1::2, 1::2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), low_res_truth).backward()
        optimizer.step()
    predicted = model(batch).argmax(1)
    for c in range(3):
        overlap = ((predicted == c) & (low_res_truth == c)).sum()
        assert 2 * overlap / ((predicted == c).sum() + (low_res_truth == c).sum()) > 0.9
