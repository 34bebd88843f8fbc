"""What a command takes, with its children: CPU seconds, wall-clock seconds and memory. Linux only."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.5
_PROC = Path("/proc")


@dataclass(frozen=True)
class Cost:
    """What one or several commands took.

    Attributes:
        cpu_seconds: user and system time of each process and of the children that it waited for.
        wall_seconds: from the start to the end.
        peak_memory_bytes: the larger of two numbers: the largest sum, over the process and its descendants, of the
            proportional set size (a page that n processes share counts 1/n in each), looked at twice a second; and the
            peak of the resident set of the largest single process, which the kernel knows exactly.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_memory_bytes: int

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of one after the other."""
        return Cost(
            self.cpu_seconds + other.cpu_seconds,
            self.wall_seconds + other.wall_seconds,
            max(self.peak_memory_bytes, other.peak_memory_bytes),
        )

    def to_json(self) -> dict[str, float]:
        """Return it as a JSON document."""
        return asdict(self)


class CommandFailedError(RuntimeError):
    """A counted command failed; the message ends with what it said last."""


def run_counted(command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None) -> Cost:
    """Run a command on one thread and return what it took.

    Args:
        command: program and arguments.
        log: what it prints is appended here.
        env: variables beside those of this process.

    Raises:
        CommandFailedError: it ended with another status than 0.
    """
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    began, peak = time.perf_counter(), 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(each) for each in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread, **(env or {})},
        )
        while True:
            # Not Popen.wait: only wait4 tells what this one child and its own children took.
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            peak = max(peak, memory_of_tree(process.pid))
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        said = log.read_text(errors="replace")[-2000:]
        raise CommandFailedError(f"{command[0]} ended with {process.returncode}; {log} ends with:\n{said}")
    # The kernel knows the exact peak of a single process, which may lie between two looks.
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - began, max(peak, usage.ru_maxrss * 1024))


def cpu_seconds() -> float:
    """Return what this process and the children that it waited for have taken, imports included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def memory_of_tree(root: int) -> int:
    """Return the proportional set size in bytes of a process and its descendants; of those that are gone, 0."""
    return sum(_proportional_set_size(pid) for pid in tree_of(root, _parents()))


def tree_of(root: int, parents: Iterable[tuple[int, int]]) -> set[int]:
    """Return a process and its descendants, of pairs of process and parent."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents:
        children.setdefault(parent, []).append(pid)
    found, waiting = set[int](), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, [])
    return found


def _parents() -> list[tuple[int, int]]:
    pairs = []
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                # The name, in brackets, may hold spaces and brackets itself; state and parent follow it.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            pairs.append((int(folder.name), int(fields[1])))
    return pairs


def _proportional_set_size(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
