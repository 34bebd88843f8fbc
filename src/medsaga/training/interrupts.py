"""Ctrl-C and SIGTERM in a training run: the first ends it after the step under way, the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


class Interrupts:
    """Whether a run was asked to stop, and which parts of it nothing may interrupt.

    Attributes:
        asked: set when the run is to stop after the step under way; any thread may set it.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._shielded = 0
        self._lasting = False
        self._urgent = False

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Let a second Ctrl-C wait until the block is over: weights are half updated in it, or a file half written."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= not self._lasting
        self._catch_up()

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Let a shield that is raised in the block last to its end: what is begun behind it is also told."""
        before, self._lasting = self._shielded, True
        try:
            yield
        finally:
            self._shielded, self._lasting = before, False
        self._catch_up()

    @contextlib.contextmanager
    def on_signals(self, said: Callable[[], None]) -> Iterator[None]:
        """Listen to Ctrl-C and SIGTERM in the block; elsewhere than in the main thread, do nothing.

        Args:
            said: tells the user what happens now; called at the first signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: object) -> None:
            if not self.asked.is_set():
                self.asked.set()
                said()
            elif self._shielded:
                self._urgent = True
            else:
                raise KeyboardInterrupt

        before = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _catch_up(self) -> None:
        """Make up for a second Ctrl-C that had to wait."""
        if self._urgent and not self._shielded:
            self._urgent = False
            raise KeyboardInterrupt
