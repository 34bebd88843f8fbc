"""The memory that a training step takes at most: the promise of the lean path, in bytes, model by model."""

from __future__ import annotations

from pathlib import Path

import pytest
from resolved import resolved

from benchmarks.memory.models import in_the_package
from medsaga.files import read_json
from medsaga.models.encoders import ENCODERS
from medsaga.models.weights.costs import FILE, training_costs
from medsaga.models.weights.registry import known_weights
from medsaga.planning.defaults import GPU
from medsaga.planning.estimate import MemoryPrediction, predict_memory
from medsaga.settings.options import Precision, Settings

MIB = 2**20
RECORD = Path(__file__).parents[2] / "benchmarks" / "memory" / "models.json"
SIDES = (512, 1024)
AIMS = {
    ("lite", 512): 150,
    ("mobile_sam", 1024): 300,
    ("slimsam_77", 1024): 300,
    ("sam2.1_hiera_tiny", 1024): 350,
    ("sam2.1_hiera_base_plus", 1024): 600,
    ("sam2.1_hiera_large", 1024): 1100,
    ("vit_b", 1024): 550,
    ("vit_l", 1024): 1150,
    ("vit_h", 1024): 2048,
}
"""In MiB, of one image."""
QUICK = {("lite", 512), ("vit_b", 1024)}


def planned(model: str, image_size: int, *, batch_size: int = 1, precision: Precision = "bf16") -> MemoryPrediction:
    given = Settings(
        model=model,
        image_size=image_size,
        batch_size=batch_size,
        micro_batch_size=1,
        precision=precision,
        state_bits=8,
        checkpointing="blocks",
        rank=64,
    )
    predicted = predict_memory(resolved(given, suits=GPU), classes=9, in_channels=3)
    shares = ", ".join(f"{name} {size / MIB:.1f}" for name, size in predicted.breakdown.items())
    print(
        f"\n{model} {image_size} px, batch {batch_size}, {precision}: {predicted.peak_bytes / MIB:.1f} MiB ({shares})"
    )
    return predicted


@pytest.mark.parametrize(
    ("model", "image_size"),
    [
        pytest.param(model, side, marks=[] if (model, side) in QUICK else [pytest.mark.exhaustive])
        for model in ENCODERS
        for side in SIDES
    ],
)
def test_a_training_step_takes_what_the_list_of_weights_says(model: str, image_size: int) -> None:
    predicted = planned(model, image_size).peak_bytes
    # Another PyTorch may take a little more or less. A real change is written down: see benchmarks/memory/models.py.
    assert predicted == pytest.approx(getattr(training_costs()[model], f"peak_memory_bytes_{image_size}px"), rel=0.01)
    aim = AIMS.get((model, image_size))
    assert aim is None or predicted <= aim * MIB


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("model", "image_size", "batch_size", "precision", "target", "today"),
    [("vit_b", 512, 12, "bf16", 350, 333), ("vit_h", 1024, 1, "int8", 1500, 1261)],
)
def test_batches_and_int8_weights_stay_within_their_targets(
    model: str, image_size: int, batch_size: int, precision: Precision, target: int, today: int
) -> None:
    predicted = planned(model, image_size, batch_size=batch_size, precision=precision).peak_bytes
    assert predicted <= target * MIB
    # Far below the target a change for the worse would pass unseen.
    assert predicted <= 1.03 * today * MIB


def test_the_list_of_weights_has_the_numbers_of_the_record() -> None:
    rows = read_json(RECORD)["models"]
    assert {name: in_the_package(row) for name, row in rows.items()} == read_json(FILE)
    assert {known.architecture for known in known_weights().values()} <= rows.keys()
    assert rows["vit_b"]["relative_time"] == 1
