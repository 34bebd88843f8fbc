"""Finding the images and masks in the folders of a layout."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from medsaga.data.formats import SUFFIXES, is_image, raster, stem
from medsaga.data.labels import listed
from medsaga.data.names import is_hidden, normal
from medsaga.data.strays import pictures_among_volumes
from medsaga.errors import InputError, collecting

IMAGE_FOLDERS = ("images", "image")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "segmentations", "segmentation")
"""In the order in which they are looked for, in upper or lower case."""
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


def image_files(folder: Path, ending: str | None = None) -> list[Path]:
    """Return the images in a folder, sorted; other files count only when there is no image at all.

    Args:
        folder: the folder; its subfolders are not entered.
        ending: the only suffix that counts, in upper or lower case; None counts every known one.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    try:
        # A link whose target is missing is an image that cannot be read, not something to pass over in silence.
        files = sorted(path for path in folder.iterdir() if path.is_file() or (path.is_symlink() and not path.exists()))
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError(folder, expected="a folder of image files", found=found, do="Check its name.") from error
    images = [
        path for path in files if is_image(path) and (ending is None or path.name.lower().endswith(ending.lower()))
    ]
    if not images:
        visible = [path.name for path in files if not is_hidden(path.name)]
        inside = [path.name for path in subfolders(folder)]
        found = listed(visible, 4) if visible else "no files"
        raise InputError(
            folder,
            expected=f"images that end in {ending or ', '.join(SUFFIXES)}",
            found=f"{found}, but the folder{'s' if len(inside) > 1 else ''} {listed(inside, 4)}" if inside else found,
            do="Put the images directly into this folder, in one of these formats.",
        )
    return images


def without_strays(paths: Sequence[Path], warnings: list[str], *, meant: Collection[str] = ()) -> list[Path]:
    """Return image files without the stray pictures among volumes, and warn of those.

    Args:
        paths: of `image_files`.
        warnings: to add to.
        meant: see `medsaga.data.strays.pictures_among_volumes`.
    """
    strays = pictures_among_volumes(paths, meant)
    warnings += [f"{path}: left out, a picture among volumes" for path in strays]
    return [path for path in paths if path not in strays]


def images_folder(root: Path) -> Path:
    """Return the folder of the images of the plain layouts."""
    return _first_named(root, IMAGE_FOLDERS)[0]


def masks_folder(root: Path, problems: list[InputError]) -> Path:
    """Return the folder of the masks of the plain layouts.

    ``masks`` comes first; without it, several folders that could be are a problem.
    """
    chosen, others = _first_named(root, MASK_FOLDERS)
    if others and normal(chosen.name).casefold() != MASK_FOLDERS[0]:
        problems.append(
            InputError(
                root,
                expected="one folder with masks",
                found=f"{listed(path.name for path in (chosen, *others))}",
                do="Rename the one that is meant to masks.",
            )
        )
    return chosen


def _first_named(root: Path, names: Sequence[str]) -> tuple[Path, list[Path]]:
    """Return the first folder of these names that is there, else the path of the first name; and the others."""
    there = {normal(path.name).casefold(): path for path in subfolders(root)}
    found = [there[name] for name in names if name in there] or [root / names[0]]
    return found[0], found[1:]


def visible_entries(folder: Path) -> list[Path]:
    """Return what is in a folder and is not hidden, sorted; nothing when it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError:
        return []


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted; none when it cannot be listed."""
    return [path for path in visible_entries(folder) if path.is_dir()]


def by_stem(paths: Sequence[Path], problems: list[InputError]) -> dict[str, Path]:
    """Return files by their names without suffix; a second file of a name is a problem."""
    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(stem(path), path) != path:
            other = found[stem(path)].name
            found_too = f"also {other}"
            if normal(other) == normal(path.name):
                found_too += ", the same name with its accents stored in another way"
            problems.append(
                InputError(path, expected="one file per name", found=found_too, do="Remove or rename one of them.")
            )
    return found


def mask_files(
    folder: Path, ending: str | None, problems: list[InputError], warnings: list[str], *, required: bool
) -> dict[str, Path]:
    """Return the masks of a folder by name; a JPEG is a problem, and so is that there are none if ``required``."""
    if not folder.exists():
        if required:
            problems.append(missing_masks(folder))
        return {}
    masks: dict[str, Path] = {}
    with collecting(problems):
        paths = image_files(folder, ending)
        # Only previews go: another picture may be the mask of a picture.
        masks = by_stem(without_strays(paths, warnings, meant={stem(path) for path in paths}), problems)
    problems += [raster.lossy_mask(path) for path in masks.values() if is_lossy_mask(path)]
    return masks


def missing_masks(folder: Path) -> InputError:
    """Return what to tell the user of a dataset that has no folder of masks."""
    beside = [path.name for path in visible_entries(folder.parent)]
    archive = next((name for name in beside if name.lower().endswith(_ARCHIVES)), None)
    do = f"Put the masks into {folder.name}/, each named like its image."
    return InputError(
        folder,
        expected="a folder with a mask for each image",
        found=f"no such folder beside {listed(beside)}",
        do=f"Unpack {archive}, if it holds the masks. {do}" if archive else do,
    )


def is_lossy_mask(path: Path) -> bool:
    """Whether a mask's suffix says JPEG, which changes label values."""
    return path.suffix.lower() in (".jpg", ".jpeg")
