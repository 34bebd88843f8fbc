"""Testing a trained model on labelled cases, on the images' own grids, and writing down what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.dataset import raise_problems, read_dataset, require_order
from medsaga.data.intensity import require_mappable
from medsaga.data.items import read_mask
from medsaga.data.known import recognise
from medsaga.data.labels import listed
from medsaga.data.layouts.labelling import DESCRIPTION
from medsaga.data.slices import most_labelled
from medsaga.data.splits import Split
from medsaga.data.survey import survey
from medsaga.data.types import Dataset, Item, Labels, to_class_indices
from medsaga.distributed.group import ALONE, Group
from medsaga.errors import InputError
from medsaga.evaluation.protocols import LabelScore, protocol_named
from medsaga.evaluation.summary import ItemScores, summarise
from medsaga.prediction.overlay import triptych
from medsaga.prediction.segmenter import Prediction, Segmenter
from medsaga.progress import counting
from medsaga.reports.run import Example, choose_examples, write_report
from medsaga.run_folder import read_metrics
from medsaga.runs.continuing import named_as_in_run
from medsaga.runs.loading import warn
from medsaga.settings.run_config import RunConfig, read_config


def evaluate_run(
    run: Path,
    *,
    data: Path | None = None,
    dataset: Dataset | None = None,
    segmenter: Segmenter | None = None,
    device: str = "auto",
    base: str | None = None,
    console: Console | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Score a run's model on its test cases, or on all cases of another dataset.

    On its own test cases ``result.json`` and ``report.html`` are written into the run folder. On ``data`` nothing is
    written: the run's result stays that of its own split. Cases that the run has seen are left out, by the content of
    their images, and named; where ``data`` hold nothing but cases of the run, its test cases alone are scored.

    A delta file knows nothing of the cases that its run was trained on: all cases of ``data`` are scored.

    A run that was trained on every case has nothing to be tested on: its Dice is None.

    Args:
        run: the run folder, or a delta file.
        data: another dataset with the same labels; a delta file has none of its own.
        dataset: the run's own, if it has just been read and checked.
        segmenter: the run's model, if it is in memory; else it is loaded.
        device: where the model is loaded: auto, cpu, cuda, cuda:N or mps.
        base: the weights that a delta file belongs to; see `Segmenter.load`.
        console: where progress is shown; stderr by default.
        group: of the processes that share the images, each of which calls this; process 0 writes.

    Returns:
        the content of ``result.json``: Dice and HD95 per label and per case, the protocol, the cost of the training.
        On ``data`` also ``cases_skipped_trained_on``, the names of the cases that were left out.

    Raises:
        InputError: the run or the data cannot be used, the labels differ, or the run has seen all cases of ``data``.
    """
    console = console or Console(stderr=True)
    if run.is_file():
        return _score_delta(run, data, segmenter or Segmenter.load(run, device, base), console, group)
    config = read_config(run / run_folder.CONFIG)
    if data is None and group.is_first:
        files.require_writable(run, "Copy the run to another place, or make room for its report.")
    segmenter = segmenter or Segmenter.load(run, device, base)
    warn(console, run_folder.said_if_unfinished(run))
    known_to_be_good = dataset is not None
    if dataset is None:
        dataset = labelled(_own_data(config, run) if data is None else data, config, console)
    split = Split.from_json(files.read_json(run / run_folder.SPLIT))
    skipped: tuple[str, ...] = ()
    if data is None:
        items = dataset.items_of(split.test)
    else:
        items, skipped = _not_seen(run, split, dataset, console)
    if not known_to_be_good:
        _check_images(dataset, items, config)
    if not items:
        console.print("no case was held out, so there is nothing to test on; score other cases with --data")
    scored = _score(segmenter, dataset, items, console, group)
    result = {**summarise(scored, config.settings.protocol), **_cost(run)}
    result["cases_trained_on"] = len(split.train)
    result["symmetries"] = list(segmenter.model.symmetries)
    if data is not None:
        result["cases_skipped_trained_on"] = list(skipped)
    elif group.is_first:
        write_report(
            run / run_folder.REPORT,
            settings=dataclasses.asdict(config.settings),
            result=result,
            history=read_metrics(run),
            examples=_examples(segmenter, dataset, items, result),
            manifest=files.read_json(run / run_folder.MANIFEST),
        )
        # Last: it says that the run is complete.
        files.write_json(run / run_folder.RESULT, result)
    return result


def _score_delta(file: Path, data: Path | None, segmenter: Segmenter, console: Console, group: Group) -> dict[str, Any]:
    """Score the model of a delta file on all cases of a dataset."""
    if data is None:
        do = f"Name labelled cases that it was not trained on: medsaga evaluate {file} DATA."
        raise InputError(file, expected="a dataset beside a delta file", found="none", do=do)
    config = segmenter.config
    dataset = labelled(data, config, console)
    _check_images(dataset, dataset.items, config)
    console.print("all cases are scored: a delta file does not say which ones it was trained on")
    scored = _score(segmenter, dataset, dataset.items, console, group)
    return {**summarise(scored, config.settings.protocol), "symmetries": list(segmenter.model.symmetries)}


def labelled(data: Path, config: RunConfig, console: Console) -> Dataset:
    """Return a dataset that a run can be scored on, as far as the names of its files tell.

    Raises:
        InputError: the data have problems, or other labels or channels than the run.
    """
    dataset = read_dataset(data, binary=config.settings.binary)
    raise_problems(dataset.problems)
    warn(console, dataset.warnings)
    dataset = named_as_in_run(dataset, config)
    require_order(dataset.root, dataset.channels, config.channels)
    _check_labels(config, dataset)
    return dataset


