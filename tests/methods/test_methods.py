"""Every method goes through the same loop, and trains what it says."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import fit_only, write_toy_dataset
from resolved import resolved
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from medsaga.data.dataset import read_dataset
from medsaga.errors import InputError
from medsaga.methods import METHODS, build_model, new_optimizer
from medsaga.methods.base import Method
from medsaga.models.lora import merged_weights
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_pretrained, save_model
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import choose_model, without_effect
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.train import train
from medsaga.settings.options import ResolvedSettings, Settings

pytestmark = pytest.mark.xdist_group("methods")


def _settings(method: str, **given: Any) -> ResolvedSettings:
    return resolved(method=method, **given)


def _small(method: str) -> str | None:
    """The smallest model of a method."""
    return "tiny" if METHODS[method].trains_sam else None


def _prepared(settings: ResolvedSettings) -> Any:
    model = build_model(settings, classes=9, in_channels=3)
    METHODS[settings.method].adapt(model, settings)
    return model


def _trained(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


class Trained(NamedTuple):
    """A run, and what it was made from and with."""

    method: str
    data: Path
    folder: Path
    settings: Settings
    result: dict[str, Any]


# DAE-Former is the largest by far; test_continuing and test_daeformer show it, too.
@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.exhaustive] if name == "daeformer" else []) for name in METHODS],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of two steps from random weights, by each of the methods."""
    root, method = tmp_path_factory.mktemp("trained"), request.param
    settings = Settings(
        method=method, model=_small(method), shots=3, image_size=64, steps=2, batch_size=2, evaluate_every=2, rank=8
    )
    settings = dataclasses.replace(settings, refresh_every=3, device="cpu")
    data = write_toy_dataset(root / "toy")
    return Trained(method, data, root / "run", settings, train(data, root / "run", settings))


def test_a_run_is_tested_predicted_and_complete(trained: Trained) -> None:
    method, data, folder, settings, result = trained
    assert result["trainable_parameters"] > 0
    matrices, _ = build_sam("tiny", classes=3, image_size=64, in_channels=1).image_encoder.weight_matrices()
    assert result["projected_parameters"] == (sum(w.numel() for w in matrices) if method == "medsaga" else 0)
    assert result["lora"] == ("queries and values" if method == "samed" else None)
    assert 0.9 < result["predicted_peak_memory_bytes"] / result["peak_memory_bytes"] < 1.1
    assert sum(result["memory_breakdown"].values()) == result["peak_memory_bytes"]
    segmenter, item = Segmenter.load(folder), read_dataset(data).items[0]
    assert segmenter.predict_item(item).labels.shape == item.header.grid.shape
    assert train(data, folder, settings, resume=True) == result


def test_what_is_not_trained_stays_as_it_was(trained: Trained) -> None:
    method = trained.method
    settings = _settings(method, model=_small(method), image_size=64)
    torch.manual_seed(0)
    model = build_model(settings, classes=3, in_channels=1)
    METHODS[method].adapt(model, settings)
    before, after = model.state_dict(), load_file(trained.folder / "model.safetensors")
    new_optimizer(model, settings)
    weights = {name for name, weight in model.named_parameters() if weight.requires_grad}
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved <= weights
    # Prompts, which nobody gives, move nothing.
    assert len(moved) > 0.7 * len(weights)
    parts = {name.split(".")[0] for name in moved}
    assert parts >= {"medsaga": {"image_encoder", "mask_decoder"}, "frozen": {"mask_decoder"}}.get(method, set())


def test_sizes_as_published() -> None:
    """SAMed: 147,456 parameters in LoRA on ViT-B; DAE-Former: 48.07 M in all."""
    with torch.device("meta"):
        samed = _prepared(_settings("samed", model="vit_b", image_size=512))
        new_optimizer(samed, _settings("samed", model="vit_b", image_size=512)).close()
        assert _trained(samed.image_encoder) == 147_456
        assert 4.0e6 < _trained(samed) < 5.0e6
        daeformer = _prepared(_settings("daeformer"))
        assert sum(weight.numel() for weight in daeformer.parameters()) == pytest.approx(48.07e6, rel=0.01)


