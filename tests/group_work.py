"""What the processes of a test of groups do; they import this module."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medsaga.compare.grid import compare
from medsaga.distributed.group import SMALL, Group
from medsaga.errors import InputError
from medsaga.prediction.files import OutputOptions, predict_files
from medsaga.runs.evaluate import evaluate_run
from medsaga.settings.options import SharedSettings


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


def predict_together(group: Group, run: Path, images: Path, out: Path) -> list[str]:
    """Segment a folder; return what process 0 was told of, and what the others were."""
    told: list[Path] = []
    wanted = OutputOptions(measure=True)
    predict_files(run, images, out, wanted, device="cpu", console=_silent(), written=told.append, group=group)
    return [path.name for path in told]


def evaluate_together(group: Group, run: Path, data: Path) -> dict[str, Any]:
    """Score a run on other data."""
    return evaluate_run(run, data=data, device="cpu", console=_silent(), group=group)


def compare_together(group: Group, data: Path, out: Path) -> list[dict[str, Any]]:
    """Compare two methods with one another."""
    settings = SharedSettings(steps=2, batch_size=2, image_size=64, device="cpu", random_weights=True, model="tiny")
    return compare(
        data, out, settings, methods=["medsaga", "frozen"], shots=[1], seeds=1, console=_silent(), group=group
    )


def _silent() -> Console:
    return Console(file=io.StringIO())
