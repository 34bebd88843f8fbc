"""The help: what most users need on the first screen, every setting once, the defaults that are really taken."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections import Counter
from typing import Any, get_args

import pytest

from medsaga.cli import main
from medsaga.cli.entry import VERBS
from medsaga.cli.options import ContinueOptions, TrainOptions, settings_of
from medsaga.planning.defaults import planned_defaults
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.help import GROUPS, help_of
from medsaga.settings.options import MAY_CHANGE, ResolvedSettings, Settings

SUBVERBS = [f"weights {verb}" for verb in ("list", "fetch", "verify", "convert")]
SUBVERBS += [f"federate {verb}" for verb in ("simulate", "keys", "serve", "join")]


def help_text(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines of a verb's help on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*verb.split(), "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("verb", ["", *VERBS, *SUBVERBS])
def test_no_default_and_no_value_is_the_parsers_own_word(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(help_text(verb, monkeypatch, capsys))
    assert "None" not in text
    assert "(default: )" not in text
    assert not {"STR", "PATH", "INT", "FLOAT"} & set(text.replace("[", " ").replace("]", " ").split())


def test_verbs_stand_in_the_order_of_use_with_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = help_text("", monkeypatch, capsys)
    first = next(n for n, line in enumerate(lines) if "• demo" in line)
    shown = [line.split("•")[1].split()[0] for line in lines[first : first + len(VERBS)]]
    order = ["demo", "app", "info", "suggest", "train", "evaluate", "predict", "export", "continue", "compare"]
    order += ["federate", "memory", "weights"]
    assert shown == order == list(VERBS)


def test_what_most_users_need_fits_on_a_screen() -> None:
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-m", "medsaga", "train", "--help"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=True)
    lines = done.stdout.splitlines()
    others = next(n for n, line in enumerate(lines) if f"{GROUPS[4]} options" in line)
    assert others <= 40
    screen = "\n".join(lines[:others])
    for name in ("DATA", "--out", "--shots", "--method", "--model", "--steps", "--batch-size", "--budget"):
        assert name in screen


def options_in(made: Any) -> Counter[str]:
    """Names of the options in all groups."""
    kind = get_args(made)[0]
    groups: list[Any] = [field.default_factory for field in dataclasses.fields(kind)]
    return Counter(option.name for group in groups for option in dataclasses.fields(group))


def test_every_setting_is_an_option_of_one_group() -> None:
    assert options_in(TrainOptions) == Counter(field.name for field in dataclasses.fields(Settings))
    assert options_in(ContinueOptions) == Counter(MAY_CHANGE)
    for made in (TrainOptions, ContinueOptions):
        assert settings_of(Settings, get_args(made)[0]()) == Settings()


SHARES = {"a tenth of the steps": 80, "a twentieth of the steps": 40, "the batch size": 4}
"""Defaults in words, and what they are in a run of 800 steps of 4 images."""
IN_WORDS = {
    *("axis", "intensity", "window", "channels", "tile", "device", "shots", "test_cases", "validation_cases"),
    *("budget", "patience", "recipe"),
}
"""Left to the data or the machine, or nothing at all."""


def resolved(**named: Any) -> ResolvedSettings:
    """The settings of a run on a CPU."""
    facts = Facts(device=planned_defaults("cpu"), classes=3, channels=1)
    return resolve(Settings(device="cpu", **named), facts)


def value_of(text: str) -> Any:
    """What a default is, that is shown as a number, a word or a share."""
    try:
        return float(text)
    except ValueError:
        return {"True": True, "False": False, **SHARES}.get(text, text)


def test_the_defaults_shown_are_those_that_are_taken() -> None:
    default = resolved()
    for field in dataclasses.fields(Settings):
        if field.name in IN_WORDS:
            assert getattr(default, field.name) in (None, "auto", "cpu"), field.name
            continue
        shown = help_of(field).shown.partition(";")[0]
        for part in shown.split(", "):
            value, _, models = part.partition(" for ")
            if not models or "lite" in models:
                break
        assert value_of(value) == getattr(default, field.name), field.name


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"model": "vit_b"}, {"encoder_lr": "else 5e-4", "image_size": "else 1024", "checkpointing": "else blocks"}),
        ({"method": "samed"}, {"encoder_lr": "samed 5e-3", "rank": "samed 4"}),
        (
            {"method": "daeformer"},
            {
                **{"encoder_lr": "daeformer 0.05", "decoder_lr": "daeformer 0.05", "image_size": "224 for daeformer"},
                **{"weight_decay": "daeformer 1e-4", "optimizer": "daeformer sgd"},
            },
        ),
        (
            {"method": "unet"},
            {"encoder_lr": "unet 1e-3", "decoder_lr": "unet 1e-3", "image_size": "192 for lite and unet"},
        ),
    ],
)
def test_the_defaults_shown_of_other_models_are_those_that_are_taken(
    named: dict[str, str], expected: dict[str, str]
) -> None:
    settings = resolved(**named)
    about = {field.name: help_of(field).shown for field in dataclasses.fields(Settings)}
    for name, words in expected.items():
        assert words in about[name]
        value = words.partition(" for ")[0].split()[-1]
        assert value_of(value) == getattr(settings, name), name


@pytest.mark.parametrize(("image_size", "steps"), [(192, 800), (320, 800), (384, 400), (512, 400)])
def test_large_images_have_fewer_steps_whatever_the_method(image_size: int, steps: int) -> None:
    for method in ("medsaga", "unet"):
        settings = resolved(method=method, image_size=image_size)
        assert (settings.steps, settings.warmup) == (steps, steps // 10)
    assert resolved(image_size=image_size, steps=7).steps == 7


BY_ROUNDS = {"--steps", "--evaluate-every", "--patience", "--validation-cases"}


@pytest.mark.parametrize(
    ("verb", "refused"),
    [
        ("federate simulate", BY_ROUNDS),
        ("federate serve", BY_ROUNDS | {"--shots", "--test-cases", "--fold"}),
        ("train", set()),
    ],
)
def test_what_a_verb_refuses_is_said_to_be_so(
    verb: str, refused: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(line.strip("│ ") for line in help_text(verb, monkeypatch, capsys))
    before = text.split("(not with this verb)")[:-1]
    assert {re.findall(r"--[a-z-]+(?= [A-Z])", part)[-1] for part in before} == refused
    assert len(before) == len(refused)
