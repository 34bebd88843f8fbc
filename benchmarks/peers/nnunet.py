"""nnU-Net v2, ``2d``: its own planning, preprocessing and prediction by its commands, its trainer within CPU seconds.

nnU-Net is no dependency of this project: it lies in a virtual environment of its own, and its commands beside the
interpreter there.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.costs import Cost, run_counted
from medsaga import files
from medsaga.errors import InputError

DATASET = "Dataset001_peers"
TRAINING = Path(__file__).with_name("nnunet_training.py")
PLANS = "nnUNetPlans"
KEPT_OF_PLAN = ("patch_size", "batch_size", "spacing", "normalization_schemes")


@dataclass(frozen=True)
class NnUNet:
    """Where nnU-Net lies, and where it works.

    Attributes:
        python: the interpreter of its environment.
        home: a folder for its three folders; its raw folder ``raw/Dataset001_peers`` is there already.
    """

    python: Path
    home: Path

    def prepare(self) -> tuple[Cost, dict[str, Any]]:
        """Fingerprint, plan and preprocess; return the cost, and what was planned."""
        cost = self._run(self._command("plan_and_preprocess"), "-d", "1", "-c", "2d", "-np", "1", "-npfp", "1")
        plan = files.read_json(self.home / "preprocessed" / DATASET / f"{PLANS}.json")["configurations"]["2d"]
        return cost, {name: plan[name] for name in KEPT_OF_PLAN}

    def train(self, cpu_seconds: float) -> tuple[Cost, dict[str, Any]]:
        """Train on all training cases; return the cost, and the number of steps with the first and last loss."""
        facts = self.home / "facts.json"
        # Without worker processes, what augmentation takes is counted as it goes along.
        cost = self._run(self.python, TRAINING, facts, "--cpu-seconds", str(cpu_seconds), nnUNet_n_proc_DA="0")
        return cost, dict(files.read_json(facts))

    def predict(self, out: Path) -> Cost:
        """Predict all test images, with mirroring, as label maps ``NAME.png`` of class indices."""
        images = self.home / "raw" / DATASET / "imagesTs"
        model = ("-d", "1", "-c", "2d", "-f", "all", "-device", "cpu")
        return self._run(self._command("predict"), "-i", images, "-o", out, *model, "-npp", "1", "-nps", "1")

    def versions(self) -> dict[str, str]:
        """Return the versions in its environment."""
        program = (
            "import json, importlib.metadata as m;"
            "print(json.dumps({n: m.version(n) for n in ('nnunetv2', 'torch', 'batchgeneratorsv2')}))"
        )
        said = subprocess.run([self.python, "-c", program], check=True, capture_output=True, text=True).stdout
        found: dict[str, str] = json.loads(said)
        return found

    def _command(self, name: str) -> Path:
        command = self.python.with_name(f"nnUNetv2_{name}")
        if not command.exists():
            do = "Make the environment as the README says, and name its interpreter with --nnunet-python."
            raise InputError(command, expected="nnU-Net's command", found="nothing of this name", do=do)
        return command

    def _run(self, *command: str | Path, **variables: str) -> Cost:
        folders = {f"nnUNet_{each}": str(self.home / each) for each in ("raw", "preprocessed", "results")}
        # One process, and so one thread: as many threads predict as there are processes.
        one = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "false"}
        return run_counted(command, log=self.home / "log.txt", env={**folders, **one, **variables})
