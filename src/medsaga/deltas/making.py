"""From a run to a delta file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from medsaga import files, run_folder
from medsaga.deltas.base import Base, starting_state
from medsaga.deltas.factorise import (
    CODE_ERRORS,
    CODES,
    as_matrix,
    choose_ranks,
    encoded,
    shrunk,
    truncated,
)
from medsaga.deltas.file import Delta, factor_tensors, restored, shareable, whole_tensor, write_delta
from medsaga.errors import InputError
from medsaga.memory.meta import on_meta
from medsaga.methods import build_model, loading
from medsaga.models.lora import merged_weights
from medsaga.models.weights.loading import check_tensors, open_model
from medsaga.models.weights.names import State
from medsaga.settings.run_config import RunConfig, read_config

LARGEST_ERROR = 0.1
"""Default of what may be left out: see `export_delta`."""
ENCODERS = ("image_encoder.", "encoder.")
"""How the names of the tensors begin that may become factors: SAM's, and those of the other networks."""
FINEST = "fp16"
NEGLIGIBLE = 0.2
"""Of the bytes of what is stored whole anyway: what factors may take that keep all that they can."""
SMALLEST = 4096
"""Elements below which factors and their names would save nothing worth having."""


@dataclass(frozen=True, eq=False)
class RunWeights:
    """The trained weights of a run, which lie in its file.

    Attributes:
        symmetries: of the model.
        makers: by the name of each tensor of the plain model, what returns it.
    """

    symmetries: tuple[str, ...]
    makers: dict[str, Callable[[], Tensor]]


