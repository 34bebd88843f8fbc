"""The command line: one dataclass per verb, whose docstrings are its help and whose ``run`` does it.

What takes long to import is imported where it is used, so that ``medsaga --help`` answers at once.
"""

from medsaga.cli.entry import main

__all__ = ["main"]
