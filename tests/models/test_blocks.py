"""Parts that encoders share, against torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medsaga.models.base import weight_matrices
from medsaga.models.blocks import FrozenBatchNorm2d, normalised_convolution


@pytest.mark.parametrize("groups", [1, 6])
def test_a_folded_norm_is_a_convolution_and_torchs_batch_norm_in_evaluation(groups: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=groups, bias=False, dtype=torch.float64)
    theirs = nn.BatchNorm2d(12, eps=1e-3, dtype=torch.float64).eval()
    for tensor in theirs.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    ours = FrozenBatchNorm2d(12, eps=1e-3).double()
    ours.load_state_dict({name: t for name, t in theirs.state_dict().items() if name != "num_batches_tracked"})
    images = torch.rand(2, 6, 9, 9, dtype=torch.float64)
    expected = theirs(convolution(images))
    weights = torch.rand_like(expected)
    wanted = torch.autograd.grad((expected * weights).sum(), [convolution.weight, theirs.weight, theirs.bias])
    found = normalised_convolution(images, convolution, ours)
    torch.testing.assert_close(found, expected)
    grads = torch.autograd.grad((found * weights).sum(), [convolution.weight, ours.weight, ours.bias])
    torch.testing.assert_close(grads, wanted)


def test_depthwise_kernels_decay_but_are_no_matrices() -> None:
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 8, 1), FrozenBatchNorm2d(8))
    depthwise, pointwise = module[0].weight, module[1].weight
    assert [id(p) for p in weight_matrices(module)[0]] == [id(depthwise), id(pointwise)]
    matrices, others = weight_matrices(module, grouped=False)
    assert [id(p) for p in matrices] == [id(pointwise)]
    assert {id(p) for p in others} == {id(p) for p in module.parameters()} - {id(pointwise)}
