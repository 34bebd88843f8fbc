"""The names of tensors in files of weights.

Ours are those of SAM's official release, which MedSAM and most fine-tuned files share. Files of its variants differ a
little, and transformers has names of its own, which files of earlier versions of medsaga have too. To read another
layout, write a module beside these and name it in ``LAYOUTS``.
"""

from __future__ import annotations

from medsaga.models.weights.names import efficientnet, mobile_sam, sam, sam2
from medsaga.models.weights.names.layout import FREQUENCIES, Layout, State

ENCODER = "image_encoder."
"""How the names of the image encoder's tensors begin."""
OURS = Layout(name="official", marks=("",))
LAYOUTS: tuple[Layout, ...] = (
    sam2.TRANSFORMERS,
    sam.TRANSFORMERS,
    sam2.OFFICIAL,
    mobile_sam.OFFICIAL,
    efficientnet.PUBLISHED,
    OURS,
)
"""The first that a file has counts."""

__all__ = ["ENCODER", "FREQUENCIES", "LAYOUTS", "Layout", "State", "layout_of", "own_names"]


def layout_of(state: State) -> Layout:
    """Return whose names tensors have."""
    return next((layout for layout in LAYOUTS if layout.is_that_of(state)), OURS)


def own_names(state: State) -> State:
    """Return tensors under our names, whatever names they have; what no image needs is left out."""
    return layout_of(state).rename(state)
