"""The image encoders. To add one, write a module beside these and name it in ``ENCODERS``."""

from __future__ import annotations

from medsaga.errors import InputError
from medsaga.models.encoders.base import EncoderSpec, ImageEncoder
from medsaga.models.encoders.hiera import HieraSpec
from medsaga.models.encoders.lite import LiteSpec
from medsaga.models.encoders.pruned import has_sizes, spec_with_sizes
from medsaga.models.encoders.sam_vit import SamVitSpec
from medsaga.models.encoders.tiny_vit import TinyVitSpec

ENCODERS: dict[str, EncoderSpec] = {
    "lite": LiteSpec(width=1.0, depth=1.1, out_channels=128, image_size=192, finer_image_sizes=(256, 320)),
    "vit_b": SamVitSpec(hidden_size=768, layers=12, heads=12, global_layers=(2, 5, 8, 11)),
    "vit_l": SamVitSpec(hidden_size=1024, layers=24, heads=16, global_layers=(5, 11, 17, 23)),
    "vit_h": SamVitSpec(hidden_size=1280, layers=32, heads=16, global_layers=(7, 15, 23, 31)),
    "slimsam_77": SamVitSpec(hidden_size=168, layers=12, heads=12, global_layers=(2, 5, 8, 11), mlp_dim=696),
    "mobile_sam": TinyVitSpec(
        widths=(64, 128, 160, 320), depths=(2, 2, 6, 2), heads=(4, 5, 10), windows=(7, 14, 7), out_channels=256
    ),
    "sam2.1_hiera_tiny": HieraSpec(embed_dim=96, heads=1, stages=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
    "sam2.1_hiera_small": HieraSpec(embed_dim=96, heads=1, stages=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "sam2.1_hiera_base_plus": HieraSpec(
        embed_dim=112, heads=2, stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), position_grid=14
    ),
    "sam2.1_hiera_large": HieraSpec(
        embed_dim=144, heads=2, stages=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)
    ),
    "tiny": SamVitSpec(
        hidden_size=64,
        layers=4,
        heads=2,
        global_layers=(1, 3),
        window=4,
        patch_size=8,
        out_channels=64,
        decoder_mlp_dim=128,
        image_size=128,
        recomputed=False,
    ),
}
"""The encoder of each architecture that has a name; the first is the default.

They are ``lite``, the published sizes of SAM and its variants, and ``tiny``: all parts of SAM in a size for tests and
quick looks, which no weights are published for."""

__all__ = [
    "ENCODERS",
    "EncoderSpec",
    "ImageEncoder",
    "encoder_spec",
    "finer_image_sizes",
    "is_architecture",
    "useful_image_sizes",
]


def encoder_spec(architecture: str) -> EncoderSpec:
    """Return the encoder of an architecture: a key of ``ENCODERS``, or a name that holds the sizes of a SAM.

    Raises:
        InputError: it is neither.
    """
    if architecture in ENCODERS:
        return ENCODERS[architecture]
    if has_sizes(architecture):
        try:
            return spec_with_sizes(architecture)
        except ValueError as error:
            raise InputError(
                "--model",
                expected="a name with sizes, as `medsaga weights verify` shows it",
                found=f"{architecture!r}: {error}",
                do="Name the weights instead.",
            ) from None
    known = ", ".join(ENCODERS)
    raise InputError("--model", expected=f"one of {known}", found=repr(architecture), do="Choose one of them.")


def is_architecture(name: str) -> bool:
    """Whether a name is meant as that of an architecture, not of weights."""
    return name in ENCODERS or has_sizes(name)


def useful_image_sizes(architecture: str) -> list[int]:
    """Return sides in pixels, ascending, that waste nothing; the last is the architecture's own."""
    return encoder_spec(architecture).useful_image_sizes()


def finer_image_sizes(architecture: str) -> tuple[int, ...]:
    """Return larger sides in pixels, ascending, for structures that are too fine for the architecture's own."""
    return encoder_spec(architecture).finer_image_sizes
