"""DAE-Former (arXiv 2212.13504), trained from scratch."""

from __future__ import annotations

from medsaga.config import ResolvedSettings
from medsaga.methods.base import Groups, Method, whole_gradients
from medsaga.models.base import SegmentationModel
from medsaga.models.daeformer import DAEFormer


def _build(architecture: str, *, classes: int, image_size: int, in_channels: int) -> SegmentationModel:
    return DAEFormer(classes=classes, image_size=image_size, in_channels=in_channels)


def _groups(model: DAEFormer, settings: ResolvedSettings) -> Groups:
    return [
        *whole_gradients([model.encoder], settings.encoder_lr, settings.weight_decay),
        *whole_gradients([model.decoder], settings.decoder_lr, settings.weight_decay),
    ]


METHOD = Method(
    groups=_groups,
    architectures=("daeformer",),
    build=_build,
    image_sizes=lambda _: [64, 96, 128, 160, 192, 224],
    recipe="daeformer-paper",
)
