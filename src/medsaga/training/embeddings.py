"""Embeddings of training images, computed once, for methods that never change the encoder.

Augmentation changes images before the encoder sees them, so each image is changed in a few fixed ways, and each of
these is a sample of its own. What an earlier command, or an earlier round of a federation, has left of just these
embeddings is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsaga import files
from medsaga.data.augment import AUGMENTATIONS, Augmentation, augment
from medsaga.data.samples import Samples, require_room
from medsaga.distributed.group import ALONE, Group
from medsaga.memory.tracker import TensorTracker
from medsaga.models.digest import digest_of
from medsaga.models.int8 import plain_state

MOST_VARIANTS = 16
MOST_SAMPLES = 512
"""With this many images there is one variant of each: more would take longer to embed than to train on."""

_MADE_FROM = "made_from.json"
"""The digest of all that the embeddings beside it depend on, and the memory they took; written at the end."""


@torch.no_grad()
def embed(
    model: Any,
    samples: Samples,
    folder: Path,
    *,
    augmentation: str,
    seed: int,
    batch_size: int,
    tracker: TensorTracker,
    progress: Callable[[int, int], None],
    group: Group = ALONE,
) -> Samples:
    """Return samples whose images are what the encoder makes of them, float32, memory-mapped in ``folder``.

    Args:
        model: has an ``image_encoder``, a ``mask_decoder``, ``encode`` and ``pack``.
        samples: n of them.
        folder: for the files; what lies there is used if it is the same, else replaced.
        augmentation: key of ``AUGMENTATIONS``. Unless it is ``none``, each image is changed in up to 16 ways, and there
            are as many times n samples; variant v is what ``augment`` makes of an image in step v.
        seed: of the run.
        batch_size: images that go through the encoder at a time.
        tracker: follows the memory.
        progress: called with the embeddings done and the embeddings in all.
        group: of the processes that share the work; each writes its rows of the files, and reads them all.
    """
    n, side = len(samples), samples.labels.shape[-1]
    variants = 1 if augmentation == "none" else max(1, min(MOST_VARIANTS, MOST_SAMPLES // n))
    arrays = [
        (folder / "embeddings.npy", np.float32, model.packed_shape),
        (folder / "labels.npy", np.uint8, (side, side)),
    ]

    def needed() -> str | None:
        """Return the digest of what has to be made, with the files made ready; None where it is there."""
        made_from = _digest(model, samples, variants, augmentation, seed)
        made = folder / _MADE_FROM
        if made.is_file() and all(path.is_file() for path, _, _ in arrays):
            there = files.read_json(made)
            if there["digest"] == made_from:
                tracker.recall(there["peak_bytes"], there["breakdown"])
                return None
        folder.mkdir(parents=True, exist_ok=True)
        made.unlink(missing_ok=True)
        require_room(folder, 4 * math.prod(model.packed_shape) * variants * n)
        for path, kind, shape in arrays:
            np.lib.format.open_memmap(path, "w+", kind, (variants * n, *shape))
        return made_from

    made_from = group.once(needed)
    embeddings, classes = (np.lib.format.open_memmap(path, "r+") for path, _, _ in arrays)
    parts = [(variant, first) for variant in range(variants) for first in range(0, n, batch_size)]
    for variant, first in parts[group.rank :: group.size] if made_from else ():
        rows = range(first, min(first + batch_size, n))
        images, labels = (tensor.to(model.device) for tensor in samples.batch(rows))
        made, changed = _changed(model, images, labels, seed, variant, first, AUGMENTATIONS[augmentation], tracker)
        place = slice(variant * n + rows.start, variant * n + rows.stop)
        embeddings[place], classes[place] = made.numpy(), changed.numpy()
        progress(place.stop, variants * n)
    for array in (embeddings, classes):
        array.flush()
    group.wait()
    if made_from and group.is_first:
        peak = {"peak_bytes": tracker.peak_bytes, "breakdown": tracker.breakdown}
        files.write_json(folder / _MADE_FROM, {"digest": made_from, **peak})
    return Samples(
        images=embeddings,
        labels=classes,
        item_names=samples.item_names * variants,
        slice_indices=np.zeros(variants * n, dtype=np.int64),
        content=np.tile(samples.content, (variants, 1)),
        windows=np.tile(samples.windows, (variants, 1)),
        foreground=np.tile(samples.foreground, variants),
    )


def _digest(model: Any, samples: Samples, variants: int, augmentation: str, seed: int) -> str:
    """Return the SHA-256 of all that embeddings depend on, which is made in a fraction of their time."""

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for part in (model.image_encoder, *model.mask_decoder.narrowing):
            yield from plain_state(part).items()
        for number in range(len(samples)):
            images, labels = samples.batch([number])
            yield from ((f"image {number}", images), (f"labels {number}", labels))

    how = (variants, AUGMENTATIONS[augmentation], seed, model.symmetries)
    return digest_of(tensors(), metadata.version("medsaga"), model.architecture, *how)


def _changed(
    model: Any,
    images: torch.Tensor,
    labels: torch.Tensor,
    seed: int,
    variant: int,
    first: int,
    strength: Augmentation,
    tracker: TensorTracker,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change images and labels, and return the embeddings and the labels, on the CPU."""
    with tracker:
        images, labels = augment(
            images,
            labels,
            seed=seed,
            step=variant,
            strength=strength,
            symmetries=model.symmetries,
            first=first,
        )
        return model.pack(model.encode(images)).float().cpu(), labels.cpu()
