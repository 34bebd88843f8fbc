"""Where a part measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from medsaga.data.phantom import write_phantom_ct
from medsaga.planning.defaults import DeviceDefaults


@dataclass(frozen=True)
class Place:
    """Where a part measures.

    Attributes:
        device: that is measured.
        small: whether small models and few steps are enough.
        data: a labelled dataset, or None.
        folder: empty, for what a part writes.
    """

    device: torch.device
    small: bool
    data: Path | None
    folder: Path

    @property
    def defaults(self) -> DeviceDefaults:
        """What a run on a GPU takes where the user says nothing; the small one on a CPU takes the same."""
        return DeviceDefaults("bf16", 8)

    @property
    def rounds(self) -> int:
        """How often something is timed; the first two times do not count."""
        return 3 if self.small else 8

    def dataset(self) -> Path:
        """Return the dataset, or a generated one."""
        if self.data is not None:
            return self.data
        made = self.folder / "data"
        if not made.exists():
            cases, shape = (4, (64, 64, 3)) if self.small else (16, (192, 192, 24))
            write_phantom_ct(made, cases=cases, shape=shape)
        return made

    def synchronise(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
