"""Training on cached embeddings is training with a frozen encoder, only faster."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from resolved import resolved
from safetensors.torch import load_file

from medsaga import methods
from medsaga.data.augment import AUGMENTATIONS, augment
from medsaga.data.dataset import read_dataset
from medsaga.data.intensity import Intensity
from medsaga.data.samples import Samples, build_samples
from medsaga.data.symmetries import LEFT_RIGHT
from medsaga.memory.tracker import TensorTracker
from medsaga.models.sam import KClassSam, build_sam
from medsaga.runs.train import train
from medsaga.settings.options import Settings
from medsaga.training.embeddings import MOST_VARIANTS, embed


def _embed(model: KClassSam, samples: Samples, folder: Path, **given: Any) -> Samples:
    how: dict[str, Any] = {"augmentation": "fewshot", "seed": 5, "batch_size": 4} | given
    return embed(model, samples, folder, **how, tracker=TensorTracker(), progress=lambda done, total: None)


@pytest.fixture
def samples(toy: Path, tmp_path: Path) -> Samples:
    dataset = read_dataset(toy)
    return build_samples(
        tmp_path / "cache",
        dataset,
        dataset.items,
        view_axis="auto",
        intensities=(Intensity("identity", 0.0, 255.0),),
        image_size=64,
        neighbours=0,
    )


def _model() -> KClassSam:
    torch.manual_seed(0)
    return build_sam("tiny", classes=3, image_size=64, in_channels=1).eval()


def test_the_run_with_the_cache_equals_the_run_without(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(quick, method="frozen", augmentation="none", random_weights=True, decoder_lr=5e-4)
    cached = train(toy, tmp_path / "cached", settings)
    without = dataclasses.replace(methods.METHODS["frozen"], trained_part=None)
    monkeypatch.setitem(methods.METHODS, "frozen", without)
    whole = train(toy, tmp_path / "whole", settings)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("cached", "whole"))
    torch.manual_seed(0)
    start = build_sam("tiny", classes=3, image_size=64, in_channels=1).state_dict()
    for name in one:
        if name.endswith("k_proj.bias"):
            continue  # softmax cancels the bias of the keys: its gradient is nothing but rounding errors
        # A step moves a weight by up to 5e-4, and Adam makes much of rounding errors in small gradients.
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(one[name], start[name]) for name in one)
    assert cached["dice_mean"] == pytest.approx(whole["dice_mean"], abs=1e-3)
    assert cached["peak_memory_bytes"] < whole["peak_memory_bytes"]


def test_each_variant_is_the_embedding_of_a_changed_image(samples: Samples, tmp_path: Path) -> None:
    model = _model()
    embedded = _embed(model, samples, tmp_path / "e")
    assert len(embedded) == MOST_VARIANTS * len(samples)
    images, labels = samples.batch(range(len(samples)))
    for variant in (0, 7):
        changed, classes = augment(images, labels, seed=5, step=variant, strength=AUGMENTATIONS["fewshot"])
        rows = range(variant * len(samples), (variant + 1) * len(samples))
        ours, theirs = embedded.batch(rows)
        torch.testing.assert_close(ours, model.pack(model.encode(changed)).detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(theirs, classes)
    assert not torch.equal(embedded.batch([0])[0], embedded.batch([len(samples)])[0])


def test_many_images_have_fewer_variants(samples: Samples, tmp_path: Path) -> None:
    once = _embed(_model(), samples, tmp_path / "e", augmentation="none")
    assert len(once) == len(samples)
    many = dataclasses.replace(
        samples,
        images=samples.images[[0] * 300],
        labels=samples.labels[[0] * 300],
        item_names=samples.item_names[:1] * 300,
        slice_indices=samples.slice_indices[[0] * 300],
        content=samples.content[[0] * 300],
        foreground=samples.foreground[[0] * 300],
    )
    assert len(_embed(_model(), many, tmp_path / "m", batch_size=64)) == 300


class _Counting(KClassSam):
    """Counts the images that go through its encoder."""

    encoded = 0

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        type(self).encoded += len(images)
        return super().encode(images)


def test_embeddings_that_are_there_are_not_made_again(
    samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    model.__class__ = _Counting
    monkeypatch.setattr(_Counting, "encoded", 0)

    def made(**given: Any) -> int:
        before = _Counting.encoded
        embedded = _embed(model, samples, tmp_path / "e", **given)
        images, labels = embedded.batch(range(len(embedded)))
        embedded.close()
        made = _Counting.encoded - before
        again = _embed(_model_like(model), samples, tmp_path / f"fresh{before}", **given)
        for one, other in zip((images, labels), again.batch(range(len(again))), strict=True):
            assert torch.equal(one, other)
        return made

    all_of_them = MOST_VARIANTS * len(samples)
    assert made() == all_of_them
    assert made() == 0
    with torch.no_grad():
        next(model.mask_decoder.parameters()).add_(1.0)
    assert made() == 0, "the decoder has no part in them"
    for change in ({"seed": 6}, {"augmentation": "none"}, {"augmentation": "fewshot"}):
        assert made(**change) == (len(samples) if change == {"augmentation": "none"} else all_of_them)
    with torch.no_grad():
        next(model.image_encoder.parameters()).add_(1e-3)
    assert made() == all_of_them
    model.symmetries = (LEFT_RIGHT,)
    assert made() == all_of_them
    samples.images = samples.images[::-1].copy()
    assert made() == all_of_them
    assert made() == 0


def test_layers_that_the_embeddings_have_passed_are_frozen_and_tell_them_apart(
    samples: Samples, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = build_sam("sam2.1_hiera_tiny", classes=3, image_size=64, in_channels=1).eval()
    settings = resolved(method="frozen", model="sam2.1_hiera_tiny", image_size=64)
    methods.new_optimizer(model, settings).close()
    assert not any(weight.requires_grad for weight in model.image_encoder.parameters())
    assert not model.mask_decoder.get_submodule("conv_s0").weight.requires_grad
    assert model.mask_decoder.mask_tokens.weight.requires_grad
    _embed(model, samples, tmp_path / "e", augmentation="none")
    with torch.no_grad():
        for weight in model.mask_decoder.get_submodule("conv_s0").parameters():
            weight.add_(0.5)
    again = _embed(model, samples, tmp_path / "e", augmentation="none")
    expected = model.pack(model.encode(samples.batch([0])[0])).detach()
    torch.testing.assert_close(again.batch([0])[0], expected, rtol=1e-4, atol=1e-4)


def test_embeddings_that_are_used_again_keep_their_memory_and_need_their_files(
    samples: Samples, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"augmentation": "none", "seed": 5, "batch_size": 4, "progress": lambda done, total: None}
    first, second = TensorTracker(), TensorTracker()
    embed(_model(), samples, tmp_path / "e", **how, tracker=first).close()
    embed(_model(), samples, tmp_path / "e", **how, tracker=second).close()
    assert first.peak_bytes == second.peak_bytes > 0
    assert first.breakdown == second.breakdown
    (tmp_path / "e/embeddings.npy").unlink()
    assert len(embed(_model(), samples, tmp_path / "e", **how, tracker=TensorTracker())) == len(samples)


def _model_like(model: KClassSam) -> KClassSam:
    other = _model()
    other.load_state_dict(model.state_dict())
    other.symmetries = model.symmetries
    return other


def test_embeddings_of_an_interrupted_command_are_made_again(samples: Samples, tmp_path: Path) -> None:
    expected = _embed(_model(), samples, tmp_path / "whole").batch([0, 17])

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    how: dict[str, Any] = {"augmentation": "fewshot", "seed": 5, "batch_size": 4, "tracker": TensorTracker()}
    with pytest.raises(KeyboardInterrupt):
        embed(_model(), samples, tmp_path / "e", **how, progress=interrupt)
    for one, other in zip(_embed(_model(), samples, tmp_path / "e").batch([0, 17]), expected, strict=True):
        assert torch.equal(one, other)
