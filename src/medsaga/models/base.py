"""What training, evaluation and prediction ask of a model, whatever its architecture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medsaga.errors import InputError

SIDE_MULTIPLE = 16
"""What the side of the square input is a multiple of, unless an encoder asks for another."""


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
        class_tokens: the vector of each class that the decoder compares pixels with, ``(classes, d)``; None in models
            that have none. The first d channels of what :meth:`encoded_and_logits` returns are comparable to it.
        checkpoint_blocks: compute parts of the forward pass again in backward instead of keeping what they make:
            the same result in less memory and more time.
        symmetries: mirrorings that keep the meaning of its labels, as `medsaga.data.symmetries.SYMMETRIES` names them.
    """

    def __init__(
        self,
        architecture: str,
        *,
        classes: int,
        image_size: int,
        in_channels: int,
        side_multiple: int = SIDE_MULTIPLE,
    ) -> None:
        """Take note of what the model is.

        Raises:
            InputError: the image size is no multiple of ``side_multiple``.
        """
        super().__init__()
        _check_image_size(image_size, side_multiple)
        assert classes >= 2, "background and at least one class"
        assert in_channels >= 1
        self.architecture = architecture
        self.classes = classes
        self.image_size = image_size
        self.in_channels = in_channels
        self.checkpoint_blocks = False
        self.symmetries: tuple[str, ...] = ()

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

    @property
    def class_tokens(self) -> Tensor | None:
        """See the class."""
        return None

    def encoded_and_logits(self, images: Tensor, *, decode: bool) -> tuple[Tensor, Tensor | None]:
        """Return what the encoder makes of images, ``(batch, d, s, s)``, and the logits if ``decode``.

        Of a U-shaped network this is the deepest grid.
        """
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            kept.append(output)

        *_, deepest = self.get_submodule("encoder").children()
        handle = deepest.register_forward_hook(keep)
        try:
            logits = self(images)
        finally:
            handle.remove()
        (grid,) = kept
        return grid, logits if decode else None

    def make_constants(self) -> None:
        """Create the buffers that no file stores: a model built on the meta device has them without values."""

    def recomputes(self) -> bool:
        """Whether this pass is one to compute again in backward."""
        return self.checkpoint_blocks and torch.is_grad_enabled()


def weight_matrices(module: nn.Module, *, grouped: bool = True) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divide a module's parameters into weights of linear and convolution layers, and everything else.

    Position tables and embeddings are two-dimensional too, but they are no linear maps: they count as the rest.

    Args:
        module: whose parameters they are.
        grouped: whether kernels of convolutions in groups, such as depthwise ones, are among the weights. Each is many
            small maps, not one matrix.
    """
    layers = (child for child in module.modules() if isinstance(child, nn.Linear | nn.Conv2d | nn.ConvTranspose2d))
    matrices = [child.get_parameter("weight") for child in layers if grouped or getattr(child, "groups", 1) == 1]
    known = {id(parameter) for parameter in matrices}
    return matrices, [parameter for parameter in module.parameters() if id(parameter) not in known]


def _check_image_size(image_size: int, multiple: int) -> None:
    if image_size > 0 and image_size % multiple == 0:
        return
    below = max(multiple, image_size // multiple * multiple)
    raise InputError(
        "--image-size",
        expected=f"a multiple of {multiple} pixels",
        found=str(image_size),
        do=f"The nearest are {below} and {below + multiple}; with vit_b, vit_l and vit_h the sizes 224, 448, 672 "
        "and 896 are the cheapest for their area, because SAM's windows of 14 tokens fit them without padding.",
    )
