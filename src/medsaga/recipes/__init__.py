"""Published recipes as TOML files of settings. To add one, write the file; its name is what ``--recipe`` takes."""

from __future__ import annotations

import dataclasses
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from medsaga.config import Settings
from medsaga.errors import InputError


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    shipped = (Path(entry.name) for entry in resources.files(__name__).iterdir())
    return sorted(path.stem for path in shipped if path.suffix == ".toml")


@cache
def read_recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe.

    Args:
        name: of a recipe of the package, or the path of a TOML file.

    Raises:
        InputError: there is no such recipe, or it holds something else than valid settings.
    """
    shipped = name in recipe_names()
    source = resources.files(__name__).joinpath(f"{name}.toml") if shipped else Path(name)
    try:
        values: dict[str, Any] = tomllib.loads(source.read_text(encoding="utf-8"))
        Settings(**values)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
        expected = f"{', '.join(recipe_names())}, or a TOML file of settings"
        raise InputError(f"--recipe {name}", expected=expected, found=str(error), do="Correct the name.") from None
    given_elsewhere = {"recipe", "budget", "device"} & values.keys()
    if given_elsewhere:
        raise InputError(
            f"--recipe {name}",
            expected="settings of the training itself",
            found=", ".join(sorted(given_elsewhere)),
            do="Give these on the command line.",
        )
    return values


def with_recipe(settings: Settings) -> Settings:
    """Return settings in which the recipe has filled in what the user has left at its default.

    Raises:
        InputError: the recipe cannot be read, or is for another method than the user's.
    """
    if settings.recipe is None:
        return settings
    values = read_recipe(settings.recipe)
    if settings.method not in (None, values.get("method", settings.method)):
        raise InputError(
            "--method",
            expected=f"{values['method']}, which --recipe {settings.recipe} is for",
            found=str(settings.method),
            do="Leave one of the two out.",
        )
    defaults = {option.name: option.default for option in dataclasses.fields(Settings)}
    open_ones = {name: value for name, value in values.items() if getattr(settings, name) == defaults[name]}
    return dataclasses.replace(settings, **open_ones)
