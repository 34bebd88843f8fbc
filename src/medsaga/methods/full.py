"""Full fine-tuning: AdamW on every parameter of SAM."""

from __future__ import annotations

from medsaga.methods.base import Groups, Method, two_rates
from medsaga.models.sam import KClassSam
from medsaga.settings.options import ResolvedSettings


def _groups(model: KClassSam, settings: ResolvedSettings) -> Groups:
    return two_rates(model.image_encoder, [model.prompt_encoder, model.mask_decoder], settings)


METHOD = Method(groups=_groups)
