"""Which run folder a user means, and what to say where something else is named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medsaga import run_folder
from medsaga.deltas.header import is_delta
from medsaga.errors import InputError


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder, or a file in one."""
    return (_folder(path) / run_folder.CONFIG).is_file()


def run_meant(path: Path, others: Sequence[Path] = (), right: str = "") -> Path:
    """Return the run folder that a user means by it, or by a file in it such as ``model.safetensors``.

    Args:
        path: what was named as the run. If it is none, the path itself is returned.
        others: what was named as data.
        right: the command with ``{run}`` and ``{data}`` at their places.

    Raises:
        InputError: ``path`` is no run, but one of the others is.
    """
    if not is_run(path):
        for other in others:
            if is_run(other):
                do = f"Exchange them: {right.format(run=_folder(other), data=path)}"
                raise InputError(path, expected="a run folder", found=f"none, but {other} is one", do=do)
    return _folder(path)


def require_data(path: Path, do: str) -> None:
    """Check that a path named as a dataset is not a run.

    Args:
        path: the dataset.
        do: what the user can do otherwise, with ``{run}`` at its place.

    Raises:
        InputError: it is a run.
    """
    if is_run(path):
        run = _folder(path)
        raise InputError(path, expected="a dataset folder", found="a run folder", do=do.format(run=run))


def _folder(path: Path) -> Path:
    """Return the run folder that a file in it stands for; a delta file stands for itself, wherever it lies."""
    stands = path.is_file() and (path.parent / run_folder.CONFIG).is_file() and not is_delta(path)
    return path.parent if stands else path
