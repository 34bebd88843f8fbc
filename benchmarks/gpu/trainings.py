"""Whole trainings by the commands that a user types: their bits, their memory, two of them at once, and their Dice."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu.place import Place
from benchmarks.resume.models import Command
from benchmarks.resume.outcome import differences, outcome
from medsaga import run_folder
from medsaga.files import read_json
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, resolve
from medsaga.runs.train import train
from medsaga.settings.options import Settings

CHECKPOINT, KILLED_AFTER, STEPS = 10, 13, 20
SMALL_MODEL = ("--model=tiny", "--random-weights", "--image-size=64")
"""Of trainings in which only the way is tried."""
ROOM = 1.25
"""Memory that a step with a quarter of the batch is given, as a share of what is predicted for it."""


def same_bits(place: Place) -> dict[str, Any]:
    """Train twice, and once more with SIGKILL and ``--resume``: weights and results must have the same bits."""
    flags = [f"--steps={STEPS}", f"--evaluate-every={CHECKPOINT}", "--refresh-every=4", "--batch-size=2"]
    flags += ["--shots=2", "--validation-cases=0", "--test-cases=1", f"--device={place.device.type}"]
    flags += SMALL_MODEL if place.small else ["--image-size=192"]
    runs = {name: place.folder / name for name in ("first", "second", "killed")}
    for name, run in runs.items():
        arguments = ["train", str(place.dataset()), "--out", str(run), *flags]
        log = place.folder / "log"
        if name == "killed":
            Command(*arguments, log=log).kill_after(KILLED_AFTER, run / run_folder.METRICS)
            arguments.append("--resume")
        Command(*arguments, log=log).finish()
    first, second, killed = (outcome(run) for run in runs.values())
    return {
        "again": differences(first, second) or "the same",
        "killed_and_resumed": differences(first, killed) or "the same",
    }


def out_of_memory(place: Place) -> dict[str, Any]:
    """Let a process have the memory of a quarter of its batch: it must go on with smaller parts."""
    if place.device.type != "cuda":
        return {"not_measured": "the memory of a CPU cannot be limited"}
    settings = Settings(
        image_size=512, batch_size=16, steps=6, evaluate_every=6, shots=4, test_cases=1, validation_cases=0
    )
    facts = Facts(device=place.defaults, classes=4, channels=3)
    quarter = resolve(Settings(image_size=512, batch_size=16, micro_batch_size=4), facts)
    allowed = ROOM * predict_memory(quarter, classes=4, in_channels=3).peak_bytes
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(place.device).total_memory)
    said = io.StringIO()
    result = train(place.dataset(), place.folder / "run", settings, console=Console(file=said, width=200))
    lines = [line.strip() for line in said.getvalue().splitlines() if "out of memory" in line]
    return {"allowed_mib": allowed / 2**20, "said": lines, "steps": result["steps"], "dice": result["dice_mean"]}


def two_processes(place: Place) -> dict[str, Any]:
    """Train with one process and with two of half the batch each; say the steps' times and the losses' difference."""
    if place.device.type == "cuda" and torch.cuda.device_count() < 2:
        return {"not_measured": "every process takes a GPU of its own, and there is one"}
    losses, seconds = [], []
    for number in (1, 2):
        run = place.folder / str(number)
        flags = [f"--devices={number}", "--batch-size=4", "--shots=2", "--test-cases=1", "--validation-cases=0"]
        flags += [f"--device={place.device.type}"]
        flags += ["--steps=4", *SMALL_MODEL] if place.small else ["--steps=20", "--image-size=512"]
        Command("train", place.dataset(), "--out", run, *flags, log=place.folder / "log").finish()
        losses.append([line["loss"] for line in run_folder.read_metrics(run) if line["kind"] == "step"])
        seconds.append(read_json(run / run_folder.RESULT)["seconds_per_step"])
    return {
        "largest_difference_of_losses": max(abs(one - two) for one, two in zip(*losses, strict=True)),
        "seconds_per_step": seconds,
        "times_as_fast": seconds[0] / seconds[1],
    }


def few_shot(place: Place) -> dict[str, Any]:
    """Train with all defaults on a few cases; say Dice, time and both peaks."""
    run = place.folder / "run"
    flags = ["--shots=2", "--steps=3", "--image-size=96", "--test-cases=1"] if place.small else ["--shots=8"]
    command = Command(
        "train", place.dataset(), "--out", run, *flags, f"--device={place.device.type}", log=place.folder / "log"
    )
    took = command.finish()
    result = read_json(run / run_folder.RESULT)
    names = ("dice_mean", "steps", "seconds_per_step", "peak_memory_bytes", "device_peak_memory_bytes")
    return {**{name: result.get(name) for name in names}, **took, "data": _name(place.data)}


def _name(data: Path | None) -> str:
    return "generated CT" if data is None else data.name
