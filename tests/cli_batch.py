"""Command lines run in a process of their own, one after another, as users run them: nothing of pytest around them.

Everything that reaches file descriptors 1 and 2 is kept, also what C code and Python's warnings write. A command
that hangs or crashes ends its process alone: the rest goes on in a new one. Needs Linux's ``/proc``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """What became of a command.

    Attributes:
        argv: the command.
        code: its exit code; minus the number of the signal that killed its process.
        out: what it wrote on stdout.
        err: what it wrote on stderr.
        seconds: of CPU time, which a busy machine does not prolong.
        peak: resident memory in bytes that the process had needed at most by then.
    """

    argv: tuple[str, ...]
    code: int
    out: bytes
    err: bytes
    seconds: float
    peak: int


def run_batch(
    commands: Sequence[Sequence[str]],
    folder: Path,
    *,
    seconds: int = 0,
    address_space: int = 0,
    preload: Sequence[str] = (),
) -> list[Done]:
    """Run ``medsaga`` with each of the argument lists.

    Args:
        commands: arguments of each.
        folder: for what they write; it is made.
        seconds: of wall clock after which a command is killed by SIGALRM; 0 waits for ever.
        address_space: bytes that the process may map beyond what it has after its imports; 0 is no limit.
        preload: modules to import first, so that their memory and time count for no command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Done] = []
    while len(done) < len(commands):
        first = len(done)
        plan = {
            "commands": [list(argv) for argv in commands],
            "first": first,
            "seconds": seconds,
            "address_space": address_space,
            "preload": list(preload),
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "log.jsonl").unlink(missing_ok=True)
        child = subprocess.run(
            [sys.executable, "-W", "always", __file__, str(folder)], capture_output=True, text=True, check=False
        )
        log = folder / "log.jsonl"
        for line in log.read_text().splitlines() if log.exists() else []:
            done.append(_done(folder, commands[len(done)], len(done), **json.loads(line)))
        if len(done) < len(commands):
            assert child.returncode < 0, child.stderr
            done.append(_done(folder, commands[len(done)], len(done), child.returncode, float(seconds), 0))
    return done


def _done(folder: Path, argv: Sequence[str], number: int, code: int, seconds: float, peak: int) -> Done:
    out, err = ((folder / f"{number}.{end}").read_bytes() for end in ("out", "err"))
    return Done(tuple(argv), code, out, err, seconds, peak)


def _child(folder: Path) -> None:
    """Run the commands of a plan; a line of the log for each that came to an end."""
    plan = json.loads((folder / "plan.json").read_text())
    for module in ("medsaga.cli", *plan["preload"]):
        __import__(module)
    from medsaga.cli import main

    if plan["address_space"]:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = mapped + plan["address_space"]
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in range(plan["first"], len(plan["commands"])):
        for descriptor, end in ((1, "out"), (2, "err")):
            target = os.open(folder / f"{number}.{end}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(target, descriptor)
            os.close(target)
        signal.alarm(plan["seconds"])
        began = time.process_time()
        try:
            code = main(plan["commands"][number])
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 1
        seconds = time.process_time() - began
        signal.alarm(0)
        sys.stdout.flush()
        sys.stderr.flush()
        peak = _peak()
        with (folder / "log.jsonl").open("a") as log:
            log.write(json.dumps({"code": code, "seconds": seconds, "peak": peak}) + "\n")


def _peak() -> int:
    """Return the most bytes that this program has had in memory; getrusage would count its parent's, too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
