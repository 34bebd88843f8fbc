"""The delta file: its format, reading it with all checks, and writing it.

It is a safetensors file. Its metadata have one entry, JSON: the version of the format, the configuration of the run as
``config.toml`` has it but without paths, the symmetries of the labels, the base weights, the names of the tensors that
are as in the base, c of each matrix that is stored as factors, what the file costs in accuracy, and a SHA-256 of all of
this and of the tensors. Of a tensor ``NAME`` of the model the file holds

- nothing, if it is as in the base;
- ``NAME``, float16, or float32 where float16 would overflow, if it is stored whole;
- ``NAME/left``, ``NAME/right``, int8 or float16, and their ``/scales``, float32, if W = c W0 + left^T right.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from medsaga import files
from medsaga.data.symmetries import SYMMETRIES
from medsaga.deltas.base import Base
from medsaga.deltas.factorise import CODES, Factor, Factors, as_matrix
from medsaga.deltas.header import KEY
from medsaga.errors import InputError
from medsaga.models.weights.names import State
from medsaga.models.weights.sources import read_safetensors
from medsaga.settings.run_config import RunConfig, parse_config

FORMAT = 1
"""Goes up with every change that older versions of medsaga would read wrongly."""
ADAPTER = "medsaga_adapter"
"""Of the metadata of the files that ``--method samed`` left in earlier versions."""
_SIDES = ("left", "right")
_SCALES = "/scales"
_MOST_CLASSES = 256
_MOST_PIXELS = 16384
"""Of the side of an image: a model is built before its tensors can be compared with those of the file."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What a delta file says, apart from its tensors.

    Attributes:
        config: of the run, without the places of data and weights.
        symmetries: as in `medsaga.models.base.SegmentationModel`.
        base: the weights that it is the difference from.
        unchanged: names of the tensors that are as there.
        shares: c of each matrix that is stored as factors, by the name of the tensor.
        cost: what was asked for and what came out, for people: numbers and words by name.
    """

    config: RunConfig
    symmetries: tuple[str, ...]
    base: Base
    unchanged: tuple[str, ...]
    shares: dict[str, float]
    cost: dict[str, Any]


def shareable(config: RunConfig, base: Base) -> RunConfig:
    """Return the configuration of a run without the names of folders and files of the machine."""
    settings = dataclasses.replace(config.settings, weights=base.name, recipe=None, budget=None, device="auto")
    return dataclasses.replace(config, data="", added=(), settings=settings)


def factor_tensors(name: str, factors: Factors) -> State:
    """Return the tensors that stand for a matrix in the file."""
    both = zip(_SIDES, (factors.left, factors.right), strict=True)
    return {
        key: tensor.contiguous()
        for side, factor in both
        for key, tensor in ((f"{name}/{side}", factor.codes), (f"{name}/{side}{_SCALES}", factor.scales))
    }


def whole_tensor(weight: Tensor) -> Tensor:
    """Return a weight as it is stored whole: in float16, or in float32 where float16 would overflow."""
    half = weight.half()
    return half if half.isfinite().all() else weight.float()


def write_delta(path: Path, delta: Delta, tensors: State) -> None:
    """Write a delta file, whole or not at all."""
    document = {
        "format": FORMAT,
        "config": delta.config.text(),
        "symmetries": list(delta.symmetries),
        "base": dataclasses.asdict(delta.base),
        "unchanged": list(delta.unchanged),
        "shares": delta.shares,
        "cost": delta.cost,
    }
    document["sha256"] = _digest(document, tensors)
    with files.replacing(path) as temporary:
        save_file(tensors, temporary, {KEY: json.dumps(document)})


def read_delta(path: Path) -> tuple[Delta, State]:
    """Read a delta file; its tensors lie in the file, and are not yet compared with a model.

    Raises:
        InputError: it is missing, another file, damaged, or of another version of the format.
    """
    tensors, metadata = read_safetensors(path)
    document = _document(path, metadata)
    _check_format(path, document.get("format"))
    stated = document.pop("sha256", None)
    if stated != _digest(document, tensors):
        raise _damaged(path, "content that has changed since it was written")
    try:
        config = parse_config(path, document["config"])
        shares = {str(name): float(share) for name, share in document["shares"].items()}
        delta = Delta(
            config=config,
            symmetries=tuple(name for name in document["symmetries"] if name in SYMMETRIES),
            base=Base(**document["base"]),
            unchanged=tuple(map(str, document["unchanged"])),
            shares=shares,
            cost=dict(document["cost"]),
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    sizes = (len(config.labels), config.settings.image_size, config.in_channels)
    within = 2 <= sizes[0] <= _MOST_CLASSES and 0 < sizes[1] <= _MOST_PIXELS and 0 < sizes[2] <= _MOST_PIXELS
    if not within or not all(map(math.isfinite, shares.values())):
        raise _damaged(path, "numbers that no run has")
    return delta, tensors


def check_against(path: Path, delta: Delta, tensors: State, model: State) -> None:
    """Check that a file says of every tensor of a model what it is, once, in the right shape.

    Args:
        path: of the file.
        delta: what it says.
        tensors: of the file.
        model: names and shapes; values are not looked at.

    Raises:
        InputError: it does not.
    """
    whole = {name for name in tensors if "/" not in name}
    stored = [*delta.unchanged, *delta.shares, *whole]
    if sorted(stored) != sorted(model):
        odd = sorted({*stored} ^ {*model})
        raise _damaged(path, f"{len(odd)} tensors too many or too few: {', '.join(odd[:6])}")
    expected = {*whole, *(key for name in delta.shares for key in _keys(name))}
    if odd := sorted(expected ^ {*tensors}):
        raise _damaged(path, f"{len(odd)} tensors too many or too few: {', '.join(odd[:6])}")
    for name in whole:
        tensor = tensors[name]
        if tensor.shape != model[name].shape or tensor.dtype not in (torch.float16, torch.float32):
            raise _damaged(path, f"{name} {tuple(tensor.shape)} {tensor.dtype}")
    for name in delta.shares:
        _check_factors(path, name, tensors, model[name])
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _damaged(path, f"NaN or infinity in {name}")


def restored(name: str, base: Tensor, delta: Delta, tensors: State) -> Tensor:
    """Return a tensor of the model, float32.

    Args:
        name: of the tensor.
        base: the same of the base weights.
        delta: what the file says.
        tensors: of the file, which `check_against` has seen.
    """
    if name in tensors:
        return tensors[name].float()
    weight = base.float()
    if name not in delta.shares:
        return weight
    left, right = (Factor(tensors[key], tensors[key + _SCALES]) for key in (f"{name}/{side}" for side in _SIDES))
    change = Factors(left, right).product()
    return (as_matrix(weight) * delta.shares[name] + change).view_as(weight)


def _check_factors(path: Path, name: str, tensors: State, weight: Tensor) -> None:
    if weight.dim() < 2:
        raise _damaged(path, f"factors of {name}, which is no matrix")
    sizes = as_matrix(weight).shape
    rank = len(tensors[f"{name}/left"])
    for side, size in zip(_SIDES, sizes, strict=True):
        codes, scales = tensors[f"{name}/{side}"], tensors[f"{name}/{side}{_SCALES}"]
        if (
            codes.shape != (rank, size)
            or codes.dtype not in CODES.values()
            or scales.shape != (rank,)
            or scales.dtype != torch.float32
            or rank > min(sizes)
        ):
            raise _damaged(path, f"{name}/{side} {tuple(codes.shape)} {codes.dtype} for {tuple(sizes)}")


def _keys(name: str) -> list[str]:
    return [f"{name}/{side}{ending}" for side in _SIDES for ending in ("", _SCALES)]


def _document(path: Path, metadata: Any) -> dict[str, Any]:
    """Return the description in the metadata of a file."""
    if ADAPTER in metadata:
        raise InputError(
            path,
            expected="a delta file",
            found="an adapter of an earlier version of medsaga, which does not know its base",
            do="Write one from its run: medsaga export RUN --delta FILE.",
        )
    if KEY not in metadata:
        raise InputError(
            path,
            expected="a run folder, or a delta file that `medsaga export` wrote",
            found="a safetensors file of another kind",
            do="Name the run folder, or such a file.",
        )
    try:
        document = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(document, dict):
        raise _damaged(path, "no description of what it holds")
    return document


def _check_format(path: Path, version: object) -> None:
    if version == FORMAT:
        return
    if not isinstance(version, int):
        raise _damaged(path, f"a format {version!r}")
    newer = version > FORMAT
    raise InputError(
        path,
        expected=f"format {FORMAT} of delta files",
        found=f"format {version}, of {'a newer' if newer else 'an earlier'} version of medsaga",
        do="Install a newer medsaga." if newer else "Export the run again with this version.",
    )


def _damaged(path: Path, found: str) -> InputError:
    return InputError(path, expected="a whole delta file", found=found, do="Copy it again, or export the run again.")


def _digest(document: dict[str, Any], tensors: State) -> str:
    """Return the SHA-256 of all that a file says, but for the digest itself."""
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
