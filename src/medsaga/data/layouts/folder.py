"""The plain layout: ``images/NAME.*`` and ``masks/NAME.*``, or ``masks/STRUCTURE/NAME.*`` with a binary mask each.

``dataset.json`` (labels, channel names) and ``cases.csv`` (which images are of one case) are read where present.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medsaga.data.descriptions import channel_names, read_description
from medsaga.data.formats import is_image
from medsaga.data.labels import listed, parse_labels
from medsaga.data.layouts.shared import (
    BACKGROUND,
    DESCRIPTION,
    by_stem,
    cases_of,
    checked,
    collecting,
    image_files,
    joint_header,
    labels_of_masks,
    mask_files,
    pairing_problems,
    subfolders,
)
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError

EXPECTED = "images/ and masks/"


def recognises(root: Path) -> bool:
    """Whether there is a folder ``images``."""
    return (root / "images").is_dir()


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the images, each an item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    images: dict[str, Path] = {}
    with collecting(problems):
        images = by_stem(image_files(root / "images"), problems)
    structures = _structure_folders(root / "masks")
    single, by_structure = {}, {}
    labels, channels = dict(BACKGROUND), None
    with collecting(problems):
        if not structures:
            single = mask_files(root / "masks", None, problems, required=masks_required)
        else:
            _refuse_label_maps_beside(root / "masks", structures)
        labels, channels = _labels_and_channels(root, structures, single, problems, required=masks_required)
        by_structure = _structure_masks(root / "masks", structures, labels, problems)
    cases = cases_of(root, images, problems)
    items = []
    for name, path in sorted(images.items()):
        values: tuple[int, ...] = tuple(by_structure.get(name, ()))
        masks = tuple(by_structure[name].values()) if values else (single[name],) if name in single else ()
        with collecting(problems):
            items.append(Item(name, cases[name], (path,), masks, joint_header((path,)), values))
    any_mask = {**single, **{name: next(iter(masks.values())) for name, masks in by_structure.items()}}
    problems += pairing_problems(images, any_mask, root / "masks", masks_required=masks_required)
    inferred = not structures and not (root / DESCRIPTION).exists()
    return checked(Dataset(root, "folder", labels, channels or (), tuple(items), tuple(problems), inferred=inferred))


def _labels_and_channels(
    root: Path,
    structures: Sequence[str],
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
            labels = parse_labels(root / "masks", {"labels": BACKGROUND | numbered})
        else:
            labels = labels_of_masks(root / "masks", masks.values(), problems, required=required)
    return labels, channels


def _structure_folders(folder: Path) -> list[str]:
    """Return the subfolders of ``masks`` that hold images, in alphabetical order; background needs no mask."""
    names = [path.name for path in subfolders(folder) if any(is_image(file) for file in path.iterdir())]
    return sorted((name for name in names if name.lower() != "background"), key=lambda name: (name.casefold(), name))


def _refuse_label_maps_beside(folder: Path, structures: Sequence[str]) -> None:
    beside = sorted(path.name for path in folder.iterdir() if path.is_file() and is_image(path))
    if beside:
        raise InputError(
            folder,
            expected="either label maps, masks/NAME.png, or a subfolder of binary masks for each structure",
            found=f"both: {listed(beside, 2)}, and the folders {listed(structures, 3)}",
            do="Remove one of the two.",
        )


def _structure_masks(
    folder: Path, structures: Sequence[str], labels: Mapping[str, int], problems: list[InputError]
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
        for image, path in mask_files(folder / name, None, problems, required=True).items():
            found.setdefault(image, {})[value] = path
    return found
