"""What ``medsaga predict`` writes: label maps, and on request measurements, probabilities and overlay pictures."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from medsaga import overlay as pictures
from medsaga import postprocess
from medsaga.confidence import ConfidenceScores, look_first
from medsaga.data.dicom.series import Series
from medsaga.data.dicom.terminology import Terminology
from medsaga.data.formats import stem
from medsaga.data.inputs import find_inputs
from medsaga.data.items import warnings_of
from medsaga.data.outputs import Meaning, kind_of, suffix_for, write_labels, write_probabilities
from medsaga.data.slices import most_labelled
from medsaga.data.sources import files_of
from medsaga.data.types import Item, Labels, to_class_indices
from medsaga.errors import InputError
from medsaga.files import replacing
from medsaga.inference import Prediction, Segmenter
from medsaga.measure import Measurement, measure, write_csv
from medsaga.postprocess import PostProcessing
from medsaga.progress import counting

MEASUREMENTS = "measurements.csv"
"""Volume or area, largest diameter and components of every class and case."""
CONFIDENCE = "confidence.csv"
"""Every case with the confidence of the model in it, the least confident first: the order to correct them in."""
_LOOK_AT = 5


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be written of a prediction.

    Attributes:
        format: see `medsaga.data.outputs.kind_of`.
        probabilities: ``NAME_probabilities`` too, float32, a channel (a page, in 2-D) per class.
        overlay: ``NAME_overlay.png`` too: the image with the label map on it; of a volume, the slice that holds most
            of it.
        measure: `MEASUREMENTS` too, beside the label maps.
        post: what is done to a label map before it is written; probabilities and confidence stay the model's.
        codes: coded terminology of label names, for DICOM.
    """

    format: str = "auto"
    probabilities: bool = False
    overlay: bool = False
    measure: bool = False
    post: PostProcessing = field(default_factory=PostProcessing)
    codes: Mapping[str, Terminology] = field(default_factory=dict)


def predict_files(
    run: Path,
    source: Path,
    out: Path,
    wanted: Wanted | None = None,
    *,
    series: str | None = None,
    tta: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> list[Path]:
    """Segment a file or a folder and write a label map for each image, on the input's own grid.

    Of several images the least confident ones are named, and all are listed in `CONFIDENCE`.

    Args:
        run: run folder.
        source: an image, a volume, a DICOM series, or a folder of them; see `medsaga.data.inputs.find_inputs`.
        out: a folder for a folder; for one image, a file with the suffix of a format, or a folder.
        wanted: what is written.
        series: which DICOM series of each examination is meant.
        tta: average the probabilities over the flips of each slice; takes four times as long.
        device: see `medsaga.device.choose_device`.
        console: where progress is shown.

    Returns:
        the label maps, in the order of the inputs.

    Raises:
        InputError: the run, an input or the output cannot be used.
    """
    console, wanted = console or Console(stderr=True), wanted or Wanted()
    segmenter = Segmenter.load(run, device)
    items = find_inputs(
        source,
        channels=segmenter.config.channels,
        series=series,
        warn=lambda text: console.print(text, markup=False, highlight=False),
    )
    outputs = _outputs(items, source, out, wanted.format)
    meaning = Meaning(segmenter.config.labels, f"{segmenter.config.settings.model}, {_version()}", wanted.codes)
    scores: dict[str, ConfidenceScores] = {}
    rows: list[tuple[str, Measurement]] = []
    for item, (path, kind) in zip(items, outputs, strict=True):
        show = counting(console, item.name)
        prediction = segmenter.predict_item(item, probabilities=wanted.probabilities, tta=tta, progress=show)
        for warning in warnings_of(item):
            console.print(f"{item.name}: {warning}", markup=False, highlight=False)
        labels = _cleaned(prediction.labels, item, wanted.post, segmenter)
        bare = path.with_name(path.stem if path.suffix.lower() == ".dcm" else stem(path))
        if wanted.overlay:
            pictures.save_png(bare.with_name(f"{bare.name}_overlay.png"), _picture(prediction, labels, segmenter))
        if prediction.probabilities is not None:
            write_probabilities(bare.with_name(f"{bare.name}_probabilities"), prediction.probabilities, item)
        write_labels(path, labels, item, kind, meaning)
        scores[item.name] = prediction.confidence
        if wanted.measure:
            rows += [(item.name, row) for row in measure(labels, item.header.grid, segmenter.config.labels)]
            # After every case, so that what is interrupted has what is done.
            write_csv(path.parent / MEASUREMENTS, rows)
    _say_confidence(scores, outputs[0][0].parent, segmenter, console)
    return [path for path, _ in outputs]


def _outputs(items: Sequence[Item], source: Path, out: Path, asked: str) -> list[tuple[Path, str]]:
    """Name the label map of every item and what it is written as; refuse to write over an input."""
    # The folder of a DICOM series is one image, a folder with one file is still a folder.
    is_one = len(items) == 1 and (not source.is_dir() or isinstance(items[0].images[0], Series))
    is_file = is_one and out.suffix != "" and not out.is_dir()
    kinds = [kind_of(item, asked, out if is_file else None) for item in items]
    paths = [
        out if is_file else out / f"{item.name}{suffix_for(kind, item.images[0])}"
        for item, kind in zip(items, kinds, strict=True)
    ]
    inputs = {file.resolve() for item in items for image in item.images for file in files_of(image)}
    for path in paths:
        if path.resolve() in inputs:
            raise InputError(path, expected="an output that is no input", found="an input", do="Choose another --out.")
    return list(zip(paths, kinds, strict=True))


def _cleaned(labels: Labels, item: Item, post: PostProcessing, segmenter: Segmenter) -> Labels:
    if post == PostProcessing():
        return labels
    return postprocess.apply(labels, item.header.grid, post, values=segmenter.label_values.tolist())


def _picture(prediction: Prediction, labels: Labels, segmenter: Segmenter) -> npt.NDArray[np.uint8]:
    stack = prediction.view.view(labels[np.newaxis])[:, 0]
    index = most_labelled(stack)
    return pictures.overlay(prediction.picture[index], to_class_indices(stack[index], segmenter.label_values))


def _say_confidence(
    scores: Mapping[str, ConfidenceScores], folder: Path, segmenter: Segmenter, console: Console
) -> None:
    if len(scores) < 2:
        return
    means = {name: score["mean"] for name, score in scores.items()}
    order = look_first(means)
    classes = [name for name, value in segmenter.config.labels.items() if value != 0]
    with replacing(folder / CONFIDENCE) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["case", "confidence", *classes])
        for name in order:
            writer.writerow([name, *(f"{each:.4f}" for each in (means[name], *scores[name]["classes"]))])
    first = ", ".join(f"{name} ({means[name]:.2f})" for name in order[:_LOOK_AT])
    console.print(f"look at these first: {first}; all in {folder / CONFIDENCE}", markup=False, highlight=False)


def _version() -> str:
    return f"medsaga {metadata.version('medsaga')}"
