"""The words that all of the data code shares: grids, headers, items and datasets.

Axes. A 2-D image is ``(channels, height, width)``. A volume is ``(channels, i, j, k)`` with i, j, k in the order
in which its file stores them. A label map is the same without the channels. Spacing is in mm.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medsaga.errors import InputError


@dataclass(frozen=True)
class Series:
    """The images that a scanner stored as one series.

    Attributes:
        root: the folder, or the file, that the user named.
        uid: SeriesInstanceUID; never shown.
        study: StudyInstanceUID; never shown.
        files: its files, sorted by name.
        modality: ``CT``, ``MR``, ``US``, ...
        description: the operator's words for it, printable and at most 60 characters.
        images: the number of images: frames count one by one.
        rows: height of the images in pixels; 0 where it differs.
        columns: width of the images in pixels; 0 where it differs.
        patient: what stands for PatientID where there is no study; empty where there is none of the two.
    """

    root: Path
    uid: str = field(repr=False)
    files: tuple[Path, ...] = field(repr=False)
    modality: str
    description: str
    images: int
    rows: int = 0
    columns: int = 0
    study: str = field(default="", repr=False)
    patient: str = field(default="", repr=False)

    def label(self) -> str:
        """Say in words for people which series it is."""
        size = f"{self.rows} x {self.columns}" if self.rows and self.columns else "several sizes"
        description = f" {self.description!r}" if self.description else ""
        return f"{self.modality or 'unknown modality'}{description}, {self.images} x ({size})"


Source = Path | Series
"""Where an image lies: in a file of one of the formats, or in the files of a DICOM series."""
Array = npt.NDArray[np.generic]
"""An image, ``(channels, *shape)``, in the units of its file: grey values, HU, arbitrary MR units."""
Block = tuple[int, int, Array]
"""A piece of a volume: its first channel, its first k, and ``(channels, i, j, slices)`` of it."""
Labels = npt.NDArray[np.integer]
"""A label map, ``(*shape)``: integer label values as in the file, or class indices where a docstring says so."""
Mask = npt.NDArray[np.bool_]
"""Where one structure lies, ``(*shape)``."""
_PIECE = 2**20
_NEAR_MM, _NEAR_VOXELS = 1e-2, 0.05
"""By how much grids in one place may differ: formats round. In microscopy 0.01 mm are many voxels."""
_ROUNDING = 1e-6
"""Of a coordinate, in formats that hold single precision."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the pixels or voxels of an image lie.

    Attributes:
        shape: spatial shape, ``(height, width)`` or ``(i, j, k)``.
        spacing: size of a voxel along each axis of ``shape`` in mm; None where the file does not say.
        affine: (4, 4) float64, voxel index to mm in RAS+ world coordinates; None for 2-D images.
        other_affine: a second one that the file gives, by which other programs place it: of a NIfTI file, the
            qform beside the sform. A mask fits an image where one of its affines is one of the image's.
        flat: whether the third axis is none: a 2-D image in a format of volumes, whose thickness is made up.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None = None
    affine: npt.NDArray[np.float64] | None = None
    other_affine: npt.NDArray[np.float64] | None = None
    flat: bool = False

    @property
    def to_mm(self) -> npt.NDArray[np.float64] | None:
        """(axes, axes) float64, a step along each axis of ``shape``, as columns, in mm; None where they are unknown.

        Its columns are not at right angles where the grid is sheared: a tilted CT gantry. An affine beside an unknown
        spacing tells directions only.
        """
        if self.spacing is None:
            return None
        if self.affine is None:
            return np.diag(np.asarray(self.spacing, dtype=np.float64))
        return self.affine[:3, :3]

    @property
    def affines(self) -> tuple[npt.NDArray[np.float64], ...]:
        """The affine and the other one, as far as there are any."""
        return tuple(each for each in (self.affine, self.other_affine) if each is not None)

    def same_space(self, other: Grid) -> bool:
        """Whether both grids put every voxel at the same place, within 0.01 mm and a twentieth of a voxel.

        Where one of them knows no size of its voxels, it knows no place: then the same directions are enough.
        """
        if self.shape != other.shape:
            return False
        if self.affine is None or other.affine is None:
            return True
        if (self.spacing is None) != (other.spacing is None):
            mine, theirs = (each[:3, :3] / np.linalg.norm(each[:3, :3], axis=0) for each in (self.affine, other.affine))
            return bool(np.allclose(mine, theirs, atol=1e-3))
        corners = np.array([*itertools.product(*((0, length) for length in self.shape), (1,))]).T
        return any(_agree(mine, theirs, corners) for mine in self.affines for theirs in other.affines)


