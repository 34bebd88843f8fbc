"""Vision transformers of SAM in any size, such as the pruned ones of SlimSAM (arXiv 2312.05284).

Their files tell all sizes, and the name of an architecture can hold them, so that a run needs no table of known sizes.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from medsaga.models.base import SIDE_MULTIPLE
from medsaga.models.encoders.base import State
from medsaga.models.encoders.sam_vit import SamVitSpec, count_blocks

FAMILY = "sam_vit"
"""How the names begin."""
GLOBAL = "global_layers"
DIMENSIONS = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 4,
    "blocks.0.attn.qkv.weight": 2,
    "blocks.0.attn.rel_pos_h": 2,
    "blocks.0.mlp.lin1.weight": 2,
    "neck.0.weight": 4,
}
"""Tensors that tell sizes, and how many dimensions they have."""
EMBEDDING_MULTIPLE = 16
"""What the channels of the image embeddings are a multiple of: the decoder halves them and has eight heads."""


def has_sizes(name: str) -> bool:
    """Whether the name of an architecture is meant to hold its sizes."""
    return name.startswith(f"{FAMILY}:")


def name_with_sizes(spec: SamVitSpec) -> str:
    """Return a name such as ``sam_vit:hidden_size=168,layers=12,heads=12,global_layers=2-5-8-11,mlp_dim=696``.

    Sizes that are as usual are left out.
    """
    sizes = {
        field.name: getattr(spec, field.name)
        for field in dataclasses.fields(spec)
        if getattr(spec, field.name) != field.default
    }
    sizes[GLOBAL] = "-".join(str(layer) for layer in spec.global_layers)
    return f"{FAMILY}:" + ",".join(f"{name}={size}" for name, size in sizes.items())


def spec_with_sizes(name: str) -> SamVitSpec:
    """Return what :func:`name_with_sizes` made a name of.

    Raises:
        ValueError: it is no such name, or the sizes do not go together.
    """
    given = dict(re.findall(r"(\w+)=([\d-]*)", name))
    try:
        layers = tuple(int(layer) for layer in given.pop(GLOBAL).split("-") if layer)
        sizes: dict[str, Any] = {key: int(size) for key, size in given.items()}
        spec = SamVitSpec(global_layers=layers, **sizes)
    except (KeyError, TypeError, ValueError):
        raise ValueError("a size is missing, unknown or no number") from None
    if name_with_sizes(spec) != name:
        raise ValueError(f"the name of these sizes is {name_with_sizes(spec)}")
    _check(spec)
    return spec


def told_by(state: State) -> SamVitSpec | None:
    """Return the sizes of SAM's image encoder that its tensors tell; None if they are others, or do not tell all.

    Relative positions tell the heads by their channels, and the windows by their rows. Where the whole image is as
    large as a window, nobody can see which blocks attend to the whole of another image.
    """
    if any(name not in state or state[name].dim() != dimensions for name, dimensions in DIMENSIONS.items()):
        return None
    patches, positions, qkv, distances, lin1, neck = (state[name] for name in DIMENSIONS)
    rows = [len(state.get(f"blocks.{n}.attn.rel_pos_h", ())) for n in range(count_blocks(state))]
    whole = 2 * positions.shape[1] - 1
    windows = {length for length in rows if length != whole}
    hidden_size, mlp_dim, attention_size = len(patches), len(lin1), len(qkv) // 3
    if len(windows) != 1 or distances.shape[1] == 0:
        return None
    spec = SamVitSpec(
        hidden_size=hidden_size,
        layers=len(rows),
        heads=attention_size // distances.shape[1],
        global_layers=tuple(n for n, length in enumerate(rows) if length == whole),
        window=(windows.pop() + 1) // 2,
        patch_size=patches.shape[-1],
        out_channels=len(neck),
        mlp_dim=0 if mlp_dim == 4 * hidden_size else mlp_dim,
        attention_size=0 if attention_size == hidden_size else attention_size,
    )
    try:
        _check(spec)
    except ValueError:
        return None
    return spec


def _check(spec: SamVitSpec) -> None:
    """Raise ValueError unless a model of these sizes can be built."""
    positive = (spec.hidden_size, spec.layers, spec.heads, spec.window, spec.patch_size, spec.out_channels)
    if min(positive) < 1 or min(spec.mlp_dim, spec.attention_size) < 0:
        raise ValueError("sizes are positive")
    if (spec.attention_size or spec.hidden_size) % spec.heads or spec.out_channels % EMBEDDING_MULTIPLE:
        raise ValueError("heads do not divide the channels")
    if SIDE_MULTIPLE % spec.patch_size:
        raise ValueError(f"the side of a token does not divide {SIDE_MULTIPLE} pixels")
    if any(layer >= spec.layers for layer in spec.global_layers):
        raise ValueError("a global layer is none of the layers")
