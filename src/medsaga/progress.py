"""How far something that takes a while has come: a bar in one line, on stderr."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

BAR_WIDTH = 24


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
