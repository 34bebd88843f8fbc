"""Files of models that are close to SAM but that medsaga does not have: what they are, and what to use instead."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medsaga.errors import InputError


@dataclass(frozen=True)
class OtherModel:
    """A model that is no model of ours.

    Attributes:
        name: what it is.
        marks: beginnings of names of tensors that only its files have, official or in transformers.
        instead: what to do.
    """

    name: str
    marks: tuple[str, ...]
    instead: str


OTHERS = (
    OtherModel(
        "EdgeTAM, whose encoder is RepViT",
        ("spatial_perceiver.", "image_encoder.trunk.body.", "vision_encoder.backbone.timm_model."),
        "Use sam2.1_hiera_tiny.pt, the smallest file of SAM 2.1.",
    ),
    OtherModel(
        "EfficientSAM, whose encoder and decoder are its own",
        ("mask_decoder.final_output_upscaling_layers.",),
        "Use sam2.1_hiera_tiny.pt, the smallest file of SAM 2.1.",
    ),
    OtherModel(
        "SAM-HQ, whose decoder has a branch of its own",
        ("mask_decoder.hf_token.", "sam_mask_decoder.hf_token.", "mask_decoder.hq_token."),
        "Use the file of SAM or of SAM 2.1 that it was made from.",
    ),
    OtherModel(
        "SAM 3, which finds objects by text",
        ("detector.", "detector_model.", "detr_decoder."),
        "Use sam2.1_hiera_large.pt, the largest file of SAM 2.1.",
    ),
    OtherModel(
        "a small model of an earlier version of medsaga, which this one does not have",
        ("image_encoder.details.", "vision_encoder.details.", "mask_decoder.details."),
        "Train again, or use the version that made it.",
    ),
)


def refuse_others(source: str | Path, names: Iterable[str]) -> None:
    """Raise InputError if the tensors of these names are those of another model.

    Args:
        source: of the weights.
        names: of its tensors, as they are in the file or under our names.
    """
    names = tuple(names)
    for other in OTHERS:
        if any(name.startswith(other.marks) for name in names):
            raise InputError(
                source, expected="weights of SAM or SAM 2.1", found=f"weights of {other.name}", do=other.instead
            )
