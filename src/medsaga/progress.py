"""What a user sees while a run goes on: a bar on a terminal, a line per evaluation elsewhere. All on stderr."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

MIB = 2**20
BAR_WIDTH = 24


class RunProgress:
    """The progress of one training run: step, loss, Dice, peak memory, time left."""

    def __init__(self, console: Console, *, steps: int, first: int, dice_name: str) -> None:
        """Show ``steps`` steps of which ``first`` are done; ``dice_name`` says whose Dice is shown."""
        self._console = console
        self._dice_name = dice_name
        self._dice = "-"
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
        self._task = self._bar.add_task("", total=steps, completed=first, loss="-", dice="", peak="-")

    def __enter__(self) -> Self:
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: types.TracebackType | None
    ) -> None:
        """Stop the bar and leave its last state."""
        self._bar.stop()

    def step(self, done: int, loss: float, peak_bytes: int) -> None:
        """Show the state after ``done`` steps."""
        self._bar.update(self._task, completed=done, loss=f"{loss:.4f}", peak=f"{peak_bytes / MIB:,.0f} MiB")

    def evaluation(self, done: int, loss: float, dice: float, peak_bytes: int) -> None:
        """Show an evaluation; without a terminal, print it as a line."""
        self._bar.update(self._task, dice=f"{self._dice_name} {dice:.3f}")
        if not self._console.is_terminal:
            self._console.print(
                f"step {done}: loss {loss:.4f}, {self._dice_name} {dice:.4f}, peak {peak_bytes / MIB:,.0f} MiB",
                highlight=False,
            )


def counting(console: Console, what: str) -> Callable[[int, int], None]:
    """Return a ``progress(done, total)`` that shows a bar in one line, on a terminal; it is silent elsewhere."""

    def show(done: int, total: int) -> None:
        if not console.is_terminal:
            return
        filled = BAR_WIDTH * done // max(1, total)
        line = f"[{'=' * filled:{BAR_WIDTH}}] {done}/{total} {what}"
        # A line that is wider than the terminal could not be written over.
        console.print(line[: console.width - 1], end="\r" if done < total else "\n", markup=False, highlight=False)

    return show
