"""What a command imports before it knows that it needs more brings nothing heavy with it."""

from __future__ import annotations

import subprocess
import sys

LIGHT = (
    "cli",
    "data.dicom.pixels",
    "prediction.confidence_table",
    "prediction.measure",
    "prediction.postprocess",
    "reports.run",
    "compare.page",
)
HEAVY = {"torch", "monai", "transformers", "matplotlib", "jinja2", "SimpleITK", "pydicom", "highdicom", "nibabel"}


def test_light_modules_load_nothing_heavy() -> None:
    """One process imports all of them, so that its start counts once."""
    code = f"import sys, {', '.join(f'medsaga.{name}' for name in LIGHT)}; print({HEAVY} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
