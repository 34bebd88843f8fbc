"""The work of one site: it takes the common weights, trains on its own cases, and says what has changed.

All that it has to remember from one round to the next lies in its run folder, so that every order may come to a new
process, and one that comes twice is answered with the same bits: ``rounds/NNNN/start.pt`` has what the round started
from, ``rounds/NNNN/state.pt`` the optimizer's state after it, ``rounds/NNNN/answer.pt`` what was sent, where it was
clipped or has noise. Those of the last two rounds are kept.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsaga import files, run_folder
from medsaga.data.symmetries import symmetries_of
from medsaga.errors import RunError
from medsaga.federated.averaging import Answer, Tensors, moved, norm
from medsaga.federated.options import Federation
from medsaga.federated.orders import Order
from medsaga.memory.meta import keyed_generator
from medsaga.methods import new_optimizer
from medsaga.models.base import SegmentationModel
from medsaga.models.digest import digest_of
from medsaga.optim.galore import GaLoreAdamW
from medsaga.optim.rounding import write_weight
from medsaga.optim.shared_basis import SharedBasisAdamW, Sides, factor_of
from medsaga.runs.plan import Run
from medsaga.settings.options import ResolvedSettings
from medsaga.training.trainer import Trainer

ROUNDS = "rounds"
"""The folder, in that of a site, with a folder for each of its last rounds."""
_START, _ANSWER = "start.pt", "answer.pt"
_KEPT = 2
_SECRET = "noise.key"
_LORA_A = ("query_down", "value_down", "down")


class MissingStartError(Exception):
    """The site does not have the weights that an order changes: it needs all of them."""


class Worker:
    """A site.

    Args:
        run: of the site: its folder, its samples, and a model of the common architecture, which may be another site's,
            too: all that is of this site is put into it at every order.
        federation: how the sites train together.
    """

    def __init__(self, run: Run, federation: Federation) -> None:
        self._run, self._federation = run, federation
        self._settings = run.config.settings
        self._symmetries = symmetries_of(run.train, run.model.classes)

    def sketch(self, order: Order) -> Answer:
        """Sketch the gradient of a first batch at the weights of the order; nothing is trained."""
        if self._federation.exchange != "shared-basis":
            raise RunError("the server asks for a sketch, of which this federation has none. Ask who runs the server")
        began = time.perf_counter()
        start = self._begin(order)
        self._write(order.round - 1, {_START: {"weights": dict(start), "bases": {}, "norms": {}}}, with_state=False)
        with self._trainer(before=None) as trainer:
            self._put(trainer.model, start, order.round)
            optimizer = trainer.optimizer
            assert isinstance(optimizer, SharedBasisAdamW)
            optimizer.sketching, optimizer.sketch_number = True, 0
            loss = trainer.arrive()
            sketches = _named(trainer, optimizer)
            optimizer.zero_grad()
        return self._answer({}, 1.0, sketches, loss=loss, steps=0, skipped=0, seconds=time.perf_counter() - began)

    def train(self, order: Order) -> Answer:
        """Make the steps of a round."""
        began, federation, number = time.perf_counter(), self._federation, order.round
        start = self._begin(order)
        if federation.clip is not None and (sent := self._sent_before(start, number)) is not None:
            return sent
        losses, made, decay = [], 0, 1.0
        with self._trainer(before=number) as trainer:
            counters = trainer.counters
            counters.step = (number - 1) * federation.local_steps
            self._put(trainer.model, start, number)
            weights = trained(trainer.model)
            loaded = {name: weight.detach().clone() for name, weight in weights.items()}
            optimizer = trainer.optimizer
            if isinstance(optimizer, SharedBasisAdamW):
                optimizer.give_bases({weights[name]: sides for name, sides in order.bases.items()})
                optimizer.sketch_number = number
            for step in range(federation.local_steps):
                if isinstance(optimizer, SharedBasisAdamW):
                    optimizer.sketching = step == federation.local_steps - 1
                done = trainer.step()
                losses.append(done.loss)
                made += done.made
                if done.made:
                    decay *= _decay(optimizer)
                if federation.strategy == "fedprox":
                    pull = self._pull(trainer, loaded)
                    decay = (1 - pull) * decay + pull
            sketches: dict[str, Sides] = {}
            if isinstance(optimizer, SharedBasisAdamW):
                sketches = _named(trainer, optimizer)
            ended = {name: weight.detach() for name, weight in weights.items()}
            tensors, decay = self._sent(start, loaded, ended, order, decay)
            norms = {name: ended[name].clone() for name in norm_names(trainer.model) if name in ended}
            trainer.save()
            kept = {_START: {"weights": start, "bases": dict(order.bases), "norms": norms}}
            answer = self._answer(
                tensors,
                decay,
                sketches,
                loss=_mean_of_finite(losses),
                steps=made,
                skipped=federation.local_steps - made,
                seconds=time.perf_counter() - began,
                peak_bytes=counters.peak_bytes,
            )
            if federation.clip is not None:
                kept[_ANSWER] = vars(answer)
            self._write(number, kept, with_state=True)
            return answer

    def take(self, order: Order) -> SegmentationModel:
        """Return the model with the weights of an order, and with the site's own norms if it keeps them."""
        start = self._begin(order)
        self._put(self._run.model, start, order.round)
        return self._run.model

    def _begin(self, order: Order) -> dict[str, Tensor]:
        """Return the common weights that the order starts from."""
        # Whatever the server says: no mirroring that makes another label of one that is here.
        self._run.model.symmetries = tuple(name for name in order.symmetries if name in self._symmetries)
        if order.weights is not None:
            return dict(order.weights)
        before = self._started(order.round - 1)
        if before is None:
            raise MissingStartError
        return moved(before["weights"], order.change, order.decay, before["bases"])

    def _trainer(self, before: int | None) -> Trainer:
        """Return a trainer with the optimizer's state of the last round before this one; None for a new state."""
        folder = self._run.folder
        state = folder / run_folder.STATE
        state.unlink(missing_ok=True)
        saved = [] if before is None else [path for path in _rounds(folder) if int(path.name) < before]
        if saved:
            with files.replacing(state) as temporary:
                shutil.copyfile(saved[-1] / run_folder.STATE, temporary)
        trainer = Trainer(
            folder,
            self._settings,
            self._run.model,
            train=self._run.train,
            monitor=self._run.monitor,
            chooses=False,
            galore=galore_class(self._federation),
            # All rounds are alike: the peak of the first one stays in the counters.
            measures=before is not None and not saved,
        )
        freeze(trainer.model, self._federation)
        return trainer

    @torch.no_grad()
    def _put(self, model: SegmentationModel, start: Tensors, number: int) -> None:
        """Put weights into the model, in its own types; rounded at random where these have fewer bits."""
        own: Tensors = {}
        if self._federation.strategy == "fedbn":
            saved = [path for path in _rounds(self._run.folder) if int(path.name) < number]
            own = torch.load(saved[-1] / _START, weights_only=True)["norms"] if saved else {}
        for place, (name, parameter) in enumerate(model.named_parameters()):
            if name in start:
                values = (own[name] if name in own else start[name]).to(parameter.device, torch.float32, copy=True)
                if parameter.dtype == torch.float64:
                    values = start[name].to(parameter.device, torch.float64, copy=True)
                generator = keyed_generator(parameter.device, self._settings.seed, place, number, "start")
                write_weight(parameter.data, values, generator)

    def _sent(
        self, start: Tensors, loaded: Tensors, ended: Tensors, order: Order, decay: float
    ) -> tuple[dict[str, Tensor], float]:
        """Return what travels of a round's change, and the decay of the weights that are not sent whole."""
        federation = self._federation
        if federation.exchange == "shared-basis":
            sent = {}
            for name, end in ended.items():
                # On the CPU, because MPS has no float64.
                change = end.cpu().double() - (decay if name in order.bases else 1.0) * loaded[name].cpu().double()
                if name in order.bases:
                    left, right = (None if side is None else side.cpu().double() for side in order.bases[name])
                    change = factor_of(change, left, right)
                sent[name] = change.to(start[name].dtype)
            return sent, decay
        if federation.clip is None and all(end.dtype == start[name].dtype for name, end in ended.items()):
            return {name: end.cpu() for name, end in ended.items()}, 1.0
        # Of weights in fewer bits the rounding of the start is no change.
        changes = {name: end.cpu().double() - loaded[name].cpu().double() for name, end in ended.items()}
        if federation.clip is not None:
            changes = _with_privacy(changes, federation, self._run.folder, order.round)
        return {name: (start[name].double() + change).to(start[name].dtype) for name, change in changes.items()}, 1.0

    def _pull(self, trainer: Trainer, loaded: Tensors) -> float:
        """Draw the weights towards those of the round's start, as weight decay draws them towards zero.

        FedProx's term mu/2 |W - W0|^2 (arXiv 1812.06127), decoupled from Adam's scaling as in AdamW.

        Returns:
            the share of the way back that projected weights have gone.
        """
        by_weight = {weight: loaded[name] for name, weight in trained(trainer.model).items()}
        share = 0.0
        for group in trainer.optimizer.param_groups:
            pull = group["lr"] * self._federation.proximal
            if group.get("rank") is not None:
                share = pull
            for place, weight in enumerate(group["params"]):
                if weight not in by_weight:
                    continue
                precise = weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
                precise.lerp_(by_weight[weight].to(precise), pull)
                key = (self._settings.seed, place, trainer.counters.step, "pull")
                write_weight(weight.data, precise, keyed_generator(weight.device, *key))
        return share

    def _started(self, number: int) -> dict[str, Any] | None:
        """Return what a round has started from; None where the site has not been in it."""
        path = self._run.folder / ROUNDS / f"{number:04d}" / _START
        if not path.exists():
            return None
        started: dict[str, Any] = torch.load(path, weights_only=True)
        return started

    def _sent_before(self, start: Tensors, number: int) -> Answer | None:
        """Return the answer that a round has had already; None if it has had none.

        A round has one noise. With it on two changes, from other starts, with other mirrorings or after other rounds,
        their difference would have none: a round is worked out once, in its turn, and what was sent is sent again.

        Raises:
            RunError: an order that no honest server gives.
        """
        rounds = self._federation.rounds
        last = max((int(path.name) for path in _rounds(self._run.folder)), default=0)
        before = self._started(number) if number == last else None
        same_start = before is None or _digest(before["weights"]) == _digest(start)
        if not (max(1, last) <= number <= rounds and same_start):
            raise RunError(
                f"the server orders round {number} of {rounds} from other weights than before or out of its turn, and "
                "the answer would reveal what the noise hides: nothing is sent. Ask who runs the server"
            )
        if before is None:
            return None
        return Answer(**torch.load(self._run.folder / ROUNDS / f"{number:04d}" / _ANSWER, weights_only=True))

    def _write(self, number: int, kept: Mapping[str, dict[str, Any]], *, with_state: bool) -> None:
        """Keep what the next round needs of a round, by the name of its file, whole or not at all."""
        folder = self._run.folder / ROUNDS
        place, making = folder / f"{number:04d}", folder / f".{number:04d}.making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        for name, content in kept.items():
            with files.replacing(making / name) as temporary:
                torch.save(content, temporary)
        if with_state:
            (self._run.folder / run_folder.STATE).replace(making / run_folder.STATE)
        shutil.rmtree(place, ignore_errors=True)
        making.rename(place)
        for old in [path for path in _numbered(folder) if int(path.name) <= number - _KEPT]:
            shutil.rmtree(old)

    def _answer(
        self, tensors: Tensors, decay: float, sketches: dict[str, Sides], peak_bytes: int = 0, **facts: float | None
    ) -> Answer:
        counted = {"images": len(self._run.train), "peak_bytes": peak_bytes}
        return Answer(
            site=self._run.folder.name,
            cases=len(self._run.split.train),
            tensors=tensors,
            decay=decay,
            sketches=sketches,
            facts={**facts, **counted},
        )


