"""Random changes of training images and their labels, on the device.

What happens to an image is a pure function of seed, step and its place in the batch: no global generator is read, and
a resumed run sees what it would have seen. All geometry is composed into one map of coordinates, so that an image is
interpolated once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from medsaga.data.symmetries import SYMMETRIES
from medsaga.memory.meta import seeded_generator

_ELASTIC_KNOTS = 6
"""Control points along each side of the square: deformations as wide as an organ, not as an edge."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How often each change happens (a probability per sample) and how far it goes (the ends of a uniform range).

    Geometry, of images and labels alike:

    Attributes:
        turn_and_flip: a random number of quarter turns, then a flip up-down or left-right.
        rotate: a rotation; only where there was no quarter turn, as in SAMed's recipe.
        degrees: largest rotation either way.
        scale: zoom.
        scale_range: from smallest to largest zoom; uniform in its logarithm.
        shift: a translation.
        shift_limit: its largest component, as a share of the image's side.
        elastic: a smooth deformation.
        elastic_limit: standard deviation of the displacement, as a share of the image's side.
        mirror: each of the symmetries of the data.

    Intensity, of images only, where 0 to 255 count as 0 to 1:

        tone: brightness, contrast and gamma together.
        brightness: largest relative change of all values. No summand, which would make black padding grey.
        contrast: largest relative change, about the image's mean.
        gamma: exponents lie between 1 / (1 + gamma) and 1 + gamma.
        colour: each channel brighter or darker by itself, as under another light; what is grey stays so.
        colour_limit: largest relative change of a channel.
        noise: Gaussian noise.
        noise_limit: largest standard deviation.
        blur: Gaussian blur.
        blur_limit: largest standard deviation in pixels; the smallest is half of it.
    """

    turn_and_flip: float = 0
    rotate: float = 0
    degrees: float = 20
    scale: float = 0
    scale_range: tuple[float, float] = (0.8, 1.25)
    shift: float = 0
    shift_limit: float = 0.1
    elastic: float = 0
    elastic_limit: float = 0.015
    mirror: float = 0
    tone: float = 0
    brightness: float = 0.25
    contrast: float = 0.25
    gamma: float = 0.4
    colour: float = 0
    colour_limit: float = 0.2
    noise: float = 0
    noise_limit: float = 0.05
    blur: float = 0
    blur_limit: float = 1.0


AUGMENTATIONS = {
    # Strong, because a few cases show next to nothing of what the others will look like. Mild changes are learned
    # sooner and were ahead in single runs of 150 steps, not in ones of 300 (benchmarks/starter). Flips
    # only where the masks tell that these do no harm: they make the left kidney a right one.
    "fewshot": Augmentation(
        rotate=0.6,
        degrees=25,
        scale=0.8,
        scale_range=(0.65, 1.5),
        shift=0.8,
        shift_limit=0.2,
        elastic=0.4,
        elastic_limit=0.02,
        mirror=0.5,
        tone=0.9,
        brightness=0.35,
        contrast=0.4,
        gamma=0.8,
        colour=0.8,
        noise=0.2,
        blur=0.2,
    ),
    # SAMed (arXiv 2304.13785), which MedSAGa keeps: a quarter turn and a flip half of the time, else half of the time
    # a rotation within 20 degrees.
    "samed": Augmentation(turn_and_flip=0.5, rotate=0.5),
    "none": Augmentation(),
}


def augment(
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    seed: int,
    step: int,
    strength: Augmentation,
    symmetries: Sequence[str] = (),
    first: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change a batch, or a part of one, at random.

    Intensity changes come first and geometry last, so that what comes into view from beyond the image is 0, as the
    padding is at prediction. What happens to an image depends on its place in the batch and on nothing around it: a
    batch that goes through in parts is changed to the same bits.

    Args:
        images: ``(b, channels, size, size)`` uint8, on any device.
        labels: ``(b, size, size)`` uint8 class indices on the same device.
        seed: of the run.
        step: of the run.
        strength: a preset of `AUGMENTATIONS`, or one's own.
        symmetries: of the data, as `medsaga.data.symmetries.SYMMETRIES` names them.
        first: place of the first of these images in the batch of the step.

    Returns:
        images, float32 from 0 to 255 and not rounded, and labels, uint8, in the same shapes. On a CPU the same
        arguments give the same bits; on another device the noise differs.
    """
    changed = [
        _augment_one(picture, classes, np.random.default_rng([seed, step, first + place]), strength, symmetries)
        for place, (picture, classes) in enumerate(zip(images, labels, strict=True))
    ]
    return torch.stack([picture for picture, _ in changed]), torch.stack([classes for _, classes in changed])


