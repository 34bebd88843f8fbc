"""transformers' SAM 2 in the sizes of one of our encoders, as an oracle; and the same with the memory of a video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam2.configuration_sam2 import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)
from transformers.models.sam2.modeling_sam2 import Sam2Model
from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

from medsaga.models.encoders.hiera import HieraSpec

SMALL = HieraSpec(
    embed_dim=16,
    heads=1,
    stages=(1, 2, 3, 2),
    global_blocks=(4,),
    windows=(8, 4, 6, 3),
    position_grid=5,
    out_channels=64,
    decoder_mlp_dim=48,
    image_size=96,
)
"""All kinds of blocks; windows fit 96 px without padding."""


def random_sam2(spec: HieraSpec, side: int) -> Sam2Model:
    """Return transformers' own SAM 2 with eager attention, and random weights in tables and biases too."""
    torch.manual_seed(0)
    return _randomised(Sam2Model(Sam2Config(**_parts(spec, side), attn_implementation="eager")))


def random_video_sam2(spec: HieraSpec, side: int) -> Sam2VideoModel:
    """Return the class for videos, whose modules of memory an image does not need."""
    torch.manual_seed(0)
    channels = spec.out_channels
    config = Sam2VideoConfig(
        **_parts(spec, side),
        attn_implementation="eager",
        image_size=side,
        memory_attention_hidden_size=channels,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[side // 16, side // 16],
        memory_encoder_hidden_size=channels,
        memory_encoder_output_channels=16,
        mask_downsampler_embed_dim=channels,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=32,
        # What SAM 2.1 added to SAM 2.
        enable_temporal_pos_encoding_for_object_pointers=True,
        enable_occlusion_spatial_embedding=True,
    )
    return _randomised(Sam2VideoModel(config))


def all_masks(reference: Sam2Model, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """What it computes without prompts: the maps of its pyramid, the finest first, and all four masks.

    Its own forward would add a point that stands for none.

    Args:
        reference: the model.
        images: ``(batch, 3, side, side)``, normalised.
    """
    maps = reference.vision_encoder(images).fpn_hidden_states
    decoder, batch = reference.mask_decoder, len(images)
    inputs: dict[str, Any] = {
        "image_embeddings": maps[2] + reference.no_memory_embedding.view(1, -1, 1, 1),
        "image_positional_embeddings": reference.get_image_wide_positional_embeddings().repeat(batch, 1, 1, 1),
        "sparse_prompt_embeddings": images.new_zeros(batch, 1, 0, decoder.hidden_size),
        "dense_prompt_embeddings": reference.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1),
        "high_resolution_features": [decoder.conv_s0(maps[0]), decoder.conv_s1(maps[1])],
    }
    one, others = (decoder(**inputs, multimask_output=several)[0] for several in (False, True))
    return maps, torch.cat((one, others), dim=2)[:, 0]


def _parts(spec: HieraSpec, side: int) -> dict[str, Any]:
    widths = [spec.embed_dim * 2**stage for stage in range(4)]
    backbone = Sam2HieraDetConfig(
        hidden_size=spec.embed_dim,
        num_attention_heads=spec.heads,
        image_size=[side, side],
        window_positional_embedding_background_size=[spec.position_grid] * 2,
        blocks_per_stage=list(spec.stages),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[spec.heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(spec.windows),
        global_attention_blocks=list(spec.global_blocks),
        initializer_range=0.05,
    )
    channels = spec.out_channels
    return {
        "vision_config": Sam2VisionConfig(
            backbone_config=backbone,
            backbone_channel_list=widths[::-1],
            backbone_feature_sizes=[[side // stride] * 2 for stride in (4, 8, 16)],
            fpn_hidden_size=channels,
        ),
        "prompt_encoder_config": Sam2PromptEncoderConfig(hidden_size=channels, image_size=side),
        "mask_decoder_config": Sam2MaskDecoderConfig(
            hidden_size=channels, mlp_dim=spec.decoder_mlp_dim, dynamic_multimask_via_stability=False
        ),
    }


def _randomised(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("pos_embed", "no_mem", "bias")):
            nn.init.normal_(parameter, std=0.2)
    # Both copies of the frequencies are the same in published files.
    frequencies = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.copy_(frequencies)
    return model.eval()
