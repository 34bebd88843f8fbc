"""When memory runs out, a run goes on in smaller parts, and to the result that it would have had with them."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fit_only, interrupt_in
from resolved import resolved
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from medsaga.cli import main
from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.intensity import Intensity
from medsaga.errors import Interrupted, OutOfMemoryError
from medsaga.files import sha256
from medsaga.models.sam import KClassSam, build_sam
from medsaga.optim.galore import GaLoreAdamW
from medsaga.prediction.segmenter import Segmenter
from medsaga.run_folder import read_metrics
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig
from medsaga.training import loss, out_of_memory, step
from medsaga.training.checkpoint import Counters
from medsaga.training.interrupts import Interrupts
from medsaga.training.out_of_memory import make_smaller, step_within_memory
from medsaga.training.step import Batch, StepMeter


@pytest.fixture
def settings(quick: Settings) -> Settings:
    """Four images a step, two at a time; the subspace changes in every second."""
    return dataclasses.replace(quick, batch_size=4, micro_batch_size=2, steps=2, evaluate_every=100, refresh_every=2)


def _exhaust(monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, Tensor], bool]) -> None:
    """Let memory run out in the loss of a micro-batch, where ``fails(call, logits)``; the first call is 1."""
    original, calls = loss.segmentation_loss, 0

    def exhausted(logits: Tensor, labels: Tensor, elsewhere: Tensor, **how: Any) -> Tensor:
        nonlocal calls
        if logits.is_meta:  # the prediction of the run's memory
            return original(logits, labels, elsewhere, **how)
        calls += 1
        if fails(calls, logits):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(logits, labels, elsewhere, **how)

    monkeypatch.setattr(step, "segmentation_loss", exhausted)


def _run_out_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    _exhaust(monkeypatch, lambda number, _: number == call)


def _counters(run: Path) -> dict[str, Any]:
    counters: dict[str, Any] = torch.load(run / "state.pt", weights_only=True)["counters"]
    return counters


def _weights(run: Path) -> Tensor:
    return torch.cat([value.flatten() for _, value in sorted(load_file(run / "model.safetensors").items())])


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if line["kind"] == "step"]


def _same_bits(one: Path, other: Path) -> bool:
    return sha256(one / "model.safetensors") == sha256(other / "model.safetensors")


@pytest.fixture
def said() -> Iterator[Console]:
    """A console that keeps what is printed on it."""
    with Path(os.devnull).open("w") as nowhere:
        yield Console(file=nowhere, record=True, width=200)


def test_in_the_first_step_the_result_is_that_of_the_smaller_parts(
    toy: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, said: Console
) -> None:
    small, run = tmp_path / "small", tmp_path / "run"
    fit_only(toy, small, dataclasses.replace(settings, micro_batch_size=1))
    _run_out_at(monkeypatch, 2)  # the first micro-batch has left its gradients
    fit_only(toy, run, settings, console=said)
    assert "out of memory in step 1; going on with 1 image(s) at a time" in said.export_text()
    assert _same_bits(run, small)
    assert _losses(run) == _losses(small)
    # Among them the peak and its breakdown: what the larger parts have taken is forgotten.
    assert _counters(run) == _counters(small)
    assert _counters(run)["micro_batch_size"] == 1


@pytest.mark.exhaustive
def test_smaller_parts_have_a_smaller_peak(
    toy: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_step = dataclasses.replace(settings, steps=1, micro_batch_size=4, image_size=128)
    fit_only(toy, tmp_path / "whole", one_step)
    # Parts of two fail as well, in the middle of their second pass.
    _exhaust(monkeypatch, lambda call, logits: len(logits) == 4 or (len(logits) == 2 and call == 3))
    fit_only(toy, tmp_path / "run", one_step)
    whole, ours = _counters(tmp_path / "whole"), _counters(tmp_path / "run")
    assert (whole["micro_batch_size"], ours["micro_batch_size"]) == (4, 1)
    assert ours["peak_bytes"] < 0.9 * whole["peak_bytes"]
    assert sum(ours["peak_breakdown"].values()) == ours["peak_bytes"]
    assert ours["peak_breakdown"]["activations"] < 0.5 * whole["peak_breakdown"]["activations"]


def test_the_accelerators_own_peak_starts_afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = resolved(batch_size=2, image_size=64)
    model = build_sam("tiny", classes=2, image_size=64)
    meter = StepMeter(torch.device("cpu"), first=0, refresh_every=10)
    batch = Batch(torch.empty(2, 3, 64, 64), torch.empty(2, 64, 64), 0, 0, AUGMENTATIONS["none"])
    counters = Counters(micro_batch_size=2, peak_bytes=5)
    happened: list[Any] = []

    def gathered(*_: Any, micro_batch_size: int, **__: Any) -> float:
        happened.append(micro_batch_size)
        if micro_batch_size == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.25

    monkeypatch.setattr(out_of_memory, "accumulate", gathered)
    monkeypatch.setattr(out_of_memory, "reset_device_peak", happened.append)
    done = step_within_memory(
        model,
        GaLoreAdamW(model.parameters()),
        batch,
        settings=settings,
        counters=counters,
        meter=meter,
        notice=happened.append,
        interrupts=Interrupts(),
    )
    assert done == (0.25, True)
    assert (happened[0], happened[2:]) == (2, [torch.device("cpu"), 1])
    assert "out of memory in step 1" in happened[1]
    assert counters == Counters(micro_batch_size=1, step=1)


def test_in_the_middle_of_a_run_only_rounding_changes(
    toy: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, steps=4, random_weights=True)
    small, run, resumed = tmp_path / "small", tmp_path / "run", tmp_path / "resumed"
    fit_only(toy, small, dataclasses.replace(settings, micro_batch_size=1))
    # Two passes in the first step, two micro-batches each: the eighth call is the second of step 3.
    with monkeypatch.context() as patch:
        _run_out_at(patch, 8)
        fit_only(toy, run, settings)
    torch.manual_seed(0)
    start = build_sam("tiny", classes=3, image_size=64, in_channels=1).state_dict()
    change = _weights(small) - torch.cat([value.flatten() for _, value in sorted(start.items())])
    # Sums in another order differ by 1e-7 of themselves; Adam divides by them, and makes more of it where a gradient
    # is next to 0. It was 2e-5 of the weights' way.
    distance = float((_weights(run) - _weights(small)).norm() / change.norm())
    assert 0 < distance < 1e-3
    assert _losses(run) == pytest.approx(_losses(small), rel=1e-4)

    # To the bit it is the run that was stopped before step 3, and went on with the smaller parts.
    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        with pytest.raises(Interrupted):
            fit_only(toy, resumed, settings)
    state = torch.load(resumed / "state.pt", weights_only=True)
    assert (state["counters"]["step"], state["counters"]["micro_batch_size"]) == (2, 2)
    state["counters"]["micro_batch_size"] = 1
    torch.save(state, resumed / "state.pt")
    fit_only(toy, resumed, settings, resume=True)
    assert _same_bits(run, resumed)
    assert _losses(run) == _losses(resumed)


@pytest.mark.exhaustive
def test_an_interrupted_run_goes_on_with_the_smaller_parts(
    toy: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, steps=3)
    whole, run = tmp_path / "whole", tmp_path / "run"
    seen: list[tuple[int, bool]] = []
    original = KClassSam.forward

    def noted(model: KClassSam, images: Tensor) -> Tensor:
        if model.training and not images.is_meta:
            seen.append((len(images), model.checkpoint_blocks))
        return original(model, images)

    monkeypatch.setattr(KClassSam, "forward", noted)

    # In step 2, one image at a time is still too much.
    too_much = {6, 7}
    with monkeypatch.context() as patch:
        _exhaust(patch, lambda call, _: call in too_much)
        fit_only(toy, whole, settings)
    assert [key for key, _ in itertools.groupby(seen)] == [(2, False), (1, False), (1, True)]
    with monkeypatch.context() as patch:
        _exhaust(patch, lambda call, _: call in too_much)
        interrupt_in(patch, 2)
        with pytest.raises(Interrupted):
            fit_only(toy, run, settings)
    saved = _counters(run)
    assert (saved["step"], saved["micro_batch_size"], saved["checkpoint_blocks"]) == (2, 1, True)
    seen.clear()
    fit_only(toy, run, settings, resume=True)
    assert set(seen) == {(1, True)}
    assert _same_bits(run, whole)
    assert _losses(run) == _losses(whole)
    after, expected = _counters(run), _counters(whole)
    assert (after["micro_batch_size"], after["checkpoint_blocks"]) == (1, True)
    assert after["step"] == expected["step"] == 3


def test_the_ladder_ends_with_exit_code_3_and_the_next_setting(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def always(_: int, logits: Tensor) -> bool:
        seen.append(len(logits))
        return True

    _exhaust(monkeypatch, always)
    flags = ["--model=tiny", "--shots=3", "--image-size=64", "--batch-size=8", "--steps=2", "--rank=4", "--device=cpu"]
    assert main(["train", str(toy), "--out", str(tmp_path / "run"), *flags]) == 3
    assert seen == [8, 4, 2, 1, 1]
    _, *lines = " ".join(capsys.readouterr().err.split()).split("out of memory in ")
    for line, rung in zip(lines, ["4 image(s)", "2 image(s)", "1 image(s)", "the encoder's blocks"], strict=True):
        assert line.startswith(f"step 1; going on with {rung}")
    assert "medsaga: CUDA out of memory Try --state-bits 8." in lines[-1]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_that_began_with_blocks_has_no_such_rung(
    toy: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _exhaust(monkeypatch, lambda *_: True)
    blocks = dataclasses.replace(settings, micro_batch_size=1, checkpointing="blocks", state_bits=8)
    with pytest.raises(OutOfMemoryError, match="--precision bf16"):
        fit_only(toy, tmp_path / "run", blocks)


def test_errors_that_are_no_shortage_are_not_swallowed(
    toy: Path, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("expected scalar type Float")

    monkeypatch.setattr(step, "segmentation_loss", broken)
    with pytest.raises(RuntimeError, match="scalar type"):
        fit_only(toy, tmp_path / "run", settings)


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [4, 2, 1]), (12, [6, 3, 1]), (10, [5, 2, 1]), (7, [1]), (1, [])])
def test_every_size_on_the_ladder_divides_the_batch(batch_size: int, sizes: list[int]) -> None:
    settings = resolved(batch_size=batch_size, image_size=64)
    counters = Counters(micro_batch_size=settings.micro_batch_size)
    for size in sizes:
        assert str(size) in str(make_smaller(counters, settings))
        assert counters.micro_batch_size == size
        assert not counters.checkpoint_blocks
    assert "blocks" in str(make_smaller(counters, settings))
    assert counters.checkpoint_blocks
    assert make_smaller(counters, settings) is None


# Inference


@pytest.fixture
def segmenter() -> Segmenter:
    """A model with random weights that was trained, so to speak, with eight images at a time."""
    torch.manual_seed(0)
    settings = resolved(batch_size=8, image_size=64)
    config = RunConfig("data", {"background": 0, "organ": 1}, ("grey",), (Intensity("identity"),), settings)
    return Segmenter(build_sam("tiny", classes=2, image_size=64, in_channels=1), config, torch.device("cpu"))


def _fits_only(monkeypatch: pytest.MonkeyPatch, images: int) -> list[int]:
    """Let a model run out of memory with more images; list the sizes that it is asked for."""
    original, asked = KClassSam.forward, []

    def limited(model: KClassSam, batch: Tensor) -> Tensor:
        asked.append(len(batch))
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, batch)

    monkeypatch.setattr(KClassSam, "forward", limited)
    return asked


def _volume() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (40, 48, 11), dtype=np.uint8)


def test_prediction_halves_its_batch_and_stays_the_same(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = segmenter.predict(_volume(), spacing=(1, 1, 5), probabilities=True)
    asked = _fits_only(monkeypatch, 2)
    progress: list[int] = []
    parts = segmenter.predict(
        _volume(), spacing=(1, 1, 5), probabilities=True, progress=lambda done, _: progress.append(done)
    )
    assert asked == [8, 4, 2, 2, 2, 2, 2, 1]  # 11 slices, 8 of which are prepared at a time
    assert progress == list(range(1, 12))
    assert whole.probabilities is not None
    assert parts.probabilities is not None
    np.testing.assert_allclose(parts.probabilities, whole.probabilities, atol=1e-5)
    # Only where two classes are as likely as each other may rounding decide.
    sure = np.abs(whole.probabilities[0] - 0.5) > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(parts.labels[sure], whole.labels[sure])
    asked.clear()
    again = segmenter.predict(_volume(), spacing=(1, 1, 5))
    assert asked == [2, 2, 2, 2, 2, 1]  # it has learned
    np.testing.assert_array_equal(again.labels, parts.labels)


def test_prediction_without_room_for_one_image_says_so(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _fits_only(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError, match="--device cpu"):
        segmenter.predict(_volume(), spacing=(1, 1, 5))
    assert asked == [8, 4, 2, 1]
