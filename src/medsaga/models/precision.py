"""In how many bits the weights of a run are kept."""

from __future__ import annotations

import torch
from torch import nn

from medsaga.memory.meta import on_meta
from medsaga.models.base import SegmentationModel
from medsaga.models.encoders import encoder_spec
from medsaga.models.int8 import quantise_linears

WEIGHT_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.bfloat16}
"""The type that a model of each precision computes in."""


def set_precision(model: SegmentationModel, precision: str) -> None:
    """Keep the weights of a model in a precision from now on, and compute in it.

    There is no float32 copy of the weights: updates are rounded stochastically (`medsaga.optim.rounding`). ``int8`` is
    for the linear layers of the image encoder, which are nearly all of the model; the rest is bfloat16. Buffers, which
    hold normalisation and positions, stay float32.

    Args:
        model: changed in place; its gradients must be None.
        precision: key of ``WEIGHT_TYPES``.
    """
    cast_parameters(model, WEIGHT_TYPES[precision])
    if precision == "int8":
        quantise_linears(model.get_submodule("image_encoder"))


def takes_int8(architecture: str) -> bool:
    """Whether ``int8`` means something for an architecture: its image encoder has linear layers."""
    spec = encoder_spec(architecture)
    with on_meta():
        encoder = spec.build(image_size=spec.image_size, in_channels=3)
    return any(isinstance(layer, nn.Linear) for layer in encoder.modules())


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Turn all parameters of a module into one type, in place; rounding is to the nearest."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
