"""Convolutions in the forms that a CPU computes fastest are convolutions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medsaga.models.convolutions import PixelConvolution, depthwise

FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("wanted", [(0, 1, 2), (0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_depthwise_convolution_and_its_gradients_are_those_of_torch_in_double_precision(
    side: int, stride: int, memory_format: torch.memory_format, wanted: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 8, 17, 14).contiguous(memory_format=memory_format)
    parts = [inputs, torch.randn(8, 1, side, side), torch.randn(8)]
    ours = [part.clone().requires_grad_(n in wanted) for n, part in enumerate(parts)]
    theirs = [part.double().requires_grad_(n in wanted) for n, part in enumerate(parts)]
    result = depthwise(ours[0], ours[1], ours[2], stride)
    expected = F.conv2d(theirs[0], theirs[1], theirs[2], stride, groups=8)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(result)
    found = torch.autograd.grad(result, [ours[n] for n in wanted], gradient)
    reference = torch.autograd.grad(expected, [theirs[n] for n in wanted], gradient.double())
    for mine, other in zip(found, reference, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_single_pixels_is_a_matrix(memory_format: torch.memory_format, bias: bool) -> None:
    torch.manual_seed(0)
    layer = PixelConvolution(6, 10, bias=bias)
    inputs = torch.randn(2, 6, 5, 7).contiguous(memory_format=memory_format).requires_grad_()
    expected = torch.einsum("oi,nihw->nohw", layer.weight[..., 0, 0], inputs)
    if layer.bias is not None:
        expected = expected + layer.bias.view(-1, 1, 1)
    result = layer(inputs)
    torch.testing.assert_close(result, expected)
    gradient = torch.randn_like(result)
    for mine, other in zip(
        torch.autograd.grad(result, [inputs, *layer.parameters()], gradient, retain_graph=True),
        torch.autograd.grad(expected, [inputs, *layer.parameters()], gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
