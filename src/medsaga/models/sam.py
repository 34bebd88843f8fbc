"""The Segment Anything Model (arXiv 2304.02643) as a segmenter of k classes without prompts.

Image encoder, prompt encoder and mask decoder compute what SAM computes when it gets no point, box or mask; the decoder
has one mask token and one hypernetwork per class, background included (SAMed, arXiv 2304.13785; MedSAGa, arXiv
2407.15042). Parameters have the names of the official files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from medsaga.models.base import SegmentationModel
from medsaga.models.encoders import encoder_spec
from medsaga.models.lean import recomputed
from medsaga.models.prompt import PromptEncoder


class KClassSam(SegmentationModel):
    """SAM that gives every pixel one of k classes.

    Parameters that only prompts or SAM's own quality estimate use (``point_embeddings``, ``mask_downscaling``,
    ``iou_prediction_head``) are kept, as in the published files, but nothing computes with them: they never get a
    gradient.

    With ``checkpoint_blocks`` only the input of each block is kept for backward; the decoder counts as two.

    Attributes:
        image_encoder: turns images into feature maps.
        prompt_encoder: embeds the absence of a prompt.
        mask_decoder: turns feature maps into logits.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, architecture: str, *, classes: int, image_size: int, in_channels: int) -> None:
        spec = encoder_spec(architecture)
        super().__init__(
            architecture,
            classes=classes,
            image_size=image_size,
            in_channels=in_channels,
            side_multiple=spec.side_multiple,
        )
        self.image_encoder = spec.build(image_size=image_size, in_channels=3 if in_channels == 1 else in_channels)
        channels = self.image_encoder.channels[-1]
        self.prompt_encoder = PromptEncoder(channels)
        self.mask_decoder = spec.decoder(channels, classes=classes, mlp_dim=spec.decoder_mlp_dim)
        self.make_constants()

    @property
    def class_tokens(self) -> Tensor:
        """The mask token of each class, ``(classes, d)``; the image embeddings have as many channels."""
        return self.mask_decoder.mask_tokens.weight

    @property
    def packed_shape(self) -> tuple[int, int, int]:
        """Shape of what :meth:`pack` makes of one image."""
        side = self.image_size // self.image_encoder.strides[-1]
        return sum(self._folded_channels()), side, side

    def make_constants(self) -> None:
        """Create the buffers of the pixel normalisation, float32, which no file stores."""
        spec = encoder_spec(self.architecture)
        mean, std = torch.tensor([spec.pixel_mean, spec.pixel_std], dtype=torch.float32).view(2, 1, 3, 1, 1)
        if self.in_channels not in (1, 3):
            mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Segment images.

        Args:
            images: ``(batch, in_channels, image_size, image_size)``, grey values or colours in 0..255.

        Returns:
            ``low_res_logits``, ``(batch, classes, s, s)`` with four times the side of the image embeddings, in the
            parameters' type.
        """
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Turn ``images`` as in :meth:`forward` into feature maps, the finest first; the last are the embeddings.

        Nearly all of the time goes into this, and none of it depends on the classes.
        """
        expected = (self.in_channels, self.image_size, self.image_size)
        assert tuple(images.shape[1:]) == expected, f"images {tuple(images.shape)} are not (batch, *{expected})"
        *skips, embeddings = self.image_encoder(self._normalise(images), recompute=self.recomputes())
        return *self.mask_decoder.narrow(skips), embeddings

    def decode(self, features: tuple[Tensor, ...]) -> Tensor:
        """Turn what :meth:`encode` returns into ``low_res_logits``."""
        *skips, embeddings = features
        class_tokens = self.class_tokens.expand(len(embeddings), -1, -1)
        if not self.recomputes():
            return self.mask_decoder.masks(*self.attend(embeddings, class_tokens), skips)
        tokens, pixels = recomputed(self.attend, embeddings, class_tokens)
        masks: Tensor = recomputed(self.mask_decoder.masks, tokens, pixels, skips)
        return masks

    def attend(self, embeddings: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Let classes and pixels look at each other: see `medsaga.models.decoder.MaskDecoder.attend`."""
        positions = self.prompt_encoder.positions(*embeddings.shape[2:]).to(embeddings.dtype)
        return self.mask_decoder.attend(class_tokens, embeddings + self.prompt_encoder.dense(), positions)

    def encoded_and_logits(self, images: Tensor, *, decode: bool) -> tuple[Tensor, Tensor | None]:
        """Return the packed feature maps of images, and the logits if ``decode``."""
        features = self.encode(images)
        return self.pack(features), self.decode(features) if decode else None

    def pack(self, features: tuple[Tensor, ...]) -> Tensor:
        """Fold feature maps into one tensor, ``(batch, *packed_shape)``: the embeddings, then the finer maps."""
        *skips, embeddings = features
        side = embeddings.shape[-1]
        return torch.cat((embeddings, *(F.pixel_unshuffle(skip, skip.shape[-1] // side) for skip in skips)), dim=1)

    def unpack(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Divide what :meth:`pack` made into maps for :meth:`decode`, without a copy: the finer ones stay folded."""
        *widths, embedding = self._folded_channels()
        embeddings, *skips = packed.split((embedding, *widths), dim=1)
        return *skips, embeddings

    def _folded_channels(self) -> list[int]:
        """Return the channels of each feature map, folded to the side of the embeddings."""
        strides = self.image_encoder.strides
        channels = (*self.mask_decoder.skip_channels, self.image_encoder.channels[-1])[-len(strides) :]
        return [n * (strides[-1] // stride) ** 2 for n, stride in zip(channels, strides, strict=True)]

    def _normalise(self, images: Tensor) -> Tensor:
        """Shift and scale as the encoder wants it, in float32, then take the parameters' type; grey becomes RGB."""
        normalised = (images.float() - self.pixel_mean) / self.pixel_std
        return normalised.to(self.class_tokens.dtype)


def build_sam(
    architecture: str, *, classes: int, image_size: int, in_channels: int = 3, dtype: torch.dtype = torch.float32
) -> KClassSam:
    """Build a model with random weights that can be trained from scratch, or overwritten by published ones.

    Draws from torch's global generator and builds on torch's default device.

    Args:
        architecture: as in `medsaga.models.encoders.encoder_spec`.
        classes: number of classes, background included.
        image_size: side of the square input in pixels, a multiple of the encoder's ``side_multiple``.
        in_channels: channels of the input. 1 is shown to SAM as grey RGB; other numbers than 1 and 3 get a patch
            embedding of their own.
        dtype: type of the parameters.

    Raises:
        InputError: the architecture is not known, or the image size is no such multiple.
    """
    with _default_dtype(dtype):
        return KClassSam(architecture, classes=classes, image_size=image_size, in_channels=in_channels)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create floating-point tensors in ``dtype``: a model built so needs no cast, which fake tensors do not support."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
