"""From what the user asks for to settings in which nothing is left open: `resolve`, once per run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medsaga.data.slices import common_axis, slice_view
from medsaga.data.tiles import tile_shape
from medsaga.data.types import Grid
from medsaga.errors import InputError
from medsaga.methods import method_named
from medsaga.methods.base import Method, unchanged
from medsaga.models.encoders import is_architecture
from medsaga.models.precision import takes_int8
from medsaga.models.weights.loading import detect_architecture
from medsaga.models.weights.registry import RANDOM, STARTER, weights_named
from medsaga.models.weights.sources import locate
from medsaga.planning.at_hand import AUTO, candidates
from medsaga.planning.budget import plan
from medsaga.planning.defaults import DEFAULTS, METHOD, MODEL_DEFAULTS, DeviceDefaults, derived
from medsaga.planning.detail import Outlined, side_for
from medsaga.planning.estimate import predict_memory
from medsaga.settings.options import ResolvedSettings, Settings, flag, named
from medsaga.settings.recipes import read_recipe

_OF_GALORE = ("refresh_every", "galore", "projection")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the settings of a run depend on beside the user's wishes.

    Attributes:
        device: what suits the device.
        classes: number of classes, background included.
        channels: of the images.
        labelled: the images that are trained on; none where there are no data, as for a prediction of memory.
        memory: free bytes of the accelerator; None on a CPU.
        processes: that share each batch, each in a memory of its own.
    """

    device: DeviceDefaults
    classes: int
    channels: int
    labelled: Sequence[Outlined] = ()
    memory: int | None = None
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the names in the settings stand for.

    Attributes:
        settings: with the values of the recipe where the user has named none.
        method: what `medsaga.methods.METHODS` has under this name.
        name: of the method.
        model: one of the method's architectures, or the name of a SAM that holds its sizes.
        weights: what the model starts from: a source of weights or ``random``; None where no published weights fit.
    """

    settings: Settings
    method: Method
    name: str
    model: str
    weights: str | None

    @property
    def int8(self) -> bool:
        """Whether the model has what int8 is for."""
        return self.method.trains_sam and takes_int8(self.model)


def choose_model(settings: Settings) -> Choice:
    """Look up what the names in the settings stand for; the recipe and the header of a file of weights are read.

    A model that weights come with the package for starts from them, another one from random weights, unless the name
    of the model is that of weights. ``auto``, which only `resolve` can answer, stands for the starter here.

    Raises:
        InputError: there is no such recipe, method or model, or they do not go together.
    """
    settings = _with_recipe(settings)
    name = settings.method or METHOD
    method = method_named(name)
    model = (STARTER if settings.model == AUTO and method.trains_sam else settings.model) or method.architectures[0]
    if not method.trains_sam:
        _require_scratch(settings, name, method, model)
        return Choice(settings=settings, method=method, name=name, model=model, weights=None)
    weights = STARTER if model == weights_named(STARTER).architecture else RANDOM
    if not is_architecture(model):
        if settings.random_weights:
            raise InputError(
                "--random-weights",
                expected=f"an architecture beside it, --model {', '.join(method.architectures)}",
                found=f"--model {model}",
                do="Leave one of the two out.",
            )
        model, weights = detect_architecture(model), model
    if settings.optimizer == "sgd" and method.ranks:
        raise InputError("--optimizer", expected="adamw: GaLore is made for it", found="sgd", do="Leave it out.")
    if settings.random_weights:
        weights = RANDOM
    choice = Choice(settings=settings, method=method, name=name, model=model, weights=weights)
    if settings.precision == "int8" and settings.model != AUTO and not choice.int8:
        raise _no_int8(f"{model}, whose encoder has no linear layers")
    return choice


def without_effect(choice: Choice) -> tuple[str, ...]:
    """Return a warning for each setting that somebody has named and the method has no use for.

    It is no error: whoever compares methods gives all of them the same settings.
    """
    adapts = choice.method.adapt is not unchanged  # by LoRA, whose rank it is
    unused = () if choice.method.ranks else _OF_GALORE if adapts else ("rank", *_OF_GALORE)
    given = [flag(name) for name in unused if getattr(choice.settings, name) is not None]
    return tuple(f"{name} has no effect with --method {choice.name}, which projects no gradient" for name in given)


def find_weights(choice: Choice) -> None:
    """Raise InputError if the weights of a choice are not at hand."""
    if choice.weights not in (None, RANDOM):
        locate(choice.weights)


def resolve(settings: Settings, facts: Facts) -> ResolvedSettings:
    """Return the settings with every open one filled in.

    What the user names comes first, then the recipe, then the method's own values, then the model's, then those of the
    device, then the common ones; what a memory budget has to choose comes last.

    Args:
        settings: what the user asks for.
        facts: device and data of the run.

    Raises:
        InputError: as `choose_model`, or nothing fits the budget.
    """
    if settings.model == AUTO and choose_model(settings).method.trains_sam:
        return _best_at_hand(settings, facts)
    choice = choose_model(settings)
    settings = choice.settings
    grids = [image.grid for image in facts.labelled]
    if grids:
        # One axis for the whole run: a volume with other spacing must not be cut another way at prediction.
        axis: Any = common_axis(grids, settings.axis or "auto")
        settings = dataclasses.replace(settings, axis=axis)
    sizes, finer = choice.method.image_sizes(choice.model), choice.method.finer_sizes(choice.model)
    largest = side_for([sizes[-1], *finer], facts.labelled, settings.axis or "auto", settings.tile)
    sizes = [size for size in (*sizes, *finer) if size <= largest]
    complete = Completion(choice, settings, facts.device)
    if settings.budget is None:
        return complete(image_size=sizes[-1])
    side = max((_side(grid, settings) for grid in grids), default=None)
    in_channels = facts.channels * (2 * (settings.neighbours or 0) + 1)

    def peak(candidate: ResolvedSettings) -> int:
        prediction = predict_memory(
            candidate, classes=facts.classes, in_channels=in_channels, processes=facts.processes
        )
        return max(prediction.peak_bytes, prediction.inference_bytes)

    return plan(
        settings,
        complete,
        choice.method,
        peak=peak,
        sizes=useful_sizes(sizes, side),
        precision=facts.device.precision,
        int8=choice.int8,
        processes=facts.processes,
    )


def _best_at_hand(settings: Settings, facts: Facts) -> ResolvedSettings:
    """Resolve with the first weights at hand that fit the budget or, without one, the accelerator's memory."""
    if settings.budget is None and facts.memory is not None:
        settings = dataclasses.replace(settings, budget=f"{facts.memory}B")
    *larger, last = candidates(accelerator=facts.memory is not None)
    for name in larger:
        with contextlib.suppress(InputError):
            return resolve(dataclasses.replace(settings, model=name), facts)
    return resolve(dataclasses.replace(settings, model=last), facts)


