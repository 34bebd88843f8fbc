"""What MobileSAM's file holds that no segmenter computes with."""

from __future__ import annotations

import re

from torch import Tensor

FIRST_KERNEL = "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor that only files of a TinyViT under SAM's decoder have."""
UNUSED = re.compile(r"image_encoder\.(norm_head|head)\.(weight|bias)|image_encoder\..+\.bn\.num_batches_tracked")
"""TinyViT's classifier for ImageNet, and counters that training of batch norms needs."""


def without_unused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out by name what MobileSAM's file has too much; other files are as they were."""
    if FIRST_KERNEL not in state:
        return state
    return {name: tensor for name, tensor in state.items() if not UNUSED.fullmatch(name)}
