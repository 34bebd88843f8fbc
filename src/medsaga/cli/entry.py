"""The entry of the command line: which verbs there are, and what their errors become."""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback
from importlib import metadata
from typing import Any, get_args

import tyro

from medsaga.cli.app import App
from medsaga.cli.compare import Compare
from medsaga.cli.evaluate import Evaluate, Info
from medsaga.cli.export import Export
from medsaga.cli.federate import Federate
from medsaga.cli.memory import Memory
from medsaga.cli.order import positionals_first
from medsaga.cli.predict import Predict
from medsaga.cli.printing import print_whatever_comes, say
from medsaga.cli.suggest import Suggest
from medsaga.cli.train import Continue, Demo, Train
from medsaga.cli.weights import Weights
from medsaga.distributed.environment import launched_processes, own_rank
from medsaga.errors import InputError, Interrupted, MedsagaError, OutOfMemoryError, RunError

ABOUT = """Fine-tune SAM into a prompt-free, multi-class medical segmenter from a few labelled cases.

Research software, not a medical device. Exit codes: 0 done; 1 failed while running; 2 unusable arguments, settings
or data; 3 out of memory; 130 interrupted, with the state saved."""

_OF_THE_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO))
"""Errors that are no fault of ours: a disk that is full, read-only or broken."""
Verb = (
    Demo | App | Info | Suggest | Train | Evaluate | Predict | Export | Continue | Compare | Federate | Memory | Weights
)


VERBS = {verb.__name__.lower(): verb for verb in get_args(Verb)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code that its help documents."""
    print_whatever_comes()
    arguments = _meant(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"medsaga {metadata.version('medsaga')}")
        return 0
    try:
        verb: Any = tyro.cli(
            Verb,
            prog="medsaga",
            description=ABOUT,
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        if _starts_others(verb):
            from medsaga.distributed.launch import launch

            return launch(verb.devices, verb.device, arguments)
        verb.run()
        sys.stdout.flush()
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):  # help, and arguments that tyro has already complained about
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _explain(error)
        rank = own_rank()
        if message and rank == 0:
            say(f"medsaga: {message}")
        elif message and not isinstance(error, KeyboardInterrupt):
            say(f"medsaga: process {rank}: {message}")
        return code


def _starts_others(verb: Any) -> bool:
    """Return whether this process is to start those of ``--devices``; a launcher may have done it.

    Raises:
        InputError: the launcher has started another number.
    """
    asked, there = getattr(verb, "devices", 1), launched_processes()
    if there == 1:
        return asked != 1
    if asked not in (1, there):
        do = "Leave --devices out."
        raise InputError("--devices", expected=f"{there}, as the launcher has started", found=str(asked), do=do)
    return False


def _meant(arguments: list[str]) -> list[str]:
    """Return the arguments as the parser wants them: help and version in its words, positional arguments together.

    Raises:
        SystemExit: there is no such verb.
    """
    if arguments[:1] in (["-V"], ["version"]):
        return ["--version"]
    if arguments[:1] == ["help"]:
        return [*arguments[1:], "--help"]
    if arguments in ([], ["federate"], ["weights"]):
        return [*arguments, "--help"]
    if arguments[0] in VERBS:
        return [arguments[0], *positionals_first(arguments[1:], VERBS[arguments[0]])]
    if arguments[0].startswith("-"):
        return arguments
    close = difflib.get_close_matches(arguments[0].lower(), VERBS, n=1)
    do = f"Did you mean `medsaga {close[0]}`?" if close else "See `medsaga --help`."
    say(f"medsaga: expected one of {', '.join(VERBS)}; found {arguments[0]}. {do}")
    raise SystemExit(InputError.exit_code)


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, MedsagaError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code, "interrupted"
    if isinstance(error, BrokenPipeError):
        # Who reads our output (`| head`) has had enough. What Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return RunError.exit_code, ""
    if "torch" in sys.modules or isinstance(error, MemoryError):
        from medsaga.memory.tracker import is_out_of_memory

        if is_out_of_memory(error):
            return OutOfMemoryError.exit_code, f"out of memory: {error}"
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        where = error.filename or "a file"
        return RunError.exit_code, f"{where}: cannot be read or written: {error.strerror}; what was finished is kept"
    return RunError.exit_code, f"{type(error).__name__}: {error} (unexpected; --debug shows where it happened)"
