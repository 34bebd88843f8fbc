"""``--devices N`` from the outside: exit codes, messages, and what is on the streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from medsaga.cli import main
from medsaga.distributed.launch import check_devices
from medsaga.errors import InputError
from medsaga.run_folder import read_metrics

FLAGS = ["--device=cpu", "--model=tiny", "--random-weights", "--image-size=32", "--rank=4", "--shots=3"]
FLAGS += ["--batch-size=4"]


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2"]


def _started(data: Path, out: Path, *flags: str, by: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *by, "-m", "medsaga", "train", str(data), "--out", str(out), *FLAGS, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _steps(run: Path) -> int:
    return sum(line["kind"] == "step" for line in read_metrics(run)) if run.exists() else 0


def _workers(launcher: int) -> list[int]:
    """Return the processes of a run in the order of their ranks."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    ranks: dict[int, int] = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(each[5:]): child for each in variables if each.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("by", "flags"), [((), ["--devices=2"]), (TORCHRUN, [])], ids=["devices", "torchrun"])
def test_two_processes_print_one_result(toy: Path, tmp_path: Path, by: Sequence[str], flags: list[str]) -> None:
    process = _started(toy, tmp_path / "run", "--steps", "2", "--json", *flags, by=by)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == 2
    assert err.count("report: ") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "rank", "code", "said"),
    [
        (signal.SIGKILL, 1, 1, "process 1 of the run was killed (SIGKILL)"),
        (signal.SIGTERM, None, 130, "its state is saved"),
    ],
)
def test_what_happens_to_one_happens_to_all_within_30_seconds_and_is_said_once(
    toy: Path, tmp_path: Path, kind: signal.Signals, rank: int | None, code: int, said: str
) -> None:
    run = tmp_path / "run"
    process = _started(toy, run, "--steps", "2000", "--evaluate-every", "2000", "--devices", "2")
    deadline = time.monotonic() + 300
    while _steps(run) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = _workers(process.pid)
    assert len(workers) == 2
    os.kill(process.pid if rank is None else workers[rank], kind)
    began = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert process.returncode == code, err
    messages = [line for line in err.splitlines() if line.startswith("medsaga: ")]
    assert len(messages) == 1, err
    assert said in messages[0]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert (run / "state.pt").exists() == (code == 130)


@pytest.mark.exhaustive
def test_unusable_data_are_said_once_with_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    process = _started(tmp_path / "empty", tmp_path / "run", "--devices", "2")
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert err.count("medsaga: ") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_a_process_without_an_image_is_refused(toy: Path, tmp_path: Path, capfd: Any) -> None:
    flags = [flag for flag in FLAGS if "batch-size" not in flag]
    assert main(["train", str(toy), "--out", str(tmp_path / "run"), *flags, "--batch-size=1", "--devices=2"]) == 2
    said = capfd.readouterr().err
    assert said.count("medsaga: ") == 1
    assert "--batch-size: expected at least 2" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("processes", "device", "flag"), [(0, "cpu", "--devices"), (2, "cuda:0", "--device")])
def test_devices_that_are_not_there(processes: int, device: str, flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        check_devices(processes, device)