def galore_class(federation: Federation) -> type[GaLoreAdamW]:
    """Return the optimizer that goes with what travels."""
    return SharedBasisAdamW if federation.exchange == "shared-basis" else GaLoreAdamW


def freeze(model: nn.Module, federation: Federation) -> None:
    """Hold A of every LoRA update where FFA-LoRA does; what is trained has been settled before."""
    if federation.exchange == "ffa":
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in _LORA_A:
                parameter.requires_grad_(False)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name: those that travel."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_weights(model: SegmentationModel, settings: ResolvedSettings, federation: Federation) -> dict[str, Tensor]:
    """Return copies of the weights that will be trained, of at least 32 bits on the CPU; the others are frozen."""
    new_optimizer(model, settings).close()
    freeze(model, federation)
    return {
        name: weight.detach().to("cpu", torch.promote_types(weight.dtype, torch.float32), copy=True)
        for name, weight in trained(model).items()
    }


def norm_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters of normalisation layers."""
    owners = [name for name, layer in model.named_modules() if "Norm" in type(layer).__name__]
    return [name for name, _ in model.named_parameters() if name.rpartition(".")[0] in owners]


def _rounds(folder: Path) -> list[Path]:
    """Return the folders of the rounds that a site has trained in, the last one at the end."""
    return [path for path in _numbered(folder / ROUNDS) if (path / run_folder.STATE).exists()]


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def _named(trainer: Trainer, optimizer: SharedBasisAdamW) -> dict[str, Sides]:
    """Return the sketches by the names of their weights, without the scale of the loss."""
    names = {weight: name for name, weight in trained(trainer.model).items()}
    scale = 1 / trainer.counters.loss_scale.value
    return {
        names[weight]: (
            None if left is None else left.cpu() * scale,
            None if right is None else right.cpu() * scale,
        )
        for weight, (left, right) in optimizer.take_sketches().items()
        if isinstance(weight, nn.Parameter)
    }


def _mean_of_finite(losses: list[float]) -> float | None:
    """Return the mean of the losses that are numbers: a step whose loss is none has been skipped."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite else None


