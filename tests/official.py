"""The names of tensors in the official SAM release, written down independently of the package's own map."""

from __future__ import annotations

import re

from torch import Tensor


def official_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the official release for tensors of transformers, in the words of the release's module tree."""
    steps = [
        (r"^vision_encoder\.(.*)layer_norm(\d)", r"vision_encoder.\1norm\2"),
        (r"^vision_encoder\.layers", "image_encoder.blocks"),
        (r"^vision_encoder\.patch_embed\.projection", "image_encoder.patch_embed.proj"),
        (r"^vision_encoder\.neck\.conv1", "image_encoder.neck.0"),
        (r"^vision_encoder\.neck\.norm1", "image_encoder.neck.1"),
        (r"^vision_encoder\.neck\.conv2", "image_encoder.neck.2"),
        (r"^vision_encoder\.neck\.norm2", "image_encoder.neck.3"),
        (r"^vision_encoder\.pos_embed", "image_encoder.pos_embed"),
        (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
        (r"\.point_embed\.", ".point_embeddings."),
        (r"\.mask_embed\.conv1", ".mask_downscaling.0"),
        (r"\.mask_embed\.layer_norm1", ".mask_downscaling.1"),
        (r"\.mask_embed\.conv2", ".mask_downscaling.3"),
        (r"\.mask_embed\.layer_norm2", ".mask_downscaling.4"),
        (r"\.mask_embed\.conv3", ".mask_downscaling.6"),
        (r"transformer\.layer_norm_final", "transformer.norm_final"),
        (r"(transformer\.layers\.\d)\.layer_norm", r"\1.norm"),
        (r"\.upscale_conv1", ".output_upscaling.0"),
        (r"\.upscale_layer_norm", ".output_upscaling.1"),
        (r"\.upscale_conv2", ".output_upscaling.3"),
        (r"(mlps\.\d|iou_prediction_head)\.layers\.0", r"\1.layers.1"),
        (r"(mlps\.\d|iou_prediction_head)\.proj_in", r"\1.layers.0"),
        (r"(mlps\.\d|iou_prediction_head)\.proj_out", r"\1.layers.2"),
    ]
    renamed = {}
    for own, tensor in state.items():
        name = own
        for pattern, replacement in steps:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    renamed.pop("shared_image_embedding.positional_embedding", None)
    return renamed


def official_sam2_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of SAM 2's official release for tensors of transformers, those of a video's memory among them."""
    steps = [
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^image_encoder\.trunk\.patch_embed\.projection", "image_encoder.trunk.patch_embed.proj"),
        (r"^(image_encoder\..*)layer_norm(\d)", r"\1norm\2"),
        (r"^vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
        (r"^prompt_encoder\.", "sam_prompt_encoder."),
        (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
        (r"\.mask_embed\.conv1", ".mask_downscaling.0"),
        (r"\.mask_embed\.layer_norm1", ".mask_downscaling.1"),
        (r"\.mask_embed\.conv2", ".mask_downscaling.3"),
        (r"\.mask_embed\.layer_norm2", ".mask_downscaling.4"),
        (r"\.mask_embed\.conv3", ".mask_downscaling.6"),
        (r"^mask_decoder\.", "sam_mask_decoder."),
        (r"transformer\.layer_norm_final", "transformer.norm_final"),
        (r"(transformer\.layers\.\d)\.layer_norm", r"\1.norm"),
        (r"(_attn|token_to_image|image_to_token)\.o_proj", r"\1.out_proj"),
        (r"\.upscale_conv1", ".output_upscaling.0"),
        (r"\.upscale_layer_norm", ".output_upscaling.1"),
        (r"\.upscale_conv2", ".output_upscaling.3"),
        (r"(mlps\.\d|_head)\.layers\.0", r"\1.layers.1"),
        (r"(mlps\.\d|_head)\.proj_in", r"\1.layers.0"),
        (r"(mlps\.\d|_head)\.proj_out", r"\1.layers.2"),
        (r"\.mlp\.proj_in", ".mlp.layers.0"),
        (r"\.mlp\.proj_out", ".mlp.layers.1"),
        (r"^no_memory_embedding", "no_mem_embed"),
        (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
        (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
        (r"^no_object_pointer", "no_obj_ptr"),
        (r"^object_pointer_proj", "obj_ptr_proj"),
        (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
        (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    ]
    renamed = {}
    for own, tensor in state.items():
        name = own
        for pattern, replacement in steps:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    renamed.pop("shared_image_embedding.positional_embedding", None)
    table = renamed.pop("sam_prompt_encoder.point_embed.weight", ())
    for number, row in enumerate(table):
        renamed[f"sam_prompt_encoder.point_embeddings.{number}.weight"] = row[None]
    return renamed
