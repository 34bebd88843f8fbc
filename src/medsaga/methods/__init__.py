"""The fine-tuning methods. To add one, write a module beside these and name it in ``METHODS``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from medsaga.errors import InputError, RunError
from medsaga.methods import daeformer, frozen, full, medsaga, samed, unet
from medsaga.methods.base import Method
from medsaga.models.base import SegmentationModel
from medsaga.models.weights.loading import WeightsInfo, load_pretrained
from medsaga.models.weights.registry import RANDOM
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.sgd import MomentumSGD
from medsaga.settings.options import ResolvedSettings

METHODS: dict[str, Method] = {
    "medsaga": medsaga.METHOD,
    "samed": samed.METHOD,
    "full": full.METHOD,
    "frozen": frozen.METHOD,
    "daeformer": daeformer.METHOD,
    "unet": unet.METHOD,
}


def method_named(name: str) -> Method:
    """Return the method of that name.

    Raises:
        InputError: there is none.
    """
    if name not in METHODS:
        raise InputError("--method", expected=f"one of {', '.join(METHODS)}", found=name, do="Choose one.")
    return METHODS[name]


def build_model(settings: ResolvedSettings, *, classes: int, in_channels: int) -> SegmentationModel:
    """Build the model of a run with random weights, before its method has adapted it.

    Raises:
        InputError: the image size does not suit it.
    """
    build = method_named(settings.method).build
    return build(settings.model, classes=classes, image_size=settings.image_size, in_channels=in_channels)


def starting_model(
    settings: ResolvedSettings, *, classes: int, in_channels: int
) -> tuple[SegmentationModel, WeightsInfo | None]:
    """Build the model of a run with the weights that it starts from, before its method has adapted it.

    What no file gives is drawn from torch's global generator, which gets the seed of the run.

    Returns:
        the model, and where its weights came from; None if all of them are random.

    Raises:
        InputError: the image size does not suit it, or the weights cannot be used.
    """
    torch.manual_seed(settings.seed)
    model = build_model(settings, classes=classes, in_channels=in_channels)
    if settings.weights in (None, RANDOM):
        return model, None
    return model, load_pretrained(model, settings.weights)


def loading(settings: ResolvedSettings) -> Callable[..., SegmentationModel]:
    """Return what makes the empty model of a finished run, as its method has adapted it, for `load_model`."""
    method = method_named(settings.method)

    def build(architecture: str, **sizes: int) -> SegmentationModel:
        model = method.build(architecture, **sizes)
        method.adapt(model, settings)
        return model

    return build


def new_optimizer(
    model: SegmentationModel,
    settings: ResolvedSettings,
    galore: type[GaLoreAdamW] = GaLoreAdamW,
    sgd: type[MomentumSGD] = MomentumSGD,
) -> AccumulatingOptimizer:
    """Make the optimizer of the run's method; parameters that the method does not name are frozen.

    Args:
        model: with its weights in the precision of the run.
        settings: of the run.
        galore: the class to make for AdamW; a prediction has one of its own.
        sgd: the class to make for SGD, likewise.

    Raises:
        RunError: the method projects gradients, but no parameter would be.
    """
    groups = METHODS[settings.method].groups(model, settings)
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    projects = any("rank" in group for group in groups)
    for group in groups:
        group["peak_lr"] = group["lr"]
    if settings.optimizer == "sgd":
        return sgd(groups, state_on_host=settings.state_on_host, seed=settings.seed)
    optimizer = galore(groups, state_bits=settings.state_bits, state_on_host=settings.state_on_host, seed=settings.seed)
    if projects and optimizer.projected_parameters() == 0:
        optimizer.close()
        raise RunError("No parameter would be projected: the image encoder has no weight matrix to train with GaLore.")
    return optimizer
