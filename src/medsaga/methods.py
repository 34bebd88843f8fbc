"""The fine-tuning methods. A method takes the model and the settings and returns the optimizer's parameter groups.

To add one, write a function and name it in ``METHODS``. What no group holds is frozen by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from medsaga.config import ResolvedSettings
from medsaga.errors import RunError
from medsaga.models.sam import KClassSam
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.groups import PRESETS

Groups = list[dict[str, Any]]
Method = Callable[[KClassSam, ResolvedSettings], Groups]


def medsaga(model: KClassSam, settings: ResolvedSettings) -> Groups:
    """GaLore on every weight matrix of the image encoder, AdamW on all the rest (arXiv 2407.15042).

    Convolution kernels (patch embedding, neck) count as matrices. Biases, norms and position tables of the encoder
    and the whole prompt encoder and mask decoder are trained in full.
    """
    matrices, others = weight_matrices(model.vision_encoder)
    projected: dict[str, Any] = {
        "params": matrices,
        "lr": settings.encoder_lr,
        "weight_decay": settings.weight_decay,
        "rank": settings.rank,
        "refresh_every": settings.refresh_every,
        **PRESETS[settings.preset],
    }
    return [
        projected,
        {"params": others, "lr": settings.encoder_lr, "weight_decay": 0.0},
        *_full_groups([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay),
    ]


def full(model: KClassSam, settings: ResolvedSettings) -> Groups:
    """AdamW on every parameter: what all others are compared with."""
    return [
        *_full_groups([model.vision_encoder], settings.encoder_lr, settings.weight_decay),
        *_full_groups([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay),
    ]


METHODS: dict[str, Method] = {"medsaga": medsaga, "full": full}


def new_optimizer(model: KClassSam, settings: ResolvedSettings, kind: type[GaLoreAdamW] = GaLoreAdamW) -> GaLoreAdamW:
    """Make the optimizer of the run's method; parameters that the method does not name are frozen.

    Args:
        model: with its weights in the precision of the run.
        settings: of the run.
        kind: the class to make; a prediction has one of its own.

    Raises:
        RunError: the method projects gradients, but no parameter would be.
    """
    groups = METHODS[settings.method](model, settings)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    projects = any("rank" in group for group in groups)
    for group in groups:
        group["peak_lr"] = group["lr"]
    optimizer = kind(groups, state_bits=settings.state_bits, state_on_host=settings.state_on_host, seed=settings.seed)
    if projects and optimizer.projected_parameters() == 0:
        optimizer.close()
        raise RunError("No parameter would be projected: the image encoder has no weight matrix to train with GaLore.")
    return optimizer


def weight_matrices(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Divide a module's parameters into weights of linear and convolution layers, and everything else.

    Position tables and embeddings are two-dimensional too, but they are no linear maps: they count as the rest.
    """
    layers = (child for child in module.modules() if isinstance(child, nn.Linear | nn.Conv2d | nn.ConvTranspose2d))
    matrices = [child.get_parameter("weight") for child in layers]
    known = {id(parameter) for parameter in matrices}
    return matrices, [parameter for parameter in module.parameters() if id(parameter) not in known]


def _full_groups(modules: Iterable[nn.Module], lr: float, weight_decay: float) -> Groups:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        weights, rest = weight_matrices(module)
        matrices += weights
        others += rest
    return [
        {"params": matrices, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
