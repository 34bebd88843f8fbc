"""SAM 2's names, in its official release and in transformers.

Our names of the image encoder are the official ones. Prompt encoder and mask decoder have those that they have in SAM.
Both releases hold the modules of a video's memory too, which images do not need.
"""

from __future__ import annotations

from medsaga.models.weights.names.layout import Layout
from medsaga.models.weights.names.sam import COPIES, PROMPT_AND_MASKS

OFFICIAL = Layout(
    marks=("sam_mask_decoder.", "sam_prompt_encoder."),
    name="official",
    beginnings={
        "sam_mask_decoder.transformer.layers.#.mlp.layers.0.": "mask_decoder.transformer.layers.#.mlp.lin1.",
        "sam_mask_decoder.transformer.layers.#.mlp.layers.1.": "mask_decoder.transformer.layers.#.mlp.lin2.",
        "sam_mask_decoder.": "mask_decoder.",
        "sam_prompt_encoder.": "prompt_encoder.",
        "no_mem_embed": "mask_decoder.no_mem_embed",
    },
    left_out=(
        "memory_attention.",
        "memory_encoder.",
        "maskmem_tpos_enc",
        "no_mem_pos_enc",
        "no_obj_ptr",
        "no_obj_embed_spatial",
        "mask_downsample.",
        "obj_ptr_proj.",
        "obj_ptr_tpos_proj.",
    ),
)

TRANSFORMERS = Layout(
    marks=("vision_encoder.backbone.",),
    name="transformers",
    beginnings={
        "vision_encoder.backbone.patch_embed.projection.": "image_encoder.trunk.patch_embed.proj.",
        "vision_encoder.backbone.blocks.#.layer_norm#.": "image_encoder.trunk.blocks.#.norm#.",
        "vision_encoder.backbone.blocks.#.mlp.proj_in.": "image_encoder.trunk.blocks.#.mlp.layers.0.",
        "vision_encoder.backbone.blocks.#.mlp.proj_out.": "image_encoder.trunk.blocks.#.mlp.layers.1.",
        "vision_encoder.backbone.": "image_encoder.trunk.",
        "vision_encoder.neck.convs.#.": "image_encoder.neck.convs.#.conv.",
        "mask_decoder.transformer.layers.#.mlp.proj_in.": "mask_decoder.transformer.layers.#.mlp.lin1.",
        "mask_decoder.transformer.layers.#.mlp.proj_out.": "mask_decoder.transformer.layers.#.mlp.lin2.",
        **{
            f"mask_decoder.transformer.{attention}.o_proj.": f"mask_decoder.transformer.{attention}.out_proj."
            for attention in (
                "layers.#.self_attn",
                "layers.#.cross_attn_token_to_image",
                "layers.#.cross_attn_image_to_token",
                "final_attn_token_to_image",
            )
        },
        "mask_decoder.pred_obj_score_head.proj_in.": "mask_decoder.pred_obj_score_head.layers.0.",
        "mask_decoder.pred_obj_score_head.layers.0.": "mask_decoder.pred_obj_score_head.layers.1.",
        "mask_decoder.pred_obj_score_head.proj_out.": "mask_decoder.pred_obj_score_head.layers.2.",
        "no_memory_embedding": "mask_decoder.no_mem_embed",
        **PROMPT_AND_MASKS,
    },
    rows={"prompt_encoder.point_embeddings.weight": "prompt_encoder.point_embeddings.#.weight"},
    copies=COPIES,
    left_out=(
        "memory_attention.",
        "memory_encoder.",
        "memory_temporal_positional_encoding",
        "no_memory_positional_encoding",
        "no_object_pointer",
        "mask_downsample.",
        "object_pointer_proj.",
        "temporal_positional_encoding_projection_layer.",
        "occlusion_spatial_embedding_parameter",
    ),
)
