"""What the layouts share: listing files, reading what describes them, and comparing the items of a dataset."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsaga.data.descriptions import channel_names, read_cases, read_description
from medsaga.data.dicom import masks as dicom_masks
from medsaga.data.dicom.documents import as_key
from medsaga.data.formats import SUFFIXES, format_of, is_image, nifti, raster, stem
from medsaga.data.formats.nifti_header import value_names
from medsaga.data.items import as_grey
from medsaga.data.labels import inferred_labels, listed, parse_labels, values_in
from medsaga.data.named_masks import is_named, names_in, require_some
from medsaga.data.names import is_hidden, normal
from medsaga.data.reorientation import reorientation
from medsaga.data.sources import place_of, read_header
from medsaga.data.strays import pictures_among_volumes
from medsaga.data.types import Dataset, Header, Item, Source
from medsaga.errors import InputError

BACKGROUND = {"background": 0}
DESCRIPTION = "dataset.json"
CASES = "cases.csv"
IMAGE_FOLDERS = ("images", "image")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "segmentations", "segmentation")
"""In the order in which they are looked for, in upper or lower case."""
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


@contextlib.contextmanager
def collecting(problems: list[InputError]) -> Iterator[None]:
    """Put an InputError of the block on the list and go on after the block.

    What the error remembers of where it was raised is dropped: it would keep decoded images alive.
    """
    try:
        yield
    except InputError as problem:
        problem.__cause__ = problem.__context__ = problem.__traceback__ = None
        problems.append(problem)


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
    problems += [raster.lossy_mask(path) for path in masks.values() if _is_jpeg(path)]
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


def described(
    root: Path, problems: list[InputError]
) -> tuple[dict[str, int], tuple[str, ...] | None, dict[str, Any] | None]:
    """Return labels, channels and the content of the ``dataset.json`` of a layout that cannot do without."""
    path = root / DESCRIPTION
    labels, channels, description = dict(BACKGROUND), None, None
    if not path.exists():
        problems.append(
            InputError(
                path,
                expected="a file that names labels and channels",
                found="none",
                do='Write it, such as {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}}.',
            )
        )
        return labels, channels, description
    with collecting(problems):
        description = read_description(path)
        with collecting(problems):
            labels = parse_labels(path, description)
        with collecting(problems):
            channels = channel_names(path, description)
    return labels, channels, description


def joint_header(sources: Sequence[Source]) -> Header:
    """Return the header of an image whose channels may be spread over several files or series.

    Raises:
        InputError: a file cannot be read, or they do not share one grid.
    """
    headers = [read_header(source) for source in sources]
    for source, header in zip(sources, headers, strict=True):
        if not header.grid.same_space(headers[0].grid):
            raise InputError(
                place_of(source),
                expected=f"the grid of {place_of(sources[0]).name} ({shown(headers[0].grid.shape)})",
                found=f"another one ({shown(header.grid.shape)})",
                do="Resample the channels of a case onto one grid.",
            )
    dtype = max((header.dtype for header in headers), key=lambda each: (each.kind == "f", each.itemsize))
    return Header(headers[0].grid, sum(header.channels for header in headers), dtype)


def labels_or(root: Path, known: Mapping[str, int], problems: list[InputError]) -> dict[str, int]:
    """Return the labels of ``dataset.json`` where there is one, else those that the layout is known to have."""
    labels = dict(known)
    if (root / DESCRIPTION).exists():
        with collecting(problems):
            labels = parse_labels(root / DESCRIPTION, read_description(root / DESCRIPTION))
    return labels


def cases_of(root: Path, names: Collection[str], problems: list[InputError]) -> dict[str, str]:
    """Return the case of each image: as ``cases.csv`` has it where there is one, else the image itself."""
    cases = {name: name for name in names}
    if (root / CASES).exists():
        with collecting(problems):
            given, wrong = read_cases(root / CASES, names)
            cases.update(given)
            problems += wrong
    return cases


def labels_of_masks(
    folder: Path, masks: Collection[Path], problems: list[InputError], *, required: bool
) -> dict[str, int]:
    """Return the labels that the values in label maps tell, all of which are decoded for it.

    Raises:
        InputError: there are none but background though ``required``.
    """
    values: set[int] = set()
    reported = {problem.where for problem in problems}
    for path in masks:
        if str(path) not in reported:
            with collecting(problems):
                values |= values_in(format_of(path).read_labels(path))
    labels = inferred_labels(values)
    # Without a value no mask could be read, which has been reported.
    if len(labels) == 1 and values and required:
        raise InputError(
            folder,
            expected="masks with labels other than 0",
            found="only background",
            do="Check the export of the masks.",
        )
    return labels


def labels_of_named_masks(root: Path, masks: Collection[Path], problems: list[InputError]) -> dict[str, int] | None:
    """Return the labels that masks name, numbered in alphabetical order; None where the masks hold values instead.

    Raises:
        InputError: some hold names and some values.
    """
    named: dict[Path, tuple[str, ...]] = {}
    for path in masks:
        with collecting(problems):
            if is_named(path):
                named[path] = names_in(path)
    reported = {problem.where for problem in problems}
    other = next((path for path in masks if path not in named and str(path) not in reported), None)
    if not named:
        # Whatever cannot be read has been reported.
        return dict(BACKGROUND) if masks and other is None else None
    if other is not None:
        raise InputError(
            root / DESCRIPTION,
            expected=f"the value of each label, because {other.name} holds values and {next(iter(named)).name} names",
            found="no labels",
            do='Write "labels" there, such as {"background": 0, "liver": 1}.',
        )
    names: dict[str, str] = {}
    for name in (normal(name) for each in named.values() for name in each):
        names.setdefault(name.casefold(), name)
    names.pop("background", None)
    numbered = {name: value for value, (_, name) in enumerate(sorted(names.items()), start=1)}
    return parse_labels(root / "masks", {"labels": BACKGROUND | numbered}) if numbered else dict(BACKGROUND)


def names_for(mask: Collection[Path], labels: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return name and value of every label for an `Item` whose mask names its structures; nothing for any other."""
    # A damaged mask is a problem that `checked` finds.
    with contextlib.suppress(InputError):
        return tuple(labels.items()) if any(map(is_named, mask)) else ()
    return ()


