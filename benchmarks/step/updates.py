"""What the optimizer's part of a step takes: calls of torch and time, with weights updated together and one by one.

OMP_NUM_THREADS=1 python -m benchmarks.step.updates

A call of torch is about one launch of a kernel on a GPU; those that compute nothing, like views, do not count.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.machine import machine
from benchmarks.runs import described
from benchmarks.training_steps import CLASSES, TrainingSteps
from medsaga import files
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings

MODELS: dict[str, dict[str, Any]] = {
    "lite": {"image_size": 192, "batch_size": 4},
    "vit_b": {"image_size": 224, "batch_size": 1},
}
STORAGES = {"float32": DeviceDefaults("fp32", 32), "bfloat16, 8-bit state": DeviceDefaults("bf16", 8)}
"""The defaults on a CPU and on a GPU."""
BUCKETS = "medsaga.optim.buckets.ELEMENTS"
ROUNDS = 4
COMPUTE_NOTHING = {
    *("view", "_unsafe_view", "slice", "split", "split_with_sizes", "unbind", "select", "permute", "transpose", "t"),
    *("unsqueeze", "squeeze", "expand", "detach", "alias", "as_strided", "reshape", "_reshape_alias", "lift_fresh"),
    *("empty", "empty_like", "new_empty", "promote_types", "_local_scalar_dense"),
}


class Calls(TorchDispatchMode):
    """Counts what a GPU would be called for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and carry it out."""
        self.count += func.overloadpacket.__name__ not in COMPUTE_NOTHING
        return func(*args, **(kwargs or {}))


def measure(model: str, storage: DeviceDefaults) -> dict[str, Any]:
    """Return the calls and the least CPU seconds of the two parts of a step without a change of basis."""
    facts = Facts(device=storage, classes=CLASSES, channels=3)
    settings = resolve(Settings(model=model, random_weights=True, checkpointing="none", **MODELS[model]), facts)
    steps = TrainingSteps(settings, torch.device("cpu"))
    steps.step()
    parts = {"gradient": steps.accumulate, "update": steps.update}
    calls = dict.fromkeys(parts, 0)
    seconds: dict[str, list[float]] = {part: [] for part in parts}
    for part, make in parts.items():
        with Calls() as counting:
            make()
        calls[part] = counting.count
    for _ in range(ROUNDS):
        for part, make in parts.items():
            began = time.process_time()
            make()
            seconds[part].append(time.process_time() - began)
    return {"calls": calls, "seconds": {part: min(each) for part, each in seconds.items()}}


def main() -> None:
    """Do it."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    found = []
    for model in MODELS:
        for name, storage in STORAGES.items():
            together = measure(model, storage)
            with patch(BUCKETS, (1, 1)):
                alone = measure(model, storage)
            found.append({"model": model, "weights": name, "together": together, "one by one": alone})
            print(model, name, together, alone, flush=True)
    files.write_json(out / "updates.json", {"machine": machine(), "updates": found})


if __name__ == "__main__":
    main()
