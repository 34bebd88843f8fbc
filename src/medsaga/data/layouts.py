"""The two layouts of a dataset: nnU-Net's, and a plain folder of images and masks.

Only names and headers are read here, except that a plain folder without ``dataset.json`` tells its labels by its
masks alone.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from medsaga.data.descriptions import channel_names, file_ending, read_cases, read_description
from medsaga.data.formats import SUFFIXES, format_of, is_image, raster, stem
from medsaga.data.labels import inferred_labels, listed, parse_labels, values_in
from medsaga.data.types import Dataset, Header, Item
from medsaga.errors import InputError

_BACKGROUND = {"background": 0}
_CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})", re.DOTALL)


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


def read_nnunet(root: Path, *, masks_required: bool) -> Dataset:
    """Read ``dataset.json``, ``imagesTr/CASE_0000.SUFFIX`` and ``labelsTr/CASE.SUFFIX``; every item is a case."""
    problems: list[InputError] = []
    labels, channels, ending = dict(_BACKGROUND), None, None
    description_path = root / "dataset.json"
    with collecting(problems):
        description = read_description(description_path)
        with collecting(problems):
            labels = parse_labels(description_path, description)
        with collecting(problems):
            channels = channel_names(description_path, description)
        ending = file_ending(description_path, description)
    groups: dict[str, dict[int, Path]] = {}
    with collecting(problems):
        groups = _channel_files(image_files(root / "imagesTr", ending), problems)
    masks = _masks(root / "labelsTr", ending, problems, required=masks_required)
    items = []
    for name, files in sorted(groups.items()):
        with collecting(problems):
            paths = _in_channel_order(files)
            items.append(Item(name, name, paths, masks.get(name), joint_header(paths)))
    problems += _pairing_problems(groups, masks, root / "labelsTr", masks_required=masks_required)
    return _checked(Dataset(root, "nnunet", labels, channels or (), tuple(items), tuple(problems)))


def read_folder(root: Path, *, masks_required: bool) -> Dataset:
    """Read ``images/NAME.*``, ``masks/NAME.*`` and, where present, ``dataset.json`` and ``cases.csv``."""
    problems: list[InputError] = []
    images: dict[str, Path] = {}
    with collecting(problems):
        images = _by_stem(image_files(root / "images"), problems)
    masks = _masks(root / "masks", None, problems, required=masks_required)
    cases = {name: name for name in images}
    if (root / "cases.csv").exists():
        with collecting(problems):
            given, wrong = read_cases(root / "cases.csv", images)
            cases.update(given)
            problems += wrong
    items = []
    for name, path in sorted(images.items()):
        with collecting(problems):
            items.append(Item(name, cases[name], (path,), masks.get(name), joint_header((path,))))
    problems += _pairing_problems(images, masks, root / "masks", masks_required=masks_required)
    labels, channels, description_path = dict(_BACKGROUND), None, root / "dataset.json"
    with collecting(problems):
        if description_path.exists():
            description = read_description(description_path)
            with collecting(problems):
                labels = parse_labels(description_path, description)
            channels = channel_names(description_path, description)
        else:
            labels = _labels_of_masks(root / "masks", masks, problems, required=masks_required)
    return _checked(Dataset(root, "folder", labels, channels or (), tuple(items), tuple(problems)))


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


def joint_header(paths: Sequence[Path]) -> Header:
    """Return the header of an image whose channels may be spread over several files.

    Raises:
        InputError: a file cannot be read, or the files do not share one grid.
    """
    headers = [format_of(path).read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        if not header.grid.same_space(headers[0].grid):
            raise InputError(
                path,
                expected=f"the grid of {paths[0].name} ({shown(headers[0].grid.shape)})",
                found=f"another one ({shown(header.grid.shape)})",
                do="Resample the channels of a case onto one grid.",
            )
    dtype = max((header.dtype for header in headers), key=lambda each: (each.kind == "f", each.itemsize))
    return Header(headers[0].grid, sum(header.channels for header in headers), dtype)


def grouped_inputs(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]] | None:
    """Return ``CASE_0000`` files by case in channel order; None when they are not whole sets named like that."""
    problems: list[InputError] = []
    groups = _channel_files(paths, problems)
    if problems or len({len(files) for files in groups.values()}) != 1:
        return None
    with contextlib.suppress(InputError):
        return {name: _in_channel_order(files) for name, files in groups.items()}
    return None


def shown(shape: Sequence[int]) -> str:
    """Return a shape as text."""
    return " x ".join(map(str, shape))


def _channel_files(paths: Sequence[Path], problems: list[InputError]) -> dict[str, dict[int, Path]]:
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in paths:
        match = _CHANNEL_FILE.fullmatch(stem(path))
        if match is None:
            expected, found = "a name such as CASE_0000, with the channel at its end", repr(stem(path))
        elif int(match["channel"]) in groups[match["case"]]:
            expected, found = "one file per case and channel", f"also {groups[match['case']][int(match['channel'])]}"
        else:
            groups[match["case"]][int(match["channel"])] = path
            continue
        problems.append(InputError(path, expected=expected, found=found, do="Rename or remove the file."))
    return groups


def _in_channel_order(files: dict[int, Path]) -> tuple[Path, ...]:
    if sorted(files) != list(range(len(files))):
        first = files[min(files)]
        raise InputError(
            first,
            expected="the channels of a case to be numbered 0000, 0001 and so on",
            found=listed(f"{channel:04d}" for channel in sorted(files)),
            do="Add the missing file.",
        )
    return tuple(files[channel] for channel in sorted(files))


def _by_stem(paths: Sequence[Path], problems: list[InputError]) -> dict[str, Path]:
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


def _masks(folder: Path, ending: str | None, problems: list[InputError], *, required: bool) -> dict[str, Path]:
    if not required and not folder.exists():
        return {}
    masks: dict[str, Path] = {}
    with collecting(problems):
        masks = _by_stem(image_files(folder, ending), problems)
    problems += [raster.lossy_mask(path) for path in masks.values() if path.suffix.lower() in (".jpg", ".jpeg")]
    return masks


def _pairing_problems(
    names: Collection[str],
    masks: dict[str, Path],
    folder: Path,
    *,
    masks_required: bool,
) -> Iterator[InputError]:
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


def _labels_of_masks(
    folder: Path, masks: dict[str, Path], problems: list[InputError], *, required: bool
) -> dict[str, int]:
    values: set[int] = set()
    reported = {problem.where for problem in problems}
    for path in masks.values():
        if str(path) not in reported:
            with collecting(problems):
                values |= values_in(format_of(path).read_labels(path))
    labels = inferred_labels(folder, values)
    if len(labels) == 1 and masks and required:
        raise InputError(
            folder,
            expected="masks with labels other than 0",
            found="only background",
            do="Check the export of the masks.",
        )
    return labels


def _checked(dataset: Dataset) -> Dataset:
    """Add what shows only when items are compared: channel counts, and masks against images."""
    problems = list(dataset.problems)
    counts = Counter(item.header.channels for item in dataset.items)
    count = len(dataset.channels) or (counts.most_common(1)[0][0] if counts else 0)
    for item in dataset.items:
        if item.header.channels != count:
            found = f"{item.header.channels} in {listed(path.name for path in item.images)}"
            problems.append(
                InputError(
                    item.images[0],
                    expected=f"{count} channel{'s' if count != 1 else ''}, as the dataset has",
                    found=found,
                    do="Give all images the same channels: add missing files, or convert between grey and RGB.",
                )
            )
        with collecting(problems):
            _check_mask_header(item)
    channels = dataset.channels or tuple(f"channel_{index}" for index in range(count))
    return replace(dataset, channels=channels, problems=tuple(problems))


def _check_mask_header(item: Item) -> None:
    if item.mask is None or item.mask.suffix.lower() in (".jpg", ".jpeg"):
        return
    grid, mask_grid = item.header.grid, format_of(item.mask).read_header(item.mask).grid
    if grid.shape != mask_grid.shape:
        raise InputError(
            item.mask,
            expected=f"the size of its image, {shown(grid.shape)}",
            found=shown(mask_grid.shape),
            do="Export the mask on the grid of its image.",
        )
    if not grid.same_space(mask_grid):
        assert grid.affine is not None
        assert mask_grid.affine is not None
        raise InputError(
            item.mask,
            expected=f"the affine of its image, {grid.affine[:3].round(4).tolist()}",
            found=str(mask_grid.affine[:3].round(4).tolist()),
            do="Resample the mask onto its image, or copy the image's affine if only the mask's header is wrong.",
        )
