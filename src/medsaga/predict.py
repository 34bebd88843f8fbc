"""What ``medsaga predict`` writes: label maps, and on request probabilities and overlay pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from medsaga import overlay as pictures
from medsaga.data.dataset import find_inputs
from medsaga.data.formats import format_of, stem
from medsaga.data.types import Item, to_class_indices
from medsaga.errors import InputError
from medsaga.inference import Prediction, Segmenter
from medsaga.progress import counting


def predict_files(
    run: Path,
    source: Path,
    out: Path,
    *,
    probabilities: bool = False,
    overlay: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> list[Path]:
    """Segment a file or a folder of files and write a label map for each, on the input's own grid.

    Args:
        run: run folder.
        source: an image, a volume, or a folder of them (one file per image, or nnU-Net's one file per channel).
        out: a folder for a folder; for one file, a file whose suffix is of the input's format, or a folder.
        probabilities: write ``NAME_probabilities`` too, float32, a channel (a page, in 2-D) per class.
        overlay: write ``NAME_overlay.png`` too: the image with the label map on it; of a volume, the slice that
            holds most of it.
        device: see `medsaga.device.choose_device`.
        console: where progress is shown.

    Returns:
        the label maps, in the order of the inputs.

    Raises:
        InputError: the run, an input or the output cannot be used.
    """
    console = console or Console(stderr=True)
    segmenter = Segmenter.load(run, device)
    items = find_inputs(source, channels=len(segmenter.config.channels))
    paths = _outputs(items, source, out)
    for item, path in zip(items, paths, strict=True):
        show = counting(console, item.name)
        prediction = segmenter.predict_item(item, probabilities=probabilities, progress=show)
        like = item.images[0]
        if overlay:
            pictures.save_png(path.with_name(f"{stem(path)}_overlay.png"), _picture(prediction, segmenter))
        if prediction.probabilities is not None:
            soft = path.with_name(f"{stem(path)}_probabilities{format_of(like).PROBABILITIES_SUFFIX}")
            format_of(soft).write_probabilities(soft, prediction.probabilities, like)
        format_of(path).write_labels(path, prediction.labels, like)
    return paths


def _outputs(items: list[Item], source: Path, out: Path) -> list[Path]:
    """Name the label map of every item; refuse to write over an input."""
    if source.is_dir() or out.is_dir() or not out.suffix:
        paths = [out / f"{item.name}{format_of(item.images[0]).LABELS_SUFFIX}" for item in items]
    else:
        wanted, given = format_of(items[0].images[0]), format_of(out)
        if wanted is not given:
            raise InputError(
                out,
                expected=f"a label map in the input's format ({', '.join(wanted.SUFFIXES)})",
                found="another format",
                do="Change the suffix of --out.",
            )
        paths = [out]
    inputs = {image.resolve() for item in items for image in item.images}
    for path in paths:
        if path.resolve() in inputs:
            raise InputError(path, expected="an output that is no input", found="an input", do="Choose another --out.")
    return paths


def _picture(prediction: Prediction, segmenter: Segmenter) -> npt.NDArray[np.uint8]:
    classes = to_class_indices(prediction.labels, segmenter.label_values)
    stack = prediction.view.view(classes[None])[:, 0]
    index = int((stack > 0).sum(axis=(1, 2)).argmax())
    return pictures.overlay(prediction.picture[index], stack[index])
