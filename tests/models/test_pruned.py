"""SAM in sizes that only its files tell, as pruning leaves them (SlimSAM)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from official import official_layout
from sam_reference import normalised, random_reference
from torch import Tensor

from medsaga.errors import InputError
from medsaga.memory.meta import on_meta
from medsaga.models.encoders import ENCODERS, encoder_spec
from medsaga.models.encoders.pruned import name_with_sizes, told_by
from medsaga.models.encoders.sam_vit import SamVitSpec
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.loading import detect_architecture, load_model, load_pretrained, save_model
from medsaga.models.weights.registry import RANDOM
from medsaga.planning.resolve import choose_model
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.train import train
from medsaga.settings.options import Settings

SIDE = 96
SMALL = "sam_vit:hidden_size=28,layers=3,heads=2,global_layers=0-2,window=3,out_channels=32,mlp_dim=50"
SLIMSAM_50 = SamVitSpec(hidden_size=384, layers=12, heads=12, global_layers=(2, 5, 8, 11))


def encoder_tensors(architecture: str, side: int = 1024) -> dict[str, Tensor]:
    with on_meta():
        return build_sam(architecture, classes=4, image_size=side).image_encoder.state_dict()


def build(architecture: str = SMALL, side: int = SIDE) -> KClassSam:
    torch.manual_seed(3)
    return build_sam(architecture, classes=4, image_size=side).eval()


def test_slimsam_has_the_published_sizes() -> None:
    with on_meta():
        model = build_sam("slimsam_77", classes=4, image_size=1024)
    # In millions, as transformers' SamModel has them with the hub's configuration.
    encoder, whole = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.image_encoder, model))
    assert (round(encoder, 2), round(whole, 2)) == (5.66, 9.72)
    assert model.image_encoder.get_parameter("blocks.2.attn.rel_pos_h").shape == (127, 14)
    assert model.image_encoder.get_parameter("blocks.0.mlp.lin1.weight").shape == (696, 168)


@pytest.mark.parametrize("spec", [ENCODERS["slimsam_77"], SLIMSAM_50, ENCODERS["vit_l"]])
def test_tensors_tell_all_sizes(spec: SamVitSpec) -> None:
    assert told_by(encoder_tensors(name_with_sizes(spec))) == spec


def test_other_heads_than_channels_and_other_windows_are_told() -> None:
    spec = SamVitSpec(
        hidden_size=20,
        layers=3,
        heads=3,
        global_layers=(1,),
        window=5,
        patch_size=8,
        out_channels=48,
        attention_size=24,
    )
    assert encoder_spec(name_with_sizes(spec)) == spec
    assert told_by(encoder_tensors(name_with_sizes(spec), side=128)) == spec


def test_an_image_of_one_window_hides_which_blocks_are_global() -> None:
    assert told_by(encoder_tensors(SMALL, side=48)) is None


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sam_vit:", "missing"),
        ("sam_vit:hidden_size=28", "missing"),
        ("sam_vit:hidden_size=28,layers=3,heads=2,global_layers=0,depth=2", "unknown"),
        ("sam_vit:layers=3,hidden_size=28,heads=2,global_layers=0", "the name of these sizes"),
        ("sam_vit:hidden_size=28,layers=3,heads=3,global_layers=0", "divide the channels"),
        ("sam_vit:hidden_size=28,layers=3,heads=2,global_layers=0,out_channels=40", "divide the channels"),
        ("sam_vit:hidden_size=28,layers=3,heads=2,global_layers=3", "none of the layers"),
        ("sam_vit:hidden_size=0,layers=3,heads=2,global_layers=0", "positive"),
        ("sam_vit:hidden_size=28,layers=3,heads=2,global_layers=0,patch_size=14", "16 pixels"),
    ],
)
def test_names_that_say_no_sizes_are_refused(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"(?s)--model.*{problem}"):
        encoder_spec(name)


@torch.no_grad()
@pytest.mark.parametrize("layout", ["transformers", "official"])
def test_files_of_any_size_give_the_numbers_of_transformers(tmp_path: Path, layout: str) -> None:
    reference = random_reference(SMALL, SIDE)
    if layout == "transformers":
        source = tmp_path / "slim"
        reference.save_pretrained(source)
    else:
        source = tmp_path / "slim.pth"
        torch.save(official_layout(reference.state_dict()), source)
    assert detect_architecture(source) == SMALL
    model = build()
    info = load_pretrained(model, source)
    assert (info.architecture, info.layout, info.image_size) == (SMALL, layout, SIDE)
    images = 255 * torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected = reference.get_image_embeddings(normalised(images))
    torch.testing.assert_close(model.encode(images), (expected,), rtol=1e-4, atol=1e-4)


def test_widths_tell_models_of_equal_depth_apart(tmp_path: Path) -> None:
    """Pruned perceptrons beside tokens as wide as ViT-B's."""
    state = {
        "image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
        "image_encoder.blocks.11.norm1.weight": torch.zeros(768),
        "image_encoder.blocks.0.mlp.lin1.weight": torch.zeros(8, 768),
    }
    torch.save(state, tmp_path / "pruned.pth")
    with pytest.raises(InputError, match="12 layers with 768 channels"):
        detect_architecture(tmp_path / "pruned.pth")


def test_a_saved_model_says_its_sizes_even_where_its_tensors_cannot(tmp_path: Path) -> None:
    model = build(side=48)
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.architecture == SMALL
    images = 255 * torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(images), model(images))
    assert detect_architecture(tmp_path / "model.safetensors") == SMALL
    other = build(side=SIDE)
    load_pretrained(other, tmp_path / "model.safetensors")
    name = "image_encoder.blocks.1.attn.rel_pos_h"
    assert torch.equal(other.get_parameter(name), model.get_parameter(name))


def test_a_run_starts_from_them_and_predicts(toy: Path, tmp_path: Path, quick: Settings) -> None:
    random_reference(SMALL, SIDE).save_pretrained(tmp_path / "slim")
    settings = dataclasses.replace(quick, model=str(tmp_path / "slim"), steps=2, evaluate_every=2)
    result = train(toy, tmp_path / "run", settings)
    assert result["projected_parameters"] > 0
    assert Segmenter.load(tmp_path / "run").model.architecture == SMALL


def test_the_name_itself_may_be_asked_for() -> None:
    choice = choose_model(Settings(model=SMALL, random_weights=True))
    assert (choice.model, choice.weights) == (SMALL, RANDOM)
