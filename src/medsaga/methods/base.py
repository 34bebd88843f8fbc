"""What a fine-tuning method is, and what several of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from medsaga.models.base import SegmentationModel, weight_matrices
from medsaga.models.encoders import ENCODERS, finer_image_sizes, useful_image_sizes
from medsaga.models.sam import build_sam
from medsaga.settings.options import ResolvedSettings

Groups = list[dict[str, Any]]
"""Parameter groups of the optimizer: ``params``, ``lr``, ``weight_decay``; ``rank`` where gradients are projected."""


def unchanged(model: Any, settings: ResolvedSettings) -> None:
    """Leave a model as it is."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make a segmenter from a few labelled cases. What a method leaves open is as for MedSAGa's.

    Attributes:
        groups: takes the model and the settings and returns the parameter groups; what no group holds is frozen.
        defaults: values of settings that neither the user nor a recipe has given.
        ranks: of the gradient projection, from the highest: what a memory budget chooses from; none without projection.
        recipe: the published recipe's name in `medsaga.settings.recipes`; None where there is no publication.
        architectures: the models it trains; the first is the default.
        build: makes a model with random weights from one of them, ``classes``, ``image_size`` and ``in_channels``.
        adapt: changes a model that was just built, in place, after pre-trained weights have been loaded into it.
        image_sizes: sides in pixels that suit an architecture, ascending; the last is the default.
        finer_sizes: larger sides, ascending, for data whose structures are too fine for the default.
        trained_part: of a method that never changes the encoder: makes the model that is trained on its embeddings
            alone, which are computed once. None: the whole model is trained on images.
    """

    groups: Callable[[Any, ResolvedSettings], Groups]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ranks: Sequence[int] = ()
    recipe: str | None = None
    architectures: Sequence[str] = tuple(ENCODERS)
    build: Callable[..., SegmentationModel] = build_sam
    adapt: Callable[[Any, ResolvedSettings], None] = unchanged
    image_sizes: Callable[[str], list[int]] = useful_image_sizes
    finer_sizes: Callable[[str], Sequence[int]] = finer_image_sizes
    trained_part: Callable[[Any], SegmentationModel] | None = None

    @property
    def trains_sam(self) -> bool:
        """Whether its model is SAM, which SAM's published weights fit."""
        return self.build is build_sam


def two_rates(encoder: nn.Module, decoder: Iterable[nn.Module], settings: ResolvedSettings) -> Groups:
    """Return groups that train everything in full, encoder and decoder each at its own learning rate."""
    return [
        *whole_gradients([encoder], settings.encoder_lr, settings.weight_decay),
        *whole_gradients(decoder, settings.decoder_lr, settings.weight_decay),
    ]


def whole_gradients(modules: Iterable[nn.Module], lr: float, weight_decay: float) -> Groups:
    """Return groups that train all parameters of some modules; weight matrices decay, the others do not."""
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
