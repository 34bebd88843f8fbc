"""Every recipe that is shipped can be used, and says on its first lines how."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from resolved import resolved

from medsaga.errors import InputError
from medsaga.methods import METHODS
from medsaga.planning.defaults import DeviceDefaults
from medsaga.settings.recipes import read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_command_hardware_and_expectation(name: str) -> None:
    head = (
        resources.files("medsaga.settings.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8").split("\nm")[0]
    )
    assert f"medsaga train DATA --out RUN --recipe {name}" in head
    for word in ("Hardware:", "Expect:", "arXiv"):
        assert word in head
    settings = resolved(recipe=name, suits=DeviceDefaults("bf16", 8))
    assert settings.precision == "fp32", "a publication's precision comes before the device's"
    assert METHODS[settings.method].recipe == name
    assert f"{settings.steps:,}".replace(",", "") == str(read_recipe(name)["steps"])


def test_every_named_recipe_is_there() -> None:
    assert {method.recipe for method in METHODS.values() if method.recipe} == set(recipe_names())


def test_the_publications_numbers() -> None:
    samed = resolved(recipe="samed-paper")
    assert (samed.image_size, samed.batch_size, samed.encoder_lr, samed.warmup, samed.rank) == (512, 24, 5e-3, 250, 4)
    daeformer = resolved(recipe="daeformer-paper")
    assert (daeformer.optimizer, daeformer.encoder_lr, daeformer.weight_decay) == ("sgd", 0.05, 1e-4)
    assert (daeformer.image_size, daeformer.batch_size, daeformer.dice_weight) == (224, 24, 0.6)
    medsaga = resolved(recipe="medsaga-paper")
    assert (medsaga.image_size, medsaga.batch_size, medsaga.rank, medsaga.refresh_every) == (240, 12, 4, 200)
    assert (medsaga.galore, medsaga.max_gradient_norm) == ("reference", float("inf"))
    assert samed.loss_resolution == medsaga.loss_resolution == "logits"
    assert {recipe.dice_form for recipe in (samed, daeformer, medsaga)} == {"squared"}
    assert resolved().dice_form == "linear"


def test_what_the_user_gives_overrides_a_recipe() -> None:
    settings = resolved(recipe="samed-paper", steps=7, model="tiny")
    assert (settings.steps, settings.model, settings.batch_size) == (7, "tiny", 24)
    with pytest.raises(InputError, match="samed"):
        resolved(recipe="samed-paper", method="full")


def test_what_the_user_gives_counts_even_if_it_is_what_is_taken_without_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('neighbours = 2\nprotocol = "transunet"\nstate_on_host = true\n')
    assert resolved(recipe=str(path)).neighbours == 2
    settings = resolved(recipe=str(path), neighbours=0, protocol="mm")
    assert (settings.neighbours, settings.protocol, settings.state_on_host) == (0, "mm", True)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('method = "full"\nsteps = 3\nwindow = [-20, 300]\nencoder_lr = 1\nmax_gradient_norm = inf\n')
    settings = resolved(recipe=str(path))
    assert (settings.steps, settings.window, settings.encoder_lr) == (3, (-20, 300), 1)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('augmentation = "wild"', "augmentation = 'wild', which is not fewshot or samed or none"),
        ("rank = 2.5", "rank = 2.5, which is not a whole number"),
        ("image_size = 64.0", "image_size = 64.0, which is not a whole number"),
        ("state_bits = 16", "state_bits = 16, which is not 8 or 32"),
        ("dice_weight = true", "dice_weight = True, which is not a number"),
        ('binary = "yes"', "binary = 'yes', which is not true or false"),
        ("window = [1]", r"window = \(1,\), which is not a list of numbers"),
        ('window = [1, "a"]', r"window = \(1, 'a'\), which is not a list of numbers"),
        ("stesp = 3", "'stesp', which no setting is called"),
    ],
)
def test_a_value_of_another_type_is_named(line: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(line)
    with pytest.raises(InputError, match=f"--recipe {path}: expected settings; found {found}. Correct the file"):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("steps = 'many", "Expected"),
        ("no_such = 1", "no_such"),
        ("budget = '4GB'", "budget"),
        ("shots = 3", "shots"),
        (None, "No such file"),
    ],
)
def test_what_is_no_recipe_is_one_clear_error(tmp_path: Path, text: str | None, found: str) -> None:
    path = tmp_path / "recipe.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.escape(found)):
        resolved(recipe=str(path))
