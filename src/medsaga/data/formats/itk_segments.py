"""The segments that an NRRD file names: 3D Slicer's ``.seg.nrrd`` and MITK's multilabel segmentations.

Both store label maps in layers and say in notes of the header which value in which layer is which structure. The
values follow the order in which the segments were created, so the names alone are the same from case to case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom.documents import Canvas, merged_labels, printable
from medsaga.data.formats.itk_fields import Stored
from medsaga.data.labels import listed, values_in
from medsaga.data.types import Labels
from medsaga.errors import InputError

_SLICER_NOTE = re.compile(r"Segment(\d{1,5})_(ID|Name|LabelValue|Layer)", re.ASCII)
_MITK_NOTE = "org.mitk.multilabel.segmentation.labelgroups"
_HIGHEST_VALUE = 2**31


@dataclass(frozen=True)
class Segment:
    """Where a structure is stored: the voxels of one layer that have its value."""

    name: str
    layer: int
    value: int


def segments_of(path: Path, stored: Stored) -> tuple[Segment, ...]:
    """Return the segments that a header describes, in its order; none where it describes none.

    Raises:
        InputError: a segment lies in a layer that is not there, or where another one lies, or has no usable value.
    """
    segments = _of_mitk(path, stored) if _MITK_NOTE in stored.notes else _of_slicer(path, stored)
    places = [(segment.layer, segment.value) for segment in segments]
    for segment, place in zip(segments, places, strict=True):
        if not (0 <= segment.layer < stored.channels and 0 < segment.value < _HIGHEST_VALUE) or places.count(place) > 1:
            raise InputError(
                path,
                expected=f"a value of its own, at least 1, for each segment in one of {stored.channels} layer(s)",
                found=f"the value {segment.value} in layer {segment.layer} for {segment.name!r}",
                do="Save the segmentation again in the program that made it.",
            )
    return segments


def labels_of_segments(
    path: Path, layers: npt.NDArray[Any], segments: tuple[Segment, ...], wanted: Mapping[str, int]
) -> tuple[Labels, tuple[str, ...]]:
    """Make one label map of the layers; where segments overlap, the highest label wins.

    Args:
        path: for the messages.
        layers: ``(layers, i, j, k)``, integers as stored.
        segments: from `segments_of`.
        wanted: see `medsaga.data.dicom.documents.merged_labels`.

    Returns:
        ``(i, j, k)`` labels; warnings.

    Raises:
        InputError: a voxel has a value that is no segment's.
    """
    labels_by_number, _, warnings = merged_labels(
        ((number, segment.name) for number, segment in enumerate(segments, start=1)), wanted
    )
    canvas = Canvas(layers.shape[1:], max(labels_by_number.values(), default=0))
    for layer, voxels in enumerate(layers):
        table = {0: 0} | {
            segment.value: labels_by_number[number]
            for number, segment in enumerate(segments, start=1)
            if segment.layer == layer
        }
        unknown = sorted(values_in(voxels) - table.keys())
        if unknown:
            raise InputError(
                path,
                expected=f"the values of its segments, {listed(sorted(set(table) - {0}))}",
                found=f"the value(s) {listed(unknown)}, which belong to none",
                do="Save the segmentation again in the program that made it.",
            )
        values = np.array(sorted(table))
        labels = np.array([table[value] for value in values.tolist()], canvas.labels.dtype)
        canvas.lay((slice(None),) * 3, False, labels[np.searchsorted(values, voxels)])
    return canvas.labels, warnings + canvas.warnings()


def _of_slicer(path: Path, stored: Stored) -> tuple[Segment, ...]:
    found: dict[int, dict[str, str]] = {}
    for note, text in stored.notes.items():
        match = _SLICER_NOTE.fullmatch(note)
        if match is not None:
            found.setdefault(int(match[1]), {})[match[2]] = text.strip()
    segments = []
    for place, (number, words) in enumerate(sorted(found.items())):
        name = next(filter(None, map(printable, (words.get("Name", ""), words.get("ID", "")))), f"segment {number + 1}")
        # Slicer up to 4.10 says neither: each segment has a layer of its own, in which it is 1.
        layer = words.get("Layer", str(place) if stored.channels > 1 else "0")
        segments.append(Segment(name, *(_whole(path, name, text) for text in (layer, words.get("LabelValue", "1")))))
    return tuple(segments)


def _of_mitk(path: Path, stored: Stored) -> tuple[Segment, ...]:
    try:
        groups = json.loads(stored.notes[_MITK_NOTE])
        return tuple(
            Segment(printable(label["name"]) or f"label {label['value']}", layer, _whole(path, "", str(label["value"])))
            for layer, group in enumerate(groups)
            for label in group.get("labels") or []
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            path,
            expected=f"a description of its labels as {_MITK_NOTE} in the header",
            found="one that cannot be read",
            do="Save the segmentation again in the program that made it.",
        ) from error


def _whole(path: Path, name: str, text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", text):
        raise InputError(
            path,
            expected="whole numbers as value and layer of each segment in the header",
            found=f"{text[:40]!r} for {name!r}",
            do="Save the segmentation again in the program that made it.",
        )
    return int(text)
