"""transformers' SAM in the sizes of one of our encoders, as an oracle."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam.modeling_sam import SamModel

from medsaga.models.encoders import encoder_spec
from medsaga.models.encoders.base import SAM_MEAN, SAM_STD
from medsaga.models.encoders.sam_vit import SamVitSpec


def random_reference(architecture: str, side: int) -> SamModel:
    """Return transformers' own SAM with eager attention and random weights everywhere, tables and biases among them."""
    spec = encoder_spec(architecture)
    assert isinstance(spec, SamVitSpec)
    config = SamConfig(
        vision_config=SamVisionConfig(
            hidden_size=spec.hidden_size,
            mlp_dim=spec.mlp_dim or 4 * spec.hidden_size,
            num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads,
            image_size=side,
            patch_size=spec.patch_size,
            output_channels=spec.out_channels,
            num_pos_feats=spec.out_channels // 2,
            window_size=spec.window,
            global_attn_indexes=spec.global_layers,
            initializer_range=0.05,
        ),
        prompt_encoder_config=SamPromptEncoderConfig(
            image_size=side, patch_size=spec.patch_size, hidden_size=spec.out_channels
        ),
        # The official decoder's epsilon; transformers' default is 1e-6.
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=spec.out_channels, mlp_dim=spec.decoder_mlp_dim, layer_norm_eps=1e-5
        ),
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = SamModel(config).eval()
    for name, parameter in model.named_parameters():
        if "rel_pos" in name or "pos_embed" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2)
        if "positional_embedding" in name:
            nn.init.normal_(parameter)
    return model


def normalised(images: Tensor) -> Tensor:
    """Shift and scale colours in 0..255, ``(batch, 3, height, width)``, as SAM's processor does."""
    mean, std = (torch.tensor(values, dtype=images.dtype).view(3, 1, 1) for values in (SAM_MEAN, SAM_STD))
    return (images - mean) / std