# Each model's own test shows that it computes in half precision; what a run adds to that is the same for all of them.
@pytest.mark.parametrize(
    ("method", "half"),
    [
        pytest.param(*pair, marks=[] if pair in {("medsaga", "bf16"), ("full", "fp16")} else pytest.mark.exhaustive)
        for pair in itertools.product(METHODS, ["bf16", "fp16"])
    ],
)
def test_trains_in_half_precision(method: str, half: Any, toy: Path, tmp_path: Path, quick: Settings) -> None:
    settings = dataclasses.replace(quick, method=method, model=_small(method), steps=1, augmentation="none")
    settings = dataclasses.replace(settings, precision=half, state_bits=8)
    result = train(toy, tmp_path / "run", settings)
    assert result["skipped_steps"] == 0
    predicted = predict_memory(
        _settings(method, model=_small(method), image_size=64, batch_size=2), classes=3, in_channels=1
    )
    assert result["peak_memory_bytes"] < predicted.peak_bytes


@pytest.mark.parametrize("method", ["daeformer", "unet"])
def test_models_of_their_own_take_no_weights_of_sam(method: str, tmp_path: Path) -> None:
    refused: list[dict[str, Any]] = [{"model": "vit_b"}, {"model": "sam.pth"}, {"model": "starter"}]
    refused.append({"precision": "int8"})
    for given in refused:
        with pytest.raises(InputError, match="Leave"):
            choose_model(Settings(method=method, **given))


def test_samed_keeps_the_pretrained_weights_beside_its_updates(toy: Path, tmp_path: Path, quick: Settings) -> None:
    torch.manual_seed(1)
    weights = tmp_path / "base.safetensors"
    save_model(weights, build_sam("tiny", classes=4, image_size=64))
    fit_only(toy, tmp_path / "run", dataclasses.replace(quick, method="samed", model=str(weights), steps=2))
    trained: Any = Segmenter.load(tmp_path / "run").model
    base = build_sam("tiny", classes=3, image_size=64, in_channels=1).eval()
    load_pretrained(base, weights)
    name = "image_encoder.blocks.3.attn.qkv.weight"
    assert torch.equal(trained.state_dict()[name], base.state_dict()[name])
    assert not torch.equal(merged_weights(trained)[name](), base.state_dict()[name])


@pytest.mark.parametrize(
    ("method", "unused"),
    [
        ("medsaga", []),
        ("samed", ["--refresh-every"]),
        ("frozen", ["--rank", "--refresh-every"]),
        ("unet", ["--rank", "--refresh-every"]),
    ],
)
def test_what_a_method_has_no_use_for_is_said(method: str, unused: list[str]) -> None:
    given = Settings(method=method, rank=8, refresh_every=3)
    assert [warning.partition(" has no effect")[0] for warning in without_effect(choose_model(given))] == unused
    assert without_effect(choose_model(Settings(method=method))) == ()


def test_a_run_says_so(toy: Path, tmp_path: Path, quick: Settings) -> None:
    said = io.StringIO()
    settings = dataclasses.replace(quick, method="unet", model=None, steps=1)
    fit_only(toy, tmp_path / "run", settings, console=Console(file=said, width=200))
    assert "warning: --rank has no effect with --method unet, which projects no gradient" in said.getvalue()


def test_the_optimizer_is_a_choice(toy: Path, tmp_path: Path, quick: Settings) -> None:
    settings = dataclasses.replace(quick, method="unet", model=None, optimizer="sgd", steps=2)
    settings = dataclasses.replace(settings, encoder_lr=0.01, decoder_lr=0.01)
    result = train(toy, tmp_path / "run", settings)
    assert np.isfinite(result["dice_mean"])
    assert 0.9 < result["predicted_peak_memory_bytes"] / result["peak_memory_bytes"] < 1.1
    with pytest.raises(InputError, match="adamw"):
        choose_model(Settings(optimizer="sgd"))


def test_every_method_suits_its_own_image_sizes() -> None:
    for name, method in METHODS.items():
        assert isinstance(method, Method)
        for architecture in method.architectures:
            sizes = method.image_sizes(architecture)
            assert sizes == sorted(sizes)
            assert resolved(method=name, model=architecture).image_size == sizes[-1]


def test_the_projection_may_have_two_sides(toy: Path, tmp_path: Path, quick: Settings) -> None:
    fit_only(toy, tmp_path / "run", dataclasses.replace(quick, projection="two_sided", rank=4, steps=1))
    states = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["optimizer"]["state"].values()
    bases = [(state["basis_left"].shape[1], state["basis_right"].shape[1]) for state in states if "basis_left" in state]
    assert len(bases) > 15
    assert set(bases) == {(4, 4)}
    assert {state["exp_avg"].shape for state in states if "basis_left" in state} == {(4, 4)}
