"""Images per second of two processes of one thread against one process of one thread, on CPUs that nobody else uses.

    python -m benchmarks.distributed.throughput --out benchmarks/distributed/throughput.json

``--models lite --steps 4`` is a short run, to see that it works. Both make the same steps: the same batch of `BATCH`
images, whole or in halves. Beside them, two processes of half the batch that exchange nothing: no way of exchanging can
be faster. The time of a step is the median, the first `WARM_UP` steps left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files
from medsaga.data.phantom import write_phantom_ct
from medsaga.run_folder import read_metrics

MODELS = ("lite", "vit_b")
SIDE, BATCH, STEPS, WARM_UP = 224, 8, 12, 2


def command(model: str, steps: int, folder: Path, out: Path, **changes: int) -> list[str]:
    """Return the command of a short training."""
    flags = {"model": model, "image-size": SIDE, "batch-size": BATCH, "steps": steps, "evaluate-every": steps}
    flags |= {"device": "cpu", "shots": 2, "test-cases": 1, "refresh-every": steps}
    flags |= {name.replace("_", "-"): value for name, value in changes.items()}
    start = [sys.executable, "-m", "medsaga", "train", str(folder / "data"), "--out", str(out), "--random-weights"]
    return [*start, *(f"--{name}={value}" for name, value in flags.items())]


def seconds_of_step(commands: Sequence[tuple[list[str], Path]]) -> float:
    """Run commands at the same time; return the seconds of a step, of the slowest of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(each, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for each, _ in commands
    ]
    for each in running:
        if each.wait() != 0:
            raise RuntimeError(f"a training ended with exit code {each.returncode}")
    return max(
        median(line["seconds"] for line in read_metrics(out)[1 + WARM_UP :] if line["kind"] == "step")
        for _, out in commands
    )


def measure(model: str, steps: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of a step: of one process, of two that share its batch, of two that exchange nothing.

    The last two have half of the batch each and all of the optimizer's work: what they take is what two cores of this
    machine can give, without any message.
    """
    places = {name: folder / f"{model}-{name}" for name in ("one", "two", "left", "right")}
    one = seconds_of_step([(command(model, steps, folder, places["one"]), places["one"])])
    two = seconds_of_step([(command(model, steps, folder, places["two"], devices=2), places["two"])])
    halves = [
        (command(model, steps, folder, places[side], batch_size=BATCH // 2), places[side]) for side in ("left", "right")
    ]
    unconnected = seconds_of_step(halves)
    times = {"times": round(one / two, 2), "times_unconnected": round(one / unconnected, 2)}
    return {"model": model, "one": one, "two": two, "two_unconnected": unconnected, **times}


def main() -> None:
    """Measure, print, and write the numbers."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--steps", type=int, default=STEPS)
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom_ct(folder / "data")
        for model in asked.models:
            rows.append(measure(model, asked.steps, folder))
            print(rows[-1], flush=True)
    files.write_json(
        asked.out, {"machine": machine(), "side": SIDE, "batch": BATCH, "steps": asked.steps, "rows": rows}
    )


if __name__ == "__main__":
    main()
