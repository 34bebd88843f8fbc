"""Loss scaling: float16's small gradients survive, and an overflow costs a step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import fit_only
from torch import Tensor, nn

from medsaga.optim.galore import GaLoreAdamW
from medsaga.run_folder import read_metrics
from medsaga.settings.options import Settings
from medsaga.training import scaling
from medsaga.training.scaling import GROW_AFTER, INITIAL, LARGEST, LossScale, loss_scale_for
from medsaga.training.step import update


def test_an_overflow_halves_the_scale_and_a_hundred_good_steps_double_it() -> None:
    scale = LossScale(1024.0, adaptive=True)
    for _ in range(GROW_AFTER - 1):
        scale.adapt(finite=True)
    assert scale == LossScale(1024.0, adaptive=True, good_steps=GROW_AFTER - 1)
    scale.adapt(finite=False)
    assert scale == LossScale(512.0, adaptive=True)
    for _ in range(GROW_AFTER):
        assert scale.value == 512
        scale.adapt(finite=True)
    assert scale == LossScale(1024.0, adaptive=True)


def test_it_does_not_grow_without_end() -> None:
    scale = LossScale(LARGEST, adaptive=True)
    for _ in range(3 * GROW_AFTER):
        scale.adapt(finite=True)
    assert scale.value == LARGEST
    scale.adapt(finite=False)
    assert scale.value == LARGEST / 2


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_types_with_the_range_of_float32_need_none(precision: str) -> None:
    scale = loss_scale_for(precision)
    for finite in (True, False, False):
        scale.adapt(finite=finite)
    assert scale == LossScale(1.0)
    assert loss_scale_for("fp16") == LossScale(INITIAL, adaptive=True)


def _layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(32, 48, bias=False).half().to(dtype)


def _moments_after_a_step(dtype: torch.dtype, rank: int | None, factor: float) -> Tensor:
    """The first moment of a layer whose gradients are about 1e-9, a sixtieth of float16's least number."""
    layer = _layer(dtype)
    optimizer = GaLoreAdamW(layer.parameters(), rank=rank, refresh_every=10)
    scale = LossScale(factor, adaptive=True)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(8, 32, generator=generator).half().to(dtype)
    wanted = torch.randn(8, 48, generator=generator)
    for turn in range(2 if rank else 1):
        loss = 2.5e-10 * (layer(inputs).float() * wanted).sum()
        (scale.value * loss).backward()
        if rank and turn == 0:
            optimizer.calibrate()
    # Full and low-rank gradients alike are divided by the scale in float32.
    assert update(optimizer, max_gradient_norm=1e9, scale=scale)
    moment: Tensor = optimizer.state[layer.weight]["exp_avg"]
    assert moment.dtype == torch.float32
    return moment


@pytest.mark.parametrize("rank", [None, 4], ids=["full", "projected"])
def test_gradients_that_would_vanish_are_right(rank: int | None) -> None:
    assert not bool(_moments_after_a_step(torch.float16, rank, 1.0).any())
    exact = _moments_after_a_step(torch.float32, rank, 1.0)
    scaled = _moments_after_a_step(torch.float16, rank, INITIAL)
    assert 1e-11 < float(exact.abs().mean()) < 1e-8
    if rank is not None:  # the bases are those of two slightly different gradients: only their signs are free
        scaled, exact = scaled.abs(), exact.abs()
    # float16 has 11 bits, and the gradients about 8 of them left in its subnormal range.
    assert float((scaled - exact).norm() / exact.norm()) < 0.01


def test_the_norm_and_the_clipping_are_those_without_a_scale() -> None:
    norms, moments = [], []
    for factor in (1.0, 2.0**10):
        layer = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1)
        optimizer = GaLoreAdamW(layer.parameters())
        (factor * 100 * layer(torch.eye(4)).square().sum()).backward()
        optimizer.scale_gradients(1 / factor)
        norms.append(float(optimizer.clip_gradients(0.5)))
        optimizer.step()
        moments.append(optimizer.state[layer.weight]["exp_avg"])
    assert norms == pytest.approx([200 * 12**0.5] * 2)
    assert torch.equal(moments[0], moments[1])
    assert float(moments[0].norm()) == pytest.approx(0.1 * 0.5, rel=1e-5)


def test_an_overflow_skips_the_step_and_the_next_ones_train(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "INITIAL", 2.0**20)
    settings = dataclasses.replace(quick, random_weights=True, precision="fp16", steps=7, evaluate_every=7)
    settings = dataclasses.replace(settings, encoder_lr=1e-3, decoder_lr=2e-3)
    fit_only(toy, tmp_path / "run", settings)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    counters, scale = state["counters"], state["counters"]["loss_scale"]
    assert counters["skipped"] >= 1
    assert counters["skipped_in_a_row"] == 0
    assert scale["value"] == 2.0**20 / 2 ** counters["skipped"]
    assert scale["adaptive"]
    assert all(value.isfinite().all() for value in state["model"].values())
    assert {value.dtype for name, value in state["model"].items() if "weight" in name} == {torch.float16}
    made = [entry["step"] for entry in state["optimizer"]["state"].values()]
    assert set(made) == {settings.steps - counters["skipped"]}
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    assert losses[-1] < losses[0]
