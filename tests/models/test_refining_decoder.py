"""The mask decoder that looks at neighbours after each upscaling: what it adds to SAM's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medsaga.models.decoder import MaskDecoder
from medsaga.models.refining_decoder import RefiningMaskDecoder
from medsaga.models.sam import build_sam

CHANNELS = 64


def refining() -> RefiningMaskDecoder:
    torch.manual_seed(0)
    return RefiningMaskDecoder(CHANNELS, classes=2, mlp_dim=8)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def refined(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Follow the class's description with torch's functions: a 3 x 3 convolution, then two beside the identity."""

    def layer(x: Tensor, name: str) -> Tensor:
        x = F.conv2d(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        return F.gelu(F.group_norm(x, 8, state[f"{name}.1.weight"], state[f"{name}.1.bias"]))

    seen = layer(pixels, "0")
    return pixels + seen + layer(layer(seen, "1.convolutions.0"), "1.convolutions.1")


@torch.no_grad()
def test_sams_decoder_adds_skips_before_each_activation() -> None:
    torch.manual_seed(0)
    decoder = MaskDecoder(32, classes=2, mlp_dim=8)
    pixels, half, quarter = noise(1, 32, 3, 3), noise(1, 4, 12, 12), noise(1, 8, 6, 6)
    first, norm, activation, second, _ = decoder.output_upscaling
    expected = activation(second(activation(norm(first(pixels) + quarter))) + half)
    torch.testing.assert_close(decoder.upscale(pixels, (half, quarter)), expected)
    torch.testing.assert_close(decoder.upscale(pixels), decoder.output_upscaling(pixels))


@torch.no_grad()
@pytest.mark.parametrize("with_skips", [True, False])
def test_pixels_are_refined_after_each_upscaling(with_skips: bool) -> None:
    decoder = refining()
    pixels, half, quarter = noise(1, CHANNELS, 3, 3), noise(1, 8, 12, 12), noise(1, 16, 6, 6)
    if not with_skips:
        half, quarter = torch.zeros_like(half), torch.zeros_like(quarter)
    first, norm, activation, second, _ = decoder.output_upscaling
    coarse = refined(decoder.refinement.stride_4.state_dict(), activation(norm(first(pixels) + quarter)))
    expected = refined(decoder.refinement.stride_2.state_dict(), activation(second(coarse) + half))
    found = decoder.upscale(pixels, (half, quarter) if with_skips else ())
    torch.testing.assert_close(found, expected)


def test_all_of_the_refinement_learns() -> None:
    torch.manual_seed(0)
    model = build_sam("lite", classes=3, image_size=64)
    assert isinstance(model.mask_decoder, RefiningMaskDecoder)
    model(255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))).square().mean().backward()
    for name, parameter in model.mask_decoder.refinement.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
