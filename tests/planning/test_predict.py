"""A prediction is what the tracker counts when the same steps run on real tensors."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pytest
import torch
from real_steps import measure
from repetition import spread
from resolved import resolved

from medsaga.data.intensity import Intensity
from medsaga.data.symmetries import SYMMETRIES
from medsaga.memory.tracker import CATEGORIES, TensorTracker
from medsaga.models.sam import build_sam
from medsaga.planning import estimate
from medsaga.planning.estimate import MemoryPrediction, predict_memory
from medsaga.planning.shapes import OncePerShape
from medsaga.prediction.segmenter import Segmenter
from medsaga.settings.options import ResolvedSettings
from medsaga.settings.run_config import RunConfig

CPU = torch.device("cpu")


def settings(**given: Any) -> ResolvedSettings:
    """Settings of a run of the tiny model on small images; ``augmentation`` is drawn, so a test has none."""
    chosen = {"model": "tiny", "image_size": 64, "batch_size": 4, "rank": 16, "augmentation": "none", **given}
    return resolved(**chosen)


@pytest.mark.parametrize(
    ("given", "classes", "in_channels"),
    [
        ({}, 2, 3),
        ({"precision": "bf16", "state_bits": 8, "checkpointing": "blocks", "micro_batch_size": 1}, 5, 3),
        pytest.param(
            {"precision": "int8", "state_bits": 8, "checkpointing": "blocks", "micro_batch_size": 2},
            2,
            1,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            {"precision": "int8", "state_bits": 32, "checkpointing": "none", "image_size": 128, "batch_size": 2},
            5,
            3,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(
            {"precision": "bf16", "state_bits": 32, "image_size": 128, "micro_batch_size": 1, "batch_size": 2},
            2,
            4,
            marks=pytest.mark.exhaustive,
        ),
        pytest.param({"state_bits": 8, "micro_batch_size": 2}, 5, 4, marks=pytest.mark.exhaustive),
        pytest.param(
            {"checkpointing": "blocks", "batch_size": 2, "image_size": 128}, 2, 1, marks=pytest.mark.exhaustive
        ),
        pytest.param({"method": "full", "micro_batch_size": 2}, 5, 3, marks=pytest.mark.exhaustive),
        pytest.param(
            {"method": "full", "precision": "bf16", "state_bits": 8, "checkpointing": "blocks"},
            2,
            3,
            marks=pytest.mark.exhaustive,
        ),
        ({"method": "full", "precision": "int8", "state_bits": 8, "micro_batch_size": 1, "batch_size": 2}, 2, 3),
        pytest.param({"galore": "reference", "rank": 4}, 5, 3, marks=pytest.mark.exhaustive),
        pytest.param(
            {"galore": "reference", "micro_batch_size": 2, "checkpointing": "blocks"},
            2,
            3,
            marks=pytest.mark.exhaustive,
        ),
        ({"galore": "reference", "precision": "bf16", "state_bits": 8}, 2, 1),
    ],
    ids=str,
)
def test_a_prediction_is_what_real_steps_take(given: dict[str, Any], classes: int, in_channels: int) -> None:
    of = settings(**given)
    predicted = predict_memory(of, classes=classes, in_channels=in_channels)
    real = measure(of, classes=classes, in_channels=in_channels)
    assert predicted.peak_bytes == pytest.approx(real.peak_bytes, rel=5e-3)
    assert set(predicted.breakdown) == set(CATEGORIES)
    assert sum(predicted.breakdown.values()) == predicted.peak_bytes


def predict(**given: Any) -> MemoryPrediction:
    return predict_memory(settings(**given), classes=3, in_channels=3)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("micro_batch_size", [1, 2, 4]),
        ("image_size", [64, 96, 128]),
        ("rank", [4, 16, 64]),
        ("precision", ["int8", "bf16", "fp32"]),
        ("state_bits", [8, 32]),
        ("checkpointing", ["blocks", "none"]),
    ],
)
def test_more_of_anything_never_takes_less(name: str, values: list[Any]) -> None:
    predicted = [predict(**{name: value}) for value in values]
    assert [p.peak_bytes for p in predicted] == sorted(p.peak_bytes for p in predicted)
    assert [p.inference_bytes for p in predicted] == sorted(p.inference_bytes for p in predicted)


def test_the_batch_costs_no_memory_beyond_its_second_micro_batch() -> None:
    few, many = (predict(batch_size=size, micro_batch_size=2) for size in (4, 64))
    assert few == many


def test_a_process_takes_what_the_largest_share_of_the_batch_takes() -> None:
    shared = predict_memory(settings(batch_size=5, micro_batch_size=5), classes=3, in_channels=3, processes=2)
    alone = predict(batch_size=3, micro_batch_size=3)
    assert (shared.peak_bytes, shared.breakdown) == (alone.peak_bytes, alone.breakdown)


def test_what_no_size_depends_on_needs_no_other_prediction() -> None:
    other: dict[str, Any] = {
        "seed": 3,
        "encoder_lr": 0.1,
        "decoder_lr": 0.2,
        "dice_weight": 0.5,
        "weight_decay": 0.3,
        "fold": 2,
    }
    other |= {"max_gradient_norm": 9.0, "axis": "axial", "intensity": "identity", "protocol": "transunet"}
    assert predict(**other) is predict()


@pytest.mark.parametrize(("method", "state_bits"), spread(["medsaga", "full"], [8, 32]))
def test_state_on_the_host_is_not_counted(method: str, state_bits: int) -> None:
    here, there = (predict(method=method, state_bits=state_bits, state_on_host=host) for host in (False, True))
    assert here.breakdown["optimizer"] > 0
    assert there.breakdown["optimizer"] == 0
    assert here.peak_bytes - there.peak_bytes >= 0.8 * here.breakdown["optimizer"]


def test_momentum_on_the_host_is_gone_as_soon_as_it_is_written() -> None:
    here, there = (predict(method="full", optimizer="sgd", state_on_host=host) for host in (False, True))
    adamw = predict(method="full", state_on_host=True)
    assert there.breakdown["optimizer"] == 0
    # One bucket's at a time is on the device, with either optimizer.
    assert there.peak_bytes <= adamw.peak_bytes
    assert here.peak_bytes - there.peak_bytes >= 0.8 * here.breakdown["optimizer"]


@pytest.mark.parametrize(
    ("in_channels", "micro_batch_size", "classes", "augmentation"),
    [(3, 4, 3, "samed"), (1, 2, 3, "fewshot"), (3, 1, 14, "fewshot"), (1, 1, 100, "samed"), (1, 4, 100, "fewshot")],
)
def test_inference_is_what_a_segmenter_takes(
    in_channels: int, micro_batch_size: int, classes: int, augmentation: str
) -> None:
    of = settings(model="lite", micro_batch_size=micro_batch_size, augmentation=augmentation, device="cpu")
    predicted = predict_memory(of, classes=classes, in_channels=in_channels).inference_bytes
    config = RunConfig(
        data="",
        labels={f"label {n}": n for n in range(classes)},
        channels=tuple(f"channel {n}" for n in range(in_channels)),
        intensities=(Intensity("identity"),) * in_channels,
        settings=of,
    )
    model = build_sam(of.model, classes=classes, image_size=of.image_size, in_channels=in_channels)
    model.symmetries = tuple(SYMMETRIES) if augmentation == "fewshot" else ()
    segmenter = Segmenter(model, config, CPU)
    volume = np.zeros((in_channels, of.image_size, of.image_size, 4), np.uint8)
    tracker = TensorTracker("cpu")
    tracker.assign([*model.parameters(), *model.buffers()], "weights")
    with tracker:
        segmenter.predict(volume, spacing=(1.0, 1.0, 3.0))
    assert predicted == pytest.approx(tracker.peak_bytes, rel=0.02)


def test_nothing_is_allocated() -> None:
    of = resolved(
        model="vit_b",
        batch_size=32,
        micro_batch_size=32,
        checkpointing="none",
        image_size=1024,
    )
    predict()  # so that torch's own modules are loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert predict_memory(of, classes=9, in_channels=3).peak_bytes > 50 * 2**30
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB on Linux
    assert grown < 300 * 1024


def test_an_operation_that_is_known_gives_the_same_sizes_again() -> None:
    def operations() -> list[Any]:
        x = torch.empty(2, 6, 8, 8, device="meta")
        weight = torch.empty(4, 6, 3, 3, device="meta", dtype=torch.bfloat16)
        added = x.add_(1)
        assert added is x
        whole = x.transpose(1, 3)
        many = [torch.empty(3, 2, device="meta"), torch.empty(5, device="meta", dtype=torch.bfloat16)]
        copies = torch._foreach_mul(many, 2)
        torch._foreach_zero_(copies)
        torch._foreach_copy_(copies, many)
        return [
            whole.contiguous(),
            whole * 2,
            whole * x.transpose(1, 3).to(torch.float64),
            torch.nn.functional.conv2d(x.bfloat16(), weight),
            torch.nn.functional.layer_norm(x, (8,)),
            torch.empty(0, device="meta").resize_(5),
            torch.ops.aten._unsafe_view(x, [12, 64]),
            *x.topk(2),
            *torch.split(x, 2),
            *copies,
            *torch._foreach_norm(many, 2, dtype=torch.float64),
        ]

    plain = operations()
    with OncePerShape():
        first, again = operations(), operations()
    for results in (first, again):
        for expected, found in zip(plain, results, strict=True):
            assert (found.shape, found.stride(), found.dtype) == (expected.shape, expected.stride(), expected.dtype)
            assert found.untyped_storage().nbytes() == expected.untyped_storage().nbytes()


def test_what_is_known_from_before_changes_no_prediction() -> None:
    different: dict[str, Any] = {"precision": "bf16", "state_bits": 8, "checkpointing": "blocks", "image_size": 96}
    first = predict(**different)
    estimate._predict.cache_clear()
    again = predict(**different)
    assert again is not first
    assert again == first


def test_known_operations_share_memory_where_they_did_before() -> None:
    x = torch.empty(4, 6, device="meta")
    with OncePerShape():
        views = [torch.ops.aten._unsafe_view(x, [24]) for _ in range(2)]
        copies = [x.clone() for _ in range(2)]
    assert {view.untyped_storage()._cdata for view in views} == {x.untyped_storage()._cdata}
    assert len({copy.untyped_storage()._cdata for copy in (x, *copies)}) == 3
