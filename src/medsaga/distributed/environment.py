"""What a launcher, torch's or ours, tells each process that it starts; importing this module needs no torch."""

from __future__ import annotations

import os

STORE = "MEDSAGA_PROCESS_STORE"
"""Environment variable: the file in which processes of our own launcher meet; torchrun's meet at an address."""


def launched_processes() -> int:
    """Return how many processes a launcher has started together; 1 where there was none."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def own_rank() -> int:
    """Return which of them this process is; 0 where it is alone."""
    return int(os.environ["RANK"]) if launched_processes() > 1 else 0
