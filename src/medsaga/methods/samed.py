"""SAMed (arXiv 2304.13785): low-rank updates of the encoder's queries and values, the decoder in full."""

from __future__ import annotations

from medsaga.methods.base import Groups, Method, whole_gradients
from medsaga.models.lora import add_lora, lora_parameters
from medsaga.models.sam import KClassSam
from medsaga.settings.options import ResolvedSettings


def _adapt(model: KClassSam, settings: ResolvedSettings) -> None:
    add_lora(model.image_encoder, settings.rank)


def _groups(model: KClassSam, settings: ResolvedSettings) -> Groups:
    factors = lora_parameters(model.image_encoder)
    return [
        {"params": factors, "lr": settings.encoder_lr, "weight_decay": settings.weight_decay},
        *whole_gradients([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay),
    ]


METHOD = Method(
    groups=_groups,
    adapt=_adapt,
    defaults={"rank": 4, "encoder_lr": 5e-3},
    recipe="samed-paper",
)
