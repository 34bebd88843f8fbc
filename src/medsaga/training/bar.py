"""What a user sees while a run goes on: a bar on a terminal, a line per evaluation elsewhere. All on stderr."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medsaga.progress import counting
from medsaga.training.events import Evaluated, Event, Notice, Stepped, Stopped, Working

MIB = 2**20


class RunProgress:
    """The progress of one training run: step, loss, Dice, peak memory, time left."""

    def __init__(self, console: Console, *, steps: int, dice_name: str) -> None:
        """Show ``steps`` steps; ``dice_name`` says whose Dice is shown."""
        self._console = console
        self._dice_name = dice_name
        self._counting: Callable[[int, int], None] | None = None
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[dice]}  peak {task.fields[peak]}"),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, loss="-", dice="", peak="-")

    def __enter__(self) -> Self:
        """Return it; the bar appears with the first step."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: types.TracebackType | None
    ) -> None:
        """Stop the bar and leave its last state."""
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Show an event; without a terminal, evaluations and what the user should know are printed as lines."""
        match event:
            case Working():
                self._counting = self._counting or counting(self._console, event.what)
                self._counting(event.done, event.total)
            case Stepped():
                self._bar.start()
                peak = f"{event.peak_bytes / MIB:,.0f} MiB"
                self._bar.update(self._task, completed=event.step, loss=f"{event.loss:.4f}", peak=peak)
            case Evaluated():
                self._bar.update(self._task, dice=f"{self._dice_name} {event.dice:.3f}")
                if not self._console.is_terminal:
                    loss = "" if event.loss is None else f"loss {event.loss:.4f}, "
                    peak = f"peak {event.peak_bytes / MIB:,.0f} MiB"
                    self.say(f"step {event.step}: {loss}{self._dice_name} {event.dice:.4f}, {peak}")
            case Notice():
                self.say(event.text)
            case Stopped(reason="patience"):
                self.say(f"stopped at step {event.step}: the Dice has not become better for a while")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, highlight=False)
