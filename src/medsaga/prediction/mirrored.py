"""Test-time augmentation: the mean of what a model says of an image and of its mirror images."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medsaga.data.letterbox import content_size, unletterbox

_ROWS = 1
"""The axis of (channels, height, width) that the rows lie along."""


def mean_probabilities(
    logits: Sequence[torch.Tensor],
    passes: Sequence[tuple[int, ...]],
    size: int,
    shape: tuple[int, int],
    rows: slice,
) -> torch.Tensor:
    """Return the mean probabilities of some rows of a window over its mirror images.

    At most three times the result is alive at once, beside the logits.

    Args:
        logits: ``(classes, s, s)`` float32 of each mirror image.
        passes: the axes of ``(channels, height, width)`` that each mirror image was turned round, as
            `medsaga.data.symmetries.flips` has them.
        size: side of the model's square in pixels.
        shape: height and width of the window.
        rows: of the window, which are wanted.

    Returns:
        ``(classes, rows, width)`` float32.
    """
    upside_down = slice(shape[0] - rows.stop, shape[0] - rows.start)
    total: torch.Tensor | None = None
    for flip, one in zip(passes, logits, strict=True):
        mirrored = upside_down if _ROWS in flip else rows
        found = unletterbox(one[None], content_size(shape, size), size, shape, mirrored)[0].softmax(0)
        total = found if total is None else total.add_(found.flip(flip))
        del found  # it would lie beside the next
    assert total is not None
    return total if len(passes) == 1 else total.div_(len(passes))
