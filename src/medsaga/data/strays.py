"""Files that lie in a folder but are none of its images: a logo beside DICOM, a preview beside volumes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from medsaga.data.formats import format_of, stem, suffix_of
from medsaga.errors import InputError

MOST_STRAYS = 8
"""More pictures than this are no logos."""
_TIMES_AS_MANY = 4
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


def are_stray(few: int, many: int) -> bool:
    """Whether ``few`` files beside ``many`` of another kind are stray; where they are not, both may be meant."""
    return 0 < few <= MOST_STRAYS and _TIMES_AS_MANY * few <= many


def is_picture(path: Path) -> bool:
    """Whether a file is a 2-D picture by its name alone; a TIFF file may be a volume."""
    return suffix_of(path) in _PICTURES


def pictures_among_volumes(paths: Sequence[Path], meant: Collection[str] = ()) -> list[Path]:
    """Return the pictures among image files that are stray because the others are volumes.

    A picture of a volume's name is its preview. Others are stray where they are few.

    Args:
        paths: image files.
        meant: names of pictures that are meant unless they are previews.
    """
    pictures = [path for path in paths if is_picture(path)]
    if not pictures or len(pictures) == len(paths):
        return []
    volumes = {stem(path) for path in paths if not is_picture(path) and _is_volume(path)}
    previews = [path for path in pictures if stem(path) in volumes]
    others = [path for path in pictures if stem(path) not in volumes and stem(path) not in meant]
    return sorted([*previews, *(others if are_stray(len(others), len(volumes)) else ())])


def _is_volume(path: Path) -> bool:
    try:
        return len(format_of(path).read_header(path).grid.shape) == 3
    except InputError:
        # What cannot be read is reported where it is used.
        return True
