"""Class tokens that start as the mean embeddings of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from medsaga.data.samples import Samples
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import DESCRIPTION, load_pretrained, save_state
from medsaga.training import class_tokens
from medsaga.training.class_tokens import start_class_tokens

SIDE = 64
GRID = SIDE // 8


def made_up_samples(number: int, classes: int) -> Samples:
    random = np.random.default_rng(0)
    return Samples(
        images=random.integers(0, 256, (number, 1, SIDE, SIDE), dtype=np.uint8),
        labels=random.integers(0, classes, (number, SIDE, SIDE), dtype=np.uint8),
        item_names=tuple(map(str, range(number))),
        slice_indices=np.zeros(number, dtype=np.int64),
        content=np.full((number, 2), SIDE),
        windows=np.tile([0.0, 0.0, 1.0, 1.0], (number, 1)),
        foreground=np.ones(number, dtype=np.bool_),
    )


def test_each_token_moves_by_the_mean_embedding_of_its_class() -> None:
    torch.manual_seed(0)
    model = build_sam("tiny", classes=4, image_size=SIDE, in_channels=1)
    samples = made_up_samples(5, classes=3)
    before = model.mask_decoder.mask_tokens.weight.detach().clone()
    start_class_tokens(model, samples)
    moved = model.mask_decoder.mask_tokens.weight.detach() - before

    with torch.no_grad():
        embeddings = model.encode(torch.from_numpy(samples.images).float())[-1].double()
    pixelwise = embeddings.repeat_interleave(SIDE // GRID, 2).repeat_interleave(SIDE // GRID, 3).movedim(1, -1)
    labels = torch.from_numpy(samples.labels)
    for c in range(3):
        torch.testing.assert_close(moved[c].double(), pixelwise[labels == c].mean(0), rtol=1e-4, atol=1e-5)
    assert not moved[3].any(), "a class that occurs nowhere keeps its token"


def test_only_labelled_slices_count_and_not_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_tokens, "MOST_SAMPLES", 3)
    samples = made_up_samples(9, classes=2)
    samples.foreground[[0, 8]] = False
    seen: list[int] = []
    torch.manual_seed(0)
    model = build_sam("tiny", classes=2, image_size=SIDE, in_channels=1)
    original = Samples.batch

    def batch(self: Samples, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        seen.extend(rows)
        return original(self, rows)

    monkeypatch.setattr(Samples, "batch", batch)
    start_class_tokens(model, samples)
    assert seen == [1, 4, 7]


def test_a_file_says_that_its_weights_are_episodic(tmp_path: Path) -> None:
    model = build_sam("tiny", classes=4, image_size=SIDE)
    description = {name: getattr(model, name) for name in DESCRIPTION}
    for episodic in (False, True):
        save_state(tmp_path / "weights.safetensors", model.state_dict(), episodic=episodic, **description)
        assert load_pretrained(model, tmp_path / "weights.safetensors").episodic is episodic
