"""The U-Net baseline: MONAI's network, nnU-Net's depth and normalisation, and the same result in less memory."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsaga.errors import InputError
from medsaga.memory.tracker import TensorTracker
from medsaga.models.unet import UNet, normalise, poolings_for

pytestmark = pytest.mark.xdist_group("unet")

SIDE = 48
"""24, 12 and 6 pixels."""
ODD = 144
"""72, 36, 18, 9 and 5 pixels: the last halving leaves a rest."""


@functools.cache
def model(side: int = SIDE) -> UNet:
    """A model that no test changes."""
    torch.manual_seed(0)
    return UNet(classes=4, image_size=side, in_channels=2)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 255


def gradients(network: UNet, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits, and the gradient of a fixed function of them by every parameter."""
    network.zero_grad()
    logits = network(batch)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).roll(7).view_as(logits)).sum().backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    return logits.detach(), found


def test_is_the_network_of_monai() -> None:
    from monai.networks.nets import DynUNet

    theirs: nn.Module = DynUNet(2, 2, 4, [3] * 4, [1, 2, 2, 2], [2] * 3)
    ours = model()
    state = ours.state_dict()
    renamed = {name: name for name in state}
    for part, block in (("input_block", 0), ("downsamples.0", 1), ("downsamples.1", 2), ("bottleneck", 3)):
        renamed |= {n: n.replace(f"encoder.{block}.", f"{part}.") for n in state if n.startswith(f"encoder.{block}.")}
    for part, block in (("upsamples.0", 0), ("upsamples.1", 1), ("upsamples.2", 2), ("output_block", 3)):
        renamed |= {n: n.replace(f"decoder.{block}.", f"{part}.") for n in state if n.startswith(f"decoder.{block}.")}
    # What else their file holds are the same blocks under a second name.
    missing, unexpected = theirs.load_state_dict({renamed[n]: value for n, value in state.items()}, strict=False)
    assert not unexpected
    assert all(name.startswith("skip_layers.") for name in missing)
    batch = images(3, 2, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(ours(batch), theirs(normalise(batch)))


@pytest.mark.parametrize(
    ("image_size", "smallest", "features"),
    [
        # nnU-Net's published plans for patches of these sizes have 7, 6 and 8 stages.
        (224, 7, [32, 64, 128, 256, 512, 512]),
        (256, 4, [32, 64, 128, 256, 512, 512, 512]),
        (512, 4, [32, 64, 128, 256, 512, 512, 512, 512]),
        (1024, 8, [32, 64, 128, 256, 512, 512, 512, 512]),
        (240, 4, [32, 64, 128, 256, 512, 512, 512]),
        (16, 4, [32, 64, 128]),
    ],
)
def test_is_as_deep_as_the_image_allows(image_size: int, smallest: int, features: list[int]) -> None:
    with torch.device("meta"):
        network = UNet(classes=9, image_size=image_size, in_channels=3)
        hidden = torch.zeros(1, 3, image_size, image_size)
        for block in network.encoder:
            hidden = block(hidden)
        logits = network(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))
    assert hidden.shape == (1, features[-1], smallest, smallest)
    blocks: Any = network.encoder
    assert [block.conv2.conv.out_channels for block in blocks] == features
    assert poolings_for(image_size) == len(features) - 1
    assert logits.shape == (1, 9, image_size, image_size)