def _agree(mine: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64], corners: npt.NDArray[np.int64]) -> bool:
    """Whether two affines put voxels, as columns, at the same place."""
    here, there = (mine @ corners)[:3], (theirs @ corners)[:3]
    sizes = np.linalg.norm(mine[:3, :3], axis=0)
    near = min(_NEAR_MM, _NEAR_VOXELS * sizes.min(where=sizes > 0, initial=np.inf))
    return bool(np.abs(here - there).max() <= near + _ROUNDING * np.abs(here).max())


@dataclass(frozen=True)
class Header:
    """What a file says of its image before any pixel is decoded."""

    grid: Grid
    channels: int
    dtype: np.dtype


@dataclass(frozen=True)
class Item:
    """One image with its label map: a 2-D image, or a volume.

    Attributes:
        name: the name under which predictions of it are written; unique in its dataset.
        case: the patient, animal or examination it belongs to; splits never divide a case.
        images: one source with all channels, or one per channel in channel order: files, or DICOM series.
        masks: the file of the label map, or one file per structure; empty when there is none. Read them with
            `medsaga.data.items.read_mask`.
        header: grid and channels of the whole image.
        structures: the label value of each of ``masks``, ascending, where each is the binary mask of a structure;
            empty where the one file is the label map.
        names: name and label value of every label, where the mask calls its structures by names; empty where
            it holds label values.
        binary: whether every label map is to be read as background (0) and foreground (1), whatever its values are.
    """

    name: str
    case: str
    images: tuple[Source, ...]
    masks: tuple[Path, ...]
    header: Header
    structures: tuple[int, ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    binary: bool = False


@dataclass(frozen=True)
class Dataset:
    """A folder of labelled images, in one of the layouts.

    Attributes:
        root: the folder.
        layout: the name of its module in `medsaga.data.layouts`.
        labels: label name to label value, background (0) first, then by value. The position in this order is the
            class index that the model predicts; values may have gaps (BraTS: 0, 1, 2, 4).
        channels: one name per image channel, as ``dataset.json`` gives them, else ``channel_0`` and so on.
        items: sorted by name.
        problems: what is wrong with the folder, one message each; empty when it can be used.
        warnings: what the user should know though the data can be used, one message each.
        test: the cases that the layout itself keeps for the test, sorted; empty where it keeps none.
        value_range: lowest and highest value of all images, where the layout fixes them; None where it does not.
        inferred: whether nothing but the values in the masks tells the labels.
    """

    root: Path
    layout: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    items: tuple[Item, ...]
    problems: tuple[InputError, ...] = field(default=())
    warnings: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None
    inferred: bool = False

    @property
    def cases(self) -> tuple[str, ...]:
        """The distinct cases, sorted."""
        return tuple(sorted({item.case for item in self.items}))

    @property
    def label_values(self) -> npt.NDArray[np.int64]:
        """``(classes,)``: the label value of each class index, background first, ascending."""
        return np.array(list(self.labels.values()), dtype=np.int64)

    def items_of(self, cases: tuple[str, ...]) -> tuple[Item, ...]:
        """The items of the given cases, sorted by name."""
        wanted = set(cases)
        return tuple(item for item in self.items if item.case in wanted)


def outer_pieces(array: Array) -> Iterator[tuple[slice, ...]]:
    """Yield the indices of pieces of about a million values, cut along the axis that is outermost in memory."""
    axis = int(np.argmax(np.abs(array.strides)))
    step = max(1, _PIECE * array.shape[axis] // max(1, array.size))
    for start in range(0, array.shape[axis], step):
        yield (*[slice(None)] * axis, slice(start, start + step))


def to_class_indices(labels: Labels, values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Replace label values by class indices (positions in ``values``, which ascend and hold every label)."""
    return np.searchsorted(values, labels).astype(np.uint8)


def to_label_values(classes: npt.NDArray[np.uint8], values: npt.NDArray[np.int64]) -> Labels:
    """Replace class indices by label values, in the smallest unsigned type that holds them all."""
    return values.astype(np.min_scalar_type(int(values.max())))[classes]
