"""The entry of the command line: which verbs there are, and what their errors become."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import tyro

from medsaga.cli.compare import Compare
from medsaga.cli.evaluate import Evaluate, Info
from medsaga.cli.memory import Memory
from medsaga.cli.predict import Predict
from medsaga.cli.suggest import Suggest
from medsaga.cli.train import Demo, Train
from medsaga.cli.weights import Weights
from medsaga.errors import Interrupted, MedsagaError, OutOfMemoryError, RunError

ABOUT = """Fine-tune SAM into a prompt-free, multi-class medical segmenter from a few labelled cases.

Research software, not a medical device. Exit codes: 0 done; 1 failed while running; 2 unusable arguments, settings
or data; 3 out of memory; 130 interrupted, with the state saved."""

Verb = Demo | Info | Train | Evaluate | Predict | Suggest | Compare | Memory | Weights


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code that its help documents."""
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        verb: Any = tyro.cli(
            Verb,
            prog="medsaga",
            description=ABOUT,
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        verb.run()
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):  # help, and arguments that tyro has already complained about
            raise
        if debug:
            traceback.print_exc()
        code, message = _explain(error)
        _say(message)
        return code


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, MedsagaError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return Interrupted.exit_code, "interrupted"
    if "torch" in sys.modules or isinstance(error, MemoryError):
        from medsaga.memory.tracker import is_out_of_memory

        if is_out_of_memory(error):
            return OutOfMemoryError.exit_code, f"out of memory: {error}"
    return RunError.exit_code, f"{type(error).__name__}: {error} (unexpected; --debug shows where it happened)"


def _say(message: str) -> None:
    # Rich would take [brackets] in a file's name for markup.
    print(f"medsaga: {message}", file=sys.stderr)