def shown(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return " x ".join(map(str, shape))


def checked(dataset: Dataset) -> Dataset:
    """Add what shows only when items are compared: channel counts, and masks against images."""
    problems, dataset = list(dataset.problems), replace(dataset, items=_grey_beside_grey(dataset))
    counts = Counter(item.header.channels for item in dataset.items)
    count = len(dataset.channels) or (counts.most_common(1)[0][0] if counts else 0)
    for item in dataset.items:
        if item.header.channels != count:
            found = f"{item.header.channels} in {listed(place_of(source).name for source in item.images)}"
            problems.append(
                InputError(
                    place_of(item.images[0]),
                    expected=f"{count} channel{'s' if count != 1 else ''}, as the dataset has",
                    found=found,
                    do="Give all images the same channels: add missing files, or convert between grey and RGB.",
                )
            )
        for mask in item.masks:
            # Where one file holds both, there is one header.
            if not _is_jpeg(mask) and mask not in item.images:
                with collecting(problems):
                    _check_mask_header(item, mask)
    channels = dataset.channels or tuple(f"channel_{index}" for index in range(count))
    warnings = (*dataset.warnings, *_other_names(dataset))
    return replace(dataset, channels=channels, problems=tuple(problems), warnings=warnings)


def _other_names(dataset: Dataset) -> Iterator[str]:
    """Yield a warning where label tables in the headers of masks name values otherwise than the dataset, or each other.

    The values count: a table stays in the header when somebody renumbers the voxels.
    """
    called: dict[int, tuple[str, str]] = {
        value: (name, DESCRIPTION) for name, value in dataset.labels.items() if name != f"label_{value}"
    }
    for item in dataset.items:
        for mask in item.masks if not item.names and not item.structures else ():
            names: dict[int, str] = {}
            with contextlib.suppress(InputError):
                names = value_names(mask) if format_of(mask) is nifti else {}
            for value, name in names.items():
                known, where = called.setdefault(value, (name, mask.name))
                if value in dataset.label_values and as_key(known) != as_key(name):
                    yield (
                        f"{value} is called {name!r} in the header of {mask.name} and {known!r} in {where}: "
                        "the values count, so make sure that they mean the same in all masks"
                    )
                    return


def _grey_beside_grey(dataset: Dataset) -> tuple[Item, ...]:
    """Return the items, pictures of three equal colours as grey where the dataset is grey.

    It is where ``dataset.json`` names one channel, and where all that is stored in colour turns out to be grey.
    """
    counts = {item.header.channels for item in dataset.items}
    is_grey = len(dataset.channels) == 1 or (not dataset.channels and 1 in counts)
    if not is_grey or 3 not in counts:
        return dataset.items
    items = []
    for item in dataset.items:
        # What cannot be read is reported where everything is read.
        with contextlib.suppress(InputError):
            item = as_grey(item)
        if item.header.channels != 1 and not dataset.channels:
            return dataset.items
        items.append(item)
    return tuple(items)


def _check_mask_header(item: Item, mask: Path) -> None:
    if item.names:
        # Without labels, what is wrong with them has been reported.
        if len(item.names) > 1:
            require_some(mask, dict(item.names))
        if dicom_masks.is_mask(mask):
            return
    grid, mask_grid = item.header.grid, format_of(mask).read_header(mask).grid
    if reorientation(mask_grid, grid, is_part=bool(item.names)) is not None:
        return
    if grid.shape != mask_grid.shape:
        raise InputError(
            mask,
            expected=f"the size of its image, {shown(grid.shape)}",
            found=shown(mask_grid.shape),
            do="Export the mask on the grid of its image.",
        )
    assert grid.affine is not None
    assert mask_grid.affine is not None
    raise InputError(
        mask,
        expected=f"the affine of its image, {grid.affine[:3].round(4).tolist()}",
        found=str(mask_grid.affine[:3].round(4).tolist()),
        do="Resample the mask onto its image, or copy the image's affine if only the mask's header is wrong.",
    )


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")
