"""The pyramid beside the tokens of the small encoder: where it lands, and that the decoder's part is optional."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medsaga.models.decoder import MaskDecoder
from medsaga.models.encoders.tiny import Pyramid, TinyEncoder, TinySpec
from medsaga.models.sam import KClassSam, build_sam
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


def parts(model: KClassSam) -> tuple[Pyramid, nn.Module]:
    """What the encoder and the decoder have beside SAM's parts."""
    assert isinstance(model.image_encoder, TinyEncoder)
    assert model.mask_decoder.details is not None
    return model.image_encoder.details, model.mask_decoder.details


@torch.no_grad()
def test_without_details_the_decoder_is_sams() -> None:
    model = small()
    pyramid, refinement = parts(model)
    for level in ("stride_2", "stride_4"):
        silence(refinement.get_submodule(f"{level}.0.1"))
        silence(refinement.get_submodule(f"{level}.1.convolutions.1.1"))
    for last in (pyramid.to_tokens, pyramid.stride_2_to_decoder, pyramid.stride_4_to_decoder):
        silence(last)
    *skips, embeddings = model.encode(255 * noise(2, 3, SIDE, SIDE))
    assert not any(skip.any() for skip in skips)
    decoder = model.mask_decoder
    pixels = model.attend(embeddings, decoder.mask_tokens.weight.expand(2, -1, -1))[1]
    torch.testing.assert_close(decoder.upscale(pixels, skips), decoder.output_upscaling(pixels))


@torch.no_grad()
def test_a_decoder_without_refinement_adds_skips_before_each_activation() -> None:
    torch.manual_seed(0)
    decoder = MaskDecoder(32, classes=2, mlp_dim=8, refines=False)
    pixels, half, quarter = noise(1, 32, 3, 3), noise(1, 4, 12, 12), noise(1, 8, 6, 6)
    first, norm, activation, second, _ = decoder.output_upscaling
    expected = activation(second(activation(norm(first(pixels) + quarter))) + half)
    torch.testing.assert_close(decoder.upscale(pixels, (half, quarter)), expected)
    torch.testing.assert_close(decoder.upscale(pixels), decoder.output_upscaling(pixels))


@torch.no_grad()
@pytest.mark.parametrize(("row", "column"), [(9, 150), (120, 27)])
def test_a_change_of_the_image_reaches_the_features_where_it_is(row: int, column: int) -> None:
    torch.manual_seed(0)
    pyramid, decoder = Pyramid(3, (32, 64), 48, 64), MaskDecoder(64, classes=2, mlp_dim=8, refines=True)
    decoder.output_upscaling[1] = nn.Identity()
    # Norms look at the whole image; without them what is far away does not change at all.
    for module in (pyramid, decoder):
        for child in module.modules():
            if isinstance(child, nn.Sequential) and isinstance(child[1], nn.GroupNorm):
                child[1] = nn.Identity()
    before = noise(1, 3, 192, 192)
    after = before.clone()
    after[0, :, row, column] += 10
    pixels = noise(1, 64, 24, 24)
    changed = decoder.upscale(pixels, pyramid(after)[1:]) - decoder.upscale(pixels, pyramid(before)[1:])
    rows, columns = changed[0].abs().sum(0).nonzero().T
    # The reach in pixels of 4 + 3 convolutions at a half of the side and 4 + 3 at a quarter, and two roundings.
    assert abs(2 * rows + 0.5 - row).max() <= 7 * 2 + 7 * 4 + 4
    assert abs(2 * columns + 0.5 - column).max() <= 7 * 2 + 7 * 4 + 4
    assert changed[0].abs().sum(0)[row // 2, column // 2] > changed[0].abs().sum(0).mean()
    assert (changed[0, :, row // 2, column // 2] != 0).any()
    tokens = (pyramid(after)[0] - pyramid(before)[0])[0].abs().sum(-1)
    assert tokens[row // 8, column // 8] > 0
    rows, columns = tokens.nonzero().T
    assert abs(rows - row // 8).max() <= 6
    assert abs(columns - column // 8).max() <= 6


def test_details_are_seen_by_tokens_and_decoder() -> None:
    model = small()
    model(255 * noise(1, 3, SIDE, SIDE)).square().mean().backward()
    for module in parts(model):
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


def test_the_pyramid_needs_tokens_of_8_px() -> None:
    with pytest.raises(AssertionError):
        TinySpec(hidden_size=128, layers=6, heads=2, global_layers=(2,), patch_size=16, pyramid_widths=(32, 64))
