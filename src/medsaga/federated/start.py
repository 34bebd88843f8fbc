"""What a server does with the model: the weights that all start from, and the file at the end."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from medsaga import run_folder
from medsaga.errors import InputError
from medsaga.federated.averaging import norm
from medsaga.federated.options import Federation
from medsaga.federated.server import State
from medsaga.federated.worker import trained_weights
from medsaga.methods import new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.models.weights.loading import save_model
from medsaga.optim.projection import matrix_shape
from medsaga.settings.options import ResolvedSettings


def first_state(
    model: SegmentationModel, settings: ResolvedSettings, federation: Federation, symmetries: tuple[str, ...]
) -> State:
    """Return the state before the first round: the weights of a model as they are now.

    Raises:
        InputError: the noise that is asked for would be larger than the weights.
    """
    weights = trained_weights(model, settings, federation)
    if federation.clip is not None and federation.noise is not None:
        count = sum(weight.numel() for weight in weights.values())
        noise, most = federation.noise * federation.clip * math.sqrt(count), norm(weights)
        if noise > most:
            raise InputError(
                "--noise",
                expected=f"noise shorter than the {count:,} weights, whose norm is {most:.3g}",
                found=f"noise of the norm {noise:.3g}",
                do="Give a smaller --clip or --noise, or a --method that trains fewer weights.",
            )
    ranks = _ranks(model, settings) if federation.exchange == "shared-basis" else {}
    return State(weights, ranks, symmetries=symmetries)


@torch.no_grad()
def save_common_model(folder: Path, model: SegmentationModel, state: State) -> None:
    """Write the common model, as a training run writes its own."""
    for name, parameter in model.named_parameters():
        if name in state.weights:
            parameter.copy_(state.weights[name])
    model.symmetries = state.symmetries
    save_model(folder / run_folder.MODEL, model)


def _ranks(model: SegmentationModel, settings: ResolvedSettings) -> dict[str, int]:
    """Return the rank of the projection of each matrix under GaLore, by name."""
    optimizer = new_optimizer(model, settings)
    optimizer.close()
    ranks = {weight: group["rank"] for group in optimizer.param_groups for weight in group["params"]}
    return {
        name: min(ranks[parameter], *matrix_shape(parameter.shape))
        for name, parameter in model.named_parameters()
        if ranks.get(parameter) is not None
    }
