"""Our EfficientNet-Lite1 beside the public one, on the same random weights: how far outputs and gradients are apart.

    pip download --no-deps efficientnet_lite_pytorch==0.1.0 && unzip -d CODE efficientnet_lite_pytorch-*.whl
    python -m benchmarks.parity.efficientnet_lite --code CODE --out benchmarks/parity

Writes efficientnet_lite.json. The public code works its padding out when the model is built, for one side of the image,
which it is told here.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.parity.comparison import distance, draw_all, furthest_gradient
from benchmarks.runs import described
from medsaga import files
from medsaga.models.encoders.lite import LiteEncoder
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_pretrained

SIDES = (240, 256)
"""In pixels: the first is the network's own, which its strides do not divide."""


def public_network(side: int) -> Any:
    """Return the public network for images of a side, with random weights and statistics everywhere."""
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    torch.manual_seed(0)
    network = EfficientNet.from_name("efficientnet-lite1", image_size=side)
    draw_all(network)
    return network.eval()


def same_weights(public: Any, side: int) -> LiteEncoder:
    """Return our encoder with the weights of the public network, read from a file as its authors publish it."""
    model = build_sam("lite", classes=3, image_size=side)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(public.state_dict(), Path(folder) / "efficientnet-lite1.pth")
        load_pretrained(model, Path(folder) / "efficientnet-lite1.pth")
    assert isinstance(model.image_encoder, LiteEncoder)
    return model.image_encoder


def outputs_of(blocks: nn.ModuleList) -> list[Tensor]:
    """Return a list that will hold the outputs of the blocks."""
    outputs: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
    return outputs


def compare(side: int) -> dict[str, Any]:
    """Compare the outputs of all blocks, and the gradients of all parameters before the classifier, in float64."""
    theirs = public_network(side)
    ours = same_weights(theirs, side).double()
    theirs.double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float64)
    found, expected = outputs_of(ours.blocks), outputs_of(theirs._blocks)
    ours(images)
    theirs.extract_features(images)
    weights = torch.randn(expected[-1].shape, generator=generator, dtype=torch.float64)
    for outputs in (found, expected):
        (outputs[-1] * weights).mean().backward()
    return {
        "side": side,
        "blocks": len(expected),
        "largest of the blocks' outputs": max(distance(*pair) for pair in zip(found, expected, strict=True)),
        **furthest_gradient(ours, theirs, lambda name: re.sub(r"(^|\.)_", r"\1", name), left_out=["pyramid."]),
    }


def main() -> None:
    """Compare, print and write."""
    parser = described(__doc__)
    parser.add_argument("--code", type=Path, required=True, help="folder that holds efficientnet_lite_pytorch")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    sys.path.insert(0, str(asked.code))
    result = {
        "what": "distances of EfficientNet-Lite1 here from the public one, relative to the size, on random weights",
        "public code": "https://pypi.org/project/efficientnet-lite-pytorch, version 0.1.0",
        "machine": machine(),
        "network, float64": [compare(side) for side in SIDES],
    }
    files.write_json(asked.out / "efficientnet_lite.json", result)
    print(result)


if __name__ == "__main__":
    main()