def export_delta(
    run: Path,
    out: Path,
    *,
    error: float = LARGEST_ERROR,
    codes: str = "int8",
    base: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write what a run has changed in its base weights as a delta file.

    There is one model in memory, the base, and one tensor of the run at a time.

    Args:
        run: the run folder.
        out: the file to write; it ends in ``.safetensors`` and must not exist.
        error: bound of what is lost, relative to what the run has changed: the Frobenius norm of the difference
            between the stored and the trained weights over that of W - c W0, each over all matrices together. What is
            stored whole counts as not lost: it is rounded to float16.
            Where the change can be kept as good as exactly in next to no bytes, as LoRA's, it is, in fp16.
        codes: key of ``CODES``: how factors are stored.
        base: where the weights are that the run started from, if not where they were.
        progress: called with what is done and what there is in all.

    Returns:
        ``base``, ``base_sha256``, ``bytes`` of the file, ``bytes_of_model``, ``compression``, ``bound``, ``codes``;
        ``error_of_change``, as bounded; ``error_of_weights``, of all tensors, relative to the weights; ``unchanged``,
        ``factors`` and ``whole``, the numbers of tensors; ``bytes_of_factors``, ``bytes_of_whole`` and, of these,
        ``bytes_of_matrices_stored_whole``; ``rank_median`` and ``rank_largest``; ``share_of_base_median``, of c.

    Raises:
        InputError: the run, the base, the file or the bound cannot be used; nothing has been written.
    """
    _check(out, error, codes)
    config = read_config(run / run_folder.CONFIG)
    trained = run_weights(run / run_folder.MODEL, config)
    start, about = _start(run, config, base)
    delta, tensors, cost = compressed(config, trained, start, about, error=error, codes=codes, progress=progress)
    write_delta(out, delta, tensors)
    size, before = out.stat().st_size, (run / run_folder.MODEL).stat().st_size
    head = {"base": about.name, "base_sha256": about.sha256, "bytes": size, "bytes_of_model": before}
    return head | {"compression": _readable(before / size)} | cost


def run_weights(path: Path, config: RunConfig) -> RunWeights:
    """Return the weights of a run as a plain model has them: LoRA's updates are added where they belong.

    Raises:
        InputError: the file is damaged, or does not fit the configuration.
    """
    model = open_model(path, loading(config.settings))
    with on_meta():
        plain = build_model(config.settings, classes=len(config.labels), in_channels=config.in_channels)
    state, updates = model.state_dict(), merged_weights(model)
    check_tensors(path, {name: state[name] for name in state if name in plain.state_dict()}, plain.state_dict())
    makers = {name: updates.get(name, partial(state.__getitem__, name)) for name in plain.state_dict()}
    return RunWeights(model.symmetries, makers)


def _check(out: Path, error: float, codes: str) -> None:
    if out.suffix != ".safetensors":
        raise InputError(out, expected="a name that ends in .safetensors", found=out.name, do="Choose another name.")
    files.require_new(out, "a file", "Choose another name.")
    if codes not in CODES:
        raise InputError("--codes", expected=f"one of {', '.join(CODES)}", found=codes, do="Choose one.")
    least = 2 * CODE_ERRORS[codes]
    if not least <= error < 1:
        do = "Give a share; --codes fp16 allows smaller ones." if codes == "int8" else "Give a share."
        raise InputError("--error", expected=f"{least:g} to 1 with {codes}", found=f"{error:g}", do=do)


def _start(run: Path, config: RunConfig, base: str | None) -> tuple[State, Base]:
    """Return the weights that the run started from."""
    if base is not None:
        config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, weights=base))
    try:
        state, about = starting_state(config)
    except InputError as error:
        do = error.do if base is not None else f"{error.do} If they are elsewhere, name them: --base WEIGHTS."
        raise InputError(error.where, expected=error.expected, found=error.found, do=do) from None
    begun_with = files.read_json(run / run_folder.MANIFEST).get("model", {})
    if "layout" in begun_with and begun_with["sha256"] != about.sha256:
        raise InputError(
            base or str(config.settings.weights),
            expected=f"the weights that the run started from, SHA-256 {begun_with['sha256']}",
            found=f"SHA-256 {about.sha256}",
            do="Name them: --base WEIGHTS.",
        )
    return state, about


@dataclass(frozen=True, eq=False)
class _Matrix:
    """What is known of a matrix after the first look at it."""

    name: str
    shape: tuple[int, int]
    share: float
    spectrum: Tensor


@dataclass(eq=False)
class _Sums:
    """Squared Frobenius norms, added up over tensors: of the weights, of what is lost of them, and of the changes."""

    weights: float = 0.0
    lost: float = 0.0
    changes: float = 0.0
    lost_of_changes: float = 0.0

    def add(self, weight: Tensor, stored: Tensor) -> float:
        """Add a tensor; return what is lost of it."""
        lost = _square(weight - stored)
        self.weights += _square(weight)
        self.lost += lost
        return lost


def compressed(
    config: RunConfig,
    trained: RunWeights,
    start: State,
    base: Base,
    *,
    error: float,
    codes: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Delta, State, dict[str, Any]]:
    """Return what goes into a delta file, its tensors, and what they cost; see `export_delta`.

    Args:
        config: of the run.
        trained: its weights.
        start: those that it started from.
        base: what these are.
        error: bound of what is lost.
        codes: how factors are stored.
        progress: called with what is done and what there is in all.
    """
    unchanged, whole, matrices = _looked_at(trained, start, progress)
    sums = _Sums(changes=sum(float(matrix.spectrum.sum()) for matrix in matrices))
    ranks = _ranks(matrices, error, codes)
    # LoRA's updates are as good as exact for a few kilobytes: nothing is gained by leaving a part of them out.
    exact = _ranks(matrices, 2 * CODE_ERRORS[FINEST], FINEST)
    others = sum(2 * start[name].numel() for name in whole)
    if _bytes_of(matrices, exact, FINEST) <= NEGLIGIBLE * others:
        ranks, codes = exact, FINEST
    delta = Delta(
        config=shareable(config, base),
        symmetries=trained.symmetries,
        base=base,
        unchanged=tuple(unchanged),
        shares={matrix.name: matrix.share for matrix, rank in zip(matrices, ranks, strict=True) if rank is not None},
        cost={},
    )
    tensors: State = {}
    for name in (*unchanged, *whole):
        weight = trained.makers[name]().float()
        if name not in delta.unchanged:
            tensors[name] = whole_tensor(weight)
        sums.add(weight, restored(name, start[name], delta, tensors))
    for done, (matrix, rank) in enumerate(zip(matrices, ranks, strict=True), 1):
        weight, first = trained.makers[matrix.name]().float(), start[matrix.name].float()
        if rank is None:
            tensors[matrix.name] = whole_tensor(weight)
            sums.add(weight, tensors[matrix.name].float())
        else:
            change = as_matrix(weight) - matrix.share * as_matrix(first)
            tensors |= factor_tensors(matrix.name, encoded(*truncated(change, rank), codes))
            sums.lost_of_changes += sums.add(weight, restored(matrix.name, first, delta, tensors))
        if progress:
            progress(len(matrices) + done, 2 * len(matrices))
    kept = [rank for rank in ranks if rank is not None]
    cost: dict[str, Any] = {
        "bound": error,
        "codes": codes,
        "error_of_change": _readable(math.sqrt(sums.lost_of_changes / sums.changes) if sums.changes else 0.0),
        "error_of_weights": _readable(math.sqrt(sums.lost / sums.weights)),
        "unchanged": len(unchanged),
        "factors": len(kept),
        "whole": len(trained.makers) - len(unchanged) - len(kept),
        "bytes_of_factors": sum(tensor.nbytes for name, tensor in tensors.items() if "/" in name),
        "bytes_of_whole": sum(tensor.nbytes for name, tensor in tensors.items() if "/" not in name),
        "bytes_of_matrices_stored_whole": sum(
            tensors[matrix.name].nbytes for matrix, rank in zip(matrices, ranks, strict=True) if rank is None
        ),
        "rank_median": median(kept) if kept else None,
        "rank_largest": max(kept, default=None),
        "share_of_base_median": round(median(delta.shares.values()), 5) if kept else None,
    }
    return dataclasses.replace(delta, cost=cost), tensors, cost


def _ranks(matrices: list[_Matrix], error: float, codes: str) -> list[int | None]:
    """Return the ranks with which the matrices keep a bound; see `choose_ranks`."""
    # What storing the factors may change is kept aside: the two errors add up as squares, at most.
    lost = (error**2 - CODE_ERRORS[codes] ** 2) * sum(float(matrix.spectrum.sum()) for matrix in matrices)
    spectra, shapes = [matrix.spectrum for matrix in matrices], [matrix.shape for matrix in matrices]
    return choose_ranks(spectra, shapes, lost=lost, code_bytes=CODES[codes].itemsize)


def _bytes_of(matrices: list[_Matrix], ranks: list[int | None], codes: str) -> int:
    """Return what matrices take in the file, without the scales of the factors."""
    return sum(
        2 * m * n if rank is None else rank * (m + n) * CODES[codes].itemsize
        for rank, (m, n) in zip(ranks, (matrix.shape for matrix in matrices), strict=True)
    )


def _looked_at(
    trained: RunWeights, start: State, progress: Callable[[int, int], None] | None
) -> tuple[list[str], list[str], list[_Matrix]]:
    """Return the names of the tensors that are as at the start, of those to store whole, and the other ones."""
    unchanged, whole, matrices = [], [], []
    takes_factors = {
        name
        for name, tensor in start.items()
        if name.startswith(ENCODERS) and tensor.dim() >= 2 and tensor.numel() >= SMALLEST
    }
    looked = 0
    for name, make in trained.makers.items():
        weight, first = make().float(), start[name].float()
        if not weight.isfinite().all():
            do = "Export a run that has not failed."
            raise InputError(run_folder.MODEL, expected="finite weights", found=f"NaN or infinity in {name}", do=do)
        looked += name in takes_factors
        if torch.equal(weight, first):
            unchanged.append(name)
        elif name not in takes_factors:
            whole.append(name)
        else:
            weight, first = as_matrix(weight), as_matrix(first)
            share, values = shrunk(weight, first)
            rows, columns = weight.shape
            matrices.append(_Matrix(name, (rows, columns), share, values))
        if progress and name in takes_factors:
            progress(looked, 2 * len(takes_factors))
    return unchanged, whole, matrices


def _readable(number: float) -> float:
    return float(f"{number:.4g}")


def _square(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())
