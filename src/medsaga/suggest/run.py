"""What ``medsaga suggest`` does: find the cases that nobody has labelled, embed them, and choose."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.dataset import raise_problems, read_dataset, require_order, select_channels
from medsaga.data.inputs import find_inputs
from medsaga.data.intensity import Intensity
from medsaga.data.items import for_channels
from medsaga.data.known import recognise
from medsaga.data.labels import listed
from medsaga.data.layouts import layout_of
from medsaga.data.slices import common_axis
from medsaga.data.sources import place_of
from medsaga.data.splits import Split
from medsaga.data.types import Dataset, Item
from medsaga.device import choose_device
from medsaga.errors import InputError, collecting
from medsaga.models.encoders import encoder_spec
from medsaga.models.sam import build_sam
from medsaga.models.weights.loading import load_pretrained
from medsaga.models.weights.registry import RANDOM, STARTER
from medsaga.planning.resolve import choose_model
from medsaga.prediction.segmenter import BATCH_SIZE, Segmenter
from medsaga.progress import counting
from medsaga.runs.continuing import datasets_of, joined
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig
from medsaga.suggest.coverage import choose, standardised
from medsaga.suggest.embedding import CaseEmbedder, CaseEmbedding

MOST_PIXELS = 448
"""Side of the square for weights that were made for larger ones: what an image is like shows at this size too."""

_USUAL_COUNT = 5

Cases = dict[str, list[Item]]
"""The images of each case, cases sorted by name."""


def suggest(
    folder: Path,
    *,
    run: Path | None = None,
    model: str | None = None,
    count: int | None = None,
    series: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> dict[str, Any]:
    """Suggest which unlabelled cases to annotate next.

    Without a run, cases are chosen that stand best for all others in what an encoder makes of them; cases of ``folder``
    that have masks count as chosen already. With a run the encoder is its own, the cases that it was trained on count
    as chosen, and a case weighs as much as the run's model is uncertain of it.

    Args:
        folder: images, one per case, or a dataset of which not all images have masks.
        run: a run folder. Cases of its names are not suggested.
        model: weights of SAM to embed cases with when there is no run, as `medsaga weights verify` takes them;
            ``starter`` by default.
        count: number of cases to suggest; None for five, or as many as there are.
        series: which DICOM series of each examination is meant; see `medsaga.data.inputs.find_inputs`.
        device: see `medsaga.device.choose_device`.
        console: where progress is shown; stderr by default.

    Returns:
        ``suggestions``, best first, each with ``case``; ``images``, their number; ``stands_for``, the number of
        unlabelled cases that are nearer to it than to any labelled or suggested one, itself included; ``distance`` to
        the nearest labelled or earlier case (two cases are 1.4 apart on average), None where there is none; and
        ``uncertainty``, 1 minus the model's confidence, None without a run. Besides ``unlabelled`` and ``labelled``,
        the number of cases of both kinds, and ``looked_with``.

    Images that cannot be read are named, and left out.

    Raises:
        InputError: there are too few cases, or the folder, the run or the weights cannot be used.
    """
    console = console or Console(stderr=True)
    folder, run = Path(folder), None if run is None else Path(run)

    def warn(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    if run is not None and model is not None:
        raise InputError("--model", expected="no other model beside a run", found=model, do="Leave one of the two out.")
    if not folder.exists():
        raise InputError(folder, expected="a folder of images", found="nothing of this name", do="Check the path.")
    problems: list[InputError] = []
    if run is None:
        looked_with = model or STARTER
        found = _found(folder, None, series, problems, warn)
        embedder = _pretrained(looked_with, found, choose_device(device))
        unlabelled, labelled = _divided(found, frozenset())
    else:
        looked_with = run.resolve().name
        segmenter = Segmenter.load(run, device)
        found = _found(folder, segmenter.config, series, problems, warn)
        embedder = _trained(segmenter)
        split = Split.from_json(files.read_json(run / run_folder.SPLIT))
        unlabelled, labelled = _divided(found, {*split.train, *split.validation, *split.test})
        if known := sorted(found.keys() - unlabelled.keys() - labelled.keys()):
            console.print(f"left out, because the run has cases of these names: {listed(known)}", markup=False)
        if copies := _known_images(unlabelled, run, split):
            unlabelled = {name: items for name, items in unlabelled.items() if name not in copies}
            console.print(f"left out, because the run has their images: {listed(copies)}", markup=False)
        labelled |= _training_cases(segmenter.config, split, console)
    count = _count(folder, count, len(unlabelled))
    embeddings = _embeddings(embedder, unlabelled | labelled, problems, counting(console, "embedding cases"))
    for problem in problems:
        console.print(f"left out: {problem}", style="yellow", markup=False, highlight=False)
    unlabelled = {name: items for name, items in unlabelled.items() if name in embeddings}
    if not unlabelled:
        raise problems[0]
    return {
        "suggestions": _suggestions(unlabelled, embeddings, min(count, len(unlabelled))),
        "unlabelled": len(unlabelled),
        "labelled": len(labelled),
        "looked_with": looked_with,
    }


def _count(folder: Path, count: int | None, unlabelled: int) -> int:
    if not unlabelled:
        raise InputError(
            folder,
            expected="cases to choose from",
            found="none that is neither labelled nor among the run's",
            do="Name a folder with unlabelled images.",
        )
    if count is None:
        return min(_USUAL_COUNT, unlabelled)
    if not 0 < count <= unlabelled:
        expected = f"1 to {unlabelled}, the cases of {folder} without masks"
        raise InputError("--n", expected=expected, found=str(count), do="Choose another number.")
    return count


def _suggestions(unlabelled: Cases, embeddings: dict[str, CaseEmbedding], count: int) -> list[dict[str, Any]]:
    names = list(embeddings)
    points = standardised(np.stack([case.embedding for case in embeddings.values()]))
    uncertainty = [None if case.confidence is None else 1 - case.confidence for case in embeddings.values()]
    choices = choose(
        points,
        weights=np.array([1.0 if value is None else value for value in uncertainty]),
        labelled=np.array([name not in unlabelled for name in names]),
        count=count,
    )
    return [
        {
            "case": names[choice.index],
            "images": len(unlabelled[names[choice.index]]),
            "stands_for": choice.stands_for,
            "distance": choice.distance,
            "uncertainty": uncertainty[choice.index],
        }
        for choice in choices
    ]


def _embeddings(
    embedder: CaseEmbedder, cases: Cases, problems: list[InputError], progress: Callable[[int, int], None]
) -> dict[str, CaseEmbedding]:
    embeddings = {}
    for done, (name, items) in enumerate(cases.items(), 1):
        with collecting(problems):
            embeddings[name] = embedder.embed(items)
        progress(done, len(cases))
    return embeddings


def _found(
    folder: Path,
    config: RunConfig | None,
    series: str | None,
    problems: list[InputError],
    warn: Callable[[str], None],
) -> Cases:
    """Return all cases of a folder of images or a dataset, with the channels of the run, or all with the same.

    Images in a folder that cannot be read go on the list of problems.
    """
    channels = config.channels if config else None
    if layout_of(folder):
        dataset = _readable(folder, config.settings.channels if config else None)
        if config:
            require_order(folder, dataset.channels, config.channels)
        for warning in dataset.warnings:
            warn(warning)
        items: Sequence[Item] = dataset.items
    else:
        items = find_inputs(folder, channels=channels, series=series, problems=problems, warn=warn)
        if not items:
            raise problems[0]
    wanted = len(config.channels) if config else max(item.header.channels for item in items)
    items = [for_channels(item, wanted) for item in items]
    for item in items:
        if item.header.channels != wanted:
            raise InputError(
                place_of(item.images[0]),
                expected=f"{wanted} channel(s), as {'the run takes' if config else 'the other images have'}",
                found=str(item.header.channels),
                do="Give images with the same channels.",
            )
    return _by_case(items)


def _readable(folder: Path, names: Sequence[str] | None) -> Dataset:
    dataset = read_dataset(folder, masks_required=False)
    raise_problems(dataset.problems)
    return select_channels(dataset, names)


def _by_case(items: Iterable[Item]) -> Cases:
    cases: defaultdict[str, list[Item]] = defaultdict(list)
    for item in items:
        cases[item.case].append(item)
    return dict(sorted(cases.items()))


def _known_images(cases: Cases, run: Path, split: Split) -> tuple[str, ...]:
    """Return the cases with an image of one that the run has used; none where it has no record of its images."""
    path = run / run_folder.DIGESTS
    if not path.exists():
        return ()
    met = recognise([item for items in cases.values() for item in items], split, files.read_json(path))
    return (*met.seen, *met.held_out)


def _divided(found: Cases, known: frozenset[str] | set[str]) -> tuple[Cases, Cases]:
    """Divide cases into those that lack a mask and are not known by name, and those that have all masks."""
    labelled = {name: items for name, items in found.items() if all(item.masks for item in items)}
    unlabelled = {name: items for name, items in found.items() if name not in labelled and name not in known}
    return unlabelled, labelled


def _training_cases(config: RunConfig, split: Split, console: Console) -> Cases:
    """Return the cases that a run was trained on; none, and a word about it, where its data are not there any more."""
    try:
        first, *added = datasets_of(config)
        dataset = joined(first, added, (*split.train, *split.validation))
    except InputError as problem:
        console.print(f"what the run was trained on is not taken into account: {problem}", markup=False)
        return {}
    return _by_case(dataset.items)


def _trained(segmenter: Segmenter) -> CaseEmbedder:
    settings = segmenter.config.settings
    return CaseEmbedder(
        segmenter.model,
        segmenter.config.intensities,
        axis=settings.axis,
        neighbours=settings.neighbours,
        tile=settings.tile,
        batch_size=min(BATCH_SIZE, settings.micro_batch_size),
        classes=True,
    )


def _pretrained(source: str, found: Cases, device: torch.device) -> CaseEmbedder:
    """Return pre-trained weights as an embedder at these cases; there are no masks yet to choose a CT window on."""
    start = choose_model(Settings(model=source))
    if start.weights in (None, RANDOM):
        raise InputError(
            "--model",
            expected="pre-trained weights, because random ones see nothing",
            found=source,
            do="Name weights, such as starter; see `medsaga weights list`.",
        )
    assert start.weights is not None
    items = [item for items in found.values() for item in items]
    channels = items[0].header.channels
    size = min(encoder_spec(start.model).image_size, MOST_PIXELS)
    model = build_sam(start.model, classes=2, image_size=size, in_channels=channels)
    load_pretrained(model, start.weights)
    of_8_bits = all(item.header.dtype == np.uint8 for item in items)
    return CaseEmbedder(
        model.to(device).eval(),
        (Intensity("identity", 0.0, 255.0) if of_8_bits else Intensity("percentile"),) * channels,
        axis=common_axis((item.header.grid for item in items), "auto"),
        neighbours=0,
        tile=None,
        batch_size=BATCH_SIZE,
        classes=False,
    )
