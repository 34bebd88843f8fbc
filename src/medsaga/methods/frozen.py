"""Only SAM's prompt encoder and mask decoder are trained, on embeddings that the encoder has made once."""

from __future__ import annotations

from torch import Tensor

from medsaga.methods.base import Groups, Method, whole_gradients
from medsaga.models.base import SegmentationModel
from medsaga.models.sam import KClassSam
from medsaga.settings.options import ResolvedSettings


class DecoderOnly(SegmentationModel):
    """The trained part of SAM; its input is what SAM's image encoder made of an image."""

    def __init__(self, whole: KClassSam) -> None:
        """Share prompt encoder and mask decoder with a model."""
        super().__init__(
            whole.architecture, classes=whole.classes, image_size=whole.image_size, in_channels=whole.in_channels
        )
        self.prompt_encoder = whole.prompt_encoder
        self.mask_decoder = whole.mask_decoder
        # In a tuple, so that the encoder is no part of this module.
        self._whole = (whole,)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of what the encoder makes of one image."""
        (whole,) = self._whole
        return whole.packed_shape

    @property
    def takes_images(self) -> bool:
        """It takes embeddings."""
        return False

    def forward(self, embeddings: Tensor) -> Tensor:
        """Turn what ``KClassSam.pack`` makes of feature maps into ``low_res_logits``."""
        (whole,) = self._whole
        whole.checkpoint_blocks = self.checkpoint_blocks
        return whole.decode(whole.unpack(embeddings.to(self.prompt_encoder.no_mask_embed.weight.dtype)))


def _groups(model: KClassSam, settings: ResolvedSettings) -> Groups:
    groups = whole_gradients([model.prompt_encoder, model.mask_decoder], settings.decoder_lr, settings.weight_decay)
    # What the embeddings have gone through already must stay as it is, whatever else changes weights.
    passed = {id(weight) for layer in model.mask_decoder.narrowing for weight in layer.parameters()}
    return [group | {"params": [each for each in group["params"] if id(each) not in passed]} for group in groups]


METHOD = Method(groups=_groups, trained_part=DecoderOnly)
