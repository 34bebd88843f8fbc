"""How a process finds the others that it trains with: what their launcher has put into the environment."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist

from medsaga.distributed.environment import STORE, launched_processes
from medsaga.distributed.group import ALONE, FailedElsewhereError, Group, ProcessGroup
from medsaga.errors import MedsagaError

LINGERING_SECONDS = 2
PATIENCE = datetime.timedelta(hours=3)
"""How long processes wait for one that is alive; process 0 may take so long to prepare images. A dead one is noticed
at once, because its connections close."""


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Yield the group of all processes that this one was launched with; `ALONE`, where nobody has launched it.

    Tensors on the CPU travel by gloo, those on CUDA by nccl; ``cuda`` without a number means a GPU of this process's
    own from here on.
    """
    processes = launched_processes()
    if processes == 1:
        yield ALONE
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store = os.environ.get(STORE)
    dist.init_process_group(
        backend,
        init_method="env://" if store is None else f"file://{store}",
        rank=int(os.environ["RANK"]),
        world_size=processes,
        timeout=PATIENCE,
    )
    group = ProcessGroup()
    try:
        yield group
    except FailedElsewhereError:
        # A launcher ends all processes when the first one fails: that is to be the one that says why. It is there
        # as long as its connections are, and a moment longer.
        with contextlib.suppress(MedsagaError):
            group.wait()
        time.sleep(LINGERING_SECONDS)
        raise
    group.close()
