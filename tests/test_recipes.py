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
from medsaga.recipes import read_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_opens_with_command_hardware_and_expectation(name: str) -> None:
    head = resources.files("medsaga.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8").split("\nm")[0]
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


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('method = "full"\nsteps = 3\n')
    assert resolved(recipe=str(path)).steps == 3


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
