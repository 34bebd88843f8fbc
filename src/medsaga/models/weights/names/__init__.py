"""The names of tensors in files of weights.

Ours are those of SAM's official release, which MedSAM and most fine-tuned files share. Files of SAM 2 differ a little,
and transformers has names of its own for either, which files of earlier versions of medsaga have too. To read another
layout, write a module beside these and name it in ``LAYOUTS``.
"""

from __future__ import annotations

from medsaga.models.weights.names import sam, sam2
from medsaga.models.weights.names.layout import FREQUENCIES, Layout, State

ENCODER = "image_encoder."
"""How the names of the image encoder's tensors begin."""
LAYOUTS: tuple[Layout, ...] = (sam2.TRANSFORMERS, sam.TRANSFORMERS, sam2.OFFICIAL)
"""The first that a file has counts; a file that has none has our names."""

__all__ = ["ENCODER", "FREQUENCIES", "LAYOUTS", "State", "has_transformers_names", "own_names"]


def has_transformers_names(state: State) -> bool:
    """Whether tensors have names of transformers."""
    layout = _layout_of(state)
    return layout is not None and layout.of_transformers


def own_names(state: State) -> State:
    """Return tensors under our names, whatever names they have; what only video needs is left out."""
    layout = _layout_of(state)
    return state if layout is None else layout.rename(state)


def _layout_of(state: State) -> Layout | None:
    return next((layout for layout in LAYOUTS if layout.is_that_of(state)), None)
