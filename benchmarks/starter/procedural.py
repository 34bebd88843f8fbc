"""Images that nobody took: random scenes of structures with labels, for pre-training.

A *world* is what the images of one medical dataset have in common: which structures there are, what they look like,
where they tend to lie, how the picture was taken. Each image of a world draws its own objects, positions, shapes and
noise. What is a class and what is mere background is drawn too, so that neither brightness nor shape alone gives it
away. Nothing imitates a particular organ or modality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SIDE = 256
"""Of every image, in pixels."""
MOST_CLASSES = 6
"""Background included."""

Field = npt.NDArray[np.float32]
Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Look:
    """What the inside of a structure looks like.

    Attributes:
        colour: mean red, green and blue, 0 to 1.
        texture: amplitude of the texture.
        grain: which of the image's texture fields it follows, finest first.
        blend: share of a second, finer field.
    """

    colour: npt.NDArray[np.float32]
    texture: float
    grain: int
    blend: float


@dataclass(frozen=True)
class Family:
    """Objects of one kind.

    Attributes:
        label: class of their inside, 0 for objects that belong to the background.
        rim_label: class of their border.
        rim: width of the border as a share of the radius; 0 without one.
        count: mean number in an image.
        radius: mean, in pixels.
        spread: relative spread of the radius.
        waves: relative amplitudes of the outline's waves, from two around on; shared by the family.
        irregular: relative amplitude of each object's own waves.
        stretch: ratio of the axes.
        turn: mean orientation in radians; None when any occurs.
        places: usual centres as shares of the side; None when they lie anywhere.
        wander: spread around the usual centres, as a share of the side.
        tube: length of a winding tube in radii, 0 for a closed outline.
        look: of the inside.
        rim_look: of the border.
    """

    label: int
    rim_label: int
    rim: float
    count: float
    radius: float
    spread: float
    waves: npt.NDArray[np.float64]
    irregular: float
    stretch: float
    turn: float | None
    places: npt.NDArray[np.float64] | None
    wander: float
    tube: float
    look: Look
    rim_look: Look


@dataclass(frozen=True)
class World:
    """What all images of one made-up dataset share.

    Attributes:
        tissues: label and look of the regions that fill the image; the first is the commonest.
        tissue_scale: side of a region in pixels.
        steady: share of the regions' borders that all images have in common, 0 to 1.
        families: painted in this order.
        body: radius of the part of the image that is not black, as a share of the side; None when it fills it.
        blur: spread of the point-spread function in pixels.
        noise: spread of additive noise.
        speckle: spread of multiplicative noise.
        shading: amplitude of the slow change of brightness.
        jitter: spread of the structures' brightness between images.
        seed: of what the images share.
    """

    tissues: tuple[tuple[int, Look], ...]
    tissue_scale: float
    steady: float
    families: tuple[Family, ...]
    body: float | None
    blur: float
    noise: float
    speckle: float
    shading: float
    jitter: float
    seed: int


def draw_world(seed: int) -> World:
    """Draw a world; equal seeds give equal worlds."""
    random = np.random.default_rng([seed, 0])
    colourful = random.random() < 0.4

    def look() -> Look:
        colour = np.full(3, random.uniform(0.05, 0.95))
        if colourful:
            colour = np.clip(colour + random.normal(0, 0.2, 3), 0, 1)
        texture = random.choice([0.02, 0.08, 0.2]) * random.uniform(0.5, 1.5)
        return Look(colour.astype(np.float32), float(texture), int(random.integers(4)), float(random.uniform(0, 0.6)))

    labels = iter(random.permutation(np.arange(1, MOST_CLASSES)).tolist()[: random.integers(1, MOST_CLASSES)])

    def label(chance: float) -> int:
        return next(labels, 0) if random.random() < chance else 0

    tissues = [(0, look())]
    tissues += [(label(0.5), look()) for _ in range(random.choice([0, 1, 2, 3], p=[0.3, 0.3, 0.25, 0.15]))]
    families = [_draw_family(random, label, look) for _ in range(random.choice([1, 2, 3, 4]))]
    if all(family.label == 0 == family.rim_label for family in families):
        families.append(_draw_family(random, lambda _: 1, look))
    return World(
        tissues=tuple(tissues),
        tissue_scale=float(np.exp(random.uniform(np.log(12), np.log(90)))),
        steady=float(random.choice([0, random.uniform(0.3, 0.95)])),
        families=tuple(families),
        body=float(random.uniform(0.35, 0.55)) if random.random() < 0.35 else None,
        blur=float(random.choice([0, random.uniform(0.5, 2)])),
        noise=float(random.choice([0.01, 0.04, 0.1]) * random.uniform(0.5, 1.5)),
        speckle=float(random.choice([0, 0, random.uniform(0.1, 0.4)])),
        shading=float(random.choice([0, random.uniform(0.1, 0.5)])),
        jitter=float(random.uniform(0, 0.08)),
        seed=seed,
    )


def _draw_family(random: np.random.Generator, label: object, look: object) -> Family:
    assert callable(label)
    assert callable(look)
    radius = float(np.exp(random.uniform(np.log(4), np.log(70))))
    most = max(1.0, 0.35 * (SIDE / (2 * radius)) ** 2)
    count = float(np.exp(random.uniform(0, np.log(min(most, 80)))))
    steady = count < 8 and random.random() < 0.6
    rim = float(random.uniform(0.12, 0.5)) if random.random() < 0.35 else 0.0
    inside = look()
    return Family(
        label=label(0.8),
        rim_label=label(0.7) if rim else 0,
        rim=rim,
        count=count,
        radius=radius,
        spread=float(random.uniform(0.05, 0.4)),
        waves=random.normal(0, 1, 4) * random.choice([0, 0.05, 0.15]) / np.arange(1, 5),
        irregular=float(random.choice([0.02, 0.08, 0.2])),
        stretch=float(np.exp(random.choice([0, random.uniform(0, 1.1)]))),
        turn=None if random.random() < 0.5 else float(random.uniform(0, math.pi)),
        places=random.uniform(0.15, 0.85, (math.ceil(count), 2)) if steady else None,
        wander=float(random.uniform(0.01, 0.08)),
        tube=float(random.uniform(6, 40)) if radius < 12 and random.random() < 0.4 else 0.0,
        look=inside,
        rim_look=look(),
    )


def draw_image(world: World, number: int) -> tuple[Labels, Labels]:
    """Draw image ``number`` of a world.

    Returns:
        the image, ``(256, 256, 3)`` uint8, and its label map, ``(256, 256)`` uint8, 0 is background.
    """
    random = np.random.default_rng([world.seed, 1, number])
    looks = [look for _, look in world.tissues]
    labels_of_looks = [label for label, _ in world.tissues]
    material = _tissues(world, random)
    for family in world.families:
        looks += [family.look, family.rim_look]
        labels_of_looks += [family.label, family.rim_label]
        material = _paint(material, family, len(looks) - 2, random)
    labels = np.array(labels_of_looks, np.uint8)[material]
    picture = _picture(world, material, looks, random)
    if world.body is not None:
        outside = ~_body(world.body, random)
        picture[outside] *= random.uniform(0, 0.1)
        labels[outside] = 0
    return _taken(world, picture, random), labels


def _tissues(world: World, random: np.random.Generator) -> Labels:
    """Divide the image into regions: at each pixel the tissue whose smooth random field is highest."""
    if len(world.tissues) == 1:
        return np.zeros((SIDE, SIDE), np.uint8)
    shared = np.random.default_rng([world.seed, 2])
    fields = [
        math.sqrt(world.steady) * _smooth(shared, world.tissue_scale)
        + math.sqrt(1 - world.steady) * _smooth(random, world.tissue_scale)
        for _ in world.tissues
    ]
    fields[0] += 0.3
    return np.argmax(fields, axis=0).astype(np.uint8)


def _paint(material: Labels, family: Family, look: int, random: np.random.Generator) -> Labels:
    canvas = Image.fromarray(material)
    draw = ImageDraw.Draw(canvas)
    count = len(family.places) if family.places is not None else max(1, int(random.poisson(family.count)))
    for i in range(count):
        if family.places is None:
            centre = random.uniform(0, 1, 2)
        else:
            centre = family.places[i] + random.normal(0, family.wander, 2)
        radius = family.radius * math.exp(random.normal(0, family.spread))
        turn = random.uniform(0, 2 * math.pi) if family.turn is None else random.normal(family.turn, 0.2)
        if family.tube:
            path = _path(centre * SIDE, radius, family.tube, turn, random)
            _line(draw, path, 2 * radius, look + 1 if family.rim else look)
            if family.rim:
                _line(draw, path, 2 * radius * (1 - family.rim), look)
            continue
        outline = _outline(family, radius, turn, random)
        draw.polygon(_flat(outline + centre * SIDE), fill=look + 1 if family.rim else look)
        if family.rim:
            draw.polygon(_flat(outline * (1 - family.rim) + centre * SIDE), fill=look)
    return np.asarray(canvas)


def _outline(family: Family, radius: float, turn: float, random: np.random.Generator) -> npt.NDArray[np.float64]:
    angles = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    waves = family.waves + random.normal(0, 1, 4) * family.irregular / np.arange(1, 5)
    phases = random.uniform(0, 0.5, 4) if family.turn is not None else random.uniform(0, 2 * math.pi, 4)
    swell = 1 + sum(
        a * np.cos((k + 2) * angles + phase) for k, (a, phase) in enumerate(zip(waves, phases, strict=True))
    )
    x = radius * swell * np.cos(angles) * math.sqrt(family.stretch)
    y = radius * swell * np.sin(angles) / math.sqrt(family.stretch)
    return np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], axis=1)


def _path(
    start: npt.NDArray[np.float64], radius: float, length: float, turn: float, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    steps = max(4, int(length))
    headings = turn + np.cumsum(random.normal(0, 0.25, steps))
    moves = radius * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return start + np.cumsum(moves, axis=0) - moves.sum(axis=0) / 2


def _line(draw: ImageDraw.ImageDraw, path: npt.NDArray[np.float64], width: float, value: int) -> None:
    draw.line(_flat(path), fill=value, width=max(1, round(width)), joint="curve")


def _flat(points: npt.NDArray[np.float64]) -> list[float]:
    return [float(number) for number in points.ravel()]


def _body(radius: float, random: np.random.Generator) -> npt.NDArray[np.bool_]:
    ys, xs = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5 - random.normal(0, 0.02, (2, 1, 1))
    squeeze = random.uniform(0.8, 1.25)
    inside: npt.NDArray[np.bool_] = (xs * squeeze) ** 2 + (ys / squeeze) ** 2 < radius**2
    return inside


def _picture(world: World, material: Labels, looks: list[Look], random: np.random.Generator) -> Field:
    fields = np.stack([_smooth(random, scale) for scale in (2.0, 4.0, 10.0, 30.0)])
    fine = fields[0]
    colours = np.stack([look.colour + random.normal(0, world.jitter) for look in looks]).astype(np.float32)
    texture = np.zeros((SIDE, SIDE), np.float32)
    for i in np.unique(material):
        look, where = looks[i], material == i
        pattern = (1 - look.blend) * fields[look.grain][where] + look.blend * fine[where]
        texture[where] = look.texture * pattern
    picture: Field = colours[material] + texture[..., None]
    return picture


def _taken(world: World, picture: Field, random: np.random.Generator) -> Labels:
    """Blur, shade, add noise and scale a scene, 0 to 1, to 8 bits."""
    if world.shading:
        picture = picture * (1 + world.shading * _smooth(random, 150)[..., None])
    if world.speckle:
        picture = picture * (1 + world.speckle * _smooth(random, 2.5)[..., None])
    if world.blur:
        scaled = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8))
        small = max(8, round(SIDE / (1 + world.blur)))
        scaled = scaled.resize((small, small), Image.Resampling.BOX).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture = np.asarray(scaled, np.float32) / np.float32(255)
    noise: Field = random.standard_normal((SIDE, SIDE, 1), np.float32) * np.float32(world.noise)
    picture = picture + noise
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _smooth(random: np.random.Generator, scale: float) -> Field:
    """A random field of mean 0 and spread 1 whose blobs are about ``scale`` pixels wide."""
    knots = max(3, round(SIDE / scale))
    coarse = Image.fromarray(random.standard_normal((knots, knots), np.float32))
    field = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    normalised: Field = (field - field.mean()) / np.float32(max(field.std(), 1e-3))
    return normalised
