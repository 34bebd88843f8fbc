"""What travels in a step is what the shapes of the weights say, and a fraction of all gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.distributed.bytes import CLASSES, MESSAGES, RANKS, payloads
from medsaga.files import read_json
from medsaga.models.sam import build_sam
from medsaga.settings.options import Precision

RECORD = Path(__file__).parents[2] / "benchmarks" / "distributed" / "bytes.json"


@pytest.mark.parametrize(
    ("model", "rank", "precision"),
    [
        ("tiny", 4, "fp32"),
        pytest.param("tiny", 4, "bf16", marks=pytest.mark.exhaustive),
        pytest.param("vit_b", 64, "fp32", marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_sends_the_projections_and_what_is_trained_in_full(model: str, rank: int, precision: Precision) -> None:
    with torch.device("meta"):
        network = build_sam(model, classes=CLASSES, image_size=64)
        network(torch.empty(1, 3, 64, 64)).sum().backward()
    matrices, _ = network.image_encoder.weight_matrices()
    projected = {id(matrix) for matrix in matrices}
    shapes = [(len(matrix), matrix.numel() // len(matrix)) for matrix in matrices]
    ranks = [min(rank, m, n) for m, n in shapes]
    low_rank = sum(r * max(m, n) for r, (m, n) in zip(ranks, shapes, strict=True))
    # Of the shorter side: as many columns as benchmarks/galore has found to be enough.
    sketches = sum(min(m, n) * min(2 * r + 8, max(m, n)) for r, (m, n) in zip(ranks, shapes, strict=True))
    # SAM's estimate of its own quality has no part in the loss.
    used = [weight for weight in network.parameters() if weight.grad is not None]
    whole = sum(weight.numel() for weight in used if id(weight) not in projected)
    width = {"fp32": 4, "bf16": 2}[precision]
    counted = payloads(model, rank, 64, precision)
    assert counted["plain"] == width * (low_rank + whole) + MESSAGES
    assert counted["sketched"] == width * (low_rank + sketches + whole) + MESSAGES
    assert counted["ddp"] == width * sum(weight.numel() for weight in network.parameters())


@pytest.mark.exhaustive
def test_the_record_is_what_is_counted_today() -> None:
    wanted = ("vit_b", 224, 64)
    rows = [row for row in read_json(RECORD)["rows"] if (row["model"], row["side"], row["rank"]) == wanted]
    assert {row["precision"] for row in rows} == {"fp32", "bf16"}
    for row in rows:
        counted = payloads(row["model"], row["rank"], row["side"], row["precision"])
        assert counted == {name: row[name] for name in counted}


def test_the_record_keeps_its_distance_from_all_gradients() -> None:
    least = {("vit_b", 224): (16, 13, 7), ("vit_b", 1024): (11, 9, 6)}
    least |= {("vit_h", 224): (80, 45, 16), ("vit_h", 1024): (50, 33, 14)}
    rows = read_json(RECORD)["rows"]
    assert len(rows) == 24
    for row in rows:
        assert row["times"] >= dict(zip(RANKS, least[row["model"], row["side"]], strict=True))[row["rank"]], row
