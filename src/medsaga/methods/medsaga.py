"""MedSAGa (arXiv 2407.15042): GaLore on SAM's image encoder, the rest in full."""

from __future__ import annotations

from typing import Any

from medsaga.methods.base import Groups, Method, whole_gradients
from medsaga.models.sam import KClassSam
from medsaga.optim.groups import PRESETS
from medsaga.settings.options import ResolvedSettings


def _groups(model: KClassSam, settings: ResolvedSettings) -> Groups:
    """GaLore on every weight matrix of the image encoder, AdamW on all the rest.

    Convolution kernels (patch embedding, neck) count as matrices. Biases, norms and position tables of the encoder
    and the whole prompt encoder and mask decoder are trained in full.
    """
    matrices, others = model.image_encoder.weight_matrices()
    projected: dict[str, Any] = {
        "params": matrices,
        "lr": settings.encoder_lr,
        "weight_decay": settings.weight_decay,
        "rank": settings.rank,
        "refresh_every": settings.refresh_every,
        "projection": settings.projection,
        **PRESETS[settings.galore],
    }
    return [
        projected,
        {"params": others, "lr": settings.encoder_lr, "weight_decay": 0.0},
        *whole_gradients([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay),
    ]


METHOD = Method(groups=_groups, ranks=(64, 16, 4), recipe="medsaga-paper")
