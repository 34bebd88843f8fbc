"""What the segmentation model, the methods and the loading of weights ask of an image encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from medsaga.models.base import SIDE_MULTIPLE, weight_matrices
from medsaga.models.decoder import MaskDecoder

SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)
"""SAM's normalisation of red, green and blue in 0..255, which most networks have from ImageNet."""

State = Mapping[str, Tensor]
"""Tensors of an encoder under the names of its own ``state_dict``, without the prefix ``image_encoder.``."""


class ImageEncoder(nn.Module, ABC):
    """Turns images into feature maps for SAM's mask decoder.

    Attributes:
        strides: side in pixels of the image that a cell of each feature map stands for, ascending: the finest map is
            the first, as in SAM 2's pyramid. The last map holds the image embeddings, which the decoder attends to; the
            others are skips, which it adds where its upscaling has their stride.
        channels: of each feature map. A skip has as many as the decoder's upscaling has at its stride, or as many as
            the decoder's ``narrow`` takes.
        pixel_kernels: names of the parameters that see the channels of the image, ``(out, channels, height, width)``:
            their kernels follow when an image has other channels than those the weights were made for.
    """

    strides: tuple[int, ...]
    channels: tuple[int, ...]
    pixel_kernels: tuple[str, ...]

    @abstractmethod
    def forward(self, images: Tensor, *, recompute: bool = False) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            images: ``(batch, channels, image_size, image_size)``, normalised, in the type of the parameters.
            recompute: keep only the input of each block for backward, and compute the block again there, one after the
                other.

        Returns:
            One map for each of ``strides``: ``(batch, channels, image_size / stride, image_size / stride)``.
        """

    def weight_matrices(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters whose gradients GaLore projects, and all others.

        A convolution kernel ``(out, in, height, width)`` counts as a matrix ``(out, in * height * width)``; a depthwise
        one is none.
        """
        return weight_matrices(self, grouped=False)

    def attentions(self) -> Sequence[nn.Module]:
        """Return the modules whose ``qkv`` LoRA updates: a linear layer to queries, keys and values, a third each.

        Where its rows are such thirds for one head after the other, the module says so by ``qkv_groups``, how many
        there are. Without any, LoRA updates the encoder's `medsaga.models.blocks.PointwiseConvolution`.
        """
        return ()

    def fit_positions(self, state: State) -> State:
        """Return tensors of this encoder that were made for another image size, with positions that fit this one."""
        return state


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(ABC):
    """The sizes of an encoder: a line of ``ENCODERS``.

    Attributes:
        image_size: side in pixels that suits the encoder, and that its published weights were trained at.
        finer_image_sizes: larger sides, ascending, for structures that are too fine for ``image_size``.
        side_multiple: what the side of an image must be a multiple of, in pixels.
        decoder_mlp_dim: hidden size of the perceptrons of the mask decoder's transformer.
        recomputed: whether the activations of its blocks outweigh all else, so that they are better computed again.
        decoder: the mask decoder: SAM's, or one that builds on it.
        pixel_mean: of red, green and blue in 0..255, which the encoder wants subtracted.
        pixel_std: what the difference is then divided by.
    """

    image_size: int = 1024
    finer_image_sizes: tuple[int, ...] = ()
    side_multiple: int = SIDE_MULTIPLE
    decoder_mlp_dim: int = 2048
    recomputed: bool = True
    decoder: type[MaskDecoder] = MaskDecoder
    pixel_mean: tuple[float, float, float] = SAM_MEAN
    pixel_std: tuple[float, float, float] = SAM_STD

    @abstractmethod
    def build(self, *, image_size: int, in_channels: int) -> ImageEncoder:
        """Make the encoder with random weights that learn, from torch's global generator, on its default device."""

    @abstractmethod
    def useful_image_sizes(self) -> list[int]:
        """Return sides in pixels, ascending, that waste nothing, up to the spec's own side."""

    @abstractmethod
    def sizes_of(self, state: State) -> tuple[int, int] | None:
        """Return the side in pixels and the channels of the images that tensors were made for.

        None if they are not those of such an encoder, as far as its sizes tell.
        """
