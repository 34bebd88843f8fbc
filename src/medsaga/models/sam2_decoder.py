"""What SAM 2 (arXiv 2408.00714, appendix D) adds to SAM's mask decoder, for images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medsaga.models.decoder import MaskDecoder, Mlp


class Sam2MaskDecoder(MaskDecoder):
    """Adds two finer maps of the encoder while it upscales, and has a token for whether there is an object.

    Nothing computes with ``pred_obj_score_head``; it is kept, as in the published files.

    Attributes:
        conv_s0: from the encoder's map at stride 4 to the channels that the upscaled pixels have there.
        conv_s1: the same at stride 8.
        obj_score_token: ``(1, channels)``.
        no_mem_embed: ``(1, 1, channels)``, stands for the absence of earlier frames of a video.
    """

    def __init__(self, channels: int, *, classes: int, mlp_dim: int) -> None:
        """Draw random weights from torch's global generator; see the base class."""
        super().__init__(channels, classes=classes, mlp_dim=mlp_dim)
        fine, coarse = self.skip_channels
        self.conv_s0 = nn.Conv2d(channels, fine, kernel_size=1)
        self.conv_s1 = nn.Conv2d(channels, coarse, kernel_size=1)
        self.obj_score_token = nn.Embedding(1, channels)
        self.pred_obj_score_head = Mlp(channels, channels, 1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, channels))

    @property
    def narrowing(self) -> tuple[nn.Module, ...]:
        """The layers of :meth:`narrow`."""
        return self.conv_s0, self.conv_s1

    def narrow(self, skips: Sequence[Tensor]) -> Sequence[Tensor]:
        """``(batch, channels, h, w)`` each, at strides 4 and 8, to the channels of :attr:`skip_channels`."""
        fine, coarse = skips
        return self.conv_s0(fine), self.conv_s1(coarse)

    def attend(self, class_tokens: Tensor, embeddings: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Let classes and pixels look at each other; see the base class."""
        return super().attend(class_tokens, embeddings + self.no_mem_embed.view(1, -1, 1, 1), positions)

    def leading_tokens(self) -> Tensor:
        """The token for whether there is an object comes before that of the quality estimate."""
        return torch.cat((self.obj_score_token.weight, self.iou_token.weight))
