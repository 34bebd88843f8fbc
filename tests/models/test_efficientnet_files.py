"""The published layout of EfficientNet-Lite: the encoder starts from it, all else stays as it was drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsaga.errors import InputError
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import detect_architecture, load_pretrained
from medsaga.models.weights.verification import convert, verify

NETWORK = "image_encoder."


def built(seed: int, in_channels: int = 3) -> KClassSam:
    torch.manual_seed(seed)
    return build_sam("lite", classes=3, image_size=64, in_channels=in_channels)


def published(model: KClassSam) -> dict[str, Tensor]:
    """The tensors of a model's encoder as the published file has them, with its classifier."""
    file: dict[str, Tensor] = {}
    for name, tensor in model.image_encoder.state_dict().items():
        if name.startswith("pyramid."):
            continue
        *owners, leaf = name.split(".")
        theirs = [owner if owner.isdigit() else f"_{owner}" for owner in owners]
        file[".".join([*theirs, leaf])] = tensor.clone()
        if leaf == "running_var":
            file[".".join([*theirs, "num_batches_tracked"])] = torch.tensor(7)
    head = {"_conv_head.weight": torch.ones(1280, 320, 1, 1), "_fc.weight": torch.ones(1000, 1280)}
    return file | head | {"_bn1.weight": torch.ones(1280), "_fc.bias": torch.ones(1000)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "efficientnet-lite1.pth"
    torch.save(published(built(1)), path)
    return path


def test_the_encoder_has_the_files_tensors_and_the_rest_its_own(file: Path) -> None:
    theirs, drawn, model = built(1).state_dict(), built(2).state_dict(), built(2)
    info = load_pretrained(model, file)
    assert (info.layout, info.architecture, info.episodic) == ("efficientnet", "lite", False)
    from_file = 0
    for name, tensor in model.state_dict().items():
        is_network = name.startswith(NETWORK) and not name.startswith(f"{NETWORK}pyramid.")
        assert torch.equal(tensor, (theirs if is_network else drawn)[name]), name
        from_file += is_network
    assert from_file == 315
    assert detect_architecture(file) == "lite"


def test_other_channels_get_the_mean_kernel(file: Path) -> None:
    model = built(2, in_channels=6)
    load_pretrained(model, file)
    kernel = built(1).image_encoder.get_parameter("conv_stem.weight")
    expected = kernel.mean(1, keepdim=True).expand(-1, 6, -1, -1) / 2
    torch.testing.assert_close(model.image_encoder.get_parameter("conv_stem.weight"), expected)


def test_a_tensor_too_few_loads_nothing(file: Path) -> None:
    state = torch.load(file, weights_only=True)
    del state["_blocks.3._bn1.bias"]
    torch.save(state, file)
    model = built(2)
    with pytest.raises(InputError, match=r"1 missing: image_encoder\.blocks\.3\.bn1\.bias"):
        load_pretrained(model, file)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), built(2).state_dict().values(), strict=True)
    )


def test_it_is_described_and_not_converted(file: Path, tmp_path: Path) -> None:
    described = verify(file)
    assert (described["architecture"], described["tensors"], described["in_channels"]) == ("lite", 315, 3)
    with pytest.raises(InputError, match="an image encoder alone"):
        convert(file, tmp_path / "whole.safetensors")
