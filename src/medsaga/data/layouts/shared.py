"""What the layouts share: listing files, pairing images with masks, and comparing the items of a dataset."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medsaga.data.descriptions import read_cases, read_description
from medsaga.data.dicom.masks import require_some
from medsaga.data.formats import SUFFIXES, format_of, is_image, raster, stem
from medsaga.data.labels import inferred_labels, listed, parse_labels, values_in
from medsaga.data.reorientation import reorientation
from medsaga.data.sources import place_of, read_header
from medsaga.data.types import Dataset, Header, Item, Source
from medsaga.errors import InputError

BACKGROUND = {"background": 0}
DESCRIPTION = "dataset.json"
CASES = "cases.csv"


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
        ending: the only suffix that counts; None counts every known one.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    try:
        # A link whose target is missing is an image that cannot be read, not something to pass over in silence.
        files = sorted(path for path in folder.iterdir() if path.is_file() or (path.is_symlink() and not path.exists()))
    except OSError as error:
        found = error.strerror or type(error).__name__
        raise InputError(folder, expected="a folder of image files", found=found, do="Check its name.") from error
    images = [path for path in files if is_image(path) and (ending is None or path.name.endswith(ending))]
    if not images:
        visible = [path.name for path in files if not path.name.startswith(".")]
        raise InputError(
            folder,
            expected=f"images that end in {ending or ', '.join(SUFFIXES)}",
            found=listed(visible, 4) if visible else "no files",
            do="Put the images directly into this folder, in one of these formats.",
        )
    return images


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted; none when it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def by_stem(paths: Sequence[Path], problems: list[InputError]) -> dict[str, Path]:
    """Return files by their names without suffix; a second file of a name is a problem."""
    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(stem(path), path) != path:
            other = found[stem(path)].name
            problems.append(
                InputError(
                    path, expected="one file per name", found=f"also {other}", do="Remove or rename one of them."
                )
            )
    return found


def mask_files(folder: Path, ending: str | None, problems: list[InputError], *, required: bool) -> dict[str, Path]:
    """Return the masks of a folder by name; a JPEG is a problem, and so is that there are none if ``required``."""
    if not required and not folder.exists():
        return {}
    masks: dict[str, Path] = {}
    with collecting(problems):
        masks = by_stem(image_files(folder, ending), problems)
    problems += [raster.lossy_mask(path) for path in masks.values() if _is_jpeg(path)]
    return masks


def pairing_problems(
    names: Collection[str],
    masks: Mapping[str, Path],
    folder: Path,
    *,
    masks_required: bool,
) -> Iterator[InputError]:
    """Yield a problem for each image without a mask, if masks are required, and for each mask without an image."""
    # Without any mask the missing folder has been reported already.
    if masks_required and masks:
        for name in sorted(set(names) - set(masks)):
            yield InputError(
                folder / name,
                expected="a mask of this name and a lossless suffix",
                found="none",
                do="Add the mask, named exactly like its image, or remove the image.",
            )
    for name in sorted(set(masks) - set(names)):
        yield InputError(
            masks[name],
            expected=f"an image named {name}",
            found="none",
            do="Rename the mask like its image, or remove it.",
        )


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
    if len(labels) == 1 and masks and required:
        raise InputError(
            folder,
            expected="masks with labels other than 0",
            found="only background",
            do="Check the export of the masks.",
        )
    return labels


def shown(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return " x ".join(map(str, shape))


def checked(dataset: Dataset) -> Dataset:
    """Add what shows only when items are compared: channel counts, and masks against images."""
    problems = list(dataset.problems)
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
    return replace(dataset, channels=channels, problems=tuple(problems))


def _check_mask_header(item: Item, mask: Path) -> None:
    if item.names:
        require_some(mask, dict(item.names))
        return
    grid, mask_grid = item.header.grid, format_of(mask).read_header(mask).grid
    if reorientation(mask_grid, grid) is not None:
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
