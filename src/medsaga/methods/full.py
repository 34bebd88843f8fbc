"""Full fine-tuning: AdamW on every parameter of SAM."""

from __future__ import annotations

from medsaga.config import ResolvedSettings
from medsaga.methods.base import Groups, Method, whole_gradients
from medsaga.models.sam import KClassSam


def _groups(model: KClassSam, settings: ResolvedSettings) -> Groups:
    return [
        *whole_gradients([model.vision_encoder], settings.encoder_lr, settings.weight_decay),
        *whole_gradients([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay),
    ]


METHOD = Method(groups=_groups)
