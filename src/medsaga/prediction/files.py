"""What ``medsaga predict`` writes: label maps, and on request measurements, probabilities and overlay pictures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.dataset import require_order
from medsaga.data.dicom.terminology import Terminology
from medsaga.data.inputs import find_all_inputs, images_folder, names_of_channels
from medsaga.data.items import warnings_of
from medsaga.data.outputs import LabelMapInfo, require_complete, write_labels, write_probabilities
from medsaga.data.slices import most_labelled
from medsaga.data.sources import place_of
from medsaga.data.types import Item, Labels, to_class_indices
from medsaga.device import release_cached_memory
from medsaga.distributed.group import ALONE, Group
from medsaga.errors import InputError, MedsagaError, OutOfMemoryError, RunError, collecting
from medsaga.memory.tracker import is_out_of_memory
from medsaga.prediction import confidence_table, postprocess
from medsaga.prediction import overlay as pictures
from medsaga.prediction.confidence import ConfidenceScores, look_first
from medsaga.prediction.confidence_table import CONFIDENCE
from medsaga.prediction.leftovers import Leftovers, said_of
from medsaga.prediction.measure import Measurement, measure, read_csv, write_csv
from medsaga.prediction.postprocess import PostProcessing
from medsaga.prediction.record import Written
from medsaga.prediction.segmenter import Augmented, Prediction, Segmenter
from medsaga.prediction.targets import Target, is_one_file, is_one_image, require_free, targets_of
from medsaga.progress import counting

MEASUREMENTS = "measurements.csv"
"""Volume or area, largest diameter and components of every class and case."""
_LOOK_AT = 5
_MOST_PROBLEMS = 10


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
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
    source: Path | Sequence[Path],
    out: Path,
    wanted: OutputOptions | None = None,
    *,
    series: str | None = None,
    tta: Augmented = "auto",
    overwrite: bool = False,
    device: str = "auto",
    base: str | None = None,
    console: Console | None = None,
    written: Callable[[Path], None] | None = None,
    group: Group = ALONE,
) -> list[Path]:
    """Segment files or folders and write a label map for each image, on the input's own grid.

    Of one image the confidence is said. Of several, or of a folder, the least confident ones are named, and all are
    listed in `CONFIDENCE`. An image that cannot be segmented does not keep the others from it.

    What an earlier call wrote into the folder is replaced, as long as nobody has changed it; other files are not. In
    the tables stay the cases that this call does not segment, of earlier calls and of such as run beside it.

    Args:
        run: run folder, or a delta file.
        source: an image, a volume, a DICOM series, a folder of them, a dataset, or several of these; see
            `medsaga.data.inputs.find_inputs`.
        out: a folder for several images; for one image, a file with the suffix of a format, or a folder.
        wanted: what is written.
        series: which DICOM series of each examination is meant.
        tta: over which mirror images of each slice probabilities are averaged; see `Segmenter.predict`.
        overwrite: replace other files too. Inputs never are.
        device: see `medsaga.device.choose_device`.
        base: the weights that a delta file belongs to; see `Segmenter.load`.
        console: where progress is shown.
        written: called with each label map as soon as it is there; with several processes, in process 0 at the end.
        group: of the processes that share the images, each of which calls this.

    Returns:
        the label maps, in the order of the inputs.

    Raises:
        InputError: the run or the output cannot be used, or no input can; nothing has been written.
        RunError: some of the images could not be segmented; the message names them.
    """
    console, wanted = console or Console(stderr=True), wanted or OutputOptions()
    files.require_writable(out.parent)
    files.require_name(out)
    segmenter = Segmenter.load(run, device, base)
    for text in run_folder.said_if_unfinished(run):
        console.print(f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    channels = segmenter.config.channels
    sources = [_images_of(Path(each), channels, console) for each in ([source] if isinstance(source, Path) else source)]
    problems: list[InputError] = []
    items = find_all_inputs(
        sources,
        channels=channels,
        series=series,
        problems=problems,
        warn=lambda text: console.print(text, markup=False, highlight=False),
        leave_out=_outputs(),
    )
    if not items:
        raise problems[0]
    total = len(items) + len(problems)
    one_image = is_one_image(items, sources, total)
    one_file = is_one_file(out, total, one_image=one_image)
    folder = out.parent if one_file else out
    files.require_writable(folder)
    record = Written(folder)
    targets = targets_of(
        items,
        out,
        wanted.format,
        one_file=one_file,
        overlay=wanted.overlay,
        probabilities=wanted.probabilities,
    )
    tables = [folder / MEASUREMENTS] * wanted.measure + [folder / CONFIDENCE] * (not one_image)
    require_free(targets, tables, record, overwrite=overwrite, classes=len(segmenter.config.labels))
    group.wait()  # until all have seen what lies there
    record.share(group)
    leftovers = Leftovers(targets, record, None if wanted.measure else folder / MEASUREMENTS)
    work = _Work(segmenter, wanted, folder, record, leftovers, tta, console, group, overwrite=overwrite)
    failed: list[list[MedsagaError]] = []
    try:
        for target in targets[group.rank :: group.size]:
            failed.append([])
            with collecting(failed[-1], (InputError, OutOfMemoryError)):
                work.segment(target)
                if written is not None and group.size == 1:
                    written(target.labels)
        failed = work.join(failed)
    finally:
        # What was done before somebody pressed Ctrl-C is worth a look, too.
        work.say_confidence(one_image=one_image)
        work.say_what_is_gone()
    told = [*problems, *(problem for each in failed for problem in each)]
    done = [target.labels for target, each in zip(targets, failed, strict=True) if not each]
    if written is not None and group.size > 1 and group.is_first:
        for path in done:
            written(path)
    if told and total == 1:
        raise group.told_once(told[0])
    if told:
        more = [f"and {len(told) - _MOST_PROBLEMS:,} more"] if len(told) > _MOST_PROBLEMS else []
        listed = [*map(str, told[:_MOST_PROBLEMS]), *more]
        said = "\n  ".join([f"{len(told)} of {total} images could not be segmented:", *listed])
        raise group.told_once(RunError(said))
    return done


def _images_of(source: Path, channels: Sequence[str], console: Console) -> Path:
    """Return the folder of images that a user means by a dataset, and say so; else the same path.

    Raises:
        InputError: the dataset has the channels of the run in another order.
    """
    images = images_folder(source)
    require_order(images.parent, names_of_channels(images.parent), channels)
    if images != source:
        console.print(
            f"{source} is a dataset: segmenting the images in {images}", markup=False, highlight=False, soft_wrap=True
        )
    return images


def _outputs() -> Callable[[Path], bool]:
    """Return a test of whether an earlier call wrote a file into its folder, as the record there says."""
    records: dict[Path, Written | None] = {}

    def is_output(path: Path) -> bool:
        folder = path.parent
        if folder not in records:
            records[folder] = None
            # A file may have nothing of a record but the name.
            with contextlib.suppress(InputError, OSError):
                records[folder] = Written(folder)
        record = records[folder]
        return record is not None and record.has(path)

    return is_output


class _Work:
    """Segmenting one image after another, and what has come of it so far."""

    def __init__(
        self,
        segmenter: Segmenter,
        wanted: OutputOptions,
        folder: Path,
        record: Written,
        leftovers: Leftovers,
        tta: Augmented,
        console: Console,
        group: Group,
        *,
        overwrite: bool,
    ) -> None:
        self._segmenter, self._wanted, self._tta, self._console = segmenter, wanted, tta, console
        self._folder, self._record, self._group, self._overwrite = folder, record, group, overwrite
        self._leftovers = leftovers
        config = segmenter.config
        self._meaning = LabelMapInfo(config.labels, f"{config.settings.model}, {_version()}", wanted.codes)
        self._classes = [name for name, value in config.labels.items() if value != 0]
        self._scores: dict[str, ConfidenceScores] = {}
        self._rows: list[tuple[str, Measurement]] = []
        self._said: list[str] = []

    def segment(self, target: Target) -> None:
        """Segment one image and write what is wanted of it.

        Raises:
            InputError: it cannot be read, or its files lack what the output must repeat.
            OutOfMemoryError: it is too large.
        """
        try:
            self._segment(target)
        except (RuntimeError, MemoryError, OutOfMemoryError) as error:
            if not isinstance(error, OutOfMemoryError) and not is_out_of_memory(error):
                raise
            shortage = str(error)
        else:
            return
        # Only here, after the except clause, are the tensors free that the error's traceback has held.
        release_cached_memory()
        place = place_of(target.item.images[0])
        raise OutOfMemoryError(f"{place}: {shortage}\nCut it into smaller ones, or use a machine with more memory.")

    def _segment(self, target: Target) -> None:
        item, wanted, segmenter = target.item, self._wanted, self._segmenter
        require_complete(item, target.kind)
        show = counting(self._console, item.name)
        prediction = segmenter.predict_item(item, probabilities=wanted.probabilities, tta=self._tta, progress=show)
        for warning in warnings_of(item):
            self._say(f"{item.name}: {warning}")
        labels = _cleaned(prediction.labels, item, wanted.post, segmenter)
        # Before the picture is: it would lie beside a label map that it does not show.
        self._record.require_ours(target.labels, overwrite=self._overwrite)
        if target.overlay is not None:
            with self._replacing(target.overlay) as path:
                pictures.save_png(path, _picture(prediction, labels, segmenter))
        if target.probabilities is not None:
            assert prediction.probabilities is not None, "asked for above"
            with self._replacing(target.probabilities) as path:
                write_probabilities(path, prediction.probabilities, item)
        with self._replacing(target.labels) as path:
            write_labels(path, labels, item, target.kind, self._meaning)
            self._leftovers.remove(target, path)
        self._scores[item.name] = prediction.confidence
        if wanted.measure:
            self._rows += [(item.name, row) for row in measure(labels, item.header.grid, segmenter.config.labels)]
            # After every case, so that what is interrupted has what is done.
            self._write_rows()

    def join(self, failed: list[list[MedsagaError]]) -> list[list[MedsagaError]]:
        """Let process 0 have what the others have found out, and return what has failed of all images, in order."""
        if self._group.size > 1:
            own = list(self._scores.items())
            self._scores = dict(pair for pairs in self._group.collect(own) for pair in pairs)
            self._rows = [row for rows in self._group.collect(self._rows) for row in rows]
            self._write_rows()
            self._leftovers.gone.update(*self._group.collect(self._leftovers.gone))
            for texts in self._group.collect(self._said)[1:]:
                for text in texts:
                    self._say(text)
        return self._group.dealt_out(failed)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._said.append(text)

    def say_what_is_gone(self) -> None:
        """Warn of what earlier calls had written and this one has removed."""
        if self._leftovers.gone and self._group.is_first:
            said = said_of(self._leftovers.gone)
            self._console.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def _write_rows(self) -> None:
        if self._rows and self._group.is_first:
            table = self._folder / MEASUREMENTS
            with files.one_at_a_time(self._folder):
                self._record.require_ours(table, overwrite=self._overwrite)
                earlier = read_csv(table) if self._is_ours(table) else []
                with self._replacing(table) as path:
                    write_csv(path, self._rows, earlier)

    def _is_ours(self, table: Path) -> bool:
        """Return whether there is a table that medsaga wrote: this command, an earlier one, or one that runs beside it.

        Whoever segments case after case into a folder keeps what the tables say of all.
        """
        return self._record.has_by_now(table)

    def _replacing(self, path: Path) -> contextlib.AbstractContextManager[Path]:
        return self._record.replacing(path, overwrite=self._overwrite)

    def say_confidence(self, *, one_image: bool) -> None:
        """Say the confidence in one image; of several, write `CONFIDENCE` and name those to look at first.

        One image has a line where there is a table already, so that this tells of the label maps as they are.
        """
        if not self._scores or not self._group.is_first:
            return
        means = {name: score["mean"] for name, score in self._scores.items()}
        order = look_first(means)
        if len(order) == 1:
            scores = self._scores[order[0]]["classes"]
            each = ", ".join(f"{label} {value:.2f}" for label, value in zip(self._classes, scores, strict=True))
            said = f"{order[0]}: confidence {means[order[0]]:.2f} ({each})"
        else:
            first = ", ".join(f"{name} ({means[name]:.2f})" for name in order[:_LOOK_AT])
            said = f"look at these first: {first}; all in {self._folder / CONFIDENCE}"
        self._console.print(said, markup=False, highlight=False, soft_wrap=True)
        table = self._folder / CONFIDENCE
        with files.one_at_a_time(self._folder):
            ours = self._is_ours(table)
            if ours or not one_image:
                self._record.require_ours(table, overwrite=self._overwrite)
                earlier = confidence_table.read_csv(table, self._classes) if ours else {}
                with self._replacing(table) as path:
                    confidence_table.write_csv(path, self._scores, self._classes, earlier)


def _cleaned(labels: Labels, item: Item, post: PostProcessing, segmenter: Segmenter) -> Labels:
    if post == PostProcessing():
        return labels
    return postprocess.apply(labels, item.header.grid, post, values=segmenter.label_values.tolist())


def _picture(prediction: Prediction, labels: Labels, segmenter: Segmenter) -> npt.NDArray[np.uint8]:
    stack = prediction.view.of_labels(labels)
    index = most_labelled(stack)
    return pictures.overlay(prediction.picture[index], to_class_indices(stack[index], segmenter.label_values))


def _version() -> str:
    return f"medsaga {metadata.version('medsaga')}"
