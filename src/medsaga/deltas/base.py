"""The weights that a delta is the difference from: what they are called, where they are found, and their tensors."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from medsaga import files, run_folder
from medsaga.errors import InputError
from medsaga.methods import starting_model
from medsaga.models.int8 import float_state
from medsaga.models.precision import set_precision
from medsaga.models.weights.names import State, efficientnet
from medsaga.models.weights.registry import RANDOM, known_as, known_weights
from medsaga.models.weights.sources import locate
from medsaga.settings.run_config import RunConfig, read_config


@dataclass(frozen=True, kw_only=True)
class Base:
    """What the weights of a run were before its first step, in words that say nothing of the machine.

    Attributes:
        name: of known weights, a hub id, or the name of the file without its folder; ``random`` without a file.
        file: the name of the file; None without one.
        sha256: of the file; None without one.
        drawn: SHA-256 of all tensors, where the seed has drawn some of them; None where the file has all.
    """

    name: str
    file: str | None
    sha256: str | None
    drawn: str | None


def starting_state(config: RunConfig) -> tuple[State, Base]:
    """Return the tensors that a run starts from, in its precision (int8 as bfloat16), and what they are.

    torch's global generator stays as it is.

    Args:
        config: of the run, whose settings name the source of the weights.

    Raises:
        InputError: the source cannot be used.
    """
    settings = config.settings
    with torch.random.fork_rng(devices=[]):
        model, info = starting_model(settings, classes=len(config.labels), in_channels=config.in_channels)
    drawn = _digest(model.state_dict()) if info is None or info.layout == efficientnet.PUBLISHED.name else None
    set_precision(model, settings.precision)
    state = float_state(model)
    if info is None:
        return state, Base(name=RANDOM, file=None, sha256=None, drawn=drawn)
    is_path = known_as(info.source) is None and Path(info.source).exists()
    name = info.file if is_path else info.source
    return state, Base(name=name, file=info.file, sha256=info.sha256, drawn=drawn)


def state_of(base: Base, config: RunConfig, delta: Path, given: str | None) -> State:
    """Find the weights that a delta file was made from; return their tensors as `starting_state` does.

    Args:
        base: what they are, by the file.
        config: of the run, by the file.
        delta: the file.
        given: a source of weights that the user has named for them.

    Raises:
        InputError: they are not there, or others are.
    """
    source = _located(base, delta, given)
    settings = dataclasses.replace(config.settings, weights=source)
    state, found = starting_state(dataclasses.replace(config, settings=settings))
    if (found.sha256, found.drawn) != (base.sha256, base.drawn):
        # The file has been recognised: what differs is what torch has drawn.
        raise InputError(
            delta,
            expected=f"random weights of SHA-256 {base.drawn}, which the seed of the run gave where it was made",
            found=f"{found.drawn} here: another version of torch, or another kind of processor",
            do="Ask for the run's model.safetensors instead.",
        )
    return state


def _located(base: Base, delta: Path, given: str | None) -> str:
    """Return a source of the weights."""
    if base.sha256 is None:
        if given is not None:
            do = "Leave it out."
            raise InputError("--base", expected="none: the delta is one of random weights", found=given, do=do)
        return RANDOM
    if given is not None:
        digest = files.sha256(locate(given))
        if digest != base.sha256:
            raise InputError(
                given,
                expected=f"{base.name}, SHA-256 {base.sha256}, which {delta.name} was made from",
                found=f"SHA-256 {digest}",
                do="Name the weights that the run started from.",
            )
        return given
    known = next((each for each in known_weights().values() if each.sha256 == base.sha256), None)
    if known is not None and _is(known.path, base):
        return known.name
    for path in _candidates(base, delta):
        if _is(path, base):
            return str(path.resolve())
    places = f"no such file named {base.file} beside it or in the current folder"
    fetch = ""
    if known is not None and known.url is not None:
        fetch = f", or with internet fetch them: medsaga weights fetch {known.name}"
    raise InputError(
        delta,
        expected=f"the weights that it was made from: {base.name}, SHA-256 {base.sha256}",
        found=places if known is None else f"{places}, and none that is whole in {known.path}",
        do=f"Say where they are: --base WEIGHTS{fetch}.",
    )


def _is(path: Path, base: Base) -> bool:
    return path.is_file() and files.sha256(path) == base.sha256


def _candidates(base: Base, delta: Path) -> Iterator[Path]:
    """Yield where the file may be: beside the delta, here, and where the run has it that the delta lies in."""
    if base.file is not None:
        yield delta.parent / base.file
        yield Path(base.file)
    if (delta.parent / run_folder.CONFIG).is_file():
        yield Path(read_config(delta.parent / run_folder.CONFIG).settings.weights or RANDOM)


def _digest(state: State) -> str:
    """Return the SHA-256 of the names and the bits of all tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
