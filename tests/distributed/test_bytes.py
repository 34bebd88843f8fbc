"""What travels in a step is what the shapes of the weights say, and a fraction of all gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.distributed.bytes import CLASSES, MESSAGES, payloads
from medsaga.files import read_json
from medsaga.models.sam import build_sam
from medsaga.settings.options import Precision

RECORD = Path(__file__).parents[2] / "benchmarks" / "distributed" / "bytes.json"


@pytest.mark.parametrize(
    ("model", "rank", "precision"),
    [("tiny", 4, "fp32"), ("tiny", 4, "bf16"), pytest.param("vit_b", 64, "fp32", marks=pytest.mark.exhaustive)],
)
def test_a_step_sends_the_projections_and_what_is_trained_in_full(model: str, rank: int, precision: Precision) -> None:
    with torch.device("meta"):
        network = build_sam(model, classes=CLASSES, image_size=64)
    matrices, _ = network.image_encoder.weight_matrices()
    projected = {id(matrix) for matrix in matrices}
    shapes = [(len(matrix), matrix.numel() // len(matrix)) for matrix in matrices]
    ranks = [min(rank, m, n) for m, n in shapes]
    low_rank = sum(r * max(m, n) for r, (m, n) in zip(ranks, shapes, strict=True))
    # Of the shorter side: as many columns as benchmarks/galore has found to be enough.
    sketches = sum(min(m, n) * min(2 * r + 8, max(m, n)) for r, (m, n) in zip(ranks, shapes, strict=True))
    whole = sum(weight.numel() for weight in network.parameters() if id(weight) not in projected)
    width = {"fp32": 4, "bf16": 2}[precision]
    counted = payloads(model, rank, 64, precision)
    assert counted["plain"] == width * (low_rank + whole) + MESSAGES
    assert counted["sketched"] == width * (low_rank + sketches + whole) + MESSAGES
    assert counted["ddp"] == width * sum(weight.numel() for weight in network.parameters())


def test_the_record_holds_what_the_page_says() -> None:
    times = {
        (row["model"], row["side"], row["precision"], row["rank"]): row["times"] for row in read_json(RECORD)["rows"]
    }
    assert len(times) == 24
    for (model, side, precision, rank), fewer in times.items():
        assert fewer == pytest.approx(times[model, side, "fp32", rank], rel=0.01), "the same in each precision"
        assert fewer > {"vit_b": {4: 15, 16: 10, 64: 6}, "vit_h": {4: 60, 16: 30, 64: 13}}[model][rank], precision
