"""A process between ours and one of Flower's, which ends it when ours is gone, however that was killed.

python -m medsaga.federated.keeper COMMAND ARGUMENT...
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_PAUSE = 0.3
_PATIENCE = 10
"""Seconds that the command has to end when it is asked to."""


def keep(command: Sequence[str]) -> int:
    """Run a command until it ends, this process is asked to end, or the process that started this one is gone."""
    parent = os.getppid()
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.append(True))
    process = subprocess.Popen(command)
    while process.poll() is None and not asked and os.getppid() == parent:
        time.sleep(_PAUSE)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        process.kill()
    return process.wait()


if __name__ == "__main__":
    raise SystemExit(keep(sys.argv[1:]))
