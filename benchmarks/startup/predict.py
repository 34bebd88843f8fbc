"""How long `medsaga predict` takes with one small image, beside the import of torch that it cannot do without.

    OMP_NUM_THREADS=1 python -m benchmarks.startup.predict [--model lite] [--rounds 7]

A run of a single step on generated images is made first. Then both commands take turns, each in a process of its own:
CPU seconds, of user and system together, from start to end. The least of the rounds counts, since other work on the
machine can only add to them. Writes predict.json beside this file.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import machine
from benchmarks.runs import described
from medsaga import files

AIM = 1.6
RECORD = Path(__file__).with_name("predict.json")


def write_dataset(root: Path) -> Path:
    """Write four images of 64 x 48 pixels with a bright rectangle each, and their masks; return the first image."""
    rng = np.random.default_rng(0)
    mask = np.zeros((48, 64), np.uint8)
    mask[12:36, 20:44] = 1
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(4):
        image = (rng.integers(0, 60, mask.shape) + 150 * mask).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return root / "images" / "0.png"


def cpu_seconds(*arguments: str | Path, bytecode: Path) -> float:
    """Run Python with arguments and return what it took.

    Args:
        arguments: of Python.
        bytecode: folder for compiled modules, as an installed package has them, even where the environment says that
            none are to be written: else compiling would count each time.

    Raises:
        RuntimeError: it has failed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment | {"PYTHONPYCACHEPREFIX": str(bytecode)},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode != 0:
        raise RuntimeError(said.decode())
    return used.ru_utime + used.ru_stime


def measure(model: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of both commands, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        data, run, out, bytecode = (Path(folder) / name for name in ("data", "run", "labels.png", "bytecode"))
        image = write_dataset(data)
        short = ["--steps=1", "--batch-size=1", "--image-size=64", "--shots=2", "--device=cpu", "--random-weights"]
        cpu_seconds("-m", "medsaga", "train", data, "--out", run, "--model", model, *short, bytecode=bytecode)
        commands: dict[str, list[str | Path]] = {
            "import torch": ["-c", "import torch"],
            "medsaga predict": ["-m", "medsaga", "predict", run, image, "--out", out, "--overwrite"],
        }
        took: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                took[name].append(round(cpu_seconds(*command, bytecode=bytecode), 3))
    least = {name: min(seconds) for name, seconds in took.items()}
    return {"least": least, "ratio": round(least["medsaga predict"] / least["import torch"], 3), "seconds": took}


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    found = measure(asked.model, asked.rounds)
    files.write_json(RECORD, {"machine": machine(), "model": asked.model, "aim": AIM, **found})
    print(found)


if __name__ == "__main__":
    main()
