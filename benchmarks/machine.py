"""What a benchmark ran on, for its record."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

import medsaga


def machine() -> dict[str, Any]:
    """Return the processor, its cores, and the versions that matter; no name of the machine."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "medsaga": medsaga.__version__,
    }
