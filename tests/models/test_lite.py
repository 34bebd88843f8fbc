"""EfficientNet-Lite under SAM's decoder: against the network of the paper, written another way with torch's layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from medsaga.models.blocks import FrozenBatchNorm2d
from medsaga.models.encoders.lite import STAGES, LiteEncoder, LiteSpec
from medsaga.models.lora import add_lora, lora_parameters, merged_weights, updated_layers
from medsaga.models.sam import KClassSam, build_sam

SPEC = LiteSpec(width=1.0, depth=1.1, out_channels=128, image_size=256)


def lite(image_size: int = 64) -> KClassSam:
    torch.manual_seed(0)
    model = build_sam("lite", classes=3, image_size=image_size)
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            for tensor in (norm.weight.data, norm.running_mean, norm.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return model


def padded(images: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros so that the result has ceil(side / stride) pixels, the odd one at the end (TensorFlow's "same")."""
    side = images.shape[-1]
    missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return nn.ZeroPad2d((missing // 2, missing - missing // 2) * 2)(images)


def reference_maps(state: dict[str, Tensor], images: Tensor) -> list[Tensor]:
    """Follow table 1 of arXiv 1905.11946 without squeeze-and-excitation: the output of every block."""

    def layer(x: Tensor, kernel: str, norm: str, *, stride: int = 1, depthwise: bool = False) -> Tensor:
        weight = state[f"{kernel}.weight"]
        x = padded(x, weight.shape[-1], stride)
        x = nn.functional.conv2d(x, weight, stride=stride, groups=len(weight) if depthwise else 1)
        mean, var, scale, shift = (
            state[f"{norm}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-3) * scale + shift

    x = layer(images, "conv_stem", "bn0", stride=2).clamp(0, 6)
    outputs: list[Tensor] = []
    for stage, (repeats, _, stride, expansion, _) in enumerate(STAGES):
        for n in range(repeats if stage in (0, 6) else math.ceil(1.1 * repeats)):
            name, before = f"blocks.{len(outputs)}", x
            if expansion > 1:
                x = layer(x, f"{name}.expand_conv", f"{name}.bn0").clamp(0, 6)
            first = n == 0
            x = layer(x, f"{name}.depthwise_conv", f"{name}.bn1", stride=stride if first else 1, depthwise=True)
            x = layer(x.clamp(0, 6), f"{name}.project_conv", f"{name}.bn2")
            x = x if x.shape != before.shape else x + before
            outputs.append(x)
    return outputs


@pytest.mark.parametrize("side", [64, 80])
def test_is_the_network_of_the_paper_with_its_gradients(side: int) -> None:
    encoder = lite().image_encoder.double()
    assert isinstance(encoder, LiteEncoder)
    images = torch.randn(1, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    kept: list[Tensor] = []
    for block in encoder.blocks:
        block.register_forward_hook(lambda _, __, output: kept.append(output))
    encoder(images)
    expected = reference_maps(encoder.state_dict(keep_vars=True), images)
    assert [block.shape[1] for block in expected][:: len(expected) - 1] == [16, 320]
    torch.testing.assert_close(kept, expected)
    weights = torch.rand(expected[-1].shape, dtype=torch.float64)
    network = [p for name, p in encoder.named_parameters() if not name.startswith("pyramid")]
    found = torch.autograd.grad((kept[-1] * weights).sum(), network)
    torch.testing.assert_close(found, torch.autograd.grad((expected[-1] * weights).sum(), network))


@pytest.mark.parametrize("side", [48, 96])
def test_its_maps_have_the_strides_and_channels_that_it_promises(side: int) -> None:
    model = lite(side)
    maps = model.image_encoder(torch.rand(2, 3, side, side))
    halves = [side // 2, side // 4, side // 8]
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in zip((16, 32, 128), halves, strict=True)]
    assert model(torch.rand(1, 3, side, side)).shape == (1, 3, side // 2, side // 2)


def test_computing_blocks_again_changes_nothing() -> None:
    found = []
    for recompute in (False, True):
        model = lite()
        model.checkpoint_blocks = recompute
        loss = model(255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))).square().mean()
        loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(found[0]) > 200
    torch.testing.assert_close(found[0], found[1])


def test_statistics_never_change() -> None:
    model = lite().train()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(255 * torch.rand(2, 3, 64, 64)).sum().backward()
    assert any("running_mean" in name for name in before)
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name]), name


def test_galore_gets_the_dense_kernels_and_no_depthwise_one() -> None:
    model = lite()
    matrices, others = model.image_encoder.weight_matrices()
    assert {tuple(m.shape[2:]) for m in matrices} == {(1, 1), (3, 3)}
    depthwise = [p for name, p in model.image_encoder.named_parameters() if "depthwise" in name]
    assert len(depthwise) == 21
    assert {id(p) for p in depthwise} <= {id(p) for p in others}


def test_lora_updates_the_pointwise_convolutions() -> None:
    model = lite()
    images = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    plain = model(images).detach()
    add_lora(model.image_encoder, 4)
    factors = lora_parameters(model.image_encoder)
    assert len(factors) == 2 * (21 + 20)  # the first block only narrows
    assert updated_layers(model) == "pointwise convolutions"
    torch.testing.assert_close(model(images), plain)
    with torch.no_grad():
        for factor in factors:
            factor.copy_(0.1 * torch.randn(factor.shape, generator=torch.Generator().manual_seed(5)))
        encoder = model.image_encoder
        down, up = encoder.get_parameter("blocks.3.expand_conv.down"), encoder.get_parameter("blocks.3.expand_conv.up")
        expected = encoder.get_parameter("blocks.3.expand_conv.weight").flatten(1) + up @ down
    changed = model(images).detach()
    assert not torch.allclose(changed, plain)
    merged, sums = lite(), {name: weight() for name, weight in merged_weights(model).items()}
    merged.load_state_dict({name: sums.get(name, tensor) for name, tensor in model.state_dict().items()}, strict=False)
    assert updated_layers(merged) is None
    torch.testing.assert_close(sums["image_encoder.blocks.3.expand_conv.weight"].flatten(1), expected)
    torch.testing.assert_close(merged(images), changed)


def test_the_second_size_is_wider_and_deeper() -> None:
    stages = LiteSpec(width=1.1, depth=1.2, out_channels=128, image_size=256).stages()
    assert [stage.channels for stage in stages] == [16, 24, 48, 88, 120, 208, 352]
    assert [stage.repeats for stage in stages] == [1, 3, 3, 4, 4, 5, 1]
    assert SPEC.stages()[-1].channels == 320