def _decay(optimizer: torch.optim.Optimizer) -> float:
    """Return by what the last step has multiplied the projected weights."""
    projected = [group for group in optimizer.param_groups if group.get("rank") is not None]
    return 1 - projected[0]["lr"] * projected[0]["weight_decay"] if projected else 1.0


def _digest(weights: Tensors) -> str:
    return digest_of(sorted(weights.items()))


def _with_privacy(changes: dict[str, Tensor], federation: Federation, folder: Path, number: int) -> dict[str, Tensor]:
    """Clip a change to a norm and add Gaussian noise to it.

    The noise comes from a secret of the site and the number of the round: nobody else can compute it, and an answer
    that was worked out twice, because the site was killed before it was kept, is the same.
    """
    assert federation.clip is not None
    factor = min(1.0, federation.clip / max(norm(changes), 1e-300))
    spread = (federation.noise or 0.0) * federation.clip
    path = folder / _SECRET
    if spread and not path.exists():
        files.write_text(path, secrets.token_hex(32))
    noisy = {}
    for name, change in changes.items():
        noisy[name] = factor * change
        if spread:
            key = hashlib.sha256(f"{path.read_text(encoding='utf-8')}/{number}/{name}".encode()).digest()
            noise = np.random.default_rng(int.from_bytes(key)).normal(0.0, spread, tuple(change.shape))
            noisy[name] += torch.from_numpy(np.asarray(noise))
    return noisy
