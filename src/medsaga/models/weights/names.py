"""The names of tensors in files of weights.

Ours are those of the official release, which MedSAM and most fine-tuned files share. transformers has names of its own,
which files of earlier versions of medsaga have too.
"""

from __future__ import annotations

import re

from torch import Tensor

State = dict[str, Tensor]

ENCODER = "image_encoder."
"""How the names of the image encoder's tensors begin."""
_THEIR_ENCODER = "vision_encoder."
_THEIR_COPY = "shared_image_embedding.positional_embedding"
"""transformers' second name for the frequencies of the positions; a file may hold either or both."""
FREQUENCIES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

_BEGINNINGS = {
    "vision_encoder.patch_embed.projection.": "image_encoder.patch_embed.proj.",
    "vision_encoder.layers.#.layer_norm#.": "image_encoder.blocks.#.norm#.",
    "vision_encoder.layers.": "image_encoder.blocks.",
    "vision_encoder.neck.conv1.": "image_encoder.neck.0.",
    "vision_encoder.neck.layer_norm1.": "image_encoder.neck.1.",
    "vision_encoder.neck.conv2.": "image_encoder.neck.2.",
    "vision_encoder.neck.layer_norm2.": "image_encoder.neck.3.",
    "vision_encoder.": "image_encoder.",
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
"""How names of transformers begin, and ours; # is a number. The first that fits counts; other names are the same."""


def _pattern(theirs: str) -> re.Pattern[str]:
    return re.compile(re.escape(theirs).replace(r"\#", r"(\d+)"))


def _replacement(ours: str) -> str:
    """Refer to the numbers of a pattern in their order."""
    first, *rest = ours.split("#")
    return first + "".join(f"\\{number}{part}" for number, part in enumerate(rest, 1))


_RENAMES = [(_pattern(theirs), _replacement(ours)) for theirs, ours in _BEGINNINGS.items()]


def has_transformers_names(state: State) -> bool:
    """Whether tensors have the names of transformers' SAM."""
    return any(name.startswith(_THEIR_ENCODER) for name in state)


def own_names(state: State) -> State:
    """Return tensors under our names, whether they have these or transformers'."""
    if not has_transformers_names(state):
        return state
    state = dict(state)
    copy = state.pop(_THEIR_COPY, None)
    renamed = {_own_name(name): tensor for name, tensor in state.items()}
    if copy is not None:
        renamed.setdefault(FREQUENCIES, copy)
    return renamed


def _own_name(theirs: str) -> str:
    for pattern, ours in _RENAMES:
        if pattern.match(theirs):
            return pattern.sub(ours, theirs, count=1)
    return theirs
