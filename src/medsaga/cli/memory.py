"""The verb `medsaga memory`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from rich.console import Console

from medsaga.cli.options import TrainOptions, arg, settings_of
from medsaga.settings.options import Settings


@dataclass(kw_only=True)
class Memory:
    """Predict the memory of a training run, without GPU and data."""

    options: TrainOptions
    classes: Annotated[int, arg("N", shown="9")] = 9
    """Number of classes, background included."""
    in_channels: Annotated[int, arg("N", shown="3")] = 3
    """Channels of the model's input; a single grey one takes what three take."""
    json: bool = False
    """Print one JSON document."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Do it."""
        from medsaga.planning.report import memory_document, memory_tables

        document = memory_document(
            settings_of(Settings, self.options), classes=self.classes, in_channels=self.in_channels
        )
        if self.json:
            print(json.dumps(document, indent=2))
            return
        for table in memory_tables(document):
            Console().print(table)
