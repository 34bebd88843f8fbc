"""Images per second of two processes of one thread against one process of one thread, on CPUs that nobody else uses.

    python -m benchmarks.distributed.throughput --out benchmarks/distributed/throughput.json

``--models lite --steps 4`` is a short run, to see that it works. Both make the same steps: the same batch of `BATCH`
images, whole or in halves. The time of a step is the median, the first `WARM_UP` steps left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import machine
from medsaga import files
from medsaga.data.phantom import write_phantom_ct
from medsaga.run_folder import read_metrics

MODELS = ("lite", "vit_b")
SIDE, BATCH, STEPS, WARM_UP = 224, 8, 12, 2


def seconds_per_step(model: str, processes: int, steps: int, folder: Path) -> float:
    """Train for a few steps; return the seconds of one."""
    out = folder / f"{model}-{processes}"
    flags = {"model": model, "image-size": SIDE, "batch-size": BATCH, "steps": steps, "evaluate-every": steps}
    flags |= {"device": "cpu", "devices": processes, "shots": 2, "test-cases": 1, "refresh-every": steps}
    command = [sys.executable, "-m", "medsaga", "train", str(folder / "data"), "--out", str(out), "--random-weights"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    return median(line["seconds"] for line in read_metrics(out)[1 + WARM_UP :] if line["kind"] == "step")


def main() -> None:
    """Measure, print, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom_ct(folder / "data")
        for model in asked.models:
            one, two = (seconds_per_step(model, processes, asked.steps, folder) for processes in (1, 2))
            rows.append({"model": model, "one": one, "two": two, "times": round(one / two, 2)})
            print(f"{model}: {BATCH / one:.2f} images/s alone, {BATCH / two:.2f} by two: {one / two:.2f} times")
    files.write_json(
        asked.out, {"machine": machine(), "side": SIDE, "batch": BATCH, "steps": asked.steps, "rows": rows}
    )


if __name__ == "__main__":
    main()
