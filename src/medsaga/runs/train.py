"""``medsaga train``: from a folder of labelled cases to a run folder with a model, its test and its report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from medsaga import files, run_folder
from medsaga.distributed.group import ALONE, Group
from medsaga.errors import Interrupted, OutOfMemoryError
from medsaga.memory.tracker import is_out_of_memory
from medsaga.models.lora import updated_layers
from medsaga.models.weights.loading import load_in_place
from medsaga.planning.estimate import predict_memory
from medsaga.prediction.segmenter import Segmenter
from medsaga.run_folder import MetricsLog, read_metrics, resuming
from medsaga.runs.evaluate import evaluate_run
from medsaga.runs.loading import LoadedData
from medsaga.runs.plan import Plan, Run
from medsaga.runs.prepare import continued_run, joined_run, new_run, resumed_run
from medsaga.runs.resuming import require_same
from medsaga.settings.options import Settings
from medsaga.training.bar import RunProgress
from medsaga.training.events import Evaluated, Event, Stepped, Stopped
from medsaga.training.out_of_memory import next_smaller
from medsaga.training.trainer import Trainer


def train(
    data: Path,
    out: Path,
    settings: Settings | None = None,
    *,
    continue_from: Path | None = None,
    resume: bool = False,
    loaded: LoadedData | None = None,
    console: Console | None = None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Fine-tune a model on a folder of labelled cases, test it on the held-out ones, and write the run folder.

    Args:
        data: the dataset, in one of the layouts.
        out: the run folder; it must not exist, unless ``resume``.
        settings: what is left open is chosen from the recipe, the model and the data.
        continue_from: a run to start from, whose training cases ``data`` adds to and whose settings it keeps; see
            `medsaga.runs.prepare.continued_run`.
        resume: go on with the run in ``out``, to the same bits as if it had never stopped.
        loaded: the dataset, if `medsaga.runs.loading.load_data` has been through it; for a new run.
        console: where progress is shown; stderr by default.
        group: of the processes that train together, each of which calls this; see `medsaga.distributed.joining`.

    Returns:
        the content of ``result.json``.

    Raises:
        InputError: the data or the settings cannot be used; nothing has been written.
        Interrupted: the user pressed Ctrl-C; the state is saved.
        OutOfMemoryError: the message names the next smaller setting.
        RunError: gradients stayed non-finite; the last good checkpoint is kept.
    """
    console = console or Console(stderr=True)
    data, out, settings = Path(data), Path(out), settings or Settings()
    before = None if continue_from is None else Path(continue_from)
    if resume:
        result = group.once(lambda: _result(out, settings, before, console))
        if result is not None:
            return result

    with contextlib.ExitStack() as held:

        def prepare() -> Run:
            if resume:
                return resumed_run(data, out, settings, console, before, group.size, held)
            if before is not None:
                return continued_run(before, data, out, settings, console, group.size, held)
            return new_run(data, out, settings, console, loaded, group.size, held)

        return _trained_and_tested(prepared_once(group, prepare, out, console), console, group)


def _trained_and_tested(run: Run, console: Console, group: Group) -> dict[str, Any]:
    try:
        with contextlib.closing(run.train), contextlib.closing(run.monitor):
            fit(run, console, group)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{error}\n{next_smaller(run.config.settings)}") from None
    try:
        group.wait()  # for the model to be there, and the images to be used no more
        if group.is_first:
            run.remove_cache()
        return _test(run, console, group)
    except KeyboardInterrupt:
        raise group.told_once(_without_test(run)) from None


def _without_test(run: Run) -> Interrupted:
    # Other verbs make runs too, and have no --resume.
    return Interrupted(f"{run.folder}: training is complete, its test is not. Make it: {resuming(run.folder)}")


def _result(out: Path, settings: Settings, before: Path | None, console: Console) -> dict[str, Any] | None:
    """Return the result of a run that is to be gone on with, if it is complete."""
    require_same(out, settings, before)
    if not is_complete(out):
        return None
    console.print(f"{out}: the run is complete; this is its result", markup=False)
    result: dict[str, Any] = files.read_json(out / run_folder.RESULT)
    return result


