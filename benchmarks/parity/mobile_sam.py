"""Our MobileSAM beside the public one, on the same random weights: how far outputs and gradients are apart.

    git clone https://github.com/ChaoningZhang/MobileSAM
    python -m benchmarks.parity.mobile_sam --code MobileSAM --out benchmarks/parity

Writes mobile_sam.json. The public code asks for timm and torchvision. Three small functions stand in for what it uses
of timm, and what it imports for prompts and pictures only stays out. Its encoder ends in a reshape for images of
1,024 px, which is done here for the other sides.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import machine
from benchmarks.parity.comparison import distance, draw_all, furthest_gradient
from benchmarks.runs import described
from medsaga import files
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import load_pretrained

SIDES = (224, 512)
"""Windows fit the first; the second fills them up."""
OWN_SIDE = 1024
MASKS = 4


def public_model(code: Path, side: int) -> Any:
    """Import the public code and return its model with random weights and statistics everywhere."""
    package = ModuleType("mobile_sam")
    package.__path__ = [str(code / "mobile_sam")]
    layers, registry = ModuleType("timm.models.layers"), ModuleType("timm.models.registry")
    given: dict[str, Any] = {
        "DropPath": nn.Identity,  # never used: no path is dropped
        "to_2tuple": lambda side: (side, side),
        "trunc_normal_": nn.init.trunc_normal_,
    }
    vars(layers).update(given)
    vars(registry)["register_model"] = lambda function: function
    names = ("mobile_sam", "timm", "timm.models", "timm.models.layers", "timm.models.registry")
    stand_ins = (package, ModuleType("timm"), ModuleType("timm.models"), layers, registry)
    sys.modules.update(zip(names, stand_ins, strict=True))
    torch.manual_seed(0)
    model = importlib.import_module("mobile_sam.build_sam").build_sam_vit_t()
    if side != OWN_SIDE:
        encoder = importlib.import_module("mobile_sam.modeling").TinyViT
        model.image_encoder = encoder(
            img_size=side, embed_dims=[64, 128, 160, 320], num_heads=[2, 4, 5, 10], drop_path_rate=0.0
        )
    draw_all(model)
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Attention" and hasattr(module, "attention_biases"):
            module.training = True  # else it keeps biases of its own, which have no gradient
    return model


def same_weights(public: Any, side: int) -> KClassSam:
    """Return our model with the weights of the public one, read from a file as its authors publish it."""
    model = build_sam("mobile_sam", classes=MASKS, image_size=side)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(public.state_dict(), Path(folder) / "mobile_sam.pt")
        load_pretrained(model, Path(folder) / "mobile_sam.pt")
    return model


def encode_publicly(encoder: Any, images: Tensor) -> Tensor:
    """Do what the public encoder does, at any side."""
    hidden = encoder.patch_embed(images)
    for layer in encoder.layers:
        hidden = layer(hidden)
    side = images.shape[-1] // 16
    return encoder.neck(hidden.view(len(hidden), side, side, -1).permute(0, 3, 1, 2))


def compare_encoders(code: Path, side: int) -> dict[str, Any]:
    """Compare embeddings and the gradients of all parameters in float64."""
    public = public_model(code, side)
    ours = same_weights(public, side).image_encoder.double()
    theirs = public.image_encoder.double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, 3, side, side, generator=generator, dtype=torch.float64)
    expected = encode_publicly(theirs, images)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (expected * weights).mean().backward()
    row: dict[str, Any] = {"side": side}
    for recompute in (False, True):
        ours.zero_grad()
        (found,) = ours(images, recompute=recompute)
        (found * weights).mean().backward()
        row["recomputed" if recompute else "kept"] = {
            "embeddings": distance(found, expected),
            **furthest_gradient(ours, theirs),
        }
    return row


@torch.no_grad()
def compare_whole(code: Path) -> dict[str, Any]:
    """Compare the logits of the whole model at its own side, in float32, through the public code alone."""
    public = public_model(code, OWN_SIDE)
    ours = same_weights(public, OWN_SIDE)
    images = 255 * torch.rand(1, 3, OWN_SIDE, OWN_SIDE, generator=torch.Generator().manual_seed(1))
    embeddings = public.image_encoder((images - public.pixel_mean) / public.pixel_std)
    sparse, dense = public.prompt_encoder(points=None, boxes=None, masks=None)
    expected, _ = public.mask_decoder.predict_masks(embeddings, public.prompt_encoder.get_dense_pe(), sparse, dense)
    return {
        "side": OWN_SIDE,
        "embeddings": distance(ours.encode(images)[0], embeddings),
        "logits": distance(ours(images), expected),
    }


def main() -> None:
    """Compare, print and write."""
    parser = described(__doc__)
    parser.add_argument("--code", type=Path, required=True, help="folder of the public repository")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    result = {
        "what": "distances of MobileSAM here from the public one, relative to the size, on random weights",
        "public code": "https://github.com/ChaoningZhang/MobileSAM, commit 34bbbfd",
        "machine": machine(),
        "encoder, float64": [compare_encoders(asked.code, side) for side in SIDES],
        "whole model, float32": compare_whole(asked.code),
    }
    files.write_json(asked.out / "mobile_sam.json", result)
    print(result)


if __name__ == "__main__":
    main()
