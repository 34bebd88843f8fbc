"""What a run will take in memory, found by running its own code on tensors that have sizes but no values.

Nothing is allocated and no GPU is needed: two steps of the real training step run on torch's meta device, and
``TensorTracker`` counts what would be alive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.symmetries import SYMMETRIES, flips
from medsaga.device import kind_of_device
from medsaga.memory.tracker import ELSEWHERE, TensorTracker
from medsaga.methods import build_model, method_named, new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.models.precision import WEIGHT_TYPES, cast_parameters, set_precision
from medsaga.optim.accumulation import AccumulatingOptimizer
from medsaga.optim.arrival import Arrived
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.sgd import MomentumSGD
from medsaga.planning.budget import largest_share
from medsaga.planning.shapes import OncePerShape
from medsaga.prediction.confidence import sums_of
from medsaga.prediction.mirrored import mean_probabilities
from medsaga.prediction.segmenter import BATCH_SIZE, strips
from medsaga.settings.options import ResolvedSettings
from medsaga.training.loss import Objective
from medsaga.training.scaling import LossScale
from medsaga.training.step import Batch, StepMeter, accumulate, update

META = torch.device("meta")
ALIKE: dict[str, Any] = {
    **{"steps": 1, "warmup": 0, "refresh_every": 1, "evaluate_every": 1, "patience": None},
    **{"budget": None, "recipe": None, "weights": None, "random_weights": False},
    **{"shots": None, "test_cases": None, "validation_cases": None, "fold": 0, "seed": 0, "protocol": "mm"},
    **{"encoder_lr": 1e-3, "decoder_lr": 1e-3, "weight_decay": 0.0, "dice_weight": 0.8, "max_gradient_norm": 1.0},
    **{"axis": "auto", "intensity": "auto", "window": None},
}
"""Settings that no tensor's size depends on: the runs of a comparison that differ in them need one prediction."""


@dataclass(frozen=True)
class MemoryPrediction:
    """The peak of all tensors in bytes; see `medsaga.memory.tracker` for what is counted.

    Attributes:
        peak_bytes: of a training step with all its state.
        breakdown: the same by category.
        inference_bytes: of segmenting as many images at a time as training takes, at most 8, on the same device, with
            all mirror images that the augmentation may have: the test at the end of a run takes at most as much of
            images that are no larger than the model's square. Of larger ones, strips of
            `medsaga.prediction.segmenter.LARGEST_STRIP` probabilities are alive at a time.
    """

    peak_bytes: int
    breakdown: dict[str, int]
    inference_bytes: int


def predict_memory(
    settings: ResolvedSettings, *, classes: int, in_channels: int, processes: int = 1
) -> MemoryPrediction:
    """Predict the memory of a run.

    Args:
        settings: of the run.
        classes: number of classes, background included.
        in_channels: channels of the model's input.
        processes: that share each batch; the memory is that of one of them.
    """
    # A second micro-batch has to keep what the first has accumulated; a third would change nothing.
    images = min(largest_share(settings.batch_size, processes), 2 * settings.micro_batch_size)
    return _predict(replace(settings, batch_size=settings.micro_batch_size, **ALIKE), images, classes, in_channels)


@functools.lru_cache(maxsize=256)
def _predict(settings: ResolvedSettings, images: int, classes: int, in_channels: int) -> MemoryPrediction:
    with META, OncePerShape():
        model = _build(settings, classes, in_channels)
        set_precision(model, settings.precision)
        training = _follow_training(model, settings, images)
        if method_named(settings.method).trained_part is not None:
            embedding = _follow_embedding(model, settings)
            training = max(training, embedding, key=lambda tracker: tracker.peak_bytes)
        # A model file holds no int8 codes, and a CPU computes in float32.
        model = _build(settings, classes, in_channels)
        on_cpu = kind_of_device(settings.device) == "cpu"
        cast_parameters(model, torch.float32 if on_cpu else WEIGHT_TYPES[settings.precision])
        # Which mirrorings keep the labels' meaning is not known before the data are.
        symmetries = SYMMETRIES if AUGMENTATIONS[settings.augmentation].mirror > 0 else ()
        inference = _follow_inference(model, min(BATCH_SIZE, settings.micro_batch_size), symmetries)
    return MemoryPrediction(training.peak_bytes, training.breakdown, inference.peak_bytes)


def _build(settings: ResolvedSettings, classes: int, in_channels: int) -> SegmentationModel:
    model = build_model(settings, classes=classes, in_channels=in_channels)
    method_named(settings.method).adapt(model, settings)
    model.checkpoint_blocks = settings.checkpointing == "blocks"
    return model


