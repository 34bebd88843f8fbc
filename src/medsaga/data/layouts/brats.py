"""The training data of BraTS 2020 as they are downloaded: a folder per case, a file per modality and one of labels.

``BraTS20_Training_001/BraTS20_Training_001_flair.nii.gz`` and so on for ``t1``, ``t1ce``, ``t2`` and ``seg``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from medsaga.data.formats import stem
from medsaga.data.labels import listed
from medsaga.data.layouts.checks import joint_header
from medsaga.data.layouts.finding import by_stem, image_files, subfolders, without_strays
from medsaga.data.layouts.labelling import labels_or
from medsaga.data.layouts.pairing import are_unlabelled
from medsaga.data.names import normal
from medsaga.data.types import Dataset, Item
from medsaga.errors import InputError, collecting

EXPECTED = "BraTS 2020's folders BraTS20_Training_001 and so on"

CHANNELS = ("flair", "t1", "t1ce", "t2")
LABELS = {"background": 0, "necrotic and non-enhancing core": 1, "peritumoural oedema": 2, "enhancing tumour": 4}
"""The numbers up to BraTS 2022; 3 is not used."""

_CASE = re.compile(r"BraTS.*_\d{3,}", re.IGNORECASE | re.DOTALL)


def recognises(root: Path) -> bool:
    """Whether there are case folders in the folder or in a folder in it."""
    return _home(root) is not None


def read(root: Path, *, masks_required: bool) -> Dataset:
    """Find the cases, each of one item; see `medsaga.data.layouts.Layout`.

    The dataset's root is the folder that holds the case folders, where ``dataset.json`` and ``splits_final.json`` are
    looked for too.
    """
    home = _home(root)
    assert home is not None, "read only what is recognised"
    problems: list[InputError] = []
    labels = labels_or(home, LABELS, problems)
    warnings: list[str] = []
    unlabelled: list[InputError] = []
    items = []
    for folder in _case_folders(home):
        with collecting(problems):
            files = by_stem(without_strays(image_files(folder), warnings), problems)
            images = _modalities(folder, files)
            masks = _mask(folder, files, unlabelled)
            name = normal(folder.name)
            items.append(Item(name, name, images, masks, joint_header(images)))
    if masks_required and not are_unlabelled(len(unlabelled), sum(bool(item.masks) for item in items)):
        problems += unlabelled
    return Dataset(home, "brats", labels, CHANNELS, tuple(items), tuple(problems), warnings=tuple(warnings))


def _home(root: Path) -> Path | None:
    """Return the folder that holds the case folders: the given one, or the first in it that does."""
    return next((folder for folder in (root, *subfolders(root)) if _case_folders(folder)), None)


def _case_folders(folder: Path) -> list[Path]:
    return [path for path in subfolders(folder) if _CASE.fullmatch(path.name)]


def _modalities(folder: Path, files: Mapping[str, Path]) -> tuple[Path, ...]:
    name = normal(folder.name)
    missing = [channel for channel in CHANNELS if f"{name}_{channel}" not in files]
    if missing:
        raise InputError(
            folder,
            expected=f"the modalities {', '.join(CHANNELS)} of the case",
            found=f"no {listed(f'{name}_{channel}.nii[.gz]' for channel in missing)}",
            do="Download the case again, or remove its folder.",
        )
    return tuple(files[f"{name}_{channel}"] for channel in CHANNELS)


def _mask(folder: Path, files: Mapping[str, Path], missing: list[InputError]) -> tuple[Path, ...]:
    """Return the label map, which in one case of the public release is called ``W39_1998.09.19_Segm.nii``.

    Where there is none, what would be wrong with that goes on the list.
    """
    named = files.get(f"{normal(folder.name)}_seg")
    astray = [path for path in files.values() if stem(path).lower().endswith("_segm")]
    if named is not None:
        return (named,)
    if len(astray) == 1:
        return (astray[0],)
    missing.append(
        InputError(
            folder / f"{folder.name}_seg.nii.gz",
            expected="the label map of the case",
            found="none" if not astray else listed(path.name for path in astray),
            do="Add the label map under this name, or remove the folder.",
        )
    )
    return ()
