"""A generated abdominal CT with labelled liver, spleen and kidneys: data for the demo and the tests, of nobody.

Every organ is a smooth level set in a body that differs from case to case. The grey values of the organs overlap with
those of muscle, stomach and bowel, so that a model must learn place and shape and not a threshold.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medsaga import files
from medsaga.data.types import Mask

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}

_FIELD_OF_VIEW = 384.0
"""mm, left to right and front to back."""
_SLICE_THICKNESS = 5.0
"""mm."""
_AIR, _LUNG, _FAT, _MUSCLE, _TABLE = -1000.0, -850.0, -105.0, 58.0, 140.0

Field = npt.NDArray[np.floating]


@dataclass(frozen=True)
class _Body:
    """Where every voxel lies in the patient, in mm from the middle of the trunk.

    Attributes:
        x: towards the patient's right, ``(i, j, k)``, bent a little from case to case, so that nothing is a perfect
            ellipse.
        y: towards the front, likewise.
        z: 0 at the lowest and 1 at the highest slice, ``(1, 1, k)``.
        size: of the patient; 1 is average.
    """

    x: Field
    y: Field
    z: Field
    size: float

    def blob(
        self,
        centre: tuple[float, float, float],
        radii: tuple[float, float, float],
        degrees: float = 0,
        power: float = 2,
    ) -> Mask:
        """Voxels in a superellipsoid turned in the axial plane; x and y in mm of an average patient, z in 0 to 1."""
        inside = np.zeros(self.x.shape, dtype=bool)
        reach = max(radii[:2]) * 1.5 * self.size
        # Only where the body's voxels can be near enough: there are a hundred such shapes in a case.
        box = (
            _range_of(
                (self.x_range[0] < centre[0] * self.size + reach) & (self.x_range[1] > centre[0] * self.size - reach)
            ),
            _range_of(
                (self.y_range[0] < centre[1] * self.size + reach) & (self.y_range[1] > centre[1] * self.size - reach)
            ),
            _range_of(np.abs(self.z[0, 0] - centre[2]) < radii[2]),
        )
        angle = math.radians(degrees)
        x, y = self.x[box] / self.size - centre[0], self.y[box] / self.size - centre[1]
        along = np.abs((x * math.cos(angle) + y * math.sin(angle)) / radii[0]) ** power
        across = np.abs((y * math.cos(angle) - x * math.sin(angle)) / radii[1]) ** power
        inside[box] = along + across + np.abs((self.z[..., box[2]] - centre[2]) / radii[2]) ** power < 1
        return inside

    @cached_property
    def x_range(self) -> tuple[Field, Field]:
        """Smallest and largest x for each index i."""
        return self.x.min((1, 2)), self.x.max((1, 2))

    @cached_property
    def y_range(self) -> tuple[Field, Field]:
        """Smallest and largest y for each index j."""
        return self.y.min((0, 2)), self.y.max((0, 2))


def _range_of(wanted: Mask) -> slice:
    """The shortest range that holds all that is wanted along one axis."""
    places = np.flatnonzero(wanted)
    return slice(int(places[0]), int(places[-1]) + 1) if places.size else slice(0, 0)


def phantom_ct(
    random: np.random.Generator, shape: tuple[int, int, int] = (96, 96, 12)
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Generate one case.

    Args:
        random: decides everything about the case.
        shape: ``(i, j, k)``: left to right, back to front, down to up (RAS+), over 384 x 384 mm and the height of the
            upper abdomen whatever the number of slices.

    Returns:
        HU, ``(i, j, k)``, and label values of `LABELS`, ``(i, j, k)``.
    """
    body = _body(random, shape)
    hu = np.full(shape, _AIR, dtype=np.float32)
    labels = np.zeros(shape, dtype=np.uint8)
    cavity = _trunk(hu, body, random)
    _bowel_and_stomach(hu, body, cavity, random)
    _organs(hu, labels, body, cavity, random)
    _bones_and_vessels(hu, labels, body, random)
    _lungs(hu, labels, body, cavity, random)
    _table(hu, shape)
    return _scanned(hu, random), labels


