"""What every model costs: parameters, memory of a training step, and its time beside ViT-B's.

    OMP_NUM_THREADS=1 python -m benchmarks.memory.models [--only lite,mobile_sam]

Memory is the planner's: one image, nine classes, rank 64, bf16 weights, 8-bit state, blocks computed again. The time is
that of a whole training step, forward, backward and optimizer, with one image of 512 px in float32, 32-bit state and
blocks computed again: CPU seconds of one thread, the least of two steps that change no subspace, or a single one where
it takes half a minute. Only its ratio to ViT-B's in the same run counts, because machines differ; GPUs may have others.

Writes models.json and models.md, and ``costs.json`` in the package, which `medsaga weights list` shows: memory first,
then a time after the other. With ``--only`` the other models keep what they have.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from benchmarks.memory.step_time import stepper
from benchmarks.runs import described
from medsaga import files
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import build_sam
from medsaga.models.weights import costs
from medsaga.planning.defaults import GPU
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

CLASSES = 9
PUBLISHED_MASKS = 4
SIDES = (512, 1024)
TIMED_SIDE = 512
TIMED_STEPS = 2
ENOUGH_SECONDS = 30
"""No further step is timed after one of so many."""
REFERENCE = "vit_b"
MIB = 2**20


def peak(architecture: str, side: int) -> dict[str, int]:
    """Return the predicted peak of a training step in bytes, in all and by category."""
    asked = Settings(model=architecture, image_size=side, batch_size=1, rank=64, checkpointing="blocks")
    settings = resolve(asked, Facts(device=GPU, classes=CLASSES, channels=3))
    prediction = predict_memory(settings, classes=CLASSES, in_channels=3)
    return {"peak": prediction.peak_bytes, **prediction.breakdown}


def seconds(architecture: str) -> float:
    """Return the CPU seconds of a training step with one image."""
    given = {"model": architecture, "image_size": TIMED_SIDE, "batch_size": 1, "rank": 64}
    step = stepper(given, {"checkpointing": "blocks"})
    step()  # makes the optimizer's state
    took: list[float] = []
    while len(took) < TIMED_STEPS and sum(took) < ENOUGH_SECONDS:
        took.append(step())
    return min(took)


def parameters(architecture: str) -> dict[str, int]:
    """Return the parameters of the encoder and of the whole model."""
    with torch.device("meta"):
        model = build_sam(architecture, classes=PUBLISHED_MASKS, image_size=ENCODERS[architecture].image_size)
    return {
        "encoder_parameters": sum(p.numel() for p in model.image_encoder.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def in_the_package(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the package keeps of a row."""
    kept = costs.TrainingCost(
        parameters=row["parameters"],
        peak_memory_bytes_512px=row["bytes"]["512"]["peak"],
        peak_memory_bytes_1024px=row["bytes"]["1024"]["peak"],
        relative_step_time=row["relative_time"],
    )
    return dataclasses.asdict(kept)


def table(rows: dict[str, Any]) -> str:
    """Lay the costs out as Markdown."""
    lines = [
        "| model | parameters, M | of the encoder, M | 512 px, MiB | 1024 px, MiB | weights alone, MiB | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        peaks = [row["bytes"][str(side)] for side in SIDES]
        millions = [f"{row[key] / 1e6:.1f}" for key in ("parameters", "encoder_parameters")]
        mebibytes = [f"{size / MIB:,.0f}" for size in (*(each["peak"] for each in peaks), peaks[-1]["weights"])]
        time_to_reference = "not measured" if row["relative_time"] is None else f"{row['relative_time']:.2f}"
        lines.append(f"| {' | '.join([name, *millions, *mebibytes, time_to_reference])} |")
    return "\n".join(lines) + "\n"


def write(rows: dict[str, Any], out: Path) -> None:
    """Write the record, the table, and the file in the package."""
    rows = {name: rows[name] for name in ENCODERS if name in rows}
    files.write_json(out / "models.json", {"machine": machine(), "models": rows})
    files.write_text(out / "models.md", table(rows))
    files.write_json(costs.FILE, {name: in_the_package(row) for name, row in rows.items()})


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", help="architectures, separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = arguments.out / "models.json"
    rows = files.read_json(record)["models"] if record.exists() else {}
    wanted = arguments.only.split(",") if arguments.only else list(ENCODERS)
    for name in wanted:
        sizes = {str(side): peak(name, side) for side in SIDES}
        rows[name] = {**parameters(name), "bytes": sizes, "seconds": None, "relative_time": None}
        print(name, json.dumps(rows[name]), flush=True)
    write(rows, arguments.out)
    reference = seconds(REFERENCE)
    for name in wanted:
        took = reference if name == REFERENCE else seconds(name)
        rows[name] |= {"seconds": round(took, 3), "relative_time": round(took / reference, 3)}
        print(name, rows[name]["relative_time"], flush=True)
        write(rows, arguments.out)


if __name__ == "__main__":
    main()
