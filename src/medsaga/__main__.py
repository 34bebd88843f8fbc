"""``python -m medsaga``."""

import os
import sys

from medsaga.cli import main
from medsaga.distributed.environment import launched_processes

code = main()
if code and launched_processes() > 1:
    # A process that fails does not take leave of the others, and the threads that carry its messages may still need
    # the interpreter when that is being taken down: the process would abort instead of ending with its exit code.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
