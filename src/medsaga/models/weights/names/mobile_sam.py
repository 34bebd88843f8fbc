"""MobileSAM's file: SAM's names, and TinyViT's classifier for ImageNet, which is left out."""

from __future__ import annotations

from medsaga.models.weights.names.layout import COUNTER, Layout

OFFICIAL = Layout(
    name="official",
    marks=("image_encoder.patch_embed.seq.",),
    left_out=(
        *(f"image_encoder.{layer}.{kind}" for layer in ("norm_head", "head") for kind in ("weight", "bias")),
        COUNTER,
    ),
)
