"""Starting the processes of ``--devices N`` on this machine, by torch's own launcher; nothing listens beyond it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from medsaga.device import choose_device
from medsaga.distributed.environment import STORE
from medsaga.errors import InputError, Interrupted, RunError

SAVING_SECONDS = 600
"""How long processes that were asked to stop may take to finish their step and to save."""


def launch(processes: int, device: str, command: Sequence[str]) -> int:
    """Run a command line of medsaga in several processes of this machine that find each other; return the exit code.

    Ctrl-C and SIGTERM go on to all processes. When one fails, the others are ended.

    Args:
        processes: how many.
        device: ``auto``, ``cpu`` or ``cuda``: of these each process takes a GPU of its own.
        command: arguments of ``python -m medsaga``.

    Raises:
        InputError: there are not so many devices, or of a kind that cannot be used together.
        RunError: a process was killed; the message names it.
    """
    check_devices(processes, device)
    with tempfile.TemporaryDirectory(prefix="medsaga-") as folder, _environment(_variables(processes, folder)):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="medsaga",
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder, "launcher")),
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=SAVING_SECONDS,
            signals_to_handle="SIGTERM,SIGINT",
        )
        logging.disable()  # what the launcher has to say of a failure is said below, once
        try:
            elastic_launch(config, sys.executable)("-m", "medsaga", *command)
        except ChildFailedError as error:
            return _exit_code(error.failures)
        except SignalException:
            return Interrupted.exit_code
        finally:
            logging.disable(logging.NOTSET)
    return 0


def check_devices(processes: int, device: str) -> None:
    """Raise InputError unless this machine has a device of its own for each process."""
    if processes < 1:
        raise InputError("--devices", expected="at least 1", found=str(processes), do="Give a larger number.")
    kind = choose_device(device)
    if kind.type == "mps" or kind.index is not None:
        raise InputError(
            "--device",
            expected=f"cpu or cuda with --devices {processes}",
            found=device if device != "auto" else kind.type,
            do="Name the kind of device only.",
        )
    there = torch.cuda.device_count()
    if kind.type == "cuda" and processes > there:
        raise InputError(
            "--devices", expected=f"at most {there}, the GPUs of this machine", found=str(processes), do="Use fewer."
        )


def _variables(processes: int, folder: str) -> dict[str, str]:
    """The environment of the processes: they meet in a file, and talk over the loopback interface."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    return {
        STORE: str(Path(folder, "processes")),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", loopback),
        "NCCL_SOCKET_IFNAME": os.environ.get("NCCL_SOCKET_IFNAME", loopback),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _exit_code(failures: Mapping[int, ProcessFailure]) -> int:
    """Return the exit code of the process that failed first, which has said why; or say that it was killed.

    Raises:
        RunError: it was.
    """
    first = min(failure.timestamp for failure in failures.values())
    # Those that the launcher has ended because of it come later, or were asked by SIGTERM.
    early = {rank: failure for rank, failure in failures.items() if failure.timestamp <= first + 1}
    for rank, failure in sorted(early.items()):
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:
            raise RunError(
                f"process {rank} of the run was killed ({failure.signal_name()}), and the others have ended with it. "
                "If the machine is out of memory, use fewer --devices. Go on from the last checkpoint with --resume."
            )
    codes = [failure.exitcode for failure in early.values() if failure.exitcode > 0]
    return next((code for code in codes if code != RunError.exit_code), RunError.exit_code)
