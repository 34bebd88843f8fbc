"""A hospital's folder: its data, checked once, and what it answers before the first round."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.dataset import raise_problems, read_dataset
from medsaga.data.intensity import Intensity, choose_intensity
from medsaga.data.splits import Split
from medsaga.data.survey import Survey
from medsaga.device import choose_device
from medsaga.errors import InputError
from medsaga.federated.plan import PLAN, Plan, digest_of_frozen, require_same
from medsaga.federated.site import LocalSite
from medsaga.planning.defaults import defaults_for
from medsaga.runs.loading import LoadedData, load_data, split_of
from medsaga.runs.plan import Plan as RunPlan
from medsaga.runs.plan import Run
from medsaga.runs.prepare import begun_run, joined_run, new_model
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig, read_config

SITE, RUN = "site.json", "run"
"""What `open_folder` has found, and the folder of the training."""


@dataclass(frozen=True)
class Hospital:
    """A site of a real federation.

    Attributes:
        folder: what it keeps from one message to the next.
        name: by which the server knows it.
        data: its dataset.
        weights: where the weights that the model starts from lie here; None for where the plan says.
        device: where it trains.
        seed: of the draw of its test cases.
        test_cases: how many were to be drawn; None for a fifth.
        split: its cases.
        intensities: how it would turn grey values into 8 bits by itself.
        fingerprint: of its data.
    """

    folder: Path
    name: str
    data: str
    weights: str | None
    device: str
    seed: int
    test_cases: int | None
    split: Split
    intensities: tuple[Intensity, ...]
    fingerprint: str

    @classmethod
    def read(cls, folder: Path) -> Hospital:
        """Return the hospital whose folder it is."""
        document: dict[str, Any] = files.read_json(folder / SITE)
        document["split"] = Split.from_json(document["split"])
        document["intensities"] = tuple(Intensity(**each) for each in document["intensities"])
        return cls(folder=folder, **document)

    def write(self) -> None:
        """Write it into its folder."""
        document = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del document["folder"]
        document |= {"split": self.split.to_json(), "intensities": [vars(each) for each in self.intensities]}
        files.write_json(self.folder / SITE, document)

    def greet(self, plan: Plan) -> dict[str, str]:
        """Compare with the plan, and return what the server has to know.

        Raises:
            InputError: the first thing that differs.
        """
        dataset = read_dataset(Path(self.data))
        raise_problems(dataset.problems)
        require_same(plan, dataset.labels, dataset.channels)
        config = self._config(plan, self.intensities)
        model, info = new_model(config, Console(quiet=True))
        found = info.get("sha256")
        if found != plan.weights:
            raise InputError(
                "weights",
                expected=f"the file that the federation starts from, SHA-256 {plan.weights}",
                found=f"{found}",
                do="Name the right file with --weights.",
            )
        if digest_of_frozen(model, config.settings, plan.federation) != plan.frozen:
            raise InputError(
                "model",
                expected="the same numbers in all that is not trained as at the server",
                found="others",
                do="Use the same version of torch at all sites, or weights from a file.",
            )
        if self._has_begun and (self.folder / PLAN).exists() and Plan.read(self.folder) != plan:
            raise self._of_another_federation("other settings")
        plan.write(self.folder)
        return {"name": self.name, "intensities": json.dumps([vars(each) for each in self.intensities])}

    def begin(self, intensities: tuple[Intensity, ...], console: Console) -> tuple[str, ...]:
        """Prepare the training; return the mirrorings that the labels here keep.

        Raises:
            InputError: the folder has images of another federation.
        """
        if not self._has_begun:
            dataset = read_dataset(Path(self.data))
            loaded = LoadedData(dataset, Survey((), (), ()), self.fingerprint)
            config = self._config(Plan.read(self.folder), intensities)
            opened = begun_run(config, self.split, loaded, self.folder / RUN, console, requested={})
        else:
            opened = self._open(console)
            if opened.config.intensities != intensities:
                raise self._of_another_federation("images made in another way")
        for samples in (opened.train, opened.monitor):
            samples.close()
        return opened.model.symmetries

    def site(self, console: Console, say: Callable[[str], None]) -> LocalSite:
        """Return who trains and tests here, and says so."""
        run = self._open(console)
        model, _ = new_model(run.config, Console(quiet=True))
        run.model.load_state_dict(model.state_dict())  # rounded to the types of the site
        return LocalSite(run, Plan.read(self.folder).federation, console, say)

    @property
    def _has_begun(self) -> bool:
        return (self.folder / RUN / run_folder.MANIFEST).exists()

    def _of_another_federation(self, found: str) -> InputError:
        return InputError(
            self.folder,
            expected="a new folder, or the one with which this site has taken part in this federation",
            found=f"a training with {found}",
            do="Choose another --out.",
        )

    def _open(self, console: Console) -> Run:
        folder = self.folder / RUN
        config = read_config(folder / run_folder.CONFIG)
        # Of the machine's own, precision and bits of the state stay what the training began with: its state has them.
        settings = config.settings
        settings = dataclasses.replace(settings, device=self.device, weights=self.weights or settings.weights)
        config = dataclasses.replace(config, settings=settings)
        return joined_run(folder, RunPlan(config, self.split, read_dataset(Path(self.data))), console)

    def _config(self, plan: Plan, intensities: tuple[Intensity, ...]) -> RunConfig:
        suits = defaults_for(choose_device(self.device))
        own = {"device": self.device, "precision": suits.precision, "state_bits": suits.state_bits}
        return plan.config(self.data, intensities, own | ({"weights": self.weights} if self.weights else {}))


def open_folder(
    data: Path,
    folder: Path,
    console: Console,
    *,
    name: str,
    weights: str | None,
    device: str,
    test_cases: int | None,
    seed: int,
) -> Hospital:
    """Check the data of a hospital and make its folder, or open the one that is there.

    Args:
        data: the dataset.
        folder: of the site.
        console: where progress is shown.
        name: by which the server knows the site.
        weights: where the weights lie here.
        device: where to train.
        test_cases: how many cases to hold out; None for a fifth.
        seed: of the draw.

    Raises:
        InputError: the data or the device cannot be used, or the folder is of something else.
    """
    choose_device(device)
    if (folder / SITE).exists():
        hospital = Hospital.read(folder)
        for where, asked, before in (
            (str(folder), f"{name} with the data {data.resolve()}", f"{hospital.name} with the data {hospital.data}"),
            ("--test-cases", _drawn(test_cases), _drawn(hospital.test_cases)),
            ("--seed", str(seed), str(hospital.seed)),
        ):
            if asked != before:
                do = "Choose another --out, or give what it began with."
                raise InputError(where, expected=f"{before}, as {folder} began with", found=asked, do=do)
        hospital = dataclasses.replace(hospital, weights=weights or hospital.weights, device=device)
        hospital.write()
        return hospital
    files.require_new(folder, "a folder for the site")
    settings = Settings(seed=seed, test_cases=test_cases, validation_cases=0)
    loaded = load_data(data, settings, console)
    split = split_of(loaded, settings)
    if not split.test:
        found = f"{len(split.train)} in all"
        raise InputError(data, expected="cases to train on and cases to test on", found=found, do="Add cases.")
    trained_on = loaded.survey.of(loaded.dataset.items_of(split.train))
    hospital = Hospital(
        folder=folder,
        name=name,
        data=str(data.resolve()),
        weights=weights,
        device=device,
        seed=seed,
        test_cases=test_cases,
        split=split,
        intensities=choose_intensity(loaded.dataset, trained_on, "auto", None),
        fingerprint=loaded.fingerprint,
    )
    folder.mkdir(parents=True)
    hospital.write()
    return hospital


def _drawn(test_cases: int | None) -> str:
    return "a fifth of the cases" if test_cases is None else str(test_cases)
