"""A plain two-dimensional U-Net as nnU-Net plans it, a baseline without any pre-training.

Blocks are those of MONAI's ``DynUNet``: two times convolution 3 x 3, instance norm, leaky ReLU. 32 features, doubled at
each halving of the side up to 512; the side is halved by a stride and doubled by a transposed convolution
(Isensee et al., nnU-Net, doi 10.1038/s41592-020-01008-z). The depth follows nnU-Net's rule, with the whole image as the
patch. nnU-Net pads its patches until each halving is exact; here an odd side is rounded up, and cut off again on the
way back. There is no deep supervision: the runs are short, and the loss is that of the other methods.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from medsaga.models.base import SegmentationModel
from medsaga.models.lean import recomputed

FIRST_FEATURES = 32
MOST_FEATURES = 512
MOST_POOLINGS = 7
SMALLEST_SIDE = 4
"""Of the deepest features, in pixels."""
SMALLEST_SPREAD = 0.1
"""Grey values. A constant image has no spread but that of rounding, and is not to be blown up to noise."""


class UNet(SegmentationModel):
    """Contracting path, bottleneck, expanding path with skips, one logit per class and pixel; trained from scratch.

    With ``checkpoint_blocks`` only the inputs of each block are kept for backward.

    Attributes:
        encoder: the contracting path, full resolution first, bottleneck last.
        decoder: the expanding path, coarsest first; the convolution that makes the logits is last.
    """

    def __init__(self, *, classes: int, image_size: int, in_channels: int) -> None:
        """Build a model with random weights (He et al., arXiv 1502.01852), from torch's global generator.

        Args:
            classes: number of classes, background included.
            image_size: side of the square input in pixels, a multiple of 16.
            in_channels: channels of the input.

        Raises:
            InputError: the image size is no multiple of 16.
        """
        super().__init__("unet", classes=classes, image_size=image_size, in_channels=in_channels)
        from monai.networks.nets import DynUNet  # 4 s

        poolings = poolings_for(image_size)
        network: Any = DynUNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=classes,
            kernel_size=[3] * (poolings + 1),
            strides=[1] + [2] * poolings,
            upsample_kernel_size=[2] * poolings,
            filters=[min(FIRST_FEATURES * 2**level, MOST_FEATURES) for level in range(poolings + 1)],
        )
        # The network itself holds each block twice, which would double the names in a model file.
        self.encoder = nn.ModuleList([network.input_block, *network.downsamples, network.bottleneck])
        self.decoder = nn.ModuleList([*network.upsamples, network.output_block])

    def forward(self, images: Tensor) -> Tensor:
        """Segment images.

        Args:
            images: ``(batch, in_channels, image_size, image_size)``, grey values or colours in 0..255.

        Returns:
            Logits, ``(batch, classes, image_size, image_size)``, in the parameters' type.
        """
        assert tuple(images.shape[1:]) == self.input_shape, (
            f"{tuple(images.shape)} are not (batch, *{self.input_shape})"
        )
        run = recomputed if self.recomputes() else _call
        hidden = normalise(images).to(next(self.parameters()).dtype)
        skips: list[Tensor] = []
        for block in self.encoder:
            hidden = run(block, hidden)
            skips.append(hidden)
        *expanding, head = self.decoder
        skips.pop()
        for block in expanding:
            hidden = run(partial(_expand, block), hidden, skips.pop())
        return head(hidden)


def poolings_for(image_size: int) -> int:
    """Return how often the side of an image is halved: as long as 4 pixels are left, as in nnU-Net, at most 7 times."""
    poolings, side = 0, image_size
    while side >= 2 * SMALLEST_SIDE and poolings < MOST_POOLINGS:
        poolings, side = poolings + 1, -(-side // 2)
    return poolings


def normalise(images: Tensor) -> Tensor:
    """Give every channel of every image mean 0 and spread 1, in float32; a constant channel becomes zeros.

    Args:
        images: ``(batch, channels, height, width)``, grey values in 0..255 of any type.
    """
    spread, mean = torch.std_mean(images.float(), dim=(2, 3), correction=0, keepdim=True)
    return (images.float() - mean) / spread.clamp(min=SMALLEST_SPREAD)


def _call(block: Any, *inputs: Tensor) -> Tensor:
    output: Tensor = block(*inputs)
    return output


def _expand(block: Any, coarser: Tensor, skip: Tensor) -> Tensor:
    """Double the side, put the skip beside it, and convolve: MONAI's block, for odd sides too."""
    height, width = skip.shape[2:]
    enlarged = block.transp_conv(coarser)[..., :height, :width]
    output: Tensor = block.conv_block(torch.cat((enlarged, skip), dim=1))
    return output
