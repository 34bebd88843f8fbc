"""The memory that a training step of each published size takes at most: the promise of the lean path, in bytes."""

from __future__ import annotations

import pytest
from resolved import resolved

from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import predict_memory
from medsaga.settings.options import Settings

MIB = 2**20


@pytest.mark.parametrize(
    ("model", "image_size", "batch_size", "precision", "target", "today"),
    [
        pytest.param("vit_b", 512, 12, "bf16", 350, 333, marks=pytest.mark.exhaustive),
        ("vit_b", 1024, 1, "bf16", 550, 400),
        ("mobile_sam", 1024, 1, "bf16", 300, 176),
        ("slimsam_77", 1024, 1, "bf16", 300, 180),
        pytest.param("vit_l", 1024, 1, "bf16", 1150, 993, marks=pytest.mark.exhaustive),
        pytest.param("vit_h", 1024, 1, "bf16", 2048, 1817, marks=pytest.mark.exhaustive),
        pytest.param("vit_h", 1024, 1, "int8", 1500, 1261, marks=pytest.mark.exhaustive),
    ],
)
def test_a_training_step_stays_within_its_target(
    model: str, image_size: int, batch_size: int, precision: str, target: int, today: int
) -> None:
    given = Settings(
        model=model,
        image_size=image_size,
        batch_size=batch_size,
        micro_batch_size=1,
        precision=precision,  # type: ignore[arg-type]
        state_bits=8,
        checkpointing="blocks",
        rank=64,
    )
    settings = resolved(given, suits=DeviceDefaults("bf16", 8))
    predicted = predict_memory(settings, classes=9, in_channels=3)
    shares = ", ".join(f"{name} {size / MIB:.1f}" for name, size in predicted.breakdown.items())
    print(
        f"\n{model} {image_size} px, batch {batch_size}, {precision}: {predicted.peak_bytes / MIB:.1f} MiB ({shares})"
    )
    assert predicted.peak_bytes <= target * MIB
    # Far below the target a change for the worse would pass unseen.
    assert predicted.peak_bytes <= 1.03 * today * MIB
