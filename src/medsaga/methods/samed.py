"""SAMed (arXiv 2304.13785): low-rank updates of the encoder's queries and values, the decoder in full."""

from __future__ import annotations

from pathlib import Path

from medsaga.methods.base import Groups, Method, whole_gradients
from medsaga.models.lora import add_lora, lora_parameters, save_adapter
from medsaga.models.sam import KClassSam
from medsaga.settings.options import ResolvedSettings

ADAPTER = "adapter.safetensors"
"""In the run folder; see `medsaga.models.lora.load_adapter`."""


def _adapt(model: KClassSam, settings: ResolvedSettings) -> None:
    add_lora(model.image_encoder, settings.rank)


def _groups(model: KClassSam, settings: ResolvedSettings) -> Groups:
    factors = lora_parameters(model.image_encoder)
    return [
        {"params": factors, "lr": settings.encoder_lr, "weight_decay": settings.weight_decay},
        *whole_gradients([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay),
    ]


def _export(run: Path, model: KClassSam) -> None:
    """Write what was trained alone: 19 MB where the whole model takes 375 (ViT-B)."""
    save_adapter(run / ADAPTER, model)


METHOD = Method(
    groups=_groups,
    adapt=_adapt,
    export=_export,
    defaults={"rank": 4, "encoder_lr": 5e-3},
    recipe="samed-paper",
)
