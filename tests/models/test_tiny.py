"""The pyramid beside the tokens of the small encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsaga.models.encoders.tiny import TinySpec
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import load_pretrained, save_model

SIDE = 64


def small(in_channels: int = 3) -> KClassSam:
    torch.manual_seed(0)
    return build_sam("tiny", classes=3, image_size=SIDE, in_channels=in_channels).eval()


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def test_all_of_the_pyramid_learns() -> None:
    model = small()
    model(255 * noise(1, 3, SIDE, SIDE)).square().mean().backward()
    details = model.image_encoder.get_submodule("details")
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in details.parameters())


@torch.no_grad()
@pytest.mark.parametrize("channels", [2, 5])
def test_equal_channels_are_seen_as_grey(channels: int, tmp_path: Path) -> None:
    model = small()
    # The normalisation of other channels has one mean and one spread: give colours the same.
    model.pixel_mean.fill_(float(model.pixel_mean.mean()))
    model.pixel_std.fill_(float(model.pixel_std.mean()))
    save_model(tmp_path / "rgb.safetensors", model)
    other = small(channels)
    load_pretrained(other, tmp_path / "rgb.safetensors")
    grey = 255 * noise(2, 1, SIDE, SIDE)
    expected = model(grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(other(grey.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_the_pyramid_needs_tokens_of_8_px() -> None:
    with pytest.raises(AssertionError):
        TinySpec(hidden_size=128, layers=6, heads=2, global_layers=(2,), patch_size=16, pyramid_widths=(32, 64))
