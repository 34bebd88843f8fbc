"""What training, evaluation and prediction ask of a model, whatever its architecture."""

from __future__ import annotations

import torch
from torch import nn

from medsaga.errors import InputError

SIDE_MULTIPLE = 16
"""What the side of the square input is a multiple of, in every architecture."""


class SegmentationModel(nn.Module):
    """A network that gives every pixel of a square image a score for each class.

    ``forward`` takes images, ``(batch, in_channels, image_size, image_size)``, grey values or colours in 0..255 and of
    any floating-point type, and returns logits, ``(batch, classes, s, s)``, in the parameters' type, where ``s``
    divides ``image_size``. It normalises the images itself, so that every architecture is fed alike.

    Attributes:
        architecture: its name; with the other numbers it is all that it takes to build the model again.
        classes: number of classes, background included.
        image_size: side of the square input in pixels.
        in_channels: channels of the input.
        checkpoint_blocks: compute parts of the forward pass again in backward instead of keeping what they make:
            the same result in less memory and more time.
    """

    def __init__(self, architecture: str, *, classes: int, image_size: int, in_channels: int) -> None:
        """Take note of what the model is.

        Raises:
            InputError: the image size is no multiple of 16.
        """
        super().__init__()
        _check_image_size(image_size)
        assert classes >= 2, "background and at least one class"
        assert in_channels >= 1
        self.architecture = architecture
        self.classes = classes
        self.image_size = image_size
        self.in_channels = in_channels
        self.checkpoint_blocks = False

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one input, without the batch."""
        return self.in_channels, self.image_size, self.image_size

    @property
    def takes_images(self) -> bool:
        """Whether its inputs are images; else they are what another model made of images."""
        return True

    def make_constants(self) -> None:
        """Create the buffers that no file stores: a model built on the meta device has them without values."""

    def recomputes(self) -> bool:
        """Whether this pass is one to compute again in backward."""
        return self.checkpoint_blocks and torch.is_grad_enabled()


def _check_image_size(image_size: int) -> None:
    if image_size > 0 and image_size % SIDE_MULTIPLE == 0:
        return
    below = max(SIDE_MULTIPLE, image_size // SIDE_MULTIPLE * SIDE_MULTIPLE)
    raise InputError(
        "--image-size",
        expected=f"a multiple of {SIDE_MULTIPLE} pixels",
        found=str(image_size),
        do=f"The nearest are {below} and {below + SIDE_MULTIPLE}; with vit_b, vit_l and vit_h the sizes 224, 448, 672 "
        "and 896 are the cheapest for their area, because SAM's windows of 14 tokens fit them without padding.",
    )
