"""The Medical Segmentation Decathlon (arXiv 2106.05735): ``imagesTr/CASE.nii.gz`` and ``labelsTr/CASE.nii.gz``.

It looks like nnU-Net's layout, but all channels of a case are in one file, whose name has no channel: 4-D for the
tasks of several. ``dataset.json`` names labels (``{"0": "background"}``) and channels (``modality``).
"""

from __future__ import annotations

from pathlib import Path

from medsaga.data.formats import is_image, stem
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.finding import by_stem, image_files, mask_files, without_strays
from medsaga.data.layouts.labelling import described
from medsaga.data.layouts.nnunet import CHANNEL_FILE
from medsaga.data.layouts.pairing import pairing_problems
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError, collecting

EXPECTED = "the Decathlon's imagesTr/, labelsTr/ and dataset.json"


def recognises(root: Path) -> bool:
    """Whether most images in ``imagesTr`` are named like label maps, or where there are none, without a channel."""
    images, masks = _names(root / "imagesTr"), _names(root / "labelsTr")
    numbered = [match for match in map(CHANNEL_FILE.fullmatch, images) if match]
    whole, channels = len(images & masks), sum(match["case"] in masks for match in numbered)
    return whole > channels if whole or channels else 2 * len(numbered) < len(images)


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the cases, each of one item; see `medsaga.data.layouts.Layout`."""
    problems: list[InputError] = []
    warnings: list[str] = []
    labels, channels, _ = described(root, problems)
    masks = mask_files(root / "labelsTr", None, problems, warnings, required=masks_required)
    images: dict[str, Path] = {}
    with collecting(problems):
        images = by_stem(without_strays(image_files(root / "imagesTr"), warnings, meant=masks), problems)
    items = []
    for name, path in sorted(images.items()):
        with collecting(problems):
            mask = (masks[name],) if name in masks else ()
            items.append(Item(name, name, (path,), mask, joint_header((path,))))
    problems += pairing_problems(images, masks, root / "labelsTr", masks_required=masks_required)
    return Dataset(root, "decathlon", labels, channels or (), tuple(items), tuple(problems), warnings=tuple(warnings))


def _names(folder: Path) -> set[str]:
    try:
        return {stem(path) for path in folder.iterdir() if is_image(path)}
    except OSError:
        return set()
