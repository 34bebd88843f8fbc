"""The plain layout: ``images/NAME.*`` and ``masks/NAME.*``, or ``masks/STRUCTURE/NAME.*`` with a binary mask each.

``labels`` and ``segmentations`` are read for ``masks`` where that is missing; see `medsaga.data.layouts.finding`.
``dataset.json`` (labels, channel names) and ``cases.csv`` (which images are of one case) are read where present.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from medsaga.data.descriptions import channel_names, read_description
from medsaga.data.formats import is_image, stem
from medsaga.data.labels import listed, parse_labels
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.dicom import entries_with_dicom
from medsaga.data.layouts.finding import (
    by_stem,
    image_files,
    images_folder,
    mask_files,
    masks_folder,
    subfolders,
    without_strays,
)
from medsaga.data.layouts.labelling import (
    BACKGROUND,
    DESCRIPTION,
    cases_of,
    labels_of_masks,
    labels_of_named_masks,
    names_for,
    patients_in_names,
)
from medsaga.data.layouts.pairing import paired, pairing_problems
from medsaga.data.names import normal
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError, collecting

EXPECTED = "images/ and masks/"


def recognises(root: Path) -> bool:
    """Whether there is a folder ``images``."""
    return images_folder(root).is_dir()


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the images, each an item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    warnings: list[str] = []
    paths: list[Path] = []
    folder = images_folder(root)
    with collecting(problems):
        paths = image_files(folder)
    names = {stem(path) for path in paths}
    home = masks_folder(root, problems)
    structures = _structure_folders(home)
    single: dict[str, Path] = {}
    by_structure: dict[str, dict[int, Path]] = {}
    labels, channels = dict(BACKGROUND), None
    with collecting(problems):
        if not structures:
            found = mask_files(home, None, problems, warnings, required=masks_required)
            single = paired(names, found, home, warnings)
        else:
            _refuse_label_maps_beside(home, structures)
        labels, channels = _labels_and_channels(root, home, structures, single, problems, required=masks_required)
        by_structure = _structure_masks(home, structures, labels, names, problems, warnings)
    images = by_stem(without_strays(paths, warnings, meant={*single, *by_structure}), problems)
    warnings += [f"{path}: left out, DICOM among images of other formats" for path in entries_with_dicom(folder)]
    cases = cases_of(root, images, problems)
    items = []
    for name, path in sorted(images.items()):
        values: tuple[int, ...] = tuple(by_structure.get(name, ()))
        masks = tuple(by_structure[name].values()) if values else (single[name],) if name in single else ()
        with collecting(problems):
            named = () if values else names_for(masks, labels)
            items.append(Item(name, cases[name], (path,), masks, joint_header((path,)), values, named))
    any_mask = {**single, **{name: next(iter(masks.values())) for name, masks in by_structure.items()}}
    problems += pairing_problems(images, any_mask, home, masks_required=masks_required, label_maps=not structures)
    if all(item.header.grid.flat or len(item.header.grid.shape) == 2 for item in items):
        warnings += patients_in_names(root, cases)
    by_value = not structures and not any(item.names for item in items)
    return Dataset(
        root,
        "folder",
        labels,
        channels or (),
        tuple(items),
        tuple(problems),
        warnings=tuple(warnings),
        inferred=by_value and not (root / DESCRIPTION).exists(),
    )


def _labels_and_channels(
    root: Path,
    home: Path,
    structures: Collection[str],
    masks: Mapping[str, Path],
    problems: list[InputError],
    *,
    required: bool,
) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Return labels and channel names: as ``dataset.json`` has them, else as the folders or the masks tell."""
    path = root / DESCRIPTION
    labels, channels = dict(BACKGROUND), None
    with collecting(problems):
        if path.exists():
            description = read_description(path)
            with collecting(problems):
                labels = parse_labels(path, description)
            channels = channel_names(path, description)
        elif structures:
            numbered = {name: value for value, name in enumerate(structures, start=1)}
            labels = parse_labels(home, {"labels": BACKGROUND | numbered})
        else:
            named = labels_of_named_masks(root, masks.values(), problems)
            labels = named or labels_of_masks(home, masks.values(), problems, required=required)
    return labels, channels


def _structure_folders(folder: Path) -> dict[str, Path]:
    """Return the subfolders of ``masks`` that hold images, in alphabetical order; background needs no mask."""
    found = {normal(path.name): path for path in subfolders(folder) if any(map(_is_file_of_image, path.iterdir()))}
    names = sorted((name for name in found if name.lower() != "background"), key=lambda name: (name.casefold(), name))
    return {name: found[name] for name in names}


def _is_file_of_image(path: Path) -> bool:
    return is_image(path) and not path.is_dir()


def _refuse_label_maps_beside(folder: Path, structures: Collection[str]) -> None:
    beside = sorted(path.name for path in folder.iterdir() if path.is_file() and is_image(path))
    if beside:
        raise InputError(
            folder,
            expected="either label maps, masks/NAME.png, or a subfolder of binary masks for each structure",
            found=f"both: {listed(beside, 2)}, and the folders {listed(structures, 3)}",
            do="Remove one of the two.",
        )


def _structure_masks(
    folder: Path,
    structures: Mapping[str, Path],
    labels: Mapping[str, int],
    images: Collection[str],
    problems: list[InputError],
    warnings: list[str],
) -> dict[str, dict[int, Path]]:
    """Return the masks of each image by label value, ascending."""
    found: dict[str, dict[int, Path]] = {}
    for name, value in labels.items():
        if value == 0 or not structures:
            continue
        if name not in structures:
            problems.append(
                InputError(
                    folder / name,
                    expected=f"a folder with the masks of the label {name!r}",
                    found=f"the folders {listed(structures)}",
                    do=f"Give folder and label the same name, or remove the label from {DESCRIPTION}.",
                )
            )
            continue
        place = structures[name]
        masks = paired(images, mask_files(place, None, problems, warnings, required=True), place, warnings)
        for image, path in masks.items():
            found.setdefault(image, {})[value] = path
    return found
