"""SAM's names in transformers."""

from __future__ import annotations

from medsaga.models.weights.names.layout import FREQUENCIES, Layout

COPIES = {"shared_image_embedding.positional_embedding": FREQUENCIES}
PROMPT_AND_MASKS = {
    "prompt_encoder.shared_embedding.positional_embedding": FREQUENCIES,
    "prompt_encoder.point_embed.": "prompt_encoder.point_embeddings.",
    "prompt_encoder.mask_embed.conv1.": "prompt_encoder.mask_downscaling.0.",
    "prompt_encoder.mask_embed.layer_norm1.": "prompt_encoder.mask_downscaling.1.",
    "prompt_encoder.mask_embed.conv2.": "prompt_encoder.mask_downscaling.3.",
    "prompt_encoder.mask_embed.layer_norm2.": "prompt_encoder.mask_downscaling.4.",
    "prompt_encoder.mask_embed.conv3.": "prompt_encoder.mask_downscaling.6.",
    "mask_decoder.transformer.layers.#.layer_norm#.": "mask_decoder.transformer.layers.#.norm#.",
    "mask_decoder.transformer.layer_norm_final_attn.": "mask_decoder.transformer.norm_final_attn.",
    "mask_decoder.upscale_conv1.": "mask_decoder.output_upscaling.0.",
    "mask_decoder.upscale_layer_norm.": "mask_decoder.output_upscaling.1.",
    "mask_decoder.upscale_conv2.": "mask_decoder.output_upscaling.3.",
    "mask_decoder.output_hypernetworks_mlps.#.proj_in.": "mask_decoder.output_hypernetworks_mlps.#.layers.0.",
    "mask_decoder.output_hypernetworks_mlps.#.layers.0.": "mask_decoder.output_hypernetworks_mlps.#.layers.1.",
    "mask_decoder.output_hypernetworks_mlps.#.proj_out.": "mask_decoder.output_hypernetworks_mlps.#.layers.2.",
    "mask_decoder.iou_prediction_head.proj_in.": "mask_decoder.iou_prediction_head.layers.0.",
    "mask_decoder.iou_prediction_head.layers.0.": "mask_decoder.iou_prediction_head.layers.1.",
    "mask_decoder.iou_prediction_head.proj_out.": "mask_decoder.iou_prediction_head.layers.2.",
}
"""The parts that SAM and SAM 2 have in common there."""

TRANSFORMERS = Layout(
    marks=("vision_encoder.",),
    name="transformers",
    beginnings={
        "vision_encoder.patch_embed.projection.": "image_encoder.patch_embed.proj.",
        "vision_encoder.layers.#.layer_norm#.": "image_encoder.blocks.#.norm#.",
        "vision_encoder.layers.": "image_encoder.blocks.",
        "vision_encoder.neck.conv1.": "image_encoder.neck.0.",
        "vision_encoder.neck.layer_norm1.": "image_encoder.neck.1.",
        "vision_encoder.neck.conv2.": "image_encoder.neck.2.",
        "vision_encoder.neck.layer_norm2.": "image_encoder.neck.3.",
        "vision_encoder.": "image_encoder.",
        **PROMPT_AND_MASKS,
    },
    copies=COPIES,
)
