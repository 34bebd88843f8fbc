"""The DAE-Former baseline: its published size, its formulas, and that it learns."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn import functional

from medsaga.errors import InputError
from medsaga.memory.tracker import TensorTracker
from medsaga.models.daeformer import ChannelAttention, DAEFormer, PatchExpand, efficient_attention

pytestmark = pytest.mark.xdist_group("daeformer")


@functools.cache
@torch.enable_grad()
def trained_model() -> DAEFormer:
    """A model with gradients; building one takes a while, and no test changes it."""
    torch.manual_seed(0)
    model = DAEFormer(classes=4, image_size=64, in_channels=1)
    logits = model(images(2, 1, 64, 64))
    (logits * random(2, 4, 64, 64)).sum().backward()
    return model


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 255


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def parameters(model: nn.Module, *, trainable: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def test_has_the_published_number_of_parameters_of_which_three_fifths_compute() -> None:
    # 48.07 M in arXiv 2212.13504; both numbers counted on the authors' public code.
    with torch.device("meta"):
        model = DAEFormer(classes=9)
    assert parameters(model, trainable=False) == 48_073_065
    assert parameters(model, trainable=True) == 29_690_201


def test_gradients_reach_every_parameter_that_is_not_idle() -> None:
    model = trained_model()
    # A constant added to all keys of a channel leaves their softmax as it is: its gradient is zero in exact numbers.
    without_effect = ".keys.bias"
    for name, parameter in model.named_parameters():
        if name.startswith("idle."):
            assert not parameter.requires_grad
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert name.endswith(without_effect) or parameter.grad.norm() > 1e-4, name


@torch.no_grad()
def test_what_is_idle_changes_nothing() -> None:
    torch.manual_seed(3)
    model = DAEFormer(classes=2, image_size=32)
    batch = images(1, 3, 32, 32)
    before = model(batch)
    for parameter in model.idle.parameters():
        parameter.fill_(torch.nan)
    assert torch.equal(model(batch), before)


@pytest.mark.parametrize(("classes", "in_channels", "image_size"), [(2, 3, 32), (5, 1, 80), (9, 4, 224), (3, 3, 512)])
def test_every_class_has_a_map_of_the_input_s_size(classes: int, in_channels: int, image_size: int) -> None:
    with torch.device("meta"):
        model = DAEFormer(classes=classes, image_size=image_size, in_channels=in_channels)
        logits = model(torch.zeros(2, in_channels, image_size, image_size))
    assert logits.shape == (2, classes, image_size, image_size)
    assert (model.classes, model.in_channels, model.image_size) == (classes, in_channels, image_size)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix_and_grey_is_seen_as_rgb() -> None:
    model = trained_model()
    batch = images(2, 1, 64, 64)
    logits = model(batch)
    torch.testing.assert_close(model(batch[1:]), logits[1:], rtol=1e-4, atol=1e-4)
    with torch.device("meta"):
        rgb = DAEFormer(classes=4, image_size=64)
    rgb.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(rgb(batch.expand(-1, 3, -1, -1)), logits)


@pytest.mark.parametrize("size", [0, -32, 250, 8])
def test_an_impossible_image_size_names_possible_ones(size: int) -> None:
    with pytest.raises(InputError, match=r"--image-size.*multiple of 16.*224"):
        DAEFormer(classes=2, image_size=size)


def test_efficient_attention_is_its_formula() -> None:
    query, key, value = random(3, 2, 7, 5).unbind(0)
    value = torch.cat((value, value[..., :3]), dim=2)
    result = efficient_attention(query, key, value)
    for image in range(2):
        for token in range(7):
            # The order of the paper's formula is reversed: weights between all pairs of tokens first.
            channels = query[image, token].exp() / query[image, token].exp().sum()
            weights = torch.zeros(7)
            for other in range(7):
                weights[other] = (channels * key[image, other].exp() / key[image].exp().sum(0)).sum()
            torch.testing.assert_close(result[image, token], weights @ value[image])


def test_channel_attention_is_its_formula() -> None:
    torch.manual_seed(4)
    channels, heads, per_head = 32, 8, 4
    attention = ChannelAttention(channels)
    nn.init.uniform_(attention.temperature, 0.5, 3.0)
    grid = random(2, 3, 2, channels)
    with torch.no_grad():
        tokens = grid.reshape(2, 6, channels)
        query, key, value = (tokens @ weight.T for weight in attention.qkv.weight.split(channels))
        attended = torch.zeros(2, 6, channels)
        for image in range(2):
            for head in range(heads):
                part = slice(head * per_head, (head + 1) * per_head)
                q, k, v = query[image, :, part], key[image, :, part], value[image, :, part]
                cosines = (q.T @ k) / (q.norm(dim=0)[:, None] * k.norm(dim=0)[None])
                attended[image, :, part] = v @ (cosines * attention.temperature[head, 0, 0]).softmax(1).T
        expected = attention.reprojection(attended).view(2, 3, 2, channels)
        torch.testing.assert_close(attention(grid), expected)


@torch.no_grad()
def test_patch_expansion_cuts_a_token_into_a_square_of_tokens() -> None:
    torch.manual_seed(5)
    expand = PatchExpand(6, 3, factor=2)
    grid = random(1, 2, 2, 6)
    result = expand(grid)
    assert result.shape == (1, 4, 4, 3)
    for row in range(4):
        for column in range(4):
            part = (row % 2) * 2 + column % 2
            whole = expand.expand(grid[0, row // 2, column // 2])
            torch.testing.assert_close(result[0, row, column], expand.norm(whole[part * 3 : part * 3 + 3]))


@pytest.mark.exhaustive
def test_learns_a_tiny_problem() -> None:
    torch.manual_seed(6)
    model = DAEFormer(classes=2, image_size=32, in_channels=1)
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    labels = torch.stack([((rows - y) ** 2 + (columns - x) ** 2 < 64).long() for y, x in ((12, 12), (18, 20))])
    batch = labels[:, None] * 150 + images(2, 1, 32, 32) * 0.2
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = functional.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
    assert losses[-1] < 0.2


def test_computing_again_changes_no_result_no_gradient_and_no_name() -> None:
    plain = trained_model()
    again = copy.deepcopy(plain)
    again.zero_grad()
    again.checkpoint_blocks = True
    assert list(again.state_dict()) == list(plain.state_dict())
    batch = images(2, 1, 64, 64)
    logits = again(batch)
    with torch.no_grad():
        assert torch.equal(logits, again(batch))
    (logits * random(2, 4, 64, 64)).sum().backward()
    for (name, ours), theirs in zip(again.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
            continue
        assert ours.grad is not None, name
        # Keys' biases have no effect: what they get is rounding.
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm() + 1e-4 * name.endswith("keys.bias"), name


def test_computing_again_goes_through_each_stage_twice_and_never_without_gradients() -> None:
    model = DAEFormer(classes=2, image_size=32, in_channels=1)
    passed: list[str] = []
    stages: dict[str, nn.Module] = dict(model.encoder.named_children())
    stages |= {name: model.decoder[name] for name in ("middle", "fine")}
    for name, stage in stages.items():
        stage.register_forward_pre_hook(lambda *_, name=name: passed.append(name))
    model.checkpoint_blocks = True
    with torch.no_grad():
        model(images(1, 1, 32, 32))
    assert passed == ["0", "1", "2", "middle", "fine"]
    passed.clear()
    model(images(1, 1, 32, 32)).sum().backward()
    assert passed == ["0", "1", "2", "middle", "fine", "fine", "middle", "2", "1", "0"]


def kept_and_peak(*, checkpoint_blocks: bool) -> tuple[int, int]:
    """Bytes that forward leaves behind, and the peak of both passes, of four images; without weights and images."""
    with torch.device("meta"):
        model = DAEFormer(classes=9, in_channels=1)
        model.checkpoint_blocks = checkpoint_blocks
        batch = torch.zeros(4, 1, 224, 224)
        tracker = TensorTracker()
        tracker.assign([batch, *model.parameters()], "elsewhere")
        with tracker:
            logits = model(batch)
            kept = sum(tracker._now[name] for name in tracker.breakdown)
            logits.sum().backward()
    return kept, tracker.peak_bytes


@pytest.mark.exhaustive
def test_computing_again_keeps_a_tenth() -> None:
    kept, peak = kept_and_peak(checkpoint_blocks=False)
    kept_again, peak_again = kept_and_peak(checkpoint_blocks=True)
    assert kept_again < kept / 10
    assert peak_again < peak / 3


@torch.no_grad()
def test_runs_in_bfloat16_close_to_float32() -> None:
    model = trained_model()
    logits = model(images(2, 1, 64, 64))
    half = DAEFormer(classes=4, image_size=64, in_channels=1).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    in_half = half(images(2, 1, 64, 64))
    assert in_half.dtype == torch.bfloat16
    assert (in_half.float() - logits).abs().max() < 0.1 * logits.abs().max()


def test_a_step_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        model = DAEFormer(classes=9)
        model(torch.zeros(2, 3, 224, 224)).square().mean().backward()
        weight = model.get_parameter("encoder.0.patches.weight")
    assert isinstance(weight.grad, FakeTensor)
    assert weight.grad.shape == weight.shape
