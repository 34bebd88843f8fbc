"""DAE-Former (arXiv 2212.13504), trained from scratch."""

from __future__ import annotations

from medsaga.methods.base import Groups, Method, two_rates
from medsaga.models.daeformer import DAEFormer
from medsaga.settings.options import ResolvedSettings


def _groups(model: DAEFormer, settings: ResolvedSettings) -> Groups:
    return two_rates(model.encoder, [model.decoder], settings)


METHOD = Method(
    groups=_groups,
    architectures=("daeformer",),
    build=lambda _, **sizes: DAEFormer(**sizes),
    image_sizes=lambda _: [64, 96, 128, 160, 192, 224],
    finer_sizes=lambda _: (),
    defaults={"optimizer": "sgd", "encoder_lr": 0.05, "decoder_lr": 0.05, "weight_decay": 1e-4},
    recipe="daeformer-paper",
)
