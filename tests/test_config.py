"""Settings reject contradictions, and a run's configuration survives the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from resolved import resolved

from medsaga.config import RunConfig, Settings, read_config
from medsaga.data.intensity import Intensity
from medsaga.errors import InputError
from medsaga.recipes import recipe_names


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"steps": 0}, "--steps"),
        ({"batch_size": 8, "micro_batch_size": 3}, "--micro-batch-size"),
        ({"window": (200.0, -200.0)}, "--window"),
        ({"window": (-200.0, 200.0), "intensity": "percentile"}, "--window"),
        ({"encoder_lr": float("nan")}, "--encoder-lr"),
        ({"neighbours": -1}, "--neighbours"),
    ],
)
def test_contradictions_name_the_flag(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: expected"):
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


@pytest.mark.parametrize("text", ["", "data = 1", "settings = 3", "data='x'\n[settings]\nno_such=1", "\x00"])
def test_a_damaged_configuration_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(InputError, match=r"config\.toml"):
        read_config(tmp_path / "config.toml")


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
