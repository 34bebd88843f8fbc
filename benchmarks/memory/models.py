"""What every model costs: parameters, memory of a training step, and its time beside ViT-B's.

    python -m benchmarks.memory.models [--only lite,vit_b]

Memory is the planner's: one image, nine classes, rank 64, bf16 weights, 8-bit state, blocks computed again. The time is
the CPU's, of the forward and the backward pass of one image of 512 px in float32 with blocks computed again, on one
thread, the least of three; it says nothing exact about GPUs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine
from medsaga import files
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import KClassSam, build_sam
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

CLASSES = 9
SIDES = (512, 1024)
TIMED_SIDE = 512
REPEATS = 3
REFERENCE = "vit_b"
GPU = DeviceDefaults("bf16", 8)


def peak(architecture: str, side: int) -> dict[str, int]:
    """Return the predicted peak of a training step in bytes, in all and by category."""
    asked = Settings(model=architecture, image_size=side, batch_size=1, rank=64, checkpointing="blocks")
    settings = resolve(asked, Facts(device=GPU, classes=CLASSES, channels=3))
    prediction = predict_memory(settings, classes=CLASSES, in_channels=3)
    return {"peak": prediction.peak_bytes, **prediction.breakdown}


def seconds(architecture: str) -> float:
    """Return the CPU seconds of a forward and a backward pass of one image."""
    torch.manual_seed(0)
    model = build_sam(architecture, classes=CLASSES, image_size=TIMED_SIDE).train()
    model.checkpoint_blocks = True
    image = 255 * torch.rand(1, 3, TIMED_SIDE, TIMED_SIDE)
    took = []
    for _ in range(REPEATS):
        began = time.process_time()
        model(image).square().mean().backward()
        took.append(time.process_time() - began)
        model.zero_grad()
    return min(took)


def parameters(architecture: str) -> dict[str, int]:
    """Return the parameters of the encoder and of the whole model, as published with four masks."""
    with torch.device("meta"):
        model: KClassSam = build_sam(architecture, classes=4, image_size=ENCODERS[architecture].image_size)
    return {
        "encoder_parameters": sum(p.numel() for p in model.image_encoder.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def table(costs: dict[str, Any]) -> str:
    """Lay the costs out as Markdown."""
    lines = [
        "| model | encoder, M | all, M | 512 px, MiB | 1024 px, MiB | weights, MiB | time, ViT-B = 1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        peaks = [cost["bytes"][str(side)] for side in SIDES]
        millions = [f"{cost[key] / 1e6:.1f}" for key in ("encoder_parameters", "parameters")]
        mebibytes = [f"{size / 2**20:,.0f}" for size in (*(each["peak"] for each in peaks), peaks[-1]["weights"])]
        time = f"{cost['relative_time']:.2f}"
        lines.append(f"| {' | '.join([name, *millions, *mebibytes, time])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", help="architectures, separated by commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = arguments.only.split(",") if arguments.only else list(ENCODERS)
    reference = seconds(REFERENCE)
    costs = {}
    for name in wanted:
        took = reference if name == REFERENCE else seconds(name)
        costs[name] = {
            **parameters(name),
            "bytes": {str(side): peak(name, side) for side in SIDES},
            "seconds": round(took, 3),
            "relative_time": round(took / reference, 3),
        }
        print(name, json.dumps(costs[name]), flush=True)
    files.write_json(arguments.out / "models.json", {"machine": machine(), "models": costs})
    files.write_text(arguments.out / "models.md", table(costs))


if __name__ == "__main__":
    main()