def prepared_once(group: Group, prepare: Callable[[], Run], out: Path, console: Console) -> Run:
    """Let process 0 check and prepare a run; the others take its word, and the images that it has prepared.

    Args:
        group: of the processes.
        prepare: makes the run, in process 0.
        out: the run folder.
        console: where the others show their progress.
    """
    own: list[Run] = []

    def work() -> Plan:
        own.append(prepare())
        return own[0].plan

    plan = group.once(work)
    return own[0] if own else joined_run(out, plan, console)


def is_complete(folder: Path) -> bool:
    """Whether a run has made all of its steps and has been tested after the last one."""
    lines, result = read_metrics(folder), folder / run_folder.RESULT
    if not result.exists() or not any(line["kind"] == "stopped" for line in lines):
        return False
    # A result counts the lines of the steps before it; logs of earlier versions may lack that of an interrupted step.
    return bool(files.read_json(result).get("steps") == sum(line["kind"] == "step" for line in lines))


def fit(run: Run, console: Console, group: Group = ALONE) -> None:
    """Train the model of a prepared run; at the end ``model.safetensors`` and ``state.pt`` are in its folder.

    Raises:
        Interrupted: the user pressed Ctrl-C, be it in the last step; the state is saved.
        RunError: too many steps in a row had a gradient that was not finite.
    """
    settings = run.config.settings
    chooses = bool(run.split.validation)
    with (
        RunProgress(console, steps=settings.steps, dice_name="validation Dice" if chooses else "training Dice") as bar,
        Trainer(
            run.folder,
            settings,
            run.model,
            train=run.train,
            monitor=run.monitor,
            chooses=chooses,
            listeners=[bar.show] if group.is_first else [],
            group=group,
        ) as trainer,
        contextlib.ExitStack() as opened,
    ):
        if group.is_first:
            trainer.listeners.append(opened.enter_context(_logging(run, trainer)))

        def explain() -> None:
            bar.say(f"finishing step {trainer.counters.step + 1}, then saving; press Ctrl-C again to stop at once")

        try:
            with trainer.interrupts.on_signals(explain):
                stopped = trainer.run()
        except KeyboardInterrupt:
            stopped = Stopped(step=trainer.counters.step, reason="cancelled")
    if stopped.reason == "cancelled":
        raise group.told_once(
            Interrupted(
                f"{run.folder}: stopped after step {stopped.step} of {settings.steps}; its state is saved. "
                f"Go on: {resuming(run.folder)}"
            )
        )
    if group.any(trainer.interrupts.asked.is_set()):  # in the last step
        raise group.told_once(_without_test(run))


@contextlib.contextmanager
def _logging(run: Run, trainer: Trainer) -> Iterator[Any]:
    """Yield a listener that writes ``metrics.jsonl``."""
    counters = trainer.counters
    log = MetricsLog(run.folder, step=counters.step, evaluated_step=counters.evaluated_step)

    def write(event: Event) -> None:
        match event:
            case Stepped():
                log.write("step", event.step, loss=event.loss, lr_factor=event.lr_factor, seconds=event.seconds)
            case Evaluated():
                log.write(
                    "evaluation",
                    event.step,
                    dice=event.dice,
                    skipped_steps=event.skipped_steps,
                    peak_memory_bytes=event.peak_bytes,
                    memory_breakdown=event.breakdown,
                    device_peak_memory_bytes=event.device_peak_bytes,
                )
            case Stopped(reason="finished" | "patience"):
                log.write("stopped", event.step, reason=event.reason)

    with contextlib.closing(log):
        if counters.step == 0:
            log.write("start", 0, **_facts_before(run, trainer))
        yield write


def _facts_before(run: Run, trainer: Trainer) -> dict[str, Any]:
    """What is known before the first step: how much is trained, and the memory that it will take."""
    config = run.config
    predicted = predict_memory(
        config.settings, classes=len(config.labels), in_channels=config.in_channels, processes=trainer.group.size
    )
    return {
        "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "projected_parameters": trainer.optimizer.projected_parameters(),
        "lora": updated_layers(run.model),
        "predicted_peak_memory_bytes": predicted.peak_bytes,
    }


def _test(run: Run, console: Console, group: Group = ALONE) -> dict[str, Any]:
    """Test the model where it is: a second one beside it would take more memory than the training has."""
    load_in_place(run.folder / run_folder.MODEL, run.model)
    segmenter = Segmenter(run.model, run.config, run.device)
    return evaluate_run(run.folder, dataset=run.dataset, segmenter=segmenter, console=console, group=group)
