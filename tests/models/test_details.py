"""The details beside SAM's tokens: where they land, that they are optional, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medsaga.models.details import DetailDecoder, DetailEncoder
from medsaga.models.sam import ARCHITECTURES, KClassSam, build_sam
from medsaga.models.weights.loading import load_pretrained, save_model

SIDE = 64


def small(in_channels: int = 3) -> KClassSam:
    torch.manual_seed(0)
    return build_sam("tiny", classes=3, image_size=SIDE, in_channels=in_channels).eval()


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def silence(module: nn.Module) -> None:
    """Make a convolution or the affine part of a normalisation give zeros."""
    for name in ("weight", "bias"):
        nn.init.zeros_(module.get_parameter(name))


@torch.no_grad()
def test_without_details_the_decoder_is_sams(plain: str) -> None:
    model = small()
    for refined in (model.mask_decoder.details.stride_2, model.mask_decoder.details.stride_4):
        silence(refined[0][1])
        silence(refined[1].convolutions[1][1])
    encoder = model.vision_encoder.details
    for last in (encoder.to_tokens, encoder.stride_2_to_decoder, encoder.stride_4_to_decoder):
        silence(last)
    images = 255 * noise(2, 3, SIDE, SIDE)
    embeddings, details = model.split(model.encode(images))
    assert not details.any()
    decoder = model.mask_decoder
    pixels = model.attend(embeddings, decoder.mask_tokens.weight.expand(2, -1, -1))[1]
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(pixels)))
    expected = decoder.activation(decoder.upscale_conv2(upscaled))
    torch.testing.assert_close(model.upscale(pixels, details), expected)
    assert not build_sam(plain, classes=3, image_size=SIDE).has_details


@torch.no_grad()
@pytest.mark.parametrize(("row", "column"), [(9, 150), (120, 27)])
def test_a_change_of_the_image_reaches_the_features_where_it_is(row: int, column: int) -> None:
    torch.manual_seed(0)
    encoder, decoder = DetailEncoder(3, (32, 64), 48, 64), DetailDecoder(64)
    mask_decoder = build_sam("tiny", classes=2, image_size=SIDE).mask_decoder
    mask_decoder.upscale_conv1 = nn.ConvTranspose2d(64, 16, 2, 2)
    mask_decoder.upscale_layer_norm = nn.Identity()
    mask_decoder.upscale_conv2 = nn.ConvTranspose2d(16, 8, 2, 2)
    # Norms look at the whole image; without them what is far away does not change at all.
    for module in (encoder, decoder):
        for child in module.modules():
            if isinstance(child, nn.Sequential) and isinstance(child[1], nn.GroupNorm):
                child[1] = nn.Identity()
    before = noise(1, 3, 192, 192)
    after = before.clone()
    after[0, :, row, column] += 10
    pixels = noise(1, 64, 24, 24)
    changed = decoder(mask_decoder, pixels, encoder(after)[1]) - decoder(mask_decoder, pixels, encoder(before)[1])
    rows, columns = changed[0].abs().sum(0).nonzero().T
    # The reach in pixels of 4 + 3 convolutions at a half of the side and 4 + 3 at a quarter, and two roundings.
    assert abs(2 * rows + 0.5 - row).max() <= 7 * 2 + 7 * 4 + 4
    assert abs(2 * columns + 0.5 - column).max() <= 7 * 2 + 7 * 4 + 4
    assert changed[0].abs().sum(0)[row // 2, column // 2] > changed[0].abs().sum(0).mean()
    assert (changed[0, :, row // 2, column // 2] != 0).any()
    tokens = (encoder(after)[0] - encoder(before)[0])[0].abs().sum(-1)
    assert tokens[row // 8, column // 8] > 0
    rows, columns = tokens.nonzero().T
    assert abs(rows - row // 8).max() <= 6
    assert abs(columns - column // 8).max() <= 6


def test_details_are_seen_by_tokens_and_decoder() -> None:
    model = small()
    model(255 * noise(1, 3, SIDE, SIDE)).square().mean().backward()
    for module in (model.vision_encoder.details, model.mask_decoder.details):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


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


def test_details_need_tokens_of_8_px() -> None:
    assert ARCHITECTURES["tiny"].detail_widths
    with pytest.raises(AssertionError):
        type(ARCHITECTURES["tiny"])(128, 6, 2, (2, 5), patch_size=16, detail_widths=(32, 64))