def write_phantom_ct(root: Path, *, cases: int = 8, shape: tuple[int, int, int] = (96, 96, 12), seed: int = 0) -> None:
    """Write a dataset of generated cases in the layout of nnU-Net v2.

    The volumes are stored in LPS order, as most converters of DICOM do; every fourth, beginning with the second, was
    scanned with a tilted gantry, so that its affine is oblique.

    Args:
        root: the folder of the dataset; made if need be.
        cases: how many.
        shape: see `phantom_ct`.
        seed: the same seed gives the same files; case n does not depend on how many there are.
    """
    # Here, because nothing else of this module needs it.
    import nibabel as nib

    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for case in range(cases):
        hu, labels = phantom_ct(np.random.default_rng([seed, case]), shape)
        affine = _affine(shape, tilt=8.0 if case % 4 == 1 else 0.0)
        for path, voxels in (
            (root / "imagesTr" / f"phantom_{case:03}_0000.nii.gz", hu),
            (root / "labelsTr" / f"phantom_{case:03}.nii.gz", labels),
        ):
            image = nib.Nifti1Image(voxels[::-1, ::-1], affine)
            image.header.set_xyzt_units("mm")
            with files.replacing(path) as temporary:
                nib.save(image, temporary)
    files.write_json(
        root / "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": cases, "file_ending": ".nii.gz"},
    )


