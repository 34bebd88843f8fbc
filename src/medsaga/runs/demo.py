"""``medsaga demo``: the whole way on a generated phantom CT, so that a newcomer sees it work before any data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.phantom import write_phantom_ct
from medsaga.prediction.files import OutputOptions, predict_files
from medsaga.runs.train import train
from medsaga.settings.options import Settings

# The phantom's cases are much alike: changed images would teach nothing, and ask for more steps.
SETTINGS = Settings(shots=4, steps=150, evaluate_every=30, batch_size=4, image_size=128, augmentation="none")


def demo(out: Path, console: Console) -> dict[str, Any]:
    """Write a phantom dataset, train on four of its cases, test on the others, and predict one of them.

    Args:
        out: folder for ``data``, ``run`` and ``prediction``; it must not exist.
        console: where progress is shown.

    Returns:
        the content of ``result.json``.

    Raises:
        InputError: ``out`` exists.
    """
    files.require_new(out, "a folder")
    data, run = out / "data", out / "run"
    write_phantom_ct(data, cases=10, shape=(128, 128, 16), seed=0)
    console.print(f"phantom CT: {data} (nnU-Net layout)")
    result = train(data, run, SETTINGS, console=console)
    worst = min(result["cases"], key=lambda case: case["dice_mean"])
    image = data / "imagesTr" / f"{worst['name']}_0000.nii.gz"
    predict_files(run, image, out / "prediction", OutputOptions(overlay=True), console=console)
    console.print(f"report: {run / run_folder.REPORT}\npicture: {out / 'prediction'} ({worst['name']}, the worst case)")
    console.print(f"in the browser: medsaga app {run}")
    return result
