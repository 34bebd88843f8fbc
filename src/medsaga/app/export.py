"""Taking results along: label maps in the formats that other programs open, or the model, whole or as a delta."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medsaga import files, run_folder
from medsaga.app.project import Project
from medsaga.app.results import prediction_of, predictions
from medsaga.data.outputs import LabelMapInfo, kind_of, suffix_for, write_labels
from medsaga.data.types import to_label_values
from medsaga.errors import InputError, collecting

EXPORTS = "exports"
FORMATS = {"nifti": "NIfTI", "seg": "DICOM SEG", "png": "PNG"}
_ONE_AT_A_TIME = threading.Lock()


def formats_of(project: Project) -> list[str]:
    """Return the formats in which every image's label map can be written."""
    possible = []
    for kind in FORMATS:
        try:
            for item in project.items.values():
                kind_of(item, kind, None)
        except InputError:
            continue
        possible.append(kind)
    return possible


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: the new folder, which has all of it.
        left_out: of each image that could not be written, the message that says why.
    """

    folder: Path
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows of it."""
        files_in_it = sum(1 for _ in self.folder.iterdir())
        return {"folder": str(self.folder), "files": files_in_it, "left_out": list(self.left_out)}


def export_labels(project: Project, kind: str, run: Path | None) -> Exported:
    """Write label maps into a new folder: finished masks, or the predictions of a run.

    An image whose label map cannot be written is left out, and does not keep the others from it. The folder has its
    name when all are there.

    Args:
        project: that is open.
        kind: one of `FORMATS`.
        run: whose predictions are written; None for the masks.

    Raises:
        InputError: there is nothing to write, or it cannot be written in this format.
    """
    if kind not in FORMATS:
        raise InputError("the format", expected=f"one of {', '.join(FORMATS)}", found=kind, do="Choose one.")
    meaning = LabelMapInfo(project.dataset.labels, f"medsaga {metadata.version('medsaga')}")
    if run is None:
        wanted = [key for key, item in project.items.items() if item.masks]
    else:
        there = predictions(project, run)
        wanted = [key for key in project.items if key in there]
    if not wanted:
        what = "a finished mask" if run is None else "a prediction"
        raise InputError("the export", expected=what, found="none", do="Finish a case, or segment the cases, first.")
    for key in wanted:
        kind_of(project.item(key), kind, None)
    problems: list[InputError] = []
    with _new_folder(project) as (folder, path):
        for key in wanted:
            item = project.item(key)
            with collecting(problems):
                classes = project.mask(key).classes if run is None else prediction_of(project, run, key)
                labels = to_label_values(classes, project.dataset.label_values)
                target = folder / f"{item.name}{suffix_for(kind, item.images[0])}"
                write_labels(target, labels, item, kind, meaning)
        if len(problems) == len(wanted):
            raise problems[0]
    return Exported(path, tuple(map(str, problems)))


def export_model(project: Project, run: Path) -> Exported:
    """Copy what another machine needs to segment with a run's model into a new folder.

    Raises:
        InputError: the run has no model yet.
    """
    _require_model(run)
    with _new_folder(project) as (folder, path):
        for name in (run_folder.MODEL, run_folder.CONFIG, run_folder.MANIFEST, run_folder.RESULT, run_folder.REPORT):
            if (run / name).exists():
                shutil.copyfile(run / name, folder / name)
    return Exported(path)


def delta_command(project: Project, run: Path) -> list[str]:
    """Return the arguments that write what a run has changed in its base weights, into a new folder.

    Raises:
        InputError: the run has no model yet.
    """
    _require_model(run)
    # The command makes the folder later: no other export may take its name meanwhile.
    path = _free_name(project, "-delta") / f"{run.name}-delta.safetensors"
    return ["export", str(run), "--delta", str(path), "--json"]


def _require_model(run: Path) -> None:
    if not (run / run_folder.MODEL).exists():
        raise InputError("the model", expected="a trained one", found="none", do="Wait until the training is over.")


@contextlib.contextmanager
def _new_folder(project: Project) -> Iterator[tuple[Path, Path]]:
    """Yield a folder to write into, and its path at the end; one export after the other, or two would take one name."""
    with _ONE_AT_A_TIME:
        path = _free_name(project)
        with files.making_folder(path, "a folder of an export", "Export again.") as folder:
            yield folder, path


def _free_name(project: Project, ending: str = "") -> Path:
    now = time.strftime("%Y-%m-%d")
    number = 1
    while (folder := project.root / EXPORTS / f"{now}-{number}{ending}").exists():
        number += 1
    return folder
