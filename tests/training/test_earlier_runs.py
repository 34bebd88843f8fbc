"""Runs of earlier versions, with other names of tensors or a model that is gone, are not used by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medsaga import run_folder
from medsaga.errors import InputError
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import DESCRIPTION, detect_architecture, load_model
from medsaga.settings.run_config import read_config
from medsaga.training.checkpoint import load_state


def test_the_state_of_an_earlier_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    state = {"vision_encoder.pos_embed": torch.zeros(1, 8, 8, 128)}
    torch.save({"model": state, "optimizer": {}, "counters": {}}, tmp_path / run_folder.STATE)
    unused: Any = None
    model = build_sam("tiny", classes=2, image_size=64)
    with pytest.raises(InputError, match=r"earlier version of medsaga.*Train again from the start"):
        load_state(tmp_path, model, unused, unused)


@pytest.mark.parametrize("detail", ["image_encoder.details.to_tokens.bias", "mask_decoder.details.stride_2.0.0.bias"])
def test_a_small_model_of_an_earlier_version_is_refused_in_a_sentence(tmp_path: Path, detail: str) -> None:
    model = build_sam("tiny", classes=2, image_size=64)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()} | {detail: torch.zeros(128)}
    described = {name: getattr(model, name) for name in DESCRIPTION}
    file = tmp_path / run_folder.MODEL
    save_file(state, file, {"medsaga": json.dumps(described)})
    torch.save({"model": state, "optimizer": {}, "counters": {}}, tmp_path / run_folder.STATE)
    unused: Any = None
    for use in (
        lambda: load_model(file),
        lambda: detect_architecture(file),
        lambda: load_state(tmp_path, model, unused, unused),
    ):
        with pytest.raises(InputError, match=r"a small model of an earlier version of medsaga.*Train again, or"):
            use()


def test_a_run_of_the_first_version_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Its settings, as 0.1.0 wrote them, have other names and lack what a prediction asks for today."""
    (tmp_path / run_folder.CONFIG).write_text(
        'data = "data"\nchannels = ["0"]\nintensities = [{ kind = "identity", low = 0.0, high = 255.0 }]\n'
        '[settings]\nmodel = "vit_b"\npreset = "default"\ncheckpoint_blocks = false\n'
        "[labels]\nbackground = 0\ndisc = 1\n"
    )
    with pytest.raises(InputError, match=r"found a run of an earlier version\. Train again, or use the version"):
        read_config(tmp_path / run_folder.CONFIG)
