"""Taking results along: label maps in the formats that other programs open, or the model, whole or as a delta."""

from __future__ import annotations

import shutil
import time
from importlib import metadata
from pathlib import Path

from medsaga import files, run_folder
from medsaga.app.project import Project
from medsaga.app.results import prediction_of
from medsaga.data.outputs import LabelMapInfo, kind_of, suffix_for, write_labels
from medsaga.data.types import to_label_values
from medsaga.errors import InputError

EXPORTS = "exports"
FORMATS = {"nifti": "NIfTI", "seg": "DICOM SEG", "png": "PNG"}


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


def export_labels(project: Project, kind: str, run: Path | None) -> Path:
    """Write label maps into a new folder and return it: finished masks, or the predictions of a run.

    Args:
        project: that is open.
        kind: one of `FORMATS`.
        run: whose predictions are written; None for the masks.

    Raises:
        InputError: there is nothing to write, or it cannot be written in this format.
    """
    if kind not in FORMATS:
        raise InputError("the format", expected=f"one of {', '.join(FORMATS)}", found=kind, do="Choose one.")
    folder = _new_folder(project)
    meaning = LabelMapInfo(project.dataset.labels, f"medsaga {metadata.version('medsaga')}")
    written = 0
    for key, item in project.items.items():
        kind_of(item, kind, None)
        if run is None:
            if not item.masks:
                continue
            classes = project.mask(key).classes
        else:
            try:
                classes = prediction_of(project, run, key)
            except InputError:
                continue
        path = folder / f"{item.name}{suffix_for(kind, item.images[0])}"
        write_labels(path, to_label_values(classes, project.dataset.label_values), item, kind, meaning)
        written += 1
    if not written:
        what = "a finished mask" if run is None else "a prediction"
        raise InputError("the export", expected=what, found="none", do="Finish a case, or segment the cases, first.")
    return folder


def export_model(project: Project, run: Path) -> Path:
    """Copy what another machine needs to segment with a run's model; return the folder.

    Raises:
        InputError: the run has no model yet.
    """
    _require_model(run)
    folder = _new_folder(project)
    for name in (run_folder.MODEL, run_folder.CONFIG, run_folder.MANIFEST, run_folder.RESULT, run_folder.REPORT):
        if (run / name).exists():
            with files.replacing(folder / name) as temporary:
                shutil.copyfile(run / name, temporary)
    return folder


def delta_command(project: Project, run: Path) -> list[str]:
    """Return the arguments that write what a run has changed in its base weights, into a new folder.

    Raises:
        InputError: the run has no model yet.
    """
    _require_model(run)
    path = _new_folder(project) / f"{run.name}-delta.safetensors"
    return ["export", str(run), "--delta", str(path), "--json"]


def _require_model(run: Path) -> None:
    if not (run / run_folder.MODEL).exists():
        raise InputError("the model", expected="a trained one", found="none", do="Wait until the training is over.")


def _new_folder(project: Project) -> Path:
    now = time.strftime("%Y-%m-%d")
    number = 1
    while (folder := project.root / EXPORTS / f"{now}-{number}").exists():
        number += 1
    return folder
