"""MobileSAM's TinyViT against another way to write the paper down, and its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsaga.errors import InputError
from medsaga.models.encoders import ENCODERS
from medsaga.models.encoders.tiny_vit import MBConv, TinyVit, TinyVitSpec
from medsaga.models.lean import lean_block
from medsaga.models.lora import LoraQkv, add_lora, merged_weights
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import detect_architecture, load_model, load_pretrained, save_model
from medsaga.models.window_attention import attend_with_bias
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.train import train
from medsaga.settings.options import Settings

SMALL = TinyVitSpec(
    widths=(8, 12, 18, 16), depths=(2, 1, 2, 1), heads=(2, 3, 4), windows=(4, 3, 2), out_channels=32, image_size=96
)
"""Windows fill an image of 96 px, and none of the stages of one of 80 px."""


@pytest.fixture
def encoder() -> TinyVit:
    """A small one in float64, with random norms, statistics and biases."""
    torch.manual_seed(0)
    made = SMALL.build(image_size=96, in_channels=3).double()
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            nn.init.uniform_(tensor, 0.5, 2)
        elif tensor.dim() < 4:
            nn.init.normal_(tensor, std=0.5)
    return made


def convolve(state: dict[str, Tensor], name: str, maps: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """A convolution, and torch's batch norm in evaluation."""
    kernel = state[f"{name}.c.weight"]
    made = F.conv2d(maps, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
    mean, variance, scale, shift = (
        state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(made, mean, variance, scale, shift)


def bottleneck(state: dict[str, Tensor], name: str, maps: Tensor, stride: int = 1) -> Tensor:
    hidden = F.gelu(convolve(state, f"{name}.conv1", maps))
    hidden = F.gelu(convolve(state, f"{name}.conv2", hidden, stride=stride, groups=hidden.shape[1]))
    return convolve(state, f"{name}.conv3", hidden)


def attend(state: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    """Attention in one window, ``(batch, side, side, channels)``, head after head."""
    side, channels = tokens.shape[1], tokens.shape[3]
    biases = state[f"{name}.attention_biases"]
    tokens = F.layer_norm(tokens, (channels,), state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
    rows = state[f"{name}.qkv.weight"].chunk(len(biases))
    shifts = state[f"{name}.qkv.bias"].chunk(len(biases))
    places = [(y, x) for y in range(side) for x in range(side)]
    apart = torch.tensor([[abs(y - v) * side + abs(x - u) for v, u in places] for y, x in places])
    heads = []
    for row, shift, bias in zip(rows, shifts, biases, strict=True):
        query, key, value = (tokens.flatten(1, 2) @ row.T + shift).chunk(3, dim=-1)
        scores = torch.einsum("bic,bjc->bij", query, key) / query.shape[-1] ** 0.5 + bias[apart]
        heads.append(torch.einsum("bij,bjc->bic", scores.exp() / scores.exp().sum(-1, keepdim=True), value))
    made = F.linear(torch.cat(heads, -1), state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])
    return made.view(tokens.shape)


def transform(state: dict[str, Tensor], name: str, maps: Tensor, window: int) -> Tensor:
    side, channels = maps.shape[-1], maps.shape[1]
    padded = F.pad(maps, (0, -side % window, 0, -side % window)).permute(0, 2, 3, 1)
    starts = range(0, side, window)
    rows = [[attend(state, f"{name}.attn", padded[:, y : y + window, x : x + window]) for x in starts] for y in starts]
    attended = torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)[:, :side, :side]
    maps = convolve(state, f"{name}.local_conv", maps + attended.permute(0, 3, 1, 2), groups=channels)
    tokens = maps.permute(0, 2, 3, 1)
    hidden = F.layer_norm(tokens, (channels,), state[f"{name}.mlp.norm.weight"], state[f"{name}.mlp.norm.bias"])
    hidden = F.gelu(F.linear(hidden, state[f"{name}.mlp.fc1.weight"], state[f"{name}.mlp.fc1.bias"]))
    tokens = tokens + F.linear(hidden, state[f"{name}.mlp.fc2.weight"], state[f"{name}.mlp.fc2.bias"])
    return tokens.permute(0, 3, 1, 2)


def expected_embeddings(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """The paper, with neither folded norms nor cut windows nor fused attention."""
    maps = F.gelu(convolve(state, "patch_embed.seq.0", images, stride=2))
    maps = convolve(state, "patch_embed.seq.2", maps, stride=2)
    for stage, (depth, stride) in enumerate(zip(SMALL.depths, (2, 2, 1, None), strict=True)):
        for n in range(depth):
            name = f"layers.{stage}.blocks.{n}"
            if stage == 0:
                maps = F.gelu(maps + bottleneck(state, name, maps))
            else:
                maps = transform(state, name, maps, SMALL.windows[stage - 1])
        if stride:
            maps = bottleneck(state, f"layers.{stage}.downsample", maps, stride)
    for n in (0, 2):
        kernel = state[f"neck.{n}.weight"]
        maps = F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2)
        shifted = maps - maps.mean(1, keepdim=True)
        maps = shifted / (shifted.square().mean(1, keepdim=True) + 1e-6).sqrt()
        scale, shift = (state[f"neck.{n + 1}.{part}"].view(-1, 1, 1) for part in ("weight", "bias"))
        maps = maps * scale + shift
    return maps


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("side", [96, 80], ids=["windows fit", "windows filled up"])
def test_outputs_and_gradients_are_those_of_the_paper(encoder: TinyVit, side: int, recompute: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)
    (found,) = encoder(images, recompute=recompute)
    expected = expected_embeddings(dict(encoder.named_parameters()) | dict(encoder.named_buffers()), images)
    assert expected.shape == (2, 32, side // 16, side // 16)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    parameters = dict(encoder.named_parameters())
    gradients = [torch.autograd.grad((made * weights).sum(), list(parameters.values())) for made in (found, expected)]
    for name, ours, theirs in zip(parameters, *gradients, strict=True):
        assert theirs.any(), name
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8, msg=name)


def test_many_windows_have_the_gradients_of_all_scores_at_once() -> None:
    """More than backward looks at at a time."""
    torch.manual_seed(0)
    qkv = torch.randn(120, 49, 8, 3, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, 49, 49, dtype=torch.float64, requires_grad=True)
    query, key, value = qkv.permute(3, 0, 2, 1, 4)
    scores = query @ key.mT / 2 + bias
    expected = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    found = attend_with_bias(qkv, bias)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    wanted, got = (torch.autograd.grad((made * weights).sum(), (qkv, bias)) for made in (expected, found))
    torch.testing.assert_close(got, wanted)


def test_hidden_channels_at_a_time_are_all_of_them() -> None:
    torch.manual_seed(0)
    block = MBConv(12).double()
    maps = torch.randn(1, 12, 212, 212, dtype=torch.float64, requires_grad=True)
    results = []
    for made in (block(maps), lean_block(block, maps)):
        gradients = torch.autograd.grad(made.square().mean(), [maps, *block.parameters()])
        results.append((made.detach(), *gradients))
    with torch.no_grad():
        torch.testing.assert_close(block(maps), results[0][0])
    torch.testing.assert_close(results[1], results[0])


def test_only_matrices_are_projected(encoder: TinyVit) -> None:
    matrices, others = encoder.weight_matrices()
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    projected = {names[id(matrix)] for matrix in matrices}
    assert {"patch_embed.seq.0.c.weight", "layers.0.blocks.0.conv1.c.weight", "layers.1.blocks.0.attn.qkv.weight"} <= (
        projected
    )
    rest = {names[id(parameter)] for parameter in others}
    assert {"layers.0.blocks.0.conv2.c.weight", "layers.1.blocks.0.attn.attention_biases"} <= rest
    assert not any("local_conv" in name or ".bn." in name or name.endswith("bias") for name in projected)


@torch.no_grad()
def test_lora_changes_queries_and_values_of_every_head(encoder: TinyVit) -> None:
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    attention: Any = encoder.attentions()[0]
    before, plain = attention.qkv.weight.clone(), encoder(images)[0]
    add_lora(encoder, rank=2)
    lora = attention.qkv
    assert isinstance(lora, LoraQkv)
    assert torch.equal(encoder(images)[0], plain)
    nn.init.normal_(lora.query_up)
    nn.init.normal_(lora.value_up)
    changed = encoder(images)[0]
    sums = {name: weight() for name, weight in merged_weights(encoder).items()}
    merged = SMALL.build(image_size=96, in_channels=3).double()
    merged.load_state_dict(
        {name: sums.get(name, tensor) for name, tensor in encoder.state_dict().items()}, strict=False
    )
    torch.testing.assert_close(merged(images)[0], changed, rtol=1e-4, atol=1e-5)  # the sum is made in float32
    update = (lora.merged_weight() - before).unflatten(0, (2, 3, 6))
    expected = (lora.query_up @ lora.query_down).unflatten(0, (2, 6))
    torch.testing.assert_close(update[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert not update[:, 1].abs().max() > 1e-6
    torch.testing.assert_close(
        update[:, 2], (lora.value_up @ lora.value_down).unflatten(0, (2, 6)), rtol=1e-4, atol=1e-5
    )


UNUSED = {
    "image_encoder.norm_head.weight": torch.ones(320),
    "image_encoder.norm_head.bias": torch.zeros(320),
    "image_encoder.head.weight": torch.zeros(1000, 320),
    "image_encoder.head.bias": torch.zeros(1000),
    "image_encoder.patch_embed.seq.0.bn.num_batches_tracked": torch.tensor(7),
    "image_encoder.layers.1.blocks.0.local_conv.bn.num_batches_tracked": torch.tensor(7),
}


def mobile_sam(side: int = 64, seed: int = 0, classes: int = 4) -> KClassSam:
    torch.manual_seed(seed)
    return build_sam("mobile_sam", classes=classes, image_size=side)


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """The tensors of a file like ``mobile_sam.pt``."""
    return mobile_sam().state_dict() | UNUSED


def test_the_published_file_lands_without_its_classifier(published: dict[str, Tensor], tmp_path: Path) -> None:
    assert {
        "image_encoder.patch_embed.seq.2.bn.running_var",
        "image_encoder.layers.0.blocks.1.conv3.bn.weight",
        "image_encoder.layers.0.downsample.conv2.c.weight",
        "image_encoder.layers.2.blocks.5.attn.attention_biases",
        "image_encoder.layers.3.blocks.1.mlp.fc2.bias",
        "image_encoder.layers.3.blocks.0.local_conv.bn.running_mean",
        "image_encoder.neck.3.bias",
    } <= published.keys()
    # As counted in the public code, which has the classifier, too.
    assert sum(p.numel() for p in mobile_sam().image_encoder.parameters()) + 320 * 2 + 321 * 1000 == 6_065_532
    torch.save(published, tmp_path / "mobile_sam.pt")
    assert detect_architecture(tmp_path / "mobile_sam.pt") == "mobile_sam"
    model = mobile_sam(side=96, seed=1)
    info = load_pretrained(model, tmp_path / "mobile_sam.pt")
    assert (info.architecture, info.image_size, info.layout) == ("mobile_sam", 1024, "official")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, published[name]), name


@pytest.mark.parametrize("name", ["image_encoder.adapter.weight", "image_encoder.head.weight_scale"])
def test_what_is_not_known_is_refused(published: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    torch.save(published | {name: torch.zeros(3)}, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=f"1 unexpected: {name}"):
        load_pretrained(mobile_sam(), tmp_path / "odd.pt")


def test_another_depth_is_another_model(published: dict[str, Tensor], tmp_path: Path) -> None:
    deeper = published | {"image_encoder.layers.2.blocks.6.mlp.norm.bias": torch.zeros(160)}
    torch.save(deeper, tmp_path / "deeper.pt")
    with pytest.raises(InputError, match="weights of SAM"):
        detect_architecture(tmp_path / "deeper.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_with_its_statistics(tmp_path: Path, dtype: torch.dtype) -> None:
    model = build_sam("mobile_sam", classes=3, image_size=64, dtype=dtype)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path / "model.safetensors")
    images = 255 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(images), model(images))
    assert loaded.state_dict()["image_encoder.patch_embed.seq.0.bn.running_var"].dtype == torch.float32


@pytest.mark.parametrize("method", ["medsaga", pytest.param("samed", marks=pytest.mark.exhaustive)])
def test_a_run_trains_and_predicts(
    toy: Path, tmp_path: Path, quick: Settings, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "small", dataclasses.replace(SMALL, decoder_mlp_dim=32))
    settings = dataclasses.replace(
        quick, model="small", method=method, random_weights=True, steps=2, evaluate_every=2, rank=2
    )
    result = train(toy, tmp_path / "run", settings)
    assert (result["projected_parameters"] > 0) == (method == "medsaga")
    assert Segmenter.load(tmp_path / "run").model.architecture == "small"
