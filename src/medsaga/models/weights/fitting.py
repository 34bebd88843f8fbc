"""Fitting weights to a model of other classes, another image size and other channels."""

from __future__ import annotations

import torch
from torch import Tensor

from medsaga.models.sam import KClassSam
from medsaga.models.weights.names import ENCODER, State

REPEAT_NOISE = 0.02
"""Spread, relative to that of the tensor, of the noise that tells apart classes which start from the same mask."""
NETWORK_TENSORS = tuple(f"layers.{layer}.{kind}" for layer in (1, 0, 2) for kind in ("bias", "weight"))
"""Of a hypernetwork, in the order in which they get their noise: another order would be another start for each seed."""


def fit_to(model: KClassSam, state: State, *, masks: int) -> State:
    """Return complete weights with the classes, the image size and the channels of a model.

    Args:
        model: says what they are to fit.
        state: of a model of the same architecture.
        masks: mask tokens in it.
    """
    state = _with_classes(state, masks, model.classes)
    encoder = model.image_encoder
    own = {name: state.pop(name) for name in list(state) if name.startswith(ENCODER)}
    fitted = dict(encoder.fit_positions({name.removeprefix(ENCODER): tensor for name, tensor in own.items()}))
    for name in encoder.pixel_kernels:
        fitted[name] = _with_channels(fitted[name], encoder.get_parameter(name).shape[1])
    return state | {ENCODER + name: tensor for name, tensor in fitted.items()}


def _with_channels(kernel: Tensor, channels: int) -> Tensor:
    """Give a kernel ``(out, in, height, width)`` other channels: the mean of its own, with sums of their size."""
    if kernel.shape[1] == channels:
        return kernel
    return kernel.float().mean(1, keepdim=True).expand(-1, channels, -1, -1) * (kernel.shape[1] / channels)


def _with_classes(state: State, masks: int, classes: int) -> State:
    """Give each class the token, the hypernetwork and the quality estimate of one of the file's masks."""
    generator = torch.Generator().manual_seed(0)

    def start(tensor: Tensor, c: int) -> Tensor:
        tensor = tensor.float()
        if c < masks:
            return tensor
        return tensor + REPEAT_NOISE * tensor.std() * torch.randn(tensor.shape, generator=generator)

    networks = "mask_decoder.output_hypernetworks_mlps."
    adapted = {name: tensor for name, tensor in state.items() if not name.startswith(networks)}
    tokens = state["mask_decoder.mask_tokens.weight"]
    adapted["mask_decoder.mask_tokens.weight"] = torch.stack([start(tokens[c % masks], c) for c in range(classes)])
    for c in range(classes):
        for part in NETWORK_TENSORS:
            adapted[f"{networks}{c}.{part}"] = start(state[f"{networks}{c % masks}.{part}"], c)
    rows = torch.arange(classes) % masks
    for name in ("mask_decoder.iou_prediction_head.layers.2.weight", "mask_decoder.iou_prediction_head.layers.2.bias"):
        adapted[name] = state[name][rows]
    return adapted
