"""Fine-tune SAM into a prompt-free, multi-class medical segmenter from a few labelled cases.

    import medsaga

    result = medsaga.train("data", "run", medsaga.Settings(shots=8))
    prediction = medsaga.Segmenter.load("run").predict("image.png")

What the command line does, ``train``, ``evaluate`` and ``Segmenter`` do from Python. Research software, not a
medical device.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medsaga.errors import InputError, MedsagaError
    from medsaga.prediction.files import predict_files as predict
    from medsaga.prediction.segmenter import Prediction, Segmenter
    from medsaga.runs.evaluate import evaluate_run as evaluate
    from medsaga.runs.train import train
    from medsaga.settings.options import Settings

__version__ = metadata.version("medsaga")
__all__ = ["InputError", "MedsagaError", "Prediction", "Segmenter", "Settings", "evaluate", "predict", "train"]

# Loaded when first used: importing torch takes seconds, and `medsaga --help` must not wait for it.
_HOMES = {
    "InputError": ("medsaga.errors", "InputError"),
    "MedsagaError": ("medsaga.errors", "MedsagaError"),
    "Prediction": ("medsaga.prediction.segmenter", "Prediction"),
    "Segmenter": ("medsaga.prediction.segmenter", "Segmenter"),
    "Settings": ("medsaga.settings.options", "Settings"),
    "evaluate": ("medsaga.runs.evaluate", "evaluate_run"),
    "predict": ("medsaga.prediction.files", "predict_files"),
    "train": ("medsaga.runs.train", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medsaga' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)
