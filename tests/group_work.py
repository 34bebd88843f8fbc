"""What the processes of a test of groups do; they import this module."""

from __future__ import annotations

from typing import Any

import torch

from medsaga.distributed.group import SMALL, Group
from medsaga.errors import InputError


def everything(group: Group) -> dict[str, Any]:
    """Call each method once, with numbers that tell the processes apart."""
    own = float(group.rank + 1)
    small = [torch.full((5,), own), torch.full((3, 1), 10 * own, dtype=torch.bfloat16)]
    large = torch.randn(2 * SMALL, generator=torch.Generator().manual_seed(group.rank))
    every = [torch.randn(2 * SMALL, generator=torch.Generator().manual_seed(rank)) for rank in range(group.size)]
    strided = large.clone().view(-1, 2).T
    group.add([small[0], large, small[1], strided])
    total = torch.stack(every).sum(0)
    is_sum = all(torch.allclose(each, total, atol=1e-5) for each in (large, strided.T.flatten()))
    copied = torch.tensor([own, own])
    group.copy_first([copied])
    return {
        "sums": [each.flatten().tolist() for each in small],
        "large": is_sum,
        "bits": large.view(torch.int32).sum().item(),
        "copied": copied.tolist(),
        "gathered": group.gather(torch.tensor([10 * group.rank])).tolist(),
        "dealt": group.dealt_out(list(range(7))[group.rank :: group.size]),
        "any": (group.any(group.rank == 2), group.any(False)),
        "once": group.once(lambda: f"made by {group.rank}"),
        "rank": group.rank,
    }


def failing_once(group: Group) -> None:
    """Fail in process 0 alone."""

    def work() -> None:
        raise InputError("x", expected="a", found="b", do="c.")

    group.once(work)
