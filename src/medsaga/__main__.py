"""``python -m medsaga``, and the command ``medsaga``."""

import os
import sys

from medsaga.cli import main
from medsaga.distributed.environment import launched_processes


def run() -> None:
    """Run the command line and end this process with its exit code."""
    code = main()
    if launched_processes() > 1:
        # The threads that carry messages between processes may still let go of Python's objects while the interpreter
        # is being taken down: the process would abort instead of ending with its exit code.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
