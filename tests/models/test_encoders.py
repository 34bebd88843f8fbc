"""What it takes to add an encoder: one module and one line in ``ENCODERS``. This one has no attention."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medsaga.methods import METHODS
from medsaga.models.encoders import ENCODERS
from medsaga.models.encoders.base import EncoderSpec, ImageEncoder, State
from medsaga.models.lean import recomputed
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import detect_architecture, load_pretrained, save_model
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.train import train
from medsaga.settings.options import Settings


class Convolutions(ImageEncoder):
    """Four convolutions of stride 2; the first two are skips, as the mask decoder's upscaling wants them."""

    strides, channels, pixel_kernels = (4, 8, 16), (8, 16, 64), ("blocks.0.weight",)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        widths = (in_channels, 8, 8, 16, 64)
        self.blocks = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in itertools.pairwise(widths))

    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """Return the last three."""
        maps = [images]
        for block in self.blocks:
            maps.append(recomputed(block, maps[-1]).relu() if recompute else block(maps[-1]).relu())
        return tuple(maps[2:])


class ConvolutionsSpec(EncoderSpec):
    """Its line."""

    def build(self, *, image_size: int, in_channels: int) -> ImageEncoder:
        """Make it."""
        return Convolutions(in_channels)

    def useful_image_sizes(self) -> list[int]:
        """All."""
        return [*range(32, 129, 32)]

    def sizes_of(self, state: State) -> tuple[int, int] | None:
        """Know it by its last convolution."""
        last = state.get("blocks.3.weight")
        return None if last is None or len(last) != 64 else (self.image_size, state["blocks.0.weight"].shape[1])


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of the encoder in the table."""
    spec = ConvolutionsSpec(image_size=128, side_multiple=32, decoder_mlp_dim=32)
    monkeypatch.setitem(ENCODERS, "convolutions", spec)
    return "convolutions"


def test_its_maps_reach_the_logits_and_recomputing_changes_nothing(added: str) -> None:
    torch.manual_seed(0)
    model = build_sam(added, classes=3, image_size=64)
    images = 255 * torch.rand(2, 3, 64, 64)
    gradients = []
    for model.checkpoint_blocks in (False, True):
        model.zero_grad()
        logits = model(images)
        logits.square().mean().backward()
        gradients.append([parameter.grad for parameter in model.image_encoder.parameters()])
    assert logits.shape == (2, 3, 16, 16)
    assert all(one is not None and one.any() and torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert torch.equal(model.decode(model.unpack(model.pack(model.encode(images)))), logits)
    assert sum(weight.numel() for weight in model.image_encoder.weight_matrices()[0]) == 9 * (24 + 64 + 128 + 1024)


def test_its_files_are_recognised_and_fit_other_channels_and_classes(added: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = build_sam(added, classes=3, image_size=64), build_sam(added, classes=5, image_size=96, in_channels=2)
    save_model(tmp_path / "own.safetensors", model)
    assert detect_architecture(tmp_path / "own.safetensors") == added
    load_pretrained(other, tmp_path / "own.safetensors")
    kernel, whole = (m.get_parameter("image_encoder.blocks.0.weight") for m in (other, model))
    torch.testing.assert_close(kernel.sum(1), whole.sum(1))
    with pytest.raises(ValueError, match=r"--image-size.*multiple of 32"):
        build_sam(added, classes=3, image_size=48)


@pytest.mark.parametrize("method", ["medsaga", pytest.param("full", marks=pytest.mark.exhaustive), "frozen"])
def test_methods_train_it_and_the_run_predicts(
    added: str, toy: Path, tmp_path: Path, quick: Settings, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Methods took the table as it was when they were imported.
    monkeypatch.setitem(METHODS, method, dataclasses.replace(METHODS[method], architectures=(added,)))
    settings = dataclasses.replace(quick, model=added, method=method, random_weights=True, steps=2, evaluate_every=2)
    result = train(toy, tmp_path / "run", settings)
    assert (result["projected_parameters"] > 0) == (method == "medsaga")
    assert Segmenter.load(tmp_path / "run").model.architecture == added
