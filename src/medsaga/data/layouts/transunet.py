"""The Synapse abdominal CT as TransUNet (arXiv 2102.04306) preprocessed it, which later papers share.

``train_npz/case0005_slice000.npz`` are the slices of 18 cases to train on, ``test_vol_h5/case0001.npy.h5`` the volumes
of 12 cases to test on. Intensities are HU, clipped to -125..275 and then scaled to 0..1.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medsaga.data.formats import arrays, stem
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.finding import image_files
from medsaga.data.layouts.labelling import DESCRIPTION, labels_or
from medsaga.data.sources import place_of
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError, collecting

EXPECTED = "TransUNet's train_npz/ and test_vol_h5/"

LABELS = {
    "background": 0,
    "aorta": 1,
    "gallbladder": 2,
    "left kidney": 3,
    "right kidney": 4,
    "liver": 5,
    "pancreas": 6,
    "spleen": 7,
    "stomach": 8,
}
"""The numbers in TransUNet's own release, which are the order of the columns of its paper's table."""
VALUE_RANGE = (0.0, 1.0)

_SAMED_LABELS = {
    "background": 0,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "liver": 5,
    "stomach": 6,
    "aorta": 7,
    "pancreas": 8,
}

_TELLING_VOLUMES = 2
_MARGIN = 1.5

_SLICE = re.compile(r"(?P<case>.+)_slice\d+", re.DOTALL)


def recognises(root: Path) -> bool:
    """Whether there is a folder ``train_npz`` or ``test_vol_h5``."""
    return (root / "train_npz").is_dir() or (root / "test_vol_h5").is_dir()


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the slices and the volumes, which are the test cases; see `medsaga.data.layouts.Layout`.

    Image and label map lie in one file, so that an item's mask is its image's file, whatever ``masks_required`` says.
    """
    problems: list[InputError] = []
    labels = labels_or(root, LABELS, problems)
    slices, volumes = _slices(root / "train_npz", problems), _volumes(root / "test_vol_h5", problems)
    if not (root / DESCRIPTION).exists():
        with collecting(problems):
            _check_numbers(root, volumes)
    trained_on = {item.case for item in slices}
    for item in volumes:
        if item.case in trained_on:
            problems.append(
                InputError(
                    place_of(item.images[0]),
                    expected="a case to test on, of which nothing is trained on",
                    found=f"slices of {item.case} in train_npz",
                    do="Remove one of the two.",
                )
            )
    return Dataset(
        root,
        "transunet",
        labels,
        ("CT",),
        tuple(sorted((*slices, *volumes), key=lambda item: item.name)),
        tuple(problems),
        test=tuple(sorted({item.case for item in volumes})),
        value_range=VALUE_RANGE,
    )


def _slices(folder: Path, problems: list[InputError]) -> list[Item]:
    items: list[Item] = []
    paths: list[Path] = []
    with collecting(problems):
        paths = image_files(folder, ".npz")
    for path in paths:
        with collecting(problems):
            name = _SLICE.fullmatch(stem(path))
            if name is None:
                raise InputError(
                    path,
                    expected="a name such as case0005_slice000.npz",
                    found=repr(path.name),
                    do="Rename the file so that its case can be told.",
                )
            items.append(_item(path, name["case"], axes=2))
    return items


def _volumes(folder: Path, problems: list[InputError]) -> list[Item]:
    items: list[Item] = []
    with collecting(problems):
        paths = image_files(folder, ".npy.h5")
        # Said once, not once per volume.
        arrays.require_h5py(folder)
        for path in paths:
            with collecting(problems):
                items.append(_item(path, stem(path), axes=3))
    return items


def _check_numbers(root: Path, volumes: Sequence[Item]) -> None:
    """Refuse labels that are numbered in another order, which would put wrong names to the results.

    SAMed's script (arXiv 2304.13785) writes the same files with right kidney 2 and gallbladder 4. A gallbladder is
    several times smaller than a kidney, which tells the two orders apart.
    """
    gallbladder, kidney, telling = 0, 0, 0
    for item in volumes:
        # What cannot be read is reported when all items are checked.
        with contextlib.suppress(InputError):
            labels = arrays.read_labels(item.masks[0])
            counts = [int(np.count_nonzero(labels == LABELS[name])) for name in ("gallbladder", "right kidney")]
            if all(counts):
                gallbladder, kidney, telling = gallbladder + counts[0], kidney + counts[1], telling + 1
        if telling == _TELLING_VOLUMES:
            break
    if gallbladder > _MARGIN * kidney:
        raise InputError(
            root,
            expected="TransUNet's numbers of the labels, with gallbladder 2 smaller than right kidney 4",
            found=f"{gallbladder:,} voxels of 2 and {kidney:,} of 4, so other numbers, such as those of SAMed's script",
            do=f"Name the labels in {DESCRIPTION}; SAMed's are {json.dumps({'labels': _SAMED_LABELS})}.",
        )


def _item(path: Path, case: str, *, axes: int) -> Item:
    header = joint_header((path,))
    if len(header.grid.shape) != axes:
        raise InputError(
            path,
            expected="a slice of 2 axes" if axes == 2 else "a volume of 3 axes",
            found=f"{len(header.grid.shape)} axes",
            do="Put slices into train_npz and volumes into test_vol_h5.",
        )
    return Item(stem(path), case, (path,), (path,), header)
