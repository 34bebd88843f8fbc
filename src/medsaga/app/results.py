"""What a run makes of the cases: its predictions, the least sure first, beside the truth where there is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga import files, run_folder
from medsaga.app.own import id_of
from medsaga.app.project import Project
from medsaga.app.training import role_of
from medsaga.data.formats import stem
from medsaga.data.items import read_mask
from medsaga.data.labels import listed
from medsaga.data.sources import place_of
from medsaga.data.types import Item, Series, to_class_indices
from medsaga.errors import InputError
from medsaga.prediction.confidence_table import CONFIDENCE, read_csv
from medsaga.settings.run_config import read_config

PREDICTIONS = "predictions"
INPUTS = "inputs"


def predict_command(project: Project, run: Path) -> list[str]:
    """Return the arguments that segment every case that a run was not trained on.

    Raises:
        InputError: there is none.
    """
    items = [item for item in project.items.values() if role_of(item, run) in ("new", "test", "validation")]
    if not items:
        raise InputError("segmenting", expected="a case that is not trained on", found="none", do="Add images.")
    return command_for(project, run, items, run / PREDICTIONS)


def command_for(project: Project, run: Path, items: Sequence[Item], out: Path) -> list[str]:
    """Return the arguments that segment some images by a run into a folder, in formats that the page reads.

    The images are named in a file: a system takes only so many arguments, and shows them to its other users.
    """
    inputs = dict.fromkeys(os.fsencode(place_of(source)) for item in items for source in item.images)
    names = project.own / INPUTS / f"{id_of(str(out))}.txt"
    with files.replacing(names) as temporary:
        temporary.write_bytes(b"".join(each + b"\0" for each in inputs))
    kinds = {_kind(item) for item in items}
    chosen = ["--format", kinds.pop()] if len(kinds) == 1 else []
    return ["predict", str(run), f"@{names}", "--out", str(out), *chosen, "--overwrite"]


def predictions(project: Project, run: Path) -> dict[str, Path]:
    """Return the predicted label maps of a run by the ids of their images."""
    folder, names = run / PREDICTIONS, project.names
    found = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and not path.name.startswith(".") and path.suffix not in (".csv", ".jsonl"):
            key = names.get(stem(path))
            if key is not None:
                found[key] = path
    return found


def prediction_of(project: Project, run: Path, key: str) -> npt.NDArray[np.uint8]:
    """Return a predicted label map as class indices of the project, ``(*shape)`` uint8.

    Raises:
        InputError: there is none, it cannot be read, or it holds labels that the folder has no more.
    """
    path = predictions(project, run).get(key)
    item = project.item(key)
    if path is None or not path.resolve().is_relative_to(run.resolve()):
        raise InputError(item.name, expected="a prediction", found="none", do="Segment the cases first.")
    return read_prediction(project, item, run, path)


def read_prediction(project: Project, item: Item, run: Path, path: Path) -> npt.NDArray[np.uint8]:
    """Return a label map that a run made of an image as class indices of the project, ``(*shape)`` uint8.

    The folder may have other labels by now than the run was trained with: the values in the file tell which are meant.

    Raises:
        InputError: it cannot be read, or it holds labels that the folder has no more.
    """
    labels = read_mask(replace(item, masks=(path,), structures=(), names=(), binary=False))
    values = project.dataset.label_values
    unknown = np.setdiff1d(labels, values).tolist()
    if unknown:
        names = {value: name for name, value in read_config(run / run_folder.CONFIG).labels.items()}
        raise InputError(
            item.name,
            expected=f"a prediction of the labels that the folder has, {listed(values.tolist())}",
            found=listed(f"{value} ({names[value]})" if value in names else str(value) for value in unknown),
            do="Name these values in dataset.json again, or train anew and segment the cases with that run.",
        )
    return to_class_indices(labels, values)


def results(project: Project, run: Path) -> list[dict[str, Any]]:
    """Return the predicted cases of a run, the least confident first."""
    sure, dice = _confidence(run), _dice(run)
    rows = []
    for key, path in predictions(project, run).items():
        item = project.item(key)
        rows.append(
            {
                "id": key,
                "name": item.name,
                "role": role_of(item, run),
                "state": project.state(key),
                "picture": project.picture_stamp(key, path),
                "confidence": sure.get(item.name),
                "dice": dice.get(item.name),
            }
        )
    return sorted(rows, key=lambda row: (row["confidence"] is None, row["confidence"] or 0.0, row["name"]))


def _kind(item: Item) -> str:
    if isinstance(item.images[0], Series):
        return "png" if item.header.grid.affine is None else "nifti"
    return "auto"


def _confidence(run: Path) -> dict[str, float]:
    path = run / PREDICTIONS / CONFIDENCE
    return {case: mean for case, (mean, *_) in read_csv(path).items()} if path.exists() else {}


def _dice(run: Path) -> dict[str, float]:
    path = run / run_folder.RESULT
    cases = files.read_json(path).get("cases", []) if path.exists() else []
    return {case["name"]: case["dice_mean"] for case in cases if case.get("dice_mean") is not None}
