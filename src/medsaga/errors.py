"""The errors that a user can meet, each with the exit code that the command line documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class MedsagaError(Exception):
    """Something went wrong that the user should read as one message, without a traceback."""

    exit_code = 1


class RunError(MedsagaError):
    """A run failed while it was running, for instance because its loss stayed non-finite."""

    exit_code = 1


class InputError(MedsagaError, ValueError):
    """Arguments, settings or data that cannot be used.

    Args:
        where: the file, folder or flag that is at fault.
        expected: what should have been there.
        found: what was there instead.
        do: what the user can do about it, as a sentence.
    """

    exit_code = 2

    def __init__(self, where: str | Path, *, expected: str, found: str, do: str) -> None:
        self.where = str(where)
        self.expected = expected
        self.found = found
        self.do = do
        super().__init__(f"{where}: expected {expected}; found {found}. {do}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Let other processes raise it: an exception is rebuilt from positional arguments, and these have names."""
        return _rebuilt, (self.where, self.expected, self.found, self.do)


def _rebuilt(where: str, expected: str, found: str, do: str) -> InputError:
    return InputError(where, expected=expected, found=found, do=do)


class OutOfMemoryError(MedsagaError):
    """The device's memory does not hold the run; the message names the next smaller setting."""

    exit_code = 3


class Interrupted(MedsagaError):  # noqa: N818 - it is no error of anybody's
    """The user stopped the run; its checkpoint has been saved."""

    exit_code = 130


@contextmanager
def collecting(
    problems: list[InputError] | list[MedsagaError],
    kinds: type[MedsagaError] | tuple[type[MedsagaError], ...] = InputError,
) -> Iterator[None]:
    """Put an error of the block on the list, if it is of these kinds, and go on after the block.

    What the error remembers of where it was raised is dropped: it would keep decoded images alive.
    """
    try:
        yield
    except kinds as problem:
        problem.__cause__ = problem.__context__ = problem.__traceback__ = None
        problems.append(problem)  # type: ignore[arg-type]