@dataclass(frozen=True)
class Completion:
    """Fills in what is open in the settings of a choice, but for what needs the data."""

    choice: Choice
    settings: Settings
    device: DeviceDefaults

    def __call__(self, *, image_size: int, **changes: Any) -> ResolvedSettings:
        """Return complete settings.

        Args:
            image_size: side in pixels where neither the user nor the recipe names one.
            changes: settings that take the place of open ones.
        """
        given = {k: v for k, v in dataclasses.asdict(self.settings).items() if v is not None} | changes
        for name in ("precision", "checkpointing"):
            if given.get(name) == "auto":
                del given[name]
        given |= {"method": self.choice.name, "model": self.choice.model, "weights": self.choice.weights}
        given["random_weights"] = self.choice.weights == RANDOM
        own = MODEL_DEFAULTS.get(self.choice.model, {})
        merged = {"image_size": image_size, **DEFAULTS, **dataclasses.asdict(self.device), **own}
        merged |= {**self.choice.method.defaults, **given}
        merged = derived(merged) | merged
        merged["warmup"] = min(merged["warmup"], merged["steps"])
        return ResolvedSettings(**merged)


def useful_sizes(sizes: Sequence[int], side: int | None) -> list[int]:
    """Return the image sizes, ascending, that do more than enlarge the images.

    Args:
        sizes: that suit the model, ascending.
        side: longer side of the images in pixels; None where it is not known.
    """
    enough = next((at_least for at_least in sizes if side is not None and at_least >= side), sizes[-1])
    return [at_most for at_most in sizes if at_most <= enough]


def _side(grid: Grid, settings: Settings) -> int:
    return max(tile_shape(slice_view(grid, settings.axis or "auto").slice_shape, settings.tile))


def _with_recipe(settings: Settings) -> Settings:
    """Return settings in which the recipe has filled in what the user has left at its default."""
    if settings.recipe is None:
        return settings
    values = read_recipe(settings.recipe)
    if settings.method not in (None, values.get("method", settings.method)):
        raise InputError(
            "--method",
            expected=f"{values['method']}, which --recipe {settings.recipe} is for",
            found=str(settings.method),
            do="Leave one of the two out.",
        )
    return dataclasses.replace(settings, **{k: v for k, v in values.items() if k not in named(settings)})


def _require_scratch(settings: Settings, name: str, method: Method, model: str) -> None:
    """Raise InputError if the settings ask for what only SAM has."""
    if model not in method.architectures:
        only = ", ".join(method.architectures)
        raise InputError("--model", expected=f"{only} for {name}", found=model, do="Leave --model out.")
    if settings.precision == "int8":
        raise _no_int8(name)


def _no_int8(whose: str) -> InputError:
    return InputError("--precision", expected=f"fp32, bf16 or fp16 for {whose}", found="int8", do="Leave it out.")
