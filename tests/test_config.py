"""Settings reject contradictions, and a run's configuration survives the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from resolved import resolved

from medsaga.data.intensity import Intensity
from medsaga.errors import InputError
from medsaga.runs.resuming import _check_same
from medsaga.settings.options import Settings, named
from medsaga.settings.recipes import recipe_names
from medsaga.settings.run_config import RunConfig, parse_config, read_config


@pytest.mark.parametrize(
    ("settings", "at_fault"),
    [
        ({"steps": 0}, "--steps"),
        ({"batch_size": 8, "micro_batch_size": 3}, "--micro-batch-size"),
        ({"window": (200.0, -200.0)}, "--window"),
        ({"window": (-200.0, 200.0), "intensity": "percentile"}, "--window"),
        ({"encoder_lr": float("nan")}, "--encoder-lr"),
        ({"neighbours": -1}, "--neighbours"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"window": (float("nan"), 200.0)}, "--window"),
        ({"seed": 2**63}, "--seed"),
    ],
)
def test_contradictions_name_the_flag(settings: dict[str, Any], at_fault: str) -> None:
    with pytest.raises(InputError, match=f"^{at_fault}: expected"):
        Settings(**settings)


def test_round_trip_through_toml(tmp_path: Path) -> None:
    config = RunConfig(
        data='/data/üñí "quoted"',
        labels={"background": 0, "whole tumour": 4},
        channels=("T1", "FLAIR"),
        intensities=(Intensity("percentile"), Intensity("window", -160.0, 240.0)),
        settings=resolved(shots=3, window=(-1.0, 2.5), image_size=256),
    )
    config.write(tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


def test_an_infinite_norm_can_be_asked_for_again() -> None:
    """JSON, which keeps what was asked for, knows no infinity."""
    endless = Settings(max_gradient_norm=float("inf"))
    asked = json.loads(json.dumps(named(endless), allow_nan=False))
    assert asked == named(endless) != {}
    _check_same(named(endless), asked, resolved(max_gradient_norm=1.0))
    _check_same(named(endless), {}, resolved(max_gradient_norm=float("inf")))  # as a recipe says it
    with pytest.raises(InputError, match="--seed: expected the run's own setting, 3"):
        _check_same(named(Settings(seed=0)), {"seed": 3}, resolved(seed=3))
    with pytest.raises(InputError, match="--max-gradient-norm"):
        _check_same(named(endless), {}, resolved(max_gradient_norm=1.0))


@pytest.mark.parametrize("text", ["", "data = 1", "settings = 3", "data='x'\n[settings]\nno_such=1", "\x00"])
def test_a_damaged_configuration_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InputError, match=r"config\.toml"):
        read_config(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("image_size = 256", 'image_size = "256"'),
        ("steps = 7", "steps = true"),
        ('method = "medsaga"', "method = 1"),
        ("tumour = 4", "tumour = inf"),
        ("tumour = 4", "tumour = 0"),
        ("tumour = 4", "tumour = 70000"),
        ("tumour = 4", "tumour = -1"),
        ("tumour = 4", '"\\u001b[2J" = 4'),
        ('"T1"', '"\\u001b[2J"'),
    ],
)
def test_a_configuration_that_no_run_has_written_is_refused(tmp_path: Path, written: str, instead: str) -> None:
    settings = resolved(image_size=256, steps=7)
    config = RunConfig("/data", {"background": 0, "tumour": 4}, ("T1",), (Intensity("percentile"),), settings)
    assert parse_config(tmp_path, config.text()) == config
    assert written in config.text()
    with pytest.raises(InputError, match="expected the settings of a run") as caught:
        parse_config(tmp_path, config.text().replace(written, instead))
    assert str(caught.value).isprintable()


def test_settings_of_a_newer_version_are_named(tmp_path: Path) -> None:
    config = RunConfig("/data", {"background": 0, "tumour": 4}, ("T1",), (Intensity("percentile"),), resolved())
    text = config.text().replace("[settings]", "[settings]\nfuture_option = 3")
    with pytest.raises(InputError, match=r"found others: 'future_option'\. Install a newer medsaga"):
        parse_config(tmp_path, text)


@pytest.mark.parametrize("recipe", [None, *recipe_names()])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_every_recipe_fills_in_all_that_a_run_needs(recipe: str | None, steps: int) -> None:
    filled = resolved(recipe=recipe, steps=steps)
    needed = ["image_size", "batch_size", "micro_batch_size", "encoder_lr", "decoder_lr", "rank", "refresh_every"]
    assert all(getattr(filled, name) is not None for name in [*needed, "evaluate_every", "augmentation"])
    assert filled.steps == steps
    assert filled.warmup is not None
    assert filled.warmup <= steps


def test_what_the_user_says_wins() -> None:
    filled = resolved(recipe="medsaga-paper", rank=8, image_size=448)
    assert (filled.rank, filled.image_size, filled.encoder_lr) == (8, 448, 5e-3)
    assert (filled.precision, filled.state_bits) == ("fp32", 32), "the paper's recipe comes before the device's"
