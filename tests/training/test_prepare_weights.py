"""Which weights a run starts from: the starter by default, random ones on request, and the same ones on resuming."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fit_only, interrupt_in
from rich.console import Console

from medsaga import files, run_folder
from medsaga.errors import InputError, Interrupted
from medsaga.methods import METHODS
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_pretrained, save_model
from medsaga.models.weights.registry import RANDOM, STARTER, weights_named
from medsaga.planning.resolve import choose_model
from medsaga.runs.configuration import found_from_anywhere
from medsaga.runs.prepare import new_run, resumed_run
from medsaga.settings.options import Settings
from medsaga.settings.run_config import read_config


def start(toy: Path, out: Path, settings: Settings) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    """What the manifest says of the model, its initial weights, and what was said on the console."""
    said = io.StringIO()
    run = new_run(toy, out, settings, Console(file=said))
    return files.read_json(out / run_folder.MANIFEST)["model"], run.model.state_dict(), said.getvalue()


@pytest.mark.parametrize("model", [None, "lite", STARTER])
def test_the_default_model_starts_from_the_starter(
    model: str | None, toy: Path, tmp_path: Path, quick: Settings
) -> None:
    about, state, said = start(toy, tmp_path / "run", dataclasses.replace(quick, model=model))
    known = weights_named(STARTER)
    assert (about["source"], about["sha256"], about["release"]) == (STARTER, known.sha256, known.release)
    config = read_config(tmp_path / "run" / run_folder.CONFIG)
    assert (config.settings.model, config.settings.weights) == ("lite", STARTER)
    expected = build_sam("lite", classes=3, image_size=64, in_channels=1)
    load_pretrained(expected, STARTER)
    other = {name for name, tensor in expected.state_dict().items() if not torch.equal(tensor, state[name])}
    # Those of weights that know a class by its mean embedding start there.
    assert other == ({"mask_decoder.mask_tokens.weight"} if about["episodic"] else set())
    assert "random" not in said


def test_random_is_random(toy: Path, tmp_path: Path, quick: Settings) -> None:
    about, state, said = start(toy, tmp_path / "run", dataclasses.replace(quick, model=None, random_weights=True))
    assert about == {"architecture": "lite", "weights": RANDOM}
    assert read_config(tmp_path / "run" / run_folder.CONFIG).settings.weights == RANDOM
    torch.manual_seed(0)
    expected = build_sam("lite", classes=3, image_size=64, in_channels=1).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())
    assert "lite starts from random weights" in " ".join(said.split())


@pytest.mark.parametrize("method", METHODS)
def test_only_the_starters_architecture_has_it_as_its_default(method: str) -> None:
    own = METHODS[method].trains_sam
    assert choose_model(Settings(method=method)).weights == (STARTER if own else None)
    if own:
        for model in ("vit_b", "vit_l", "vit_h", "tiny"):
            assert choose_model(Settings(method=method, model=model)).weights == RANDOM


def test_a_recipes_model_and_weights_count(tmp_path: Path) -> None:
    assert choose_model(Settings(recipe="medsaga-paper")).weights == RANDOM
    assert choose_model(Settings(recipe="medsaga-paper", model="lite")).weights == STARTER
    recipe = tmp_path / "mine.toml"
    recipe.write_text("random_weights = true\n")
    assert choose_model(Settings(recipe=str(recipe))).weights == RANDOM


def test_weights_say_the_architecture() -> None:
    choice = choose_model(Settings(model="sam_vit_b_01ec64"))
    assert (choice.model, choice.weights) == ("vit_b", "sam_vit_b_01ec64")
    with pytest.raises(InputError, match="--random-weights: expected an architecture"):
        choose_model(Settings(model="sam_vit_b_01ec64", random_weights=True))


def test_weights_that_are_not_there_are_missed_before_the_data_are_read(
    tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = dataclasses.replace(quick, model="sam_vit_b_01ec64")
    with pytest.raises(InputError, match="medsaga weights fetch sam_vit_b_01ec64"):
        new_run(tmp_path / "no data either", tmp_path / "run", settings, Console(file=io.StringIO()))


@pytest.mark.exhaustive
# With random weights, all other tests of resuming begin.
def test_an_interrupted_run_goes_on_from_the_starter(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(quick, model=STARTER, steps=2)
    fit_only(toy, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        interrupt_in(patch, 1)
        with pytest.raises(Interrupted):
            fit_only(toy, tmp_path / "run", settings)
    fit_only(toy, tmp_path / "run", settings, resume=True)
    models = [files.sha256(tmp_path / name / run_folder.MODEL) for name in ("whole", "run")]
    assert models[0] == models[1]


def test_what_may_be_said_on_resuming(toy: Path, tmp_path: Path, quick: Settings) -> None:
    silent = Console(file=io.StringIO())
    settings = dataclasses.replace(quick, model=None)
    new_run(toy, tmp_path / "run", settings, silent)
    for model in (None, "lite"):
        resumed_run(toy, tmp_path / "run", dataclasses.replace(settings, model=model), silent)
    with pytest.raises(InputError, match="--random-weights"):
        resumed_run(toy, tmp_path / "run", dataclasses.replace(settings, random_weights=True), silent)


def test_weights_are_found_from_another_folder_too(
    toy: Path, tmp_path: Path, quick: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "own.safetensors", build_sam("tiny", classes=4, image_size=64))
    settings = dataclasses.replace(quick, model="own.safetensors")
    run = new_run(toy, tmp_path / "run", settings, Console(quiet=True))
    assert run.config.settings.weights == str(tmp_path / "own.safetensors")
    resumed_run(toy, tmp_path / "run", settings, Console(quiet=True))
    # A name stays one, whatever lies here.
    for name in (STARTER, RANDOM):
        (tmp_path / name).touch()
        named = dataclasses.replace(run.config, settings=dataclasses.replace(run.config.settings, weights=name))
        assert found_from_anywhere(named) == named


def test_a_run_does_not_begin_anew_from_other_weights_than_its_first_ones(
    toy: Path, tmp_path: Path, quick: Settings
) -> None:
    silent = Console(file=io.StringIO())
    torch.manual_seed(0)
    save_model(tmp_path / "own.safetensors", build_sam("tiny", classes=4, image_size=64))
    settings = dataclasses.replace(quick, model=str(tmp_path / "own.safetensors"))
    new_run(toy, tmp_path / "run", settings, silent)
    resumed_run(toy, tmp_path / "run", settings, silent)
    save_model(tmp_path / "own.safetensors", build_sam("tiny", classes=4, image_size=64))
    with pytest.raises(InputError, match="as the run began with"):
        resumed_run(toy, tmp_path / "run", settings, silent)
