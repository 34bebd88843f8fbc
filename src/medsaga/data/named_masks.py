"""Masks that name what they outline, in whichever format: DICOM segmentations and structure sets, ``.seg.nrrd``.

Their labels go by the names. The numbers beside the names follow the order in which somebody created the segments,
which is another one in the next case.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medsaga.data.dicom import masks
from medsaga.data.dicom.documents import as_key
from medsaga.data.formats import NamedFormat, format_of, suffix_of
from medsaga.errors import InputError


def is_named(path: Path) -> bool:
    """Whether the labels of a mask go by names.

    Raises:
        InputError: it is damaged.
    """
    return masks.is_mask(path) or bool(_names_of_format(path))


def names_in(path: Path) -> tuple[str, ...]:
    """Return the names of what is outlined in a mask, in its order.

    Raises:
        InputError: it is damaged.
    """
    return masks.names_in(path) if masks.is_mask(path) else _names_of_format(path)


def require_some(path: Path, wanted: Mapping[str, int]) -> None:
    """Require that a mask outlines at least one of the labels.

    Raises:
        InputError: it does not, or cannot be read.
    """
    names, labels = names_in(path), [name for name, value in wanted.items() if value]
    if not {as_key(name) for name in names} & {as_key(name) for name in wanted}:
        raise InputError(
            path,
            expected=f"one of the labels {', '.join(labels)}" if labels else "at least one segment or structure",
            found=", ".join(names[:8]) or "no segment",
            do="Name the labels in dataset.json as the segments are called.",
        )


def _names_of_format(path: Path) -> tuple[str, ...]:
    form = format_of(path) if suffix_of(path) is not None else None
    return form.segment_names(path) if isinstance(form, NamedFormat) else ()