class _OnMeta(AccumulatingOptimizer):
    """Tells a tracker which state lies on the host, which a meta tensor does not know.

    Attributes:
        tracker: is told.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tracker = TensorTracker("meta")

    def _tell(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        if group["state_on_host"]:
            written = [value for weight in weights for value in self.state[weight].values()]
            self.tracker.assign([value for value in written if isinstance(value, Tensor)], ELSEWHERE)


class _SGDOnMeta(_OnMeta, MomentumSGD):
    """As `MomentumSGD`."""

    def _move(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        super()._move(weights, group)
        self._tell(weights, group)


class _GaLoreOnMeta(_OnMeta, GaLoreAdamW):
    """Updates one of the buckets that are alike, and gives the weights of the others a state of the same sizes.

    Buckets are updated one after the other, and bases changed likewise, so that all that are alike have the same peak.
    A model has hundreds of weights, and a prediction would take most of its time here.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._examples: dict[Any, Sequence[Tensor]] = {}

    def _move(self, weights: Sequence[Tensor], group: dict[str, Any]) -> None:
        self._once("move", weights, group, lambda: GaLoreAdamW._move(self, weights, group))
        for weight in weights:  # used up
            weight.grad = None
            self._arrived.get(weight, Arrived()).low_rank = None

    def _from_sketches(self, weight: Tensor, arrived: Arrived, group: dict[str, Any]) -> dict[str, Tensor]:
        def refresh() -> None:
            self.state[weight].update(GaLoreAdamW._from_sketches(self, weight, arrived, group))

        self._once("refresh", [weight], group, refresh)
        return {}

    def _once(self, what: str, weights: Sequence[Tensor], group: dict[str, Any], work: Callable[[], None]) -> None:
        each = tuple((weight.shape, weight.dtype, type(weight), tuple(self.state[weight])) for weight in weights)
        alike = (what, group["peak_lr"], group["rank"], each)
        if alike not in self._examples:
            self._examples[alike] = weights
            work()
        for weight, example in zip(weights, self._examples[alike], strict=True):
            if weight is example:
                continue
            for name, value in self.state[example].items():
                self.state[weight][name] = torch.empty_like(value) if isinstance(value, Tensor) else value
        self._tell(weights, group)


def _follow_training(model: SegmentationModel, settings: ResolvedSettings, images: int) -> TensorTracker:
    optimizer = new_optimizer(model, settings, _GaLoreOnMeta, _SGDOnMeta)
    part = method_named(settings.method).trained_part
    model = part(model) if part else model
    meter = StepMeter(META, first=1, refresh_every=settings.refresh_every)
    if isinstance(optimizer, _OnMeta):
        optimizer.tracker = meter.tracker
    scale = LossScale()
    # The first step makes the optimizer's state, for which one image will do; it takes less than the second, and is
    # not followed. Each step ends in a change of subspace.
    for step, count in enumerate((1, images)):
        model.checkpoint_blocks = settings.checkpointing == "blocks" and step == 1
        batch = _empty_batch(model, count, settings, step)
        with meter.measuring(model, optimizer, batch):
            accumulate(
                model,
                optimizer,
                batch,
                micro_batch_size=settings.micro_batch_size,
                objective=Objective.of(settings),
                scale=scale,
                meter=meter,
            )
            update(optimizer, max_gradient_norm=settings.max_gradient_norm, scale=scale)
    return meter.tracker


def _empty_batch(model: SegmentationModel, images: int, settings: ResolvedSettings, step: int) -> Batch:
    square = (model.image_size, model.image_size)
    return Batch(
        torch.empty(images, *model.input_shape, dtype=torch.uint8 if model.takes_images else torch.float32),
        torch.empty(images, *square, dtype=torch.uint8),
        seed=settings.seed,
        step=step,
        strength=AUGMENTATIONS[settings.augmentation if model.takes_images else "none"],
    )


@torch.no_grad()
def _follow_embedding(model: Any, settings: ResolvedSettings) -> TensorTracker:
    """What `medsaga.training.embeddings` does with a batch of images."""
    tracker = TensorTracker("meta")
    tracker.assign([*model.parameters(), *model.buffers()], "weights")
    tracker.phase = "activations"
    images = torch.empty(settings.micro_batch_size, *model.input_shape, dtype=torch.uint8)
    with tracker:
        model.pack(model.encode(images.float())).float()
    return tracker


@torch.no_grad()
def _follow_inference(model: SegmentationModel, batch_size: int, symmetries: Iterable[str]) -> TensorTracker:
    """What ``Segmenter`` does with the slices of a volume, at the size of the model's square."""
    tracker = TensorTracker("meta")
    tracker.assign([*model.parameters(), *model.buffers()], "weights")
    passes, square = flips(symmetries), (model.image_size, model.image_size)
    with tracker:
        images = torch.empty(BATCH_SIZE, model.in_channels, *square, dtype=torch.uint8)
        logits: list[Tensor] = []
        for part in images.split(batch_size):
            if len(logits) < len(passes):
                logits += model.eval()(part).float()
        strip = mean_probabilities(
            logits[: len(passes)], passes, square[0], square, next(strips(square, model.classes))
        )
        for _ in sums_of(strip):
            pass
        strip.max(0)
    return tracker
