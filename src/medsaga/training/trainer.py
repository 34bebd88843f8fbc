"""The training loop: step, evaluate, save, stop? Whoever wants to know listens to its events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from torch import Tensor

from medsaga import run_folder
from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.samples import Prefetcher, Samples, batch_indices
from medsaga.distributed.group import ALONE, Group
from medsaga.distributed.same_weights import require_same_weights
from medsaga.errors import RunError
from medsaga.memory.tracker import TensorTracker, device_peak, reset_device_peak
from medsaga.methods import method_named, new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.models.int8 import load_plain_state, plain_state
from medsaga.models.weights.loading import save_model
from medsaga.optim.galore import GaLoreAdamW
from medsaga.settings.options import ResolvedSettings
from medsaga.training.checkpoint import load_state, save_state
from medsaga.training.embeddings import embed
from medsaga.training.events import Evaluated, Event, Listener, Notice, Saved, Stepped, Stopped, Working
from medsaga.training.interrupts import Interrupts
from medsaga.training.loss import Objective
from medsaga.training.monitoring import monitor_dice
from medsaga.training.out_of_memory import step_within_memory
from medsaga.training.schedule import learning_rate_factor
from medsaga.training.step import Batch, StepMeter, accumulate

MAX_SKIPPED_IN_A_ROW = 20
CHECK_EVERY = 50
"""Steps between two comparisons of the weights of several processes; each evaluation makes one too."""


class Trainer:
    """Trains a model and keeps its run folder: ``model.safetensors`` has the chosen weights, ``state.pt`` the rest.

    A run folder with a state is gone on with, to the same bits. Use it as a context manager.

    Args:
        folder: the run folder; it exists.
        settings: of the run.
        model: with its initial weights, on the device of the run.
        train: samples to train on.
        monitor: samples whose Dice is followed.
        chooses: whether that Dice chooses the weights that are kept, and stops the run when it no longer rises: the
            samples are of validation cases. Otherwise the last weights are kept.
        listeners: called with every event, in the thread that trains.
        group: of the processes that train together; each has a trainer, and process 0 alone writes.
        galore: the class of the optimizer, unless it is SGD.
        measures: whether the memory of the first steps is followed, which makes them slow.

    Attributes:
        counters: where the run stands.
        interrupts: asks the run to stop.
        listeners: see above; more may be added.
        optimizer: of the method.

    Raises:
        InputError: the state in the folder does not fit.
    """

    def __init__(
        self,
        folder: Path,
        settings: ResolvedSettings,
        model: SegmentationModel,
        *,
        train: Samples,
        monitor: Samples,
        chooses: bool,
        listeners: Sequence[Listener] = (),
        group: Group = ALONE,
        galore: type[GaLoreAdamW] = GaLoreAdamW,
        measures: bool = True,
    ) -> None:
        self.folder, self.settings, self.model = folder, settings, model
        self.interrupts = Interrupts()
        self.listeners = list(listeners)
        self.group = group
        self._chooses = chooses
        self._method = method_named(settings.method)
        self._device = model.device
        self._last_loss: float | None = None
        self._open = ExitStack()
        self._batches: Iterator[tuple[int, Tensor, Tensor]] | None = None
        self.optimizer = new_optimizer(model.train(), settings, galore)
        self.counters = load_state(folder, model, self.optimizer, settings)
        group.copy_first(plain_state(model).values())
        reset_device_peak(self._device)
        # Of a method that trains a part of the model on embeddings, this part and its samples.
        self._part, self._train, self._monitor = model, train, monitor
        self._augmentation = AUGMENTATIONS[settings.augmentation]
        if self._method.trained_part is not None and not self.finished:
            self._embed()
        self._part.checkpoint_blocks = self.counters.checkpoint_blocks
        self._meter = StepMeter(self._device, first=self.counters.step, refresh_every=settings.refresh_every)
        if not measures:
            self._meter.stop()

    def __enter__(self) -> Self:
        """Return the trainer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Close it."""
        self.close()

    @property
    def finished(self) -> bool:
        """Whether no further step is to be made."""
        return self.counters.stopped_early or (self.counters.step >= self.settings.steps and not self._is_due())

    def run(self, steps: int | None = None) -> Stopped:
        """Train to the end, or as many steps as are asked for; evaluate and save on the way.

        It ends after the step under way when `cancel` is called, and saves.

        Raises:
            KeyboardInterrupt: in the main thread, at a second Ctrl-C; what the last whole step left is saved.
            OutOfMemoryError: the message names the next smaller setting.
            RunError: too many steps in a row had a gradient that was not finite.
        """
        last = self.settings.steps if steps is None else self.counters.step + steps
        try:
            while True:
                if self._is_due():
                    self.evaluate()
                if self.finished or self.counters.step >= last or self._is_asked_to_stop():
                    break
                self.step()
        except KeyboardInterrupt:
            self.optimizer.zero_grad()
            self.save()
            raise
        if not self.finished:
            self.save()
        self.group.wait()  # until it is saved: when one process ends, a launcher may end the others
        stopped = Stopped(step=self.counters.step, reason=self._reason())
        self._tell(stopped)
        return stopped

    def step(self) -> Stepped:
        """Make one optimizer step on the next batch.

        Raises:
            OutOfMemoryError: nothing is left that could be made smaller with the same result.
            RunError: too many steps in a row had a gradient that was not finite.
        """
        began, counters, settings = time.perf_counter(), self.counters, self.settings
        step, images, labels = next(self._upcoming())
        factor = learning_rate_factor(step, steps=settings.steps, warmup=settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = factor * group["peak_lr"]
        with self.interrupts.lasting():  # a step that is counted is also told: its line in the log comes only once
            self._last_loss, made = step_within_memory(
                self._part,
                self.optimizer,
                self._batch(step, images, labels),
                settings=settings,
                counters=counters,
                meter=self._meter,
                notice=lambda text: self._tell(Notice(text=text)),
                interrupts=self.interrupts,
                group=self.group,
            )
            self._note_peaks(self._meter.tracker)
            done = Stepped(
                step=counters.step,
                loss=self._last_loss,
                made=made,
                lr_factor=factor,
                seconds=time.perf_counter() - began,
                peak_bytes=counters.peak_bytes,
            )
            self._tell(done)
        if counters.step % CHECK_EVERY == 0:
            require_same_weights(self.group, self.model)
        if counters.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            error = RunError(
                f"{self.folder}: {MAX_SKIPPED_IN_A_ROW} steps in a row had a gradient that was not finite; stopped "
                f"at step {counters.step}. The last good checkpoint is kept. Lower --encoder-lr and --decoder-lr."
            )
            raise self.group.told_once(error)
        return done

    def arrive(self) -> float:
        """Let the gradient of the next batch arrive in the optimizer, where it stays; no weight moves.

        Returns:
            the loss of the batch, which stays the next one.
        """
        settings, counters = self.settings, self.counters
        chosen = batch_indices(self._train, settings.seed, counters.step, settings.batch_size)
        return accumulate(
            self._part,
            self.optimizer,
            self._batch(counters.step, *self._train.batch(chosen)),
            micro_batch_size=counters.micro_batch_size,
            objective=Objective.of(settings),
            scale=counters.loss_scale,
        )

    def evaluate(self) -> Evaluated:
        """Compute the Dice that is followed, keep the weights if they are the best so far, and save."""
        counters = self.counters
        require_same_weights(self.group, self.model)
        dice = monitor_dice(
            self._part, self._monitor, self._device, batch_size=counters.micro_batch_size, group=self.group
        )
        evaluated = Evaluated(
            step=counters.step,
            loss=self._last_loss,
            dice=dice,
            is_validation=self._chooses,
            skipped_steps=counters.skipped,
            peak_bytes=counters.peak_bytes,
            breakdown=counters.peak_breakdown,
            device_peak_bytes=counters.device_peak_bytes,
        )
        with self.interrupts.shielded():
            self._tell(evaluated)
            if is_best := not self._chooses or counters.best_dice is None or dice > counters.best_dice:
                self._save_model()
            counters.note_evaluation(dice if self._chooses else None, is_best=is_best, patience=self.settings.patience)
            self.save()
        return evaluated

    def save(self) -> None:
        """Write the state. A run that is killed goes on from there."""
        if self.group.is_first:
            with self.interrupts.shielded():
                save_state(self.folder, self.model, self.optimizer, self.counters)
        self._tell(Saved(step=self.counters.step))

    def cancel(self) -> None:
        """Ask the run to stop after the step under way; may be called from any thread."""
        self.interrupts.asked.set()

    def weights(self) -> dict[str, Tensor]:
        """Return copies of all weights by name; int8 weights are two tensors each."""
        return {name: tensor.clone() for name, tensor in plain_state(self.model).items()}

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Put weights in between two steps, as `weights` returns them; the optimizer's state stays."""
        load_plain_state(self.model, state)

    def close(self) -> None:
        """End the preparation of further batches, and leave the weights as any other weights."""
        self._open.close()
        self._batches = None
        self.optimizer.close()

    def _reason(self) -> Literal["finished", "patience", "cancelled", "paused"]:
        if self.finished:
            return "patience" if self.counters.stopped_early else "finished"
        return "cancelled" if self.interrupts.asked.is_set() else "paused"

    def _is_due(self) -> bool:
        """Whether an evaluation comes before the next step."""
        step = self.counters.step
        is_time = step == self.settings.steps or step % self.settings.evaluate_every == 0
        return is_time and step > self.counters.evaluated_step

    def _is_asked_to_stop(self) -> bool:
        """Whether any process was asked to; then all are.

        What the processes have told each other counts: a signal that arrives afterwards is for the next step, because
        the others go on to that.
        """
        asked = self.group.any(self.interrupts.asked.is_set())
        if asked:
            self.interrupts.asked.set()
        return asked

    def _batch(self, step: int, images: Tensor, labels: Tensor) -> Batch:
        settings = self.settings
        first = self.group.share(settings.batch_size).start
        return Batch(
            images,
            labels,
            settings.seed,
            step,
            self._augmentation,
            symmetries=self.model.symmetries,
            first=first,
            whole=settings.batch_size,
        )

    def _upcoming(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Return the batches from here on; they are prepared in a thread from the first step on."""
        if self._batches is None:
            prefetcher = Prefetcher(
                self._train,
                seed=self.settings.seed,
                start=self.counters.step,
                stop=self.settings.steps,
                batch_size=self.settings.batch_size,
                share=self.group.share(self.settings.batch_size),
            )
            self._batches = iter(self._open.enter_context(prefetcher))
        return self._batches

    def _save_model(self) -> None:
        if self.group.is_first:
            save_model(self.folder / run_folder.MODEL, self.model)

    def _embed(self) -> None:
        """Compute the embeddings of all samples, and train on them alone from here on."""
        tracker = TensorTracker(self._device.type)
        tracker.assign([*self.model.parameters(), *self.model.buffers()], "weights")
        tracker.phase = "activations"

        def embedded(samples: Samples, name: str, augmentation: str) -> Samples:
            return embed(
                self.model,
                samples,
                self.folder / run_folder.CACHE / name,
                augmentation=augmentation,
                seed=self.settings.seed,
                batch_size=self.counters.micro_batch_size,
                tracker=tracker,
                progress=lambda done, total: self._tell(Working(what="embedding images", done=done, total=total)),
                group=self.group,
            )

        self._train = embedded(self._train, "train_embeddings", self.settings.augmentation)
        self._monitor = embedded(self._monitor, "monitor_embeddings", "none")
        for samples in (self._train, self._monitor):
            self._open.callback(samples.close)
        self._augmentation = AUGMENTATIONS["none"]
        self._note_peaks(tracker)
        assert self._method.trained_part is not None
        part = self._method.trained_part(self.model)
        # The encoder has done its work: an accelerator's memory is for what is trained.
        self.model.cpu()
        self._part = part.to(self._device).train()

    def _note_peaks(self, tracker: TensorTracker) -> None:
        counters = self.counters
        if tracker.peak_bytes > counters.peak_bytes:
            counters.peak_bytes, counters.peak_breakdown = tracker.peak_bytes, dict(tracker.breakdown)
        by_device = device_peak(self._device)
        if by_device is not None:
            counters.device_peak_bytes = max(by_device, counters.device_peak_bytes or 0)

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)
