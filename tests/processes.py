"""Several processes on this machine for a test, started quickly: by a server that has imported torch."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from medsaga.distributed.environment import STORE
from medsaga.distributed.group import ALONE, Group
from medsaga.distributed.joining import joined
from medsaga.errors import MedsagaError
from medsaga.models.int8 import plain_state
from medsaga.models.precision import cast_parameters
from medsaga.runs.prepare import new_run, resumed_run
from medsaga.runs.train import prepared_once
from medsaga.settings.options import Settings
from medsaga.training.events import Event, Notice, Stepped
from medsaga.training.trainer import Trainer

_SERVER = multiprocessing.get_context("forkserver")
# Torch's optimizers import its compiler when they are made, and writing a state its tests: seconds in every process.
_SERVER.set_forkserver_preload(["medsaga.runs.train", "medsaga.distributed.joining", "torch._dynamo"])
_SECONDS = 120


def started(work: Callable[..., Any], *given: Any) -> multiprocessing.process.BaseProcess:
    """Start a process that does some work and can be killed; its imports take no time.

    Args:
        work: a function of a module that the process can import.
        given: its arguments, which can be pickled.
    """
    process = _SERVER.Process(target=work, args=given)
    process.start()
    return process


def together(size: int, folder: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """Run ``work(group, *given)`` in processes that form a group; return what each returns, or its error.

    Args:
        size: number of processes.
        folder: for the file in which they meet.
        work: a function of a module that the processes can import.
        given: its arguments, which can be pickled.
    """
    store = folder / f"store-{len(list(folder.iterdir()))}"
    pipes = [_SERVER.Pipe(duplex=False) for _ in range(size)]
    processes = [
        _SERVER.Process(target=_member, args=(rank, size, str(store), sent, work, given))
        for rank, (_, sent) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sent in pipes:
        sent.close()
    results: list[Any] = []
    for received, _ in pipes:
        try:
            assert received.poll(_SECONDS), "a process hangs"
            results.append(received.recv())
        except EOFError:
            results.append(None)
    for process in processes:
        process.join(_SECONDS)
        if process.is_alive():
            process.kill()
    return results


def _member(rank: int, size: int, store: str, sent: Any, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, STORE: store, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in names.items()})
    torch.set_num_threads(1)
    try:
        with joined() as group:
            sent.send(work(group, *given))
    except MedsagaError as error:
        sent.send(error)
    except Exception:
        sent.send(AssertionError(traceback.format_exc()))


@dataclass(frozen=True)
class Trouble:
    """What goes wrong in one process.

    Attributes:
        rank: of the process.
        call: of the model's forward pass in training in which it happens; the first is 1.
        kind: ``memory``, ``nan``, ``signal``, ``kill``, or ``drift``, a weight that is changed alone; ``backward``:
            memory runs out in the backward pass that follows; or ``bases``: while the first bases are made.
    """

    rank: int
    call: int
    kind: str


@dataclass
class Trained:
    """What came of a training in one process."""

    losses: list[float] = field(default_factory=list)
    made: list[bool] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    weights: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""
    micro_batch_size: int = 0
    peak_bytes: int = 0


def train_together(
    group: Group,
    data: Path,
    out: Path,
    settings: Settings,
    trouble: Trouble | None = None,
    double: bool = False,
    resume: bool = False,
) -> Trained:
    """Train as `medsaga.runs.train` does, without the test, and in float64 if ``double``."""
    console = Console(file=io.StringIO())
    opening = (lambda: resumed_run(data, out, settings, console)) if resume else None
    run = prepared_once(group, opening or (lambda: new_run(data, out, settings, console)), out, console)
    if double:
        cast_parameters(run.model, torch.float64)
    trained = Trained()

    def note(event: Event) -> None:
        match event:
            case Stepped():
                trained.losses.append(event.loss)
                trained.made.append(event.made)
            case Notice():
                trained.said.append(event.text)

    chooses = bool(run.split.validation)
    with Trainer(
        out, run.config.settings, run.model, train=run.train, monitor=run.monitor, chooses=chooses, group=group
    ) as trainer:
        trainer.listeners.append(note)
        if trouble is not None and trouble.rank == group.rank:
            _make(trouble, run.model, trainer.optimizer)
        with trainer.interrupts.on_signals(lambda: None):
            trained.reason = trainer.run().reason
        trained.weights = {
            name: value.reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, value in plain_state(run.model).items()
        }
        trained.micro_batch_size = trainer.counters.micro_batch_size
        trained.peak_bytes = trainer.counters.peak_bytes
    return trained


def train_several(group: Group, data: Path, out: Path, several: list[Settings]) -> list[Trained]:
    """Train in float64 as each of several settings says, one after the other."""
    return [train_together(group, data, out / str(n), each, double=True) for n, each in enumerate(several)]


def train_alone(data: Path, out: Path, settings: Settings, **given: Any) -> Trained:
    """Train in this process."""
    return train_together(ALONE, data, out, settings, **given)


def _make(trouble: Trouble, model: nn.Module, optimizer: Any) -> None:
    calls, calibrate = 0, optimizer.calibrate

    def short_of_memory() -> bool:
        optimizer.calibrate = calibrate
        raise torch.OutOfMemoryError("out of memory")

    if trouble.kind == "bases":
        optimizer.calibrate = short_of_memory

    def run_out(_: Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory")

    def happen(model: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        nonlocal calls
        if not model.training:
            return None
        calls += 1
        if calls != trouble.call:
            return None
        match trouble.kind:
            case "memory":
                raise torch.OutOfMemoryError("out of memory")
            case "backward":
                output.register_hook(run_out)
            case "nan":
                return output * float("nan")
            case "signal":
                os.kill(os.getpid(), signal.SIGINT)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "drift":
                with torch.no_grad():
                    next(model.parameters()).add_(1e-3)
        return None

    model.register_forward_hook(happen)