def _augment_one(
    image: torch.Tensor,
    labels: torch.Tensor,
    random: np.random.Generator,
    strength: Augmentation,
    symmetries: Sequence[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change one image, ``(channels, size, size)`` uint8, and its labels, ``(size, size)`` uint8."""
    picture = _with_other_intensities(image.float(), random, strength)
    affine = _affine(random, strength)
    knots = _displacements(random, strength)
    if random.random() < strength.colour:
        changes = random.uniform(-strength.colour_limit, strength.colour_limit, len(picture))
        # Of the image as it was: noise makes grey channels differ. No branch, which fake tensors could not take.
        has_colour = (image != image[:1]).any()
        factors = 1 + has_colour * torch.from_numpy(changes.astype(np.float32)).to(image.device)
        picture.mul_(factors[:, None, None]).clamp_(0, 255)
    if affine is not None or knots is not None:
        picture, labels = _moved(picture, labels, affine, knots)
    # Last, so that everything else is drawn as without symmetries.
    for name, drawn in zip(symmetries, random.random(len(symmetries)), strict=True):
        if drawn < strength.mirror:
            picture, labels = SYMMETRIES[name](picture), SYMMETRIES[name](labels)
    return picture, labels


def _moved(
    picture: torch.Tensor,
    labels: torch.Tensor,
    affine: npt.NDArray[np.float32] | None,
    knots: npt.NDArray[np.float32] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look up each place of an image, ``(channels, size, size)`` float32, and of its labels at another place."""
    size = list(picture.shape[-2:])
    place = torch.from_numpy(np.eye(2, 3, dtype=np.float32) if affine is None else affine).to(picture.device)
    points = F.affine_grid(place[None], [1, 1, *size], align_corners=False)
    if knots is not None:
        # On the CPU, because not every MPS has bicubic interpolation.
        bend = F.interpolate(torch.from_numpy(knots)[None], size, mode="bicubic", align_corners=True)
        points = points + bend.to(picture.device).movedim(1, -1)
    picture = F.grid_sample(picture[None], points, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    classes = F.grid_sample(
        labels[None, None].float(), points, mode="nearest", padding_mode="zeros", align_corners=False
    )
    # Interpolation may overshoot by a rounding error.
    return picture.clamp_(0, 255), classes[0, 0].to(torch.uint8)


def _affine(random: np.random.Generator, strength: Augmentation) -> npt.NDArray[np.float32] | None:
    """Draw the map from places in the result to places in the source, ``(2, 3)``; None if it moves nothing.

    Coordinates are grid_sample's: (x, y), -1 to 1 over the image's side.
    """
    place = np.eye(2, 3)
    linear = np.eye(2)
    if random.random() < strength.turn_and_flip:
        linear = np.round(_rotation(90 * int(random.integers(4)))) @ np.diag(random.permutation([-1.0, 1.0]))
    elif random.random() < strength.rotate:
        linear = _rotation(random.uniform(-strength.degrees, strength.degrees))
    if random.random() < strength.scale:
        low, high = strength.scale_range
        linear = linear / math.exp(random.uniform(math.log(low), math.log(high)))
    place[:, :2] = linear
    if random.random() < strength.shift:
        # The side is 2 long in these coordinates.
        place[:, 2] = 2 * random.uniform(-strength.shift_limit, strength.shift_limit, 2)
    return None if np.array_equal(place, np.eye(2, 3)) else place.astype(np.float32)


def _rotation(degrees: float) -> npt.NDArray[np.float64]:
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _displacements(random: np.random.Generator, strength: Augmentation) -> npt.NDArray[np.float32] | None:
    """Draw displacements at the control points, ``(2, knots, knots)`` in grid_sample's units; None for none."""
    if random.random() >= strength.elastic:
        return None
    knots = random.standard_normal((2, _ELASTIC_KNOTS, _ELASTIC_KNOTS)) * (2 * strength.elastic_limit)
    return knots.astype(np.float32)


def _with_other_intensities(picture: torch.Tensor, random: np.random.Generator, strength: Augmentation) -> torch.Tensor:
    """Change tone, noise and blur of an image in place; ``(channels, size, size)`` float32, 0 to 255."""
    toned, blurred, noisy = random.random(3) < (strength.tone, strength.blur, strength.noise)
    tone, sigma, spread = random.uniform(-1, 1, 3), random.random(), random.random()
    if toned:
        _change_tone(picture, tone, strength)
    if blurred:
        picture.copy_(_blurred(picture, strength.blur_limit * (1 + sigma) / 2))
    if noisy:
        generator = seeded_generator(picture.device, int(random.integers(2**63)))
        noise = torch.randn(picture.shape, generator=generator, device=picture.device)
        picture.add_(noise, alpha=255 * strength.noise_limit * spread).clamp_(0, 255)
    return picture


def _change_tone(picture: torch.Tensor, tone: npt.NDArray[np.float64], strength: Augmentation) -> None:
    picture.mul_(1 + strength.brightness * tone[0])
    mean = picture.mean()
    picture.sub_(mean).mul_(1 + strength.contrast * tone[1]).add_(mean).clamp_(0, 255)
    picture.div_(255).pow_((1 + strength.gamma) ** tone[2]).mul_(255)


def _blurred(picture: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=picture.device) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    padded = F.pad(picture[:, None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