def _check_images(dataset: Dataset, items: tuple[Item, ...], config: RunConfig) -> None:
    """Decode all images and masks once, before the first is scored."""
    images = sum(len(item.images) for item in dataset.items)
    raise_problems(survey(dataclasses.replace(dataset, items=items), images=images).problems)
    require_mappable(config.intensities, items)


def _own_data(config: RunConfig, run: Path) -> Path:
    root = Path(config.data)
    if not root.exists():
        raise InputError(
            root,
            expected="the data that the run was trained on",
            found="nothing of this name",
            do=f"If they have moved, say where they are: medsaga evaluate {run} --data FOLDER.",
        )
    return root


def _not_seen(run: Path, split: Split, dataset: Dataset, console: Console) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Return the items to score of a dataset that may hold cases of the run, and the cases that are left out.

    Raises:
        InputError: nothing is left.
    """
    path = run / run_folder.DIGESTS
    met = recognise(dataset.items, split, files.read_json(path) if path.exists() else None)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if met.by_name:
        say("this run has no record of its images: cases are compared by their names only")
    left = tuple(case for case in dataset.cases if case not in met.seen)
    if not left:
        raise InputError(
            dataset.root,
            expected="a case that the run has not seen",
            found=f"{len(met.seen)}, all of which it was trained on or chosen by",
            do="Name other data: on these the scores would say nothing.",
        )
    if met.seen:
        say(f"not scored, because the run was trained on them or chosen by them: {listed(met.seen, len(met.seen))}")
    if met.namesakes:
        say(
            f"scored as new, because they share only the name with cases that the run has seen: {listed(met.namesakes)}"
        )
    if met.held_out and set(left) == {*met.held_out, *met.unused} and met.seen:
        say(f"these are the run's own data: scoring its test cases, {len(met.held_out)}")
        left = met.held_out
    return dataset.items_of(left), met.seen


def _check_labels(config: RunConfig, dataset: Dataset) -> None:
    if dataset.labels != config.labels:
        raise InputError(
            dataset.root,
            expected=f"the labels of the run, {config.labels}",
            found=str(dataset.labels),
            do=f"Evaluate on data with the same labels; masks whose values fit may need the run's {DESCRIPTION}.",
        )


def _score(
    segmenter: Segmenter, dataset: Dataset, items: Sequence[Item], console: Console, group: Group
) -> list[ItemScores]:
    """Score all items, in their order; each process of the group sees to some, and all have the scores."""
    protocol = protocol_named(segmenter.config.settings.protocol)
    names = {value: name for name, value in dataset.labels.items() if value != 0}
    progress = counting(console, "evaluating")
    own, scored = items[group.rank :: group.size], []
    for done, item in enumerate(own, 1):
        found, truth, steps = segmenter.predict_item(item).labels, read_mask(item), item.header.grid.to_mm
        if item.header.grid.flat:  # in a volume of one slice every voxel would lie at the surface
            found, truth, steps = found[..., 0], truth[..., 0], None if steps is None else steps[:, :2]
        scores: dict[int, LabelScore] = protocol(found, truth, list(names), steps)
        scored.append(ItemScores(item.name, item.case, {names[value]: score for value, score in scores.items()}))
        progress(done, len(own))
    return group.dealt_out(scored)


def _examples(segmenter: Segmenter, dataset: Dataset, items: Sequence[Item], result: dict[str, Any]) -> list[Example]:
    """Predict the best, the median and the worst item once more, for their pictures."""
    means = {case["name"]: case["dice_mean"] for case in result["cases"] if case["dice_mean"] is not None}
    by_name = {item.name: item for item in items}
    examples = []
    for role, name in choose_examples(list(means.items())).items():
        item = by_name[name]
        shown = most_labelled_slice(segmenter.predict_item(item), read_mask(item), dataset.label_values)
        picture = triptych(shown.image, shown.truth, shown.prediction, spacing=shown.spacing)
        examples.append(Example(name=name, case=item.case, dice=means[name], picture=picture, role=role))
    return examples


@dataclass(frozen=True, eq=False)
class ShownSlice:
    """One slice of an item, as it is drawn.

    Attributes:
        image: (channels, height, width) uint8, what the model looked at.
        truth: (height, width) uint8 class indices.
        prediction: likewise.
        spacing: height and width of a pixel in mm; None where it is not known.
    """

    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]
    prediction: npt.NDArray[np.uint8]
    spacing: tuple[float, float] | None


def most_labelled_slice(prediction: Prediction, truth: Labels, label_values: npt.NDArray[np.int64]) -> ShownSlice:
    """Return the slice that holds most of the truth.

    Args:
        prediction: of an item.
        truth: its label map, (*shape) label values.
        label_values: (classes,) the label value of each class index.
    """
    view = prediction.view
    stacks = [view.of_labels(labels) for labels in (truth, prediction.labels)]
    index = most_labelled(stacks[0])
    true, guess = (to_class_indices(stack[index], label_values) for stack in stacks)
    return ShownSlice(prediction.picture[index], true, guess, view.spacing)


def _cost(run: Path) -> dict[str, Any]:
    """What the training took, from what the run wrote into its log."""
    lines = read_metrics(run)
    seconds = [line["seconds"] for line in lines if line["kind"] == "step"]
    facts: dict[str, Any] = {"steps": len(seconds), "seconds_per_step": median(seconds) if seconds else None}
    wanted = (
        "trainable_parameters",
        "projected_parameters",
        "lora",
        "skipped_steps",
        "predicted_peak_memory_bytes",
        "peak_memory_bytes",
        "device_peak_memory_bytes",
        "memory_breakdown",
    )
    for line in lines:
        facts.update({name: line[name] for name in wanted if name in line})
    return facts
