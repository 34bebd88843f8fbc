"""The image encoders. To add one, write a module beside these and name it in ``ENCODERS``."""

from __future__ import annotations

from medsaga.models.encoders.base import EncoderSpec, ImageEncoder
from medsaga.models.encoders.lite import LiteSpec
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
    "lite": LiteSpec(width=1.0, depth=1.1, out_channels=128, image_size=256),
    "vit_b": SamVitSpec(hidden_size=768, layers=12, heads=12, global_layers=(2, 5, 8, 11)),
    "vit_l": SamVitSpec(hidden_size=1024, layers=24, heads=16, global_layers=(5, 11, 17, 23)),
    "vit_h": SamVitSpec(hidden_size=1280, layers=32, heads=16, global_layers=(7, 15, 23, 31)),
}
"""The encoder of each architecture: SAM's three published sizes, and one that trains on a CPU."""

__all__ = ["ENCODERS", "EncoderSpec", "ImageEncoder", "useful_image_sizes"]


def useful_image_sizes(architecture: str) -> list[int]:
    """Return sides in pixels, ascending, that waste nothing; the last is the architecture's own."""
    return ENCODERS[architecture].useful_image_sizes()
