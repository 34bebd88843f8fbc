"""The image encoders. To add one, write a module beside these and name it in ``ENCODERS``."""

from __future__ import annotations

from medsaga.models.encoders.base import EncoderSpec, ImageEncoder
from medsaga.models.encoders.hiera import HieraSpec
from medsaga.models.encoders.sam_vit import SamVitSpec
from medsaga.models.encoders.tiny import TinySpec

ENCODERS: dict[str, EncoderSpec] = {
    "tiny": TinySpec(
        hidden_size=128,
        layers=6,
        heads=2,
        global_layers=(2, 5),
        window=8,
        out_channels=128,
        pyramid_widths=(32, 64),
        decoder_mlp_dim=512,
        image_size=192,
    ),
    "vit_b": SamVitSpec(hidden_size=768, layers=12, heads=12, global_layers=(2, 5, 8, 11)),
    "vit_l": SamVitSpec(hidden_size=1024, layers=24, heads=16, global_layers=(5, 11, 17, 23)),
    "vit_h": SamVitSpec(hidden_size=1280, layers=32, heads=16, global_layers=(7, 15, 23, 31)),
    "sam2.1_hiera_tiny": HieraSpec(embed_dim=96, heads=1, stages=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
    "sam2.1_hiera_small": HieraSpec(embed_dim=96, heads=1, stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "sam2.1_hiera_base_plus": HieraSpec(
        embed_dim=112, heads=2, stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), position_grid=14
    ),
    "sam2.1_hiera_large": HieraSpec(
        embed_dim=144, heads=2, stages=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)
    ),
}
"""The encoder of each architecture: the published sizes of SAM and of SAM 2.1, and one that trains on a CPU."""

__all__ = ["ENCODERS", "EncoderSpec", "ImageEncoder", "useful_image_sizes"]


def useful_image_sizes(architecture: str) -> list[int]:
    """Return sides in pixels, ascending, that waste nothing; the last is the architecture's own."""
    return ENCODERS[architecture].useful_image_sizes()
