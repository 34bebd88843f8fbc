"""Runs whose weights live in fewer bits: they learn, go on to the same bits, and leave an ordinary model behind."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fit_only, interrupt_in
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from medsaga.errors import Interrupted
from medsaga.files import sha256
from medsaga.memory.tracker import TensorTracker
from medsaga.models.int8 import BLOCK
from medsaga.models.precision import WEIGHT_TYPES, set_precision
from medsaga.models.sam import build_sam
from medsaga.prediction.segmenter import Segmenter
from medsaga.run_folder import read_metrics
from medsaga.runs.train import train
from medsaga.settings.options import Settings


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if line["kind"] == "step"]


# Beside int8 matrices, all other weights are bf16.
@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.exhaustive), "int8"])
def test_a_narrow_run_learns_resumes_and_predicts(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    # A rank at which moments and bases are large enough for 8 bits; weights that know nothing of discs and bars yet.
    settings = dataclasses.replace(
        quick,
        precision=precision,
        state_bits=8,
        rank=32,
        evaluate_every=100,
        steps=4,
        encoder_lr=2e-3,
        decoder_lr=5e-3,
        random_weights=True,
    )
    whole, run = tmp_path / "whole", tmp_path / "run"
    result = train(toy, whole, settings)
    losses = _losses(whole)
    assert losses[-1] < 0.9 * losses[0]
    assert result["predicted_peak_memory_bytes"] == pytest.approx(result["peak_memory_bytes"], rel=0.02)

    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        with pytest.raises(Interrupted, match="--resume"):
            fit_only(toy, run, settings)
    saved = torch.load(run / "state.pt", weights_only=True)
    codes = [name for name, value in saved["model"].items() if value.dtype == torch.int8]
    assert len(codes) == (4 * 4 if precision == "int8" else 0)  # qkv, proj, lin1 and lin2 of four blocks
    state = [value for entry in saved["optimizer"]["state"].values() for value in entry.values()]
    assert torch.uint8 in {value.dtype for value in state if isinstance(value, Tensor)}
    fit_only(toy, run, settings, resume=True)
    assert sha256(run / "model.safetensors") == sha256(whole / "model.safetensors")
    assert _losses(run) == losses

    model = load_file(run / "model.safetensors")
    assert not [name for name in model if name.endswith((".codes", ".scales"))]
    assert {value.dtype for name, value in model.items() if "weight" in name} == {torch.bfloat16}
    segmenter = Segmenter.load(run, device="cpu")
    assert {parameter.dtype for parameter in segmenter.model.parameters()} == {torch.float32}
    prediction = segmenter.predict(np.array(Image.open(toy / "images" / "img0.png")), probabilities=True)
    assert prediction.labels.shape == (48, 64)
    assert prediction.probabilities is not None
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_the_weights_take_the_bytes_of_their_precision(precision: str) -> None:
    model = build_sam("tiny", classes=3, image_size=64)
    linears = [layer for layer in model.image_encoder.modules() if isinstance(layer, nn.Linear)]
    coded = sum(layer.weight.numel() for layer in linears)
    blocks = sum(layer.out_features * math.ceil(layer.in_features / BLOCK) for layer in linears)
    elements = sum(parameter.numel() for parameter in model.parameters())
    buffers = 4 * sum(buffer.numel() for buffer in model.buffers())
    set_precision(model, precision)
    tracker = TensorTracker()
    tracker.assign([*model.parameters(), *model.buffers()], "weights")
    expected = {"fp32": 4 * elements, "bf16": 2 * elements, "fp16": 2 * elements}
    expected["int8"] = 2 * (elements - coded) + coded + 4 * blocks
    assert tracker.peak_bytes == expected[precision] + buffers
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    assert model(torch.zeros(1, 3, 64, 64)).dtype == WEIGHT_TYPES[precision]