def test_weights_are_drawn_as_he_et_al_say() -> None:
    convolutions = [m for m in model().modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 2 * 7 + 3 + 1
    for layer in convolutions:
        fan_in = layer.weight.shape[1] * math.prod(layer.kernel_size)
        # 5 standard errors of a spread that is estimated from that many weights, and the slope of nnU-Net's leaky ReLU.
        expected = math.sqrt(2 / (1 + 0.01**2) / fan_in)
        assert float(layer.weight.detach().std()) == pytest.approx(
            expected, rel=5 / math.sqrt(2 * layer.weight.numel())
        )
        assert layer.bias is None or not layer.bias.any()


def test_encoder_and_decoder_hold_every_parameter_once() -> None:
    network = model()
    parts = [*network.encoder.parameters(), *network.decoder.parameters()]
    assert [id(p) for p in parts] == [id(p) for p in network.parameters()]
    assert len({id(p) for p in parts}) == len(parts)
    _, found = gradients(network, images(2, 2, SIDE, SIDE))
    # Each has a share in the result; norms take the constants out, so that no convolution before one has a bias.
    assert all(gradient.norm() > 1e-4 for gradient in found.values())
    assert len(found) == len(parts)


def test_every_channel_of_every_image_gets_mean_zero_and_spread_one() -> None:
    batch = images(2, 3, 16, 16) * torch.tensor([1.0, 0.1, 0.5]).view(3, 1, 1)
    expected = torch.stack([torch.stack([(c - c.mean()) / c.std(correction=0) for c in image]) for image in batch])
    torch.testing.assert_close(normalise(batch), expected)
    in_half = normalise(batch.to(torch.float16))
    assert in_half.dtype == torch.float32
    torch.testing.assert_close(in_half, normalise(batch.to(torch.float16).float()))


@pytest.mark.parametrize("value", [0.0, 0.1, 100.3, 254.7, 255.0])
def test_a_constant_image_is_no_noise(value: float) -> None:
    assert normalise(torch.full((1, 1, 500, 500), value)).abs().max() < 1e-2
    with torch.no_grad():
        assert model()(torch.full((1, 2, SIDE, SIDE), value)).isfinite().all()


@torch.no_grad()
def test_brightness_and_contrast_make_no_difference_and_images_do_not_mix() -> None:
    batch = images(2, 2, SIDE, SIDE)
    logits = model()(batch)
    torch.testing.assert_close(model()(batch * 0.5 + 60), logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model()(batch[1:]), logits[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [SIDE, ODD])
def test_computing_again_changes_nothing(side: int) -> None:
    torch.manual_seed(3)
    network = UNet(classes=3, image_size=side, in_channels=1)
    names = list(network.state_dict())
    batch = images(1, 1, side, side)
    logits, plain = gradients(network, batch)
    assert logits.shape == (1, 3, side, side)
    network.checkpoint_blocks = True
    assert list(network.state_dict()) == names
    again, found = gradients(network, batch)
    assert torch.equal(again, logits)
    assert found.keys() == plain.keys() == dict(network.named_parameters()).keys()
    for name, gradient in plain.items():
        # Threads may add up in another order.
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def kept_and_peak(network: UNet, batch: Tensor) -> tuple[int, int]:
    """Bytes that forward leaves behind, and the peak of both passes; without weights and images."""
    tracker = TensorTracker()
    tracker.assign([batch, *network.parameters()], "elsewhere")
    with tracker:
        logits = network(batch)
        kept = sum(tracker._now[name] for name in tracker.breakdown)
        logits.sum().backward()
    network.zero_grad()
    return kept, tracker.peak_bytes


def test_computing_again_keeps_the_inputs_of_blocks_only() -> None:
    with torch.device("meta"):
        network = UNet(classes=3, image_size=128, in_channels=1)
        batch = torch.zeros(16, 1, 128, 128)
        kept, peak = kept_and_peak(network, batch)
        network.checkpoint_blocks = True
        kept_again, peak_again = kept_and_peak(network, batch)
    pixels = 4 * 16 * 128**2  # of a batch, in bytes per channel
    levels = [min(32 * 2**level, 512) / 4**level for level in range(6)]
    # The output of every block of both paths, the normalised images, and the logits.
    assert kept_again == pytest.approx(pixels * (sum(levels) + sum(levels[:-1]) + 1 + 3), rel=1e-3)
    assert kept_again < kept / 3
    assert peak_again < peak * 0.6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_runs_in_half_precision_close_to_float32(dtype: torch.dtype, tolerance: float) -> None:
    half = UNet(classes=4, image_size=SIDE, in_channels=2)
    half.load_state_dict(model().state_dict())
    half.to(dtype)
    batch = images(2, 2, SIDE, SIDE)
    with torch.no_grad():
        logits = model()(batch)
    half.checkpoint_blocks = True
    in_half, found = gradients(half, batch)
    assert in_half.dtype == dtype
    assert (in_half.float() - logits).abs().max() < tolerance * logits.abs().max()
    assert all(gradient.isfinite().all() and gradient.dtype == dtype for gradient in found.values())


def test_learns_a_tiny_problem() -> None:
    torch.manual_seed(6)
    network = UNet(classes=2, image_size=32, in_channels=1)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    labels = torch.stack([((rows - y) ** 2 + (columns - x) ** 2 < 64).long() for y, x in ((12, 12), (18, 20))])
    batch = labels[:, None] * 150 + images(2, 1, 32, 32) * 0.2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    with torch.no_grad():
        assert (network(batch).argmax(1) == labels).float().mean() > 0.99


@pytest.mark.parametrize("size", [0, -32, 250, 8])
def test_an_impossible_image_size_names_possible_ones(size: int) -> None:
    with pytest.raises(InputError, match=r"--image-size.*multiple of 16.*224"):
        UNet(classes=2, image_size=size, in_channels=1)


@pytest.mark.exhaustive  # that nothing imports it early, test_cli shows of predict
def test_needs_monai_when_built_only_and_no_torchvision_that_works(tmp_path: Path) -> None:
    # The wheel of torchvision for GPUs fails like this beside a torch for CPUs.
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    code = (
        "import sys; from medsaga.models.unet import UNet; early = 'monai' in sys.modules;"
        "UNet(classes=2, image_size=32, in_channels=1); print(early, 'monai' in sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    asked = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert asked.stdout.split() == ["False", "True"], asked.stderr
