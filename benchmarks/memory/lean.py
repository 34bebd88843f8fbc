"""What medsaga takes, beside its peers, and what each lean switch is worth: predicted peaks of a training step.

    python -m benchmarks.memory.lean --out benchmarks/memory

Writes lean.json and lean.png. The peers' numbers come from peers.json: `python -m benchmarks.memory.peers`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.runs import described
from medsaga import files
from medsaga.memory.tracker import CATEGORIES
from medsaga.models import attention, lean
from medsaga.optim.groups import PRESETS
from medsaga.planning import estimate as prediction
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import MemoryPrediction
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

CLASSES = 9
MIB = 2**20
ROWS = {
    "ViT-B, 512 px, effective batch 12": Settings(model="vit_b", image_size=512, batch_size=12, micro_batch_size=1),
    "ViT-B, 1024 px, batch 1": Settings(model="vit_b", image_size=1024, batch_size=1),
    "ViT-L, 1024 px, batch 1": Settings(model="vit_l", image_size=1024, batch_size=1),
    "ViT-H, 1024 px, batch 1": Settings(model="vit_h", image_size=1024, batch_size=1),
    "ViT-H, 1024 px, batch 1, int8 weights": Settings(model="vit_h", image_size=1024, batch_size=1, precision="int8"),
}
"""At rank 64, with the defaults of a GPU: bf16 weights, 8-bit state, blocks computed again."""
TARGETS = (350, 550, 1150, 2048, 1500)
"""In MiB, row by row."""
SWITCHED = tuple(ROWS)[:2]
"""Rows in which every switch is turned off, one at a time."""


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with the matrix of all token pairs."""
    return (query @ key.transpose(-1, -2)).softmax(-1) @ value


@contextlib.contextmanager
def whole_blocks() -> Iterator[None]:
    """Compute a block again as a whole: all heads, all tokens."""
    with patch.object(attention, "GROUP_ELEMENTS", 2**60), patch.object(lean, "CHUNK_TOKENS", 2**40):
        yield


SWITCHES: dict[str, tuple[dict[str, Any], Any]] = {
    "all on": ({}, contextlib.nullcontext),
    "attention with the matrix of all token pairs": ({}, lambda: patch.object(attention, "attend", naive_attention)),
    "blocks not computed again": ({"checkpointing": "none"}, contextlib.nullcontext),
    "blocks computed again as a whole": ({}, whole_blocks),
    "gradients kept until the step": ({}, lambda: patch.dict(PRESETS, {"default": {"refresh": "exact"}})),
    "the batch at once": ({"micro_batch_size": None}, contextlib.nullcontext),
    "fp32 weights": ({"precision": "fp32"}, contextlib.nullcontext),
    "32-bit state": ({"state_bits": 32}, contextlib.nullcontext),
    "AdamW on full gradients": ({"method": "full"}, contextlib.nullcontext),
    "further: int8 weights": ({"precision": "int8"}, contextlib.nullcontext),
    "further: state on the host": ({"state_on_host": True}, contextlib.nullcontext),
}


def predict(settings: Settings) -> MemoryPrediction:
    """Predict afresh: what is patched is no part of the settings."""
    resolved = resolve(settings, Facts(device=DeviceDefaults("bf16", 8), classes=CLASSES, channels=3))
    prediction._predict.cache_clear()
    return prediction.predict_memory(resolved, classes=CLASSES, in_channels=3)


def record(predicted: MemoryPrediction) -> dict[str, Any]:
    """Return the numbers in MiB."""
    return {
        "peak_mib": round(predicted.peak_bytes / MIB, 1),
        "breakdown_mib": {name: round(size / MIB, 1) for name, size in predicted.breakdown.items()},
        "inference_mib": round(predicted.inference_bytes / MIB, 1),
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the peaks as stacked bars."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.42 * len(rows) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = [row["setting"] for row in rows][::-1]
    left = [0.0] * len(rows)
    for category in CATEGORIES:
        widths = [row["breakdown_mib"][category] / 1024 for row in rows][::-1]
        axes.barh(names, widths, left=left, label=category)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for name, end in zip(names, left, strict=True):
        axes.text(end, name, f" {end * 1024:,.0f} MiB", va="center", fontsize=8)
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_xlabel("peak of a training step, GiB")
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    rows = []
    for (name, settings), target in zip(ROWS.items(), TARGETS, strict=True):
        rows.append({"setting": name, "target_mib": target, **record(predict(settings))})
        print(f"{name}: {rows[-1]['peak_mib']:,.0f} MiB (target {target:,})", flush=True)
    switches = []
    for row in SWITCHED:
        for name, (changes, patched) in SWITCHES.items():
            with patched():
                numbers = record(predict(dataclasses.replace(ROWS[row], **changes)))
            switches.append({"setting": row, "switch": name, **numbers})
            print(f"{row}, {name}: {numbers['peak_mib']:,.0f} MiB", flush=True)
    document = {"torch": torch.__version__, "rank": 64, "classes": CLASSES, "rows": rows, "switches": switches}
    files.write_json(arguments.out / "lean.json", document)
    peers = files.read_json(arguments.out / "peers.json")["rows"]
    ours = [{**row, "setting": f"medsaga, {row['setting']}"} for row in rows]
    draw([*peers, *ours], arguments.out / "lean.png")


if __name__ == "__main__":
    main()
