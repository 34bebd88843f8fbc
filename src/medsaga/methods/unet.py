"""A plain U-Net trained from scratch, the baseline that papers on few-shot segmentation forget."""

from __future__ import annotations

from medsaga.methods.base import Groups, Method, two_rates
from medsaga.models.unet import UNet
from medsaga.settings.options import ResolvedSettings


def _groups(model: UNet, settings: ResolvedSettings) -> Groups:
    return two_rates(model.encoder, [model.decoder], settings)


METHOD = Method(
    groups=_groups,
    architectures=("unet",),
    build=lambda _, **sizes: UNet(**sizes),
    image_sizes=lambda _: [64, 96, 128, 160, 192],
    finer_sizes=lambda _: (256, 320),
    defaults={"encoder_lr": 1e-3, "decoder_lr": 1e-3},
)