def _affine(shape: tuple[int, int, int], tilt: float) -> npt.NDArray[np.float64]:
    """LPS storage, the middle of the volume at the origin, turned by ``tilt`` degrees about the x axis."""
    spacing = np.array([_FIELD_OF_VIEW / shape[0], _FIELD_OF_VIEW / shape[1], _SLICE_THICKNESS])
    sine, cosine = math.sin(math.radians(tilt)), math.cos(math.radians(tilt))
    turn = np.array([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing * (-1, -1, 1))
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _body(random: np.random.Generator, shape: tuple[int, int, int]) -> _Body:
    x, y = ((np.arange(n) + 0.5) / n * _FIELD_OF_VIEW - _FIELD_OF_VIEW / 2 for n in shape[:2])
    z = (np.arange(shape[2]) + 0.5) / shape[2]
    bend_x, bend_y = 4 * _smooth(random, shape, knots=6), 4 * _smooth(random, shape, knots=6)
    off_x, off_y = random.normal(0, 6), random.normal(0, 5)
    return _Body(
        x=x[:, None, None] + bend_x - off_x,
        y=y[None, :, None] + bend_y - off_y,
        z=z[None, None, :],
        size=float(random.uniform(0.86, 1.1)),
    )


def _smooth(random: np.random.Generator, shape: tuple[int, int, int], knots: int) -> Field:
    """A smooth random field of standard deviation near 1 with ``knots`` control points along each in-plane axis."""
    field: Field = random.standard_normal((knots, knots, 3))
    for axis, size in enumerate(shape):
        # One axis after the other, each by a matrix of interpolation weights: far cheaper than a spline in 3-D.
        points = np.linspace(0, field.shape[axis] - 1, size)
        weights = np.maximum(0, 1 - np.abs(points - np.arange(field.shape[axis])[:, None]))
        smoothed = ndimage.gaussian_filter1d(weights, size / field.shape[axis] / 3, axis=1, mode="nearest")
        field = np.moveaxis(np.tensordot(field, smoothed, (axis, 0)), -1, axis)
    return field / field.std()


def _trunk(hu: Field, body: _Body, random: np.random.Generator) -> Mask:
    """Skin, fat, muscle and the fat within; returns the abdominal cavity."""
    fat = random.uniform(8, 26)
    wide, deep = 132.0, 86.0
    everywhere = (0.0, 0.0, 0.5)
    skin = body.blob(everywhere, (wide + fat + 3, deep + fat + 3, 50), power=2.3)
    hu[skin] = 20
    hu[body.blob(everywhere, (wide + fat, deep + fat, 50), power=2.3)] = _FAT
    wall = body.blob(everywhere, (wide, deep, 50), power=2.4)
    hu[wall] = _MUSCLE
    cavity = body.blob((0, 4, 0.5), (wide - 13, deep - 14, 50), power=2.4)
    hu[cavity] = _FAT
    for side in (-1, 1):
        # The muscles beside the spine, behind and before it.
        hu[body.blob((side * 36, -66, 0.5), (30, 19, 50)) & wall] = _MUSCLE
        hu[body.blob((side * 31, -36, -0.1), (14, 17, 0.8))] = _MUSCLE + 4
    return cavity


def _bowel_and_stomach(hu: Field, body: _Body, cavity: Mask, random: np.random.Generator) -> None:
    """What looks like an organ by its grey value and is none."""
    for _ in range(26):
        centre = (random.uniform(-95, 95), random.uniform(2, 62), random.uniform(-0.1, 0.5))
        radius = random.uniform(9, 17)
        shape = (radius * random.uniform(1, 1.6), radius, random.uniform(0.1, 0.25))
        turn = random.uniform(0, 180)
        hu[body.blob(centre, shape, turn) & cavity] = random.uniform(45, 75)
        inner = (shape[0] - 3, shape[1] - 3, shape[2])
        gas = random.random() < 0.25
        hu[body.blob(centre, inner, turn) & cavity] = -780 if gas else random.uniform(5, 115)
    middle = (-58 + random.normal(0, 6), 30 + random.normal(0, 5), 0.74)
    hu[body.blob(middle, (45, 30, 0.36), -25) & cavity] = 62
    hu[body.blob(middle, (41, 26, 0.35), -25) & cavity] = random.uniform(15, 105)
    level = body.y / body.size > middle[1] + random.uniform(6, 16)
    hu[body.blob(middle, (41, 26, 0.35), -25) & cavity & level] = -880


def _organs(hu: Field, labels: npt.NDArray[np.uint8], body: _Body, cavity: Mask, random: np.random.Generator) -> None:
    def place(label: str, where: Mask, value: float) -> None:
        # A little texture, so that an organ is not one flat value.
        texture = 5 * _smooth(random, hu.shape, knots=14)
        hu[where] = value + texture[where]
        labels[where] = LABELS[label]

    # Kept small along z, so that the lowest slice shows no organ.
    shift = random.normal(0, 1, (4, 3)).clip(-1.6, 1.6) * (5, 4, 0.03)
    grow = random.uniform(0.88, 1.12, 4)
    # Liver: a large right lobe and a left lobe that tapers over the midline.
    right = body.blob(
        (62 + shift[0, 0], 4 + shift[0, 1], 0.66 + shift[0, 2]), (63 * grow[0], 70 * grow[0], 0.5), 12, 2.3
    )
    left = body.blob((8 + shift[0, 0], 36 + shift[0, 1], 0.78 + shift[0, 2]), (62 * grow[0], 25, 0.32), 14)
    hollow = body.blob((20 + shift[0, 0], -14 + shift[0, 1], 0.45), (34, 30, 0.7), 30)
    liver_value = random.uniform(78, 122)
    place("liver", (right | left) & ~hollow & cavity, liver_value)
    _liver_details(hu, labels, body, liver_value, random)
    # Spleen: the shell of an ellipse that hugs the left wall from behind.
    outer = body.blob((-84 + shift[1, 0], -20 + shift[1, 1], 0.7 + shift[1, 2]), (34 * grow[1], 48 * grow[1], 0.3), -20)
    inner = body.blob((-50 + shift[1, 0], -4 + shift[1, 1], 0.7), (31, 42, 0.5), -20)
    place("spleen", outer & ~inner & cavity, random.uniform(88, 132))
    for n, side in ((2, 1), (3, -1)):
        _kidney(hu, labels, body, side, shift[n], float(grow[n]), random)


def _liver_details(
    hu: Field, labels: npt.NDArray[np.uint8], body: _Body, liver: float, random: np.random.Generator
) -> None:
    """Vessels that branch through the liver, sometimes a lesion; both count as liver."""
    inside = labels == LABELS["liver"]
    for _ in range(7):
        centre = (random.uniform(20, 105), random.uniform(-35, 45), random.uniform(0.4, 1.0))
        vessel = body.blob(centre, (random.uniform(8, 22), random.uniform(2.5, 4), 0.12), random.uniform(0, 180))
        hu[vessel & inside] = liver + random.uniform(25, 50)
    if random.random() < 0.4:
        centre = (random.uniform(40, 95), random.uniform(-20, 40), random.uniform(0.5, 0.9))
        radius = random.uniform(7, 14)
        hu[body.blob(centre, (radius, radius, 0.12)) & inside] = liver - random.uniform(30, 60)


def _kidney(
    hu: Field,
    labels: npt.NDArray[np.uint8],
    body: _Body,
    side: int,
    shift: npt.NDArray[np.float64],
    grow: float,
    random: np.random.Generator,
) -> None:
    # The left kidney lies higher than the right one, which the liver pushes down.
    centre = (side * (63 + shift[0]), -36 + shift[1], (0.37 if side > 0 else 0.45) + shift[2])
    turn = side * random.uniform(-50, -25)
    radii = (30 * grow, 22 * grow, 0.27)
    sinus_centre = (centre[0] - side * 15, centre[1] + 5, centre[2])
    perirenal = body.blob(centre, (radii[0] + 7, radii[1] + 7, radii[2] + 0.06), turn)
    # Fat parts the kidney from liver and spleen.
    hu[perirenal] = _FAT
    labels[perirenal] = 0
    whole = body.blob(centre, radii, turn)
    sinus = body.blob(sinus_centre, (17, 7, 0.14), turn + side * 60)
    kidney = whole & ~sinus
    cortex = random.uniform(120, 175)
    hu[whole] = _FAT + 40
    hu[kidney] = cortex
    hu[body.blob(centre, (radii[0] - 7, radii[1] - 7, radii[2] - 0.05), turn) & kidney] = cortex - random.uniform(
        25, 45
    )
    labels[kidney] = LABELS["kidney"]


def _bones_and_vessels(hu: Field, labels: npt.NDArray[np.uint8], body: _Body, random: np.random.Generator) -> None:
    spongy = random.uniform(130, 230)
    # Discs and vertebrae take turns along the spine.
    height = (body.z * 2.4 + random.random()) % 1
    disc = np.broadcast_to(height < 0.22, hu.shape)
    bone = body.blob((0, -48, 0.5), (22, 17, 50), power=2.4)
    core = body.blob((0, -48, 0.5), (19, 14, 50), power=2.4)
    hu[bone] = np.where(disc[bone], 85, 430)
    hu[core & ~disc] = spongy
    for centre, radii, turn in (
        ((0, -72, 0.5), (14, 9, 50), 0),
        ((0, -88, 0.5), (3.5, 13, 50), 0),
        ((26, -70, 0.5), (17, 4, 50), -15),
        ((-26, -70, 0.5), (17, 4, 50), 15),
    ):
        hu[body.blob(centre, radii, turn)] = 380
    hu[body.blob((0, -70, 0.5), (8.5, 6.5, 50))] = 30
    _ribs(hu, labels, body, random)
    vessels = (((-9, -20, 0.5), 10.5, random.uniform(130, 190)), ((17, -21, 0.5), 11.5, random.uniform(95, 140)))
    for centre, radius, value in vessels:
        vessel = body.blob(centre, (radius, radius * random.uniform(0.75, 1), 50))
        hu[vessel] = value
        labels[vessel] = 0


def _ribs(hu: Field, labels: npt.NDArray[np.uint8], body: _Body, random: np.random.Generator) -> None:
    """Ribs run obliquely, so that each slice cuts them at other places of the wall."""
    phase = random.random()
    for rib, side in itertools.product(range(6), (-1, 1)):
        near = np.zeros(hu.shape, dtype=bool)
        for height in body.z[0, 0]:
            degrees = -62 + (rib + phase - 1.6 * height) * 34
            if -65 < degrees < 75:
                around = math.radians(degrees)
                centre = (side * 125 * math.cos(around) ** 0.8, 79 * math.sin(around), height)
                near |= body.blob(centre, (9, 4, 1e-3), side * (degrees + 90))
        hu[near] = random.uniform(330, 520)
        labels[near] = 0


def _lungs(hu: Field, labels: npt.NDArray[np.uint8], body: _Body, cavity: Mask, random: np.random.Generator) -> None:
    """The lungs' lowest parts, behind and beside the domes of the diaphragm."""
    top = random.uniform(0.8, 0.92)
    for side in (-1, 1):
        dome = body.blob((side * 52, 14, 0.5), (64, 62, 50), power=2.2)
        chest = cavity & ~dome & (side * body.x > 22 * body.size) & (body.z > top)
        hu[chest] = _LUNG
        labels[chest] = 0


def _table(hu: Field, shape: tuple[int, int, int]) -> None:
    """The scanner's table: a shallow trough that does not move with the patient."""
    x = ((np.arange(shape[0]) + 0.5) / shape[0] - 0.5) * _FIELD_OF_VIEW
    y = ((np.arange(shape[1]) + 0.5) / shape[1] - 0.5) * _FIELD_OF_VIEW
    depth = y[None, :] - (-138 + (x[:, None] / 200) ** 2 * 45)
    lines = ((np.abs(depth) < 3.2) | (np.abs(depth + 22) < 3.2)) & (np.abs(x)[:, None] < 175)
    where = lines[:, :, None] & (hu < -900)
    hu[where] = _TABLE


def _scanned(hu: Field, random: np.random.Generator) -> npt.NDArray[np.int16]:
    """What a scanner makes of it: blurred edges and correlated noise, more of it in a large patient's middle."""
    blurred = ndimage.gaussian_filter(hu, (0.55, 0.55, 0.25), mode="nearest", output=np.float32)
    noise = random.standard_normal(hu.shape, dtype=np.float32) * np.float32(random.uniform(14, 24))
    noise = 1.3 * ndimage.gaussian_filter(noise, (0.5, 0.5, 0), output=np.float32)
    return np.rint(np.clip(blurred + noise, -1024, 3071)).astype(np.int16)
