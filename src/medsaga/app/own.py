"""What the page makes in a dataset: a hidden folder of its own, and runs."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from medsaga import run_folder
from medsaga.data.layouts.finding import subfolders

OWN = ".medsaga"
"""The page's folder in the dataset: versions of masks, journals, the data of runs, colours."""
SETS = "sets"
"""The folder in it with the data of runs, each in a folder of its run's name."""
RUNS = "runs"
"""The folder in the dataset with the runs."""


class RunFolders:
    """The runs in a dataset, and one that lies elsewhere and is shown among them.

    Args:
        root: of the dataset.
        elsewhere: the other run, if there is any.
    """

    def __init__(self, root: Path, elsewhere: Path | None) -> None:
        self._folder, self._sets, self._elsewhere = root / RUNS, root / OWN / SETS, elsewhere
        self._lock = threading.Lock()
        self._promised: set[str] = set()

    def found(self) -> dict[str, Path]:
        """Return the run folders by their ids, the oldest first."""
        found = [folder for folder in subfolders(self._folder) if (folder / run_folder.CONFIG).is_file()]
        if self._elsewhere is not None and self._elsewhere not in found:
            found.insert(0, self._elsewhere)
        return {id_of(str(folder)): folder for folder in sorted(found, key=_made)}

    def new(self) -> Path:
        """Return a run folder to be, which does not exist, nor has been returned before: its training may wait."""
        with self._lock:
            number = 1
            while f"run{number}" in self._promised or any(
                (folder / f"run{number}").exists() for folder in (self._folder, self._sets)
            ):
                number += 1
            self._promised.add(f"run{number}")
            return self._folder / f"run{number}"


def dataset_of_set(folder: Path) -> Path | None:
    """Return the dataset that a folder has some cases of, for a run; None where it is no such folder."""
    is_set = folder.parent.name == SETS and folder.parent.parent.name == OWN
    return folder.parents[2] if is_set else None


def id_of(name: str) -> str:
    """Return what stands for a name in addresses: names of files may be names of people."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _made(run: Path) -> tuple[float, str]:
    path = run / run_folder.CONFIG
    return path.stat().st_mtime if path.exists() else 0.0, run.name
