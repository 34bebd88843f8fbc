"""Whether a run can be gone on with: its settings and its data are those that it began with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.dataset import fingerprint
from medsaga.data.known import Digests
from medsaga.data.splits import Split
from medsaga.data.types import Dataset
from medsaga.errors import InputError
from medsaga.runs.continuing import joined_data
from medsaga.runs.loading import load_data, without_later_cases
from medsaga.settings.options import ResolvedSettings, Settings, flag, in_json, named
from medsaga.settings.run_config import RunConfig, read_config


def require_same(out: Path, settings: Settings, before: Path | None = None) -> None:
    """Raise InputError unless a folder is a run that was begun with these settings.

    Args:
        out: the run folder.
        settings: none, or those that the run began with.
        before: the run that it continues, if it does.
    """
    config = read_config(out / run_folder.CONFIG)
    manifest = files.read_json(out / run_folder.MANIFEST)
    continued = manifest.get("continues", {}).get("run")
    if continued != (None if before is None else str(before.resolve())):
        raise InputError(
            "continue",
            expected=f"the run that {out} continues, {continued}" if continued else f"none: {out} continues no other",
            found="none" if before is None else str(before),
            do="Give the command that the run began with, and --resume.",
        )
    _check_same(named(settings), manifest.get("requested", {}), config.settings)


def data_again(
    data: Path, config: RunConfig, split: Split, out: Path, manifest: dict[str, Any], console: Console
) -> Dataset | None:
    """Return the data of a run that has begun, without cases that came later; None where others have changed.

    Args:
        data: the dataset; of a run that continues another, the new cases.
        config: of the run.
        split: of the run.
        out: the run folder.
        manifest: of the run, with the fingerprint of its data at the beginning.
        console: where progress is shown, and which cases are left out.
    """
    begun_with = manifest.get("data_fingerprint")
    if config.added:
        config = dataclasses.replace(config, added=(*config.added[:-1], str(data.resolve())))
        joined = joined_data(config, split, console, manifest.get("continues", {}).get("cases"))
        return joined.dataset if joined.fingerprint == begun_with else None
    loaded = load_data(data, config.settings, console)
    if loaded.fingerprint == begun_with:
        return loaded.dataset
    known: Digests = files.read_json(out / run_folder.DIGESTS) if (out / run_folder.DIGESTS).exists() else {}
    earlier = without_later_cases(loaded.dataset, known, console)
    return earlier if earlier.labels == config.labels and fingerprint(earlier) == begun_with else None


def _check_same(asked: dict[str, Any], before: dict[str, Any], kept: ResolvedSettings) -> None:
    """Raise InputError unless every setting is as it was asked for when the run began, or as it was resolved then."""
    for name, value in asked.items():
        if value not in (before.get(name), in_json(getattr(kept, name))):
            raise InputError(
                flag(name),
                expected=f"the run's own setting, {before.get(name, getattr(kept, name))}, with --resume",
                found=str(value),
                do="Leave it out, or start a new run.",
            )
