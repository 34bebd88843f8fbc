"""The Segment Anything Model (arXiv 2304.02643) as a segmenter of k classes without prompts.

The parts are those of transformers, so the names of the parameters are too. Image encoder, prompt encoder and mask
decoder compute what SAM computes when it gets no point, box or mask; the decoder has one mask token and one
hypernetwork per class, background included (SAMed, arXiv 2304.13785; MedSAGa, arXiv 2407.15042).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamMaskDecoder, SamPromptEncoder, SamVisionEncoder

from medsaga.errors import InputError
from medsaga.models.attention import decoder_attention, use_fused_attention
from medsaga.models.base import SegmentationModel
from medsaga.models.details import PATCH_SIZE, DetailDecoder, DetailEncoder
from medsaga.models.lean import LeanMlp, computed_again, lean_block

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""SAM's normalisation of red, green and blue in 0..255."""
DECODER_ATTENTION = "medsaga_decoder"
"""The name under which transformers finds the attention of the mask decoder."""
AttentionInterface.register(DECODER_ATTENTION, decoder_attention)


@dataclass(frozen=True)
class Architecture:
    """What distinguishes one size of SAM from another.

    Attributes:
        hidden_size: channels of the image encoder.
        layers: transformer blocks of the image encoder.
        heads: attention heads of a block.
        global_layers: blocks that attend to the whole image; the others attend within windows.
        image_size: side in pixels that suits the size, and that the published weights were trained at.
        window: side of an attention window in tokens.
        decoder_mlp_dim: hidden size of the perceptrons of the mask decoder's transformer.
        decoder_size: channels of the embeddings and of the mask decoder.
        patch_size: side of a token in pixels.
        detail_widths: channels of the convolutions at a half and a quarter of the image's side that find what the
            tokens are too coarse for (`medsaga.models.details`); the published sizes have none.
    """

    hidden_size: int
    layers: int
    heads: int
    global_layers: tuple[int, ...]
    image_size: int = 1024
    window: int = 14
    decoder_mlp_dim: int = 2048
    decoder_size: int = 256
    patch_size: int = 16
    detail_widths: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Check what the parts ask of each other."""
        assert self.detail_widths is None or self.patch_size == PATCH_SIZE


ARCHITECTURES: dict[str, Architecture] = {
    # Tokens of 8 px, not 16 as in the published sizes: the logits have half of the image's side, and thin structures
    # stay visible in small images. benchmarks/starter has what that, the details and the side of 192 px do.
    "tiny": Architecture(
        128,
        6,
        2,
        (2, 5),
        image_size=192,
        window=8,
        decoder_mlp_dim=512,
        decoder_size=128,
        patch_size=8,
        detail_widths=(32, 64),
    ),
    "vit_b": Architecture(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": Architecture(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": Architecture(1280, 32, 16, (7, 15, 23, 31)),
}
"""The three published sizes, and one of the same structure that trains on a CPU."""


def useful_image_sizes(architecture: str) -> list[int]:
    """Return sides in pixels, ascending, in which SAM's windows waste nothing, up to the architecture's own side."""
    size = ARCHITECTURES[architecture]
    window = size.window * size.patch_size
    return [*range(window, size.image_size, window), size.image_size]


class KClassSam(SegmentationModel):
    """SAM that gives every pixel one of k classes.

    Parameters that only prompts or SAM's own quality estimate use (``point_embed``, ``mask_embed``,
    ``iou_prediction_head``) are kept, as in the published files, but nothing computes with them: they never get a
    gradient.

    With ``checkpoint_blocks`` only the input of each block is kept for backward; the decoder counts as two.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, architecture: str, *, classes: int, image_size: int, in_channels: int) -> None:
        super().__init__(architecture, classes=classes, image_size=image_size, in_channels=in_channels)
        size = ARCHITECTURES[architecture]
        config = _config(size, classes, image_size, in_channels)
        self.vision_encoder = SamVisionEncoder(config.vision_config)
        use_fused_attention(self.vision_encoder)
        for layer in self.vision_encoder.layers:
            layer.mlp = LeanMlp(layer.mlp)
        self.prompt_encoder = SamPromptEncoder(config)
        self.mask_decoder = SamMaskDecoder(config.mask_decoder_config)
        if size.detail_widths:
            channels = config.vision_config.num_channels
            self.vision_encoder.details = DetailEncoder(
                channels, size.detail_widths, size.hidden_size, size.decoder_size
            )
            self.mask_decoder.details = DetailDecoder(size.decoder_size)
        self._make_frequencies_constant()
        self.make_constants()

    def _make_frequencies_constant(self) -> None:
        """Make SAM's random Fourier frequencies a float32 buffer: SAM never trains them, and bfloat16 shifts them."""
        embedding = self.prompt_encoder.shared_embedding
        shape = embedding.positional_embedding.shape
        del embedding.positional_embedding
        embedding.register_buffer("positional_embedding", torch.randn(shape, dtype=torch.float32))

    @property
    def tokens(self) -> int:
        """Tokens along each side of the image."""
        return self.image_size // ARCHITECTURES[self.architecture].patch_size

    @property
    def has_details(self) -> bool:
        """Whether the model sees the image finer than in tokens."""
        return ARCHITECTURES[self.architecture].detail_widths is not None

    @property
    def encoded_channels(self) -> int:
        """Channels of what :meth:`encode` returns."""
        size = ARCHITECTURES[self.architecture]
        return size.decoder_size * (4 if self.has_details else 1)

    def make_constants(self) -> None:
        """Create the buffers of the pixel normalisation, float32, which no file stores."""
        mean, std = torch.tensor([PIXEL_MEAN, PIXEL_STD], dtype=torch.float32).view(2, 1, 3, 1, 1)
        if self.in_channels not in (1, 3):
            mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Segment images.

        Args:
            images: ``(batch, in_channels, image_size, image_size)``, grey values or colours in 0..255.

        Returns:
            ``low_res_logits``, ``(batch, classes, 4 * tokens, 4 * tokens)``, in the parameters' type.
        """
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """The dear part: ``images`` as in :meth:`forward` to ``(batch, encoded_channels, tokens, tokens)``.

        These are SAM's embeddings, ``decoder_size`` channels, and after them the details, where there are any.
        """
        expected = (self.in_channels, self.image_size, self.image_size)
        assert tuple(images.shape[1:]) == expected, f"images {tuple(images.shape)} are not (batch, *{expected})"
        encoder = self.vision_encoder
        normalised = self._normalise(images)
        hidden = encoder.patch_embed(normalised) + encoder.pos_embed
        details = None
        lean = self.recomputes()
        if self.has_details:
            finer = encoder.details
            for_tokens, details = computed_again(finer, normalised) if lean else finer(normalised)
            hidden = hidden + for_tokens
        for layer in encoder.layers:
            hidden = lean_block(layer, hidden) if lean else layer(hidden)
        embeddings = encoder.neck(hidden)
        return embeddings if details is None else torch.cat((embeddings, details), dim=1)

    def decode(self, encoded: Tensor) -> Tensor:
        """The cheap part: what :meth:`encode` returns to ``low_res_logits``."""
        embeddings, details = self.split(encoded)
        class_tokens = self.mask_decoder.mask_tokens.weight.expand(len(embeddings), -1, -1)
        if not self.recomputes():
            return self._masks(*self.attend(embeddings, class_tokens), details)
        tokens, pixels = computed_again(self.attend, embeddings, class_tokens)
        return computed_again(self._masks, tokens, pixels, details)

    def split(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Divide what :meth:`encode` returns into embeddings, ``decoder_size`` channels, and details, the rest."""
        size = ARCHITECTURES[self.architecture].decoder_size
        return encoded[:, :size], encoded[:, size:]

    def attend(self, embeddings: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Let classes and pixels look at each other: the decoder's transformer.

        Args:
            embeddings: of :meth:`split`.
            class_tokens: ``(batch, classes, decoder_size)``.

        Returns:
            class tokens and pixels, ``(batch, classes, decoder_size)`` and ``(batch, decoder_size, tokens, tokens)``.
        """
        decoder = self.mask_decoder
        batch, channels, *grid = embeddings.shape
        tokens = torch.cat((decoder.iou_token.weight.expand(batch, 1, -1), class_tokens), dim=1)
        no_mask = self.prompt_encoder.no_mask_embed.weight.view(1, channels, 1, 1)
        tokens, pixels = decoder.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=embeddings + no_mask,
            image_positional_embeddings=self._image_positions().to(embeddings.dtype),
            attention_similarity=None,
        )
        return tokens[:, 0, 1:], pixels.transpose(2, 3).reshape(batch, channels, *grid)

    def upscale(self, pixels: Tensor, details: Tensor) -> Tensor:
        """Upscale the pixels of :meth:`attend` fourfold: ``(batch, decoder_size / 8, 4 * tokens, 4 * tokens)``."""
        decoder = self.mask_decoder
        if self.has_details:
            return decoder.details(decoder, pixels, details)
        upscaled = decoder.upscale_conv1(pixels)
        upscaled = decoder.activation(decoder.upscale_layer_norm(upscaled))
        return decoder.activation(decoder.upscale_conv2(upscaled))

    def _masks(self, tokens: Tensor, pixels: Tensor, details: Tensor) -> Tensor:
        """Give each upscaled pixel a score for each class: ``low_res_logits``."""
        upscaled = self.upscale(pixels, details)
        networks = self.mask_decoder.output_hypernetworks_mlps
        kernels = torch.stack([networks[c](tokens[:, c]) for c in range(self.classes)], dim=1)
        return (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])

    def _normalise(self, images: Tensor) -> Tensor:
        """Shift and scale to SAM's input range, in float32, then take the parameters' type; grey becomes RGB."""
        normalised = (images.float() - self.pixel_mean) / self.pixel_std
        return normalised.to(self.vision_encoder.patch_embed.projection.weight.dtype)

    def _image_positions(self) -> Tensor:
        """``(1, decoder_size, tokens, tokens)``: Fourier features of the tokens' centres, float32."""
        embedding = self.prompt_encoder.shared_embedding
        tokens = self.tokens
        centres = (
            torch.arange(tokens, device=embedding.positional_embedding.device, dtype=torch.float32) + 0.5
        ) / tokens
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return embedding(torch.stack((x, y), dim=-1)).permute(2, 0, 1).unsqueeze(0)


def build_sam(
    architecture: str, *, classes: int, image_size: int, in_channels: int = 3, dtype: torch.dtype = torch.float32
) -> KClassSam:
    """Build a model with random weights that can be trained from scratch, or overwritten by published ones.

    Draws from torch's global generator and builds on torch's default device.

    Args:
        architecture: key of :data:`ARCHITECTURES`.
        classes: number of classes, background included.
        image_size: side of the square input in pixels, a multiple of `medsaga.models.base.SIDE_MULTIPLE`.
        in_channels: channels of the input. 1 is shown to SAM as grey RGB; other numbers than 1 and 3 get a patch
            embedding of their own.
        dtype: type of the parameters.

    Raises:
        InputError: the architecture is not known, or the image size is no multiple of 16.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InputError("--model", expected=f"one of {known}", found=repr(architecture), do="Choose one of them.")
    with _default_dtype(dtype):
        model = KClassSam(architecture, classes=classes, image_size=image_size, in_channels=in_channels)
        _initialise(model.vision_encoder)
    return model


def _config(size: Architecture, classes: int, image_size: int, in_channels: int) -> SamConfig:
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=size.hidden_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_channels=3 if in_channels == 1 else in_channels,
            image_size=image_size,
            patch_size=size.patch_size,
            output_channels=size.decoder_size,
            num_pos_feats=size.decoder_size // 2,
            window_size=size.window,
            global_attn_indexes=size.global_layers,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            image_size=image_size, patch_size=size.patch_size, hidden_size=size.decoder_size
        ),
        # 1e-5 is what the published decoders were trained with; transformers' default is 1e-6.
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=size.decoder_size,
            mlp_dim=size.decoder_mlp_dim,
            num_multimask_outputs=classes - 1,
            layer_norm_eps=1e-5,
        ),
    )
    config.mask_decoder_config._attn_implementation = DECODER_ATTENTION
    return config


@torch.no_grad()
def _initialise(vision_encoder: nn.Module) -> None:
    """Give the encoder weights that learn: transformers' own, with a spread of 1e-10, wait for a checkpoint.

    The other two parts have PyTorch's defaults, as in SAM. The encoder gets those of ViT: a normal distribution of
    spread 0.02 for matrices and absolute positions; relative positions stay zero (ViTDet, arXiv 2203.16527).
    PyTorch's truncated normal cuts at 2, which is 100 spreads, and cannot run on fake tensors.
    """
    encoder: Any = vision_encoder
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
    nn.init.normal_(encoder.pos_embed, std=0.02)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create floating-point tensors in ``dtype``: a model built so needs no cast, which fake tensors do not support."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
