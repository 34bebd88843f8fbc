"""What `medsaga weights verify` and `convert` do: read weights as a run would, and say what they are or write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medsaga import files
from medsaga.errors import InputError
from medsaga.models.weights.loading import Weights, read_weights, save_state
from medsaga.models.weights.names import FREQUENCIES
from medsaga.models.weights.registry import release_of


def verify(source: str | Path) -> dict[str, Any]:
    """Read weights as a run would, and describe them.

    Args:
        source: as in `medsaga.models.weights.loading.load_pretrained`.

    Returns:
        ``file``, ``sha256``, ``release`` (None if the file is not known), ``layout``, ``architecture``,
        ``image_size``, ``in_channels``, ``masks``, ``tensors``, ``parameters`` and ``types``.

    Raises:
        InputError: a run could not use them.
    """
    weights = read_weights(source)
    state = weights.file.state
    return {
        "file": str(weights.file.path),
        "sha256": weights.sha256,
        "release": release_of(weights.sha256),
        "layout": weights.file.layout,
        "architecture": weights.architecture,
        "image_size": weights.image_size,
        "in_channels": weights.in_channels,
        "masks": weights.classes,
        "tensors": len(state),
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
    }


def convert(source: str | Path, out: Path, *, half: bool = False) -> None:
    """Write weights as safetensors under our names, which for SAM are the official ones; it is a source of weights.

    Args:
        source: as in `medsaga.models.weights.loading.load_pretrained`.
        out: the file to write, whole or not at all.
        half: in float16, for half the size.

    Raises:
        InputError: the source cannot be used, ``out`` exists or has another suffix, or a number is too large for
            float16.
    """
    if out.suffix != ".safetensors":
        raise InputError(out, expected="a name that ends in .safetensors", found=out.name, do="Choose another name.")
    files.require_new(out, "a file", "Choose another name.")
    weights = read_weights(source)
    if weights.file.absent:
        raise InputError(
            source,
            expected="weights of a whole model",
            found="those of an image encoder alone",
            do="It can be used as it is: --model and the name of the file.",
        )
    state = _halved(source, weights) if half else weights.file.state
    save_state(
        out,
        state,
        architecture=weights.architecture,
        classes=weights.classes,
        image_size=weights.image_size,
        in_channels=weights.in_channels,
        episodic=weights.episodic,
    )


def _halved(source: str | Path, weights: Weights) -> dict[str, torch.Tensor]:
    state = weights.file.state
    # Fewer bits would shift SAM's random frequencies.
    halved = {name: tensor if name == FREQUENCIES else tensor.half() for name, tensor in state.items()}
    for name, tensor in halved.items():
        if not tensor.isfinite().all():
            raise InputError(
                source,
                expected="numbers up to 65,504, which float16 holds",
                found=f"larger ones in {name}",
                do="Convert without --half.",
            )
    return halved
