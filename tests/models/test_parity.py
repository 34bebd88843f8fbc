"""Our SAM against transformers' eager one: outputs and gradients of every parameter, on random weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from official import official_layout
from sam_reference import normalised, random_reference
from torch import Tensor

from medsaga.models.sam import build_sam

NARROW = "sam_vit:hidden_size=42,layers=3,heads=3,global_layers=1,window=4,out_channels=64,mlp_dim=174"
"""Heads of 14 channels and perceptrons in the proportions of SlimSAM's, not of a published transformer."""


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> str:
    """An architecture of pruned widths; transformers' softmax keeps float64, which it would compute in float32."""
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype=None: torch.softmax(scores, dim))
    return NARROW


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("side", [128, 176], ids=["windows fit", "windows padded"])
def test_outputs_and_gradients_are_those_of_transformers(narrow: str, side: int, recompute: bool) -> None:
    reference = random_reference(narrow, side).double()
    model = build_sam(narrow, classes=4, image_size=side, dtype=torch.float64)
    model.load_state_dict({name: tensor.clone() for name, tensor in official_layout(reference.state_dict()).items()})
    # Ours keeps the frequencies, and so the positions, in float32.
    frequencies = reference.prompt_encoder.shared_embedding.positional_embedding
    frequencies.requires_grad_(False).copy_(frequencies.float())
    model.checkpoint_blocks = recompute
    images = 255 * torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    weights = torch.randn(2, 4, side // 4, side // 4, generator=torch.Generator().manual_seed(2)).double()

    logits = model(images)
    (logits * weights).mean().backward()

    embeddings = reference.vision_encoder(normalised(images.float()).double()).last_hidden_state
    masks = [reference(image_embeddings=embeddings, multimask_output=several).pred_masks for several in (False, True)]
    expected = torch.cat(masks, dim=2)[:, 0]
    (expected * weights).mean().backward()

    # Positions and normalisation are float32.
    assert _distance(logits, expected) < 1e-6
    gradients = official_layout({name: p.grad for name, p in reference.named_parameters() if p.grad is not None})
    ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert ours.keys() == {name for name in gradients if "iou_prediction" not in name}
    for name, gradient in ours.items():
        assert _distance(gradient, gradients[name]) < 1e-5, name


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the size; of biases of keys, whose gradient is nothing but rounding, absolute."""
    return float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-9))
