"""Runs that earlier versions began, whose tensors have transformers' names, are not resumed by mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medsaga import run_folder
from medsaga.errors import InputError
from medsaga.models.sam import build_sam
from medsaga.training.checkpoint import load_state


def test_the_state_of_an_earlier_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    state = {"vision_encoder.pos_embed": torch.zeros(1, 8, 8, 128)}
    torch.save({"model": state, "optimizer": {}, "counters": {}}, tmp_path / run_folder.STATE)
    unused: Any = None
    model = build_sam("tiny", classes=2, image_size=64)
    with pytest.raises(InputError, match=r"earlier version of medsaga.*Train again from the start"):
        load_state(tmp_path, model, unused, unused)
