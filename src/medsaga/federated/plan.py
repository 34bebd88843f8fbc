"""The plan of a federation: what the server says before the first round, and with what each site compares itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from medsaga import files
from medsaga.data.intensity import Intensity
from medsaga.errors import InputError
from medsaga.federated.options import Federation
from medsaga.federated.worker import freeze
from medsaga.methods import new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.models.digest import digest_of
from medsaga.settings.options import ResolvedSettings
from medsaga.settings.run_config import RunConfig

PLAN = "plan.json"
_OWN = ("device", "precision", "state_bits", "micro_batch_size", "checkpointing", "state_on_host")
"""Settings that a site chooses for its own machine."""


@dataclass(frozen=True)
class Plan:
    """What the sites of a federation have in common.

    Attributes:
        version: of medsaga.
        labels: name to value, background first.
        channels: names, in order.
        settings: of the training.
        federation: how the sites train together.
        weights: SHA-256 of the file that the model starts from; None for random weights.
        frozen: SHA-256 of all that is not trained: the sites have it, and it never travels.
    """

    version: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    settings: ResolvedSettings
    federation: Federation
    weights: str | None
    frozen: str

    def to_json(self) -> str:
        """Return the plan as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that a text says."""
        document: dict[str, Any] = json.loads(text)
        settings, federation = document.pop("settings"), document.pop("federation")
        for name in ("window", "channels"):
            if settings.get(name) is not None:
                settings[name] = tuple(settings[name])
        document["channels"] = tuple(document["channels"])
        return cls(**document, settings=ResolvedSettings(**settings), federation=Federation(**federation))

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        files.write_text(folder / PLAN, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read it."""
        return cls.from_json((folder / PLAN).read_text(encoding="utf-8"))

    def config(self, data: str, intensities: tuple[Intensity, ...], own: Mapping[str, Any]) -> RunConfig:
        """Return the configuration of a run by this plan.

        Args:
            data: the dataset's folder.
            intensities: that all sites have agreed on.
            own: settings of this machine.
        """
        assert set(own) <= set(_OWN) | {"weights"}
        settings = dataclasses.replace(self.settings, **own)
        return RunConfig(data, self.labels, self.channels, intensities, settings)

    def fixed_intensities(self) -> tuple[Intensity, ...] | None:
        """Return how grey values become 8 bits where the settings say so; None where the images do."""
        settings = self.settings
        if settings.window is not None:
            return (Intensity("window", *settings.window),) * len(self.channels)
        if settings.intensity in ("identity", "percentile"):
            one = Intensity("identity", 0.0, 255.0) if settings.intensity == "identity" else Intensity("percentile")
            return (one,) * len(self.channels)
        return None


def require_same(plan: Plan, labels: Mapping[str, int], channels: tuple[str, ...]) -> None:
    """Make sure that a site has what the plan says.

    Raises:
        InputError: the first thing that differs.
    """
    version = metadata.version("medsaga")
    for where, theirs, ours, what, do in (
        ("medsaga", plan.version, version, "the server's version", "Install that version."),
        ("labels", plan.labels, dict(labels), "those of the federation,", "Correct dataset.json at this site."),
        ("channels", plan.channels, channels, "those of the federation,", "Correct dataset.json at this site."),
    ):
        if theirs != ours:
            raise InputError(where, expected=f"{what} {theirs}", found=f"{ours}", do=do)


def digest_of_frozen(model: SegmentationModel, settings: ResolvedSettings, federation: Federation) -> str:
    """Return the SHA-256 of all parameters and other tensors that are not trained, and of the model's form."""
    new_optimizer(model, settings).close()
    freeze(model, federation)
    parameters = dict(model.named_parameters())
    form = [(name, tuple(weight.shape), weight.requires_grad) for name, weight in parameters.items()]
    frozen = [(name, weight) for name, weight in parameters.items() if not weight.requires_grad]
    return digest_of([*frozen, *model.named_buffers()], form)
