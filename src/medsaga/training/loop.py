"""The training loop: evaluate, save, stop?, step, log."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medsaga import run_folder
from medsaga.config import Settings
from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.samples import Prefetcher, Samples
from medsaga.errors import Interrupted, OutOfMemoryError, RunError
from medsaga.evaluation.run import evaluate_run
from medsaga.memory.tracker import TensorTracker, device_peak, is_out_of_memory, reset_device_peak
from medsaga.methods import method_named, new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.models.weights.loading import save_model
from medsaga.optim.gathering import GatheringOptimizer
from medsaga.planning.predict import predict_memory
from medsaga.progress import RunProgress, counting
from medsaga.run_folder import MetricsLog
from medsaga.training.checked import CheckedData
from medsaga.training.checkpoint import Counters, load_state, save_state
from medsaga.training.embeddings import embed
from medsaga.training.loss import hard_dice_sums
from medsaga.training.prepare import Run, continued_run, new_run, resumed_run
from medsaga.training.schedule import learning_rate_factor
from medsaga.training.shrink import next_smaller, step_within_memory
from medsaga.training.step import Batch, StepMeter

MAX_SKIPPED_IN_A_ROW = 20
MONITORED_SAMPLES = 64


def train(
    data: Path,
    out: Path,
    settings: Settings | None = None,
    *,
    continue_from: Path | None = None,
    resume: bool = False,
    checked: CheckedData | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fine-tune a model on a folder of labelled cases, test it on the held-out ones, and write the run folder.

    Args:
        data: the dataset, in one of the layouts.
        out: the run folder; it must not exist, unless ``resume``.
        settings: what is left open is chosen from the preset, the model and the data.
        continue_from: a run to start from, whose training cases ``data`` adds to and whose settings it keeps; see
            `medsaga.training.prepare.continued_run`.
        resume: go on with the run in ``out``, to the same bits as if it had never stopped.
        checked: the dataset, if `medsaga.training.checked.check_data` has been through it; for a new run.
        console: where progress is shown; stderr by default.

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
        run = resumed_run(data, out, settings, console, before)
    elif before is not None:
        run = continued_run(before, data, out, settings, console)
    else:
        run = new_run(data, out, settings, console, checked)
    try:
        fit(run, console)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{error}\n{next_smaller(run.config.settings)}") from None
    shutil.rmtree(run.folder / run_folder.CACHE)
    return evaluate_run(run.folder, dataset=run.dataset, device=str(run.device), console=console)


def fit(run: Run, console: Console) -> None:
    """Train the model of a prepared run; at the end ``model.safetensors`` and ``state.pt`` are in its folder.

    Raises:
        Interrupted: the user pressed Ctrl-C; the state is saved.
        RunError: too many steps in a row had a gradient that was not finite.
    """
    settings = run.config.settings
    method = method_named(settings.method)
    optimizer = new_optimizer(run.model.train(), settings)
    counters = load_state(run.folder, run.model, optimizer, settings)
    reset_device_peak(run.device)
    model, train, monitor, augmentation = _what_is_trained(run, counters, console)
    model.checkpoint_blocks = counters.checkpoint_blocks
    log = MetricsLog(run.folder, step=counters.step)
    meter = StepMeter(run.device, first=counters.step, refresh_every=settings.refresh_every)
    if counters.step == 0:
        log.write("start", 0, **_facts_before(run, optimizer))
    dice_name = "validation Dice" if run.split.validation else "training Dice"
    with (
        contextlib.closing(log),
        contextlib.closing(optimizer),
        stop_requested() as stop,
        RunProgress(console, steps=settings.steps, first=counters.step, dice_name=dice_name) as progress,
        Prefetcher(
            train, seed=settings.seed, start=counters.step, stop=settings.steps, batch_size=settings.batch_size
        ) as batches,
    ):
        for step, images, labels in batches:
            began = time.perf_counter()
            factor = learning_rate_factor(step, steps=settings.steps, warmup=settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak_lr"]
            batch = Batch(images, labels, settings.seed, step, AUGMENTATIONS[augmentation])
            loss, made = step_within_memory(
                model, optimizer, batch, settings=settings, counters=counters, meter=meter, console=console
            )
            counters.step = step + 1
            counters.skipped += not made
            counters.skipped_in_a_row = 0 if made else counters.skipped_in_a_row + 1
            if meter.tracker.peak_bytes > counters.peak_bytes:
                counters.peak_bytes, counters.peak_breakdown = meter.tracker.peak_bytes, meter.tracker.breakdown
            counters.peak_bytes = device_peak(run.device) or counters.peak_bytes
            log.write("step", counters.step, loss=loss, lr_factor=factor, seconds=time.perf_counter() - began)
            progress.step(counters.step, loss, counters.peak_bytes)
            if counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise RunError(
                    f"{run.folder}: {MAX_SKIPPED_IN_A_ROW} steps in a row had a gradient that was not finite; stopped "
                    f"at step {counters.step}. The last good checkpoint is kept. Lower --encoder-lr and --decoder-lr."
                )
            last = counters.step == settings.steps
            if last or counters.step % settings.evaluate_every == 0:
                dice = monitor_dice(model, monitor, run.device, batch_size=counters.micro_batch_size)
                log.write(
                    "evaluation",
                    counters.step,
                    dice=dice,
                    skipped_steps=counters.skipped,
                    peak_memory_bytes=counters.peak_bytes,
                    memory_breakdown=counters.peak_breakdown,
                )
                progress.evaluation(counters.step, loss, dice, counters.peak_bytes)
                if _note_evaluation(counters, dice, chooses=bool(run.split.validation)):
                    save_model(run.folder / run_folder.MODEL, run.model)
                    if method.export is not None:
                        method.export(run.folder, run.model)
                save_state(run.folder, run.model, optimizer, counters)
                patience = settings.patience
                if run.split.validation and patience and counters.evaluations_since_best >= patience:
                    console.print(f"stopped at step {counters.step}: {patience} evaluations without a better Dice")
                    break
            if stop():
                save_state(run.folder, run.model, optimizer, counters)
                raise Interrupted(
                    f"{run.folder}: stopped after step {counters.step} of {settings.steps}; its state is saved. "
                    "Continue with the same command and --resume."
                )


def _what_is_trained(run: Run, counters: Counters, console: Console) -> tuple[SegmentationModel, Samples, Samples, str]:
    """Return the model that is trained, its samples, those that are followed, and how the former are augmented."""
    settings = run.config.settings
    part = method_named(settings.method).trained_part
    if part is None:
        return run.model, run.train, run.monitor, settings.augmentation
    tracker = TensorTracker(run.device.type)
    tracker.assign([*run.model.parameters(), *run.model.buffers()], "weights")
    tracker.phase = "activations"

    def embedded(samples: Samples, name: str, augmentation: str) -> Samples:
        return embed(
            run.model,
            samples,
            run.folder / run_folder.CACHE / name,
            augmentation=augmentation,
            seed=settings.seed,
            batch_size=counters.micro_batch_size,
            tracker=tracker,
            progress=counting(console, "embedding images"),
        )

    train = embedded(run.train, "train_embeddings", settings.augmentation)
    monitor = embedded(run.monitor, "monitor_embeddings", "none")
    if tracker.peak_bytes > counters.peak_bytes:  # a run that goes on may have had a higher one
        counters.peak_bytes, counters.peak_breakdown = tracker.peak_bytes, tracker.breakdown
    trained = part(run.model)
    # The encoder has done its work: an accelerator's memory is for what is trained.
    run.model.cpu()
    return trained.to(run.device).train(), train, monitor, "none"


@torch.no_grad()
def monitor_dice(model: SegmentationModel, samples: Samples, device: torch.device, *, batch_size: int) -> float:
    """Return the Dice in the model's square, averaged over labels, of at most 64 evenly spaced samples together.

    It is quick and good for following a run. Published numbers come from ``medsaga evaluate``, on the native grid.
    """
    stride = max(1, len(samples) // MONITORED_SAMPLES)
    indices = list(range(0, len(samples), stride))
    model.eval()
    sums = torch.zeros(3, model.classes, dtype=torch.int64)
    for start in range(0, len(indices), batch_size):
        images, labels = samples.batch(indices[start : start + batch_size])
        sums += hard_dice_sums(model(images.to(device, torch.float32)), labels.to(device)).cpu()
    model.train()
    intersection, size = sums[0, 1:], sums[1, 1:] + sums[2, 1:]
    there = size > 0
    return float((2 * intersection[there] / size[there]).mean()) if there.any() else 0.0


def _facts_before(run: Run, optimizer: GatheringOptimizer) -> dict[str, Any]:
    """What is known before the first step: how much is trained, and the memory that it will take."""
    config = run.config
    predicted = predict_memory(config.settings, classes=len(config.labels), in_channels=config.in_channels)
    return {
        "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
        "projected_parameters": optimizer.projected_parameters(),
        "predicted_peak_memory_bytes": predicted.peak_bytes,
    }


def _note_evaluation(counters: Counters, dice: float, *, chooses: bool) -> bool:
    """Note an evaluation; return whether these weights are the ones to keep."""
    if not chooses or counters.best_dice is None or dice > counters.best_dice:
        counters.best_dice = dice if chooses else None
        counters.evaluations_since_best = 0
        return True
    counters.evaluations_since_best += 1
    return False


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or SIGTERM came; the step under way is finished first.

    A second Ctrl-C stops at once.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
