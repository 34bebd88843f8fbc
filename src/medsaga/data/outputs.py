"""What a prediction is written as: the format of its image, and for DICOM also what other programs open.

A new kind of output is a function and a line in `SUFFIXES`, in `kind_of` and in `_WRITERS`; where not every image can
become one, also a check in `require_complete`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medsaga.data.dicom.terminology import Terminology
from medsaga.data.formats import format_of, labels_suffix, nifti, raster
from medsaga.data.sources import geometry_of
from medsaga.data.types import Item, Labels, Series, Source
from medsaga.errors import InputError

SUFFIXES = {
    "seg": (".dcm",),
    "rtstruct": (".dcm",),
    "nifti": (".nii.gz", ".nii"),
    "png": (".png",),
    "tiff": (".tif", ".tiff"),
}
"""Of each kind; the first is what a label map gets when the user names none."""
KINDS = ("auto", *SUFFIXES)
"""What ``--format`` accepts: the image's own format (of DICOM a SEG), or one of these."""


@dataclass(frozen=True)
class LabelMapInfo:
    """What the values of a label map mean.

    Attributes:
        names: label name to label value, background included.
        model: what made the label map, for people.
        codes: coded terminology of names; of other names what `medsaga.data.dicom.terminology` knows.
    """

    names: dict[str, int]
    model: str
    codes: Mapping[str, Terminology] = field(default_factory=dict)


def kind_of(item: Item, asked: str, out: Path | None) -> str:
    """Decide what the prediction for an item is written as.

    Args:
        item: the image.
        asked: one of `KINDS`; ``auto`` goes by the suffix of ``out``, else by the image.
        out: the file that the user named, if it was one.

    Returns:
        one of `KINDS`; ``auto`` stands for the image's own format.

    Raises:
        InputError: it cannot be written as that, or ``out`` has another suffix.
    """
    if asked not in KINDS:
        raise InputError("--format", expected=f"one of {', '.join(KINDS)}", found=repr(asked), do="Choose one of them.")
    source = item.images[0]
    own = not isinstance(source, Series)
    kind = _by_suffix(item, out) if asked == "auto" and out is not None else asked
    if kind == "auto" and not own:
        kind = "seg"
    flat = item.header.grid.affine is None
    possible = {
        "auto": own,
        "seg": not own,
        "rtstruct": not own,
        "nifti": not flat,
        "png": flat,
        "tiff": flat,
    }
    if not possible[kind]:
        allowed = [name for name, can_be in possible.items() if can_be]
        raise InputError(
            item.name,
            expected=f"a prediction in one of the formats {', '.join(allowed)}",
            found=kind,
            do="Choose another --format, or another suffix of --out.",
        )
    if out is not None and kind in SUFFIXES and not out.name.lower().endswith(SUFFIXES[kind]):
        expected = f"a file that ends in {' or '.join(SUFFIXES[kind])}"
        raise InputError(out, expected=expected, found="another suffix", do="Change --out.")
    return kind


def suffix_for(kind: str, source: Source) -> str:
    """Return the suffix of a label map of this kind."""
    if kind != "auto":
        return SUFFIXES[kind][0]
    assert isinstance(source, Path), "a series has no format of its own"
    return labels_suffix(source)


def require_complete(item: Item, kind: str) -> None:
    """Check, before an image is segmented, that its files have what the output must repeat of them.

    Args:
        item: the image.
        kind: from `kind_of`.

    Raises:
        InputError: they lack it; the message names what.
    """
    source = item.images[0]
    if kind == "seg":
        from medsaga.data.dicom import segmentation_writer

        assert isinstance(source, Series), "a SEG is of a series"
        segmentation_writer.require_complete(geometry_of(source))
    elif kind == "rtstruct":
        from medsaga.data.dicom import structures_writer

        assert isinstance(source, Series), "a structure set is of a series"
        structures_writer.require_complete(source, geometry_of(source))


def write_labels(path: Path, labels: Labels, item: Item, kind: str, meaning: LabelMapInfo) -> None:
    """Write a label map on the grid of its image, whole or not at all.

    Args:
        path: the file.
        labels: ``(*shape)`` label values.
        item: the image.
        kind: from `kind_of`.
        meaning: of the values; only DICOM says it.

    Raises:
        InputError: the image's files lack what the output must repeat.
    """
    _WRITERS[kind](path, labels, item, meaning)


def probabilities_suffix(item: Item) -> str:
    """Return the suffix of the file with the probabilities of an image."""
    return _of_probabilities(item).PROBABILITIES_SUFFIX


def write_probabilities(path: Path, probabilities: npt.NDArray[np.float32], item: Item) -> None:
    """Write ``(classes, *shape)`` float32 beside a label map.

    Args:
        path: the file; it ends in `probabilities_suffix`.
        probabilities: summing to 1 over the classes.
        item: the image.
    """
    source = item.images[0]
    like = source if isinstance(source, Path) else item.header.grid
    _of_probabilities(item).write_probabilities(path, probabilities, like)


def _of_probabilities(item: Item) -> Any:
    source = item.images[0]
    if isinstance(source, Path):
        return format_of(source)
    return raster if item.header.grid.affine is None else nifti


def _by_suffix(item: Item, out: Path) -> str:
    """Return the kind that a file name asks for."""
    source, name = item.images[0], out.name.lower()
    own = format_of(source).LABELS_SUFFIXES if isinstance(source, Path) else ()
    # A stack of slices shares its format with pictures, which hold one.
    is_too_flat = name.endswith(SUFFIXES["png"]) and item.header.grid.affine is not None
    if own and name.endswith(own) and not is_too_flat:
        return "auto"
    for kind, suffixes in SUFFIXES.items():
        if name.endswith(suffixes):
            return kind
    known = dict.fromkeys((*own, *(suffixes[0] for suffixes in SUFFIXES.values())))
    raise InputError(
        out,
        expected=f"a file that ends in {', '.join(known)}",
        found="another suffix",
        do="Change the suffix of --out.",
    )


def _write_own(path: Path, labels: Labels, item: Item, meaning: LabelMapInfo) -> None:
    del meaning
    source = item.images[0]
    assert isinstance(source, Path), "a series has no format of its own"
    format_of(path).write_labels(path, labels, source)


def _write_nifti(path: Path, labels: Labels, item: Item, meaning: LabelMapInfo) -> None:
    del meaning
    nifti.write_labels(path, labels, item.header.grid)


def _write_raster(path: Path, labels: Labels, item: Item, meaning: LabelMapInfo) -> None:
    del meaning
    raster.write_labels(path, labels, item.header.grid)


def _write_seg(path: Path, labels: Labels, item: Item, meaning: LabelMapInfo) -> None:
    from medsaga.data.dicom.segmentation_writer import write_segmentation

    source = item.images[0]
    assert isinstance(source, Series), "a SEG is of a series"
    geometry = geometry_of(source)
    write_segmentation(path, labels, source, geometry, meaning.names, codes=meaning.codes, model=meaning.model)


def _write_rtstruct(path: Path, labels: Labels, item: Item, meaning: LabelMapInfo) -> None:
    from medsaga.data.dicom.structures_writer import write_structures

    source = item.images[0]
    assert isinstance(source, Series), "a structure set is of a series"
    write_structures(path, labels, source, geometry_of(source), meaning.names, model=meaning.model)


_WRITERS: dict[str, Callable[[Path, Labels, Item, LabelMapInfo], None]] = {
    "auto": _write_own,
    "seg": _write_seg,
    "rtstruct": _write_rtstruct,
    "nifti": _write_nifti,
    "png": _write_raster,
    "tiff": _write_raster,
}
