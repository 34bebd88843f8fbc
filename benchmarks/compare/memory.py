"""What each method takes: the predicted peak of a training step, in MiB, with the defaults of a GPU and of a CPU.

    python -m benchmarks.compare.memory

Predicted on the meta device (`medsaga.planning.estimate`); ``benchmarks/memory`` has how good the predictions are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.runs import described
from medsaga import files
from medsaga.methods import METHODS
from medsaga.planning.defaults import GPU, DeviceDefaults
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

HERE = Path(__file__).parent
CLASSES, BATCH = 9, 4
PLACES: dict[str, tuple[str, DeviceDefaults, dict[str, Any]]] = {
    "SAM ViT-B, 512 px, GPU": ("vit_b", GPU, {"image_size": 512, "micro_batch_size": 1, "checkpointing": "blocks"}),
    "SAM ViT-B, 1024 px, GPU": ("vit_b", GPU, {"image_size": 1024, "micro_batch_size": 1, "checkpointing": "blocks"}),
    "lite, 192 px, CPU": ("lite", DeviceDefaults("fp32", 32), {"image_size": 192}),
}
"""Architecture of the SAM methods, defaults of the device, and settings that are equal for all methods."""


def main() -> None:
    """Do it."""
    described(__doc__).parse_args()
    rows: dict[str, dict[str, float]] = {name: {} for name in METHODS}
    for place, (architecture, defaults, given) in PLACES.items():
        for name, method in METHODS.items():
            model = architecture if method.trains_sam else None
            facts = Facts(device=defaults, classes=CLASSES, channels=1)
            settings = resolve(Settings(method=name, model=model, batch_size=BATCH, **given), facts)
            prediction = predict_memory(settings, classes=CLASSES, in_channels=1)
            rows[name][place] = round(prediction.peak_bytes / 2**20)
    files.write_json(HERE / "memory.json", {"classes": CLASSES, "batch_size": BATCH, "peak_mib": rows})
    print("| method | " + " | ".join(PLACES) + " |\n|---|" + "---:|" * len(PLACES))
    for name, peaks in rows.items():
        print(f"| {name} | " + " | ".join(f"{peaks[place]:,.0f}" for place in PLACES) + " |")


if __name__ == "__main__":
    main()
