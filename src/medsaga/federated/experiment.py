"""What a simulated experiment works with: its folder, its sites, and one model in which they take turns."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import files, run_folder
from medsaga.device import choose_device
from medsaga.federated.agreement import agreed_config, agreed_symmetries
from medsaga.federated.options import Federation
from medsaga.federated.partition import Partition
from medsaga.models.base import SegmentationModel
from medsaga.models.precision import set_precision
from medsaga.runs.configuration import new_config
from medsaga.runs.plan import Plan, Run
from medsaga.runs.prepare import begun_run, joined_run, manifest_of, new_model
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig

SITES = "sites"
"""The folder, in that of an experiment, with the run folder of each site."""


@dataclass(frozen=True, eq=False)
class Experiment:
    """One way to train at several sites.

    Attributes:
        folder: of the experiment; it exists, and is a run folder but for the model.
        federation: how the sites train together.
        config: that all sites have agreed on.
        partition: the data and their sites.
        model: with the weights that all start from.
        runs: of the sites, by name; all have this model.
        symmetries: that the labels have at all sites.
        asked: what the user has asked for.
    """

    folder: Path
    federation: Federation
    config: RunConfig
    partition: Partition
    model: SegmentationModel
    runs: dict[str, Run]
    symmetries: tuple[str, ...]
    asked: dict[str, Any]

    @property
    def labels(self) -> list[str]:
        """Names, without the background."""
        return [name for name, value in self.config.labels.items() if value != 0]

    def afresh(self, run: Run) -> Run:
        """Return a run with a model of its own, which starts from the common weights."""
        model = copy.deepcopy(self.model)
        model.symmetries = self.symmetries
        return dataclasses.replace(run, model=model)

    def pooled_run(self, console: Console) -> Run:
        """Return the run that trains on the cases of all sites, in the folder of the experiment."""
        plan = Plan(self.config, self.partition.split, self.partition.loaded.dataset)
        return self.afresh(joined_run(self.folder, plan, console))


def agreed(data: Path, settings: Settings, federation: Federation, partition: Partition) -> RunConfig:
    """Return the configuration that all sites share.

    Args:
        data: the dataset that the user has named.
        settings: of each site's training.
        federation: how the sites train together.
        partition: the data and their sites.

    Raises:
        InputError: the settings cannot be used, or do not go with the exchange.
    """
    device = choose_device(settings.device)
    configs = {site.name: new_config(settings, partition.of(site), site.split, device) for site in partition.sites}
    config = dataclasses.replace(agreed_config(configs), data=str(data.resolve()))
    federation.check(config.settings)
    return config


@contextlib.contextmanager
def prepared(
    folder: Path,
    config: RunConfig,
    federation: Federation,
    partition: Partition,
    asked: dict[str, Any],
    console: Console,
) -> Iterator[Experiment]:
    """Make the folders of an experiment and of its sites, or open those that are there; yield what lies in them.

    Args:
        folder: of the experiment.
        config: that the sites have `agreed` on.
        federation: how the sites train together.
        partition: the data and their sites.
        asked: what the user has asked for, for the record.
        console: where progress is shown.

    Raises:
        InputError: the weights cannot be used.
    """
    device = choose_device(config.settings.device)
    model, model_info = new_model(config, console)
    set_precision(model, config.settings.precision)
    model.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = manifest_of(partition.loaded.fingerprint, config, device, model_info) | {"requested": asked}
    # Class tokens that start at the means of a site's images would be its own: all start from the same.
    common = (model, model_info | {"episodic": False})
    runs: dict[str, Run] = {}
    found = []
    with contextlib.ExitStack() as opened:
        for site in partition.sites:
            place, loaded = folder / SITES / site.name, partition.of(site)
            if (place / run_folder.MANIFEST).exists():
                run = joined_run(place, Plan(config, site.split, loaded.dataset), console)
            else:
                run = begun_run(config, site.split, loaded, place, console, requested=asked, model=common)
            for samples in (run.train, run.monitor):
                opened.callback(samples.close)
            found.append(run.model.symmetries)
            runs[site.name] = run
        # One model for all sites: each puts its own weights in.
        runs = {name: dataclasses.replace(run, model=model) for name, run in runs.items()}
        config.write(folder / run_folder.CONFIG)
        files.write_json(folder / run_folder.SPLIT, partition.split.to_json())
        files.write_json(folder / run_folder.MANIFEST, manifest)
        yield Experiment(folder, federation, config, partition, model, runs, agreed_symmetries(found), asked)
