"""Published weights of SAM and SAM 2.1 into a k-class model, and this package's own model files.

Every tensor has to find its place, or nothing is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from medsaga import files, run_folder
from medsaga.data.symmetries import SYMMETRIES
from medsaga.errors import InputError
from medsaga.memory.meta import on_meta
from medsaga.models.base import SegmentationModel
from medsaga.models.encoders import ENCODERS, EncoderSpec
from medsaga.models.encoders.hiera import TRUNK
from medsaga.models.encoders.pruned import has_sizes, name_with_sizes, spec_with_sizes, told_by
from medsaga.models.encoders.sam_vit import count_blocks
from medsaga.models.int8 import float_state
from medsaga.models.sam import KClassSam, build_sam
from medsaga.models.weights.fitting import fit_to
from medsaga.models.weights.names import ENCODER, State, own_names
from medsaga.models.weights.others import refuse_others
from medsaga.models.weights.registry import checked_sha256, known_as, release_of
from medsaga.models.weights.sources import SourceFile, locate, read_safetensors, read_source

DESCRIPTION = ("architecture", "classes", "image_size", "in_channels")
"""What it takes to build a model; a model file holds it as its metadata."""
EPISODIC = "episodic"
"""Key of the metadata of weights that were pre-trained on episodes; see `medsaga.training.class_tokens`."""
SYMMETRIES_OF_DATA = "symmetries"
"""Key of the metadata of a trained model: `medsaga.models.base.SegmentationModel.symmetries`."""
SHOWN = 6
"""How many names of a kind an error lists."""
_MOST = {"classes": 256, "image_size": 16384, "in_channels": 16384}
"""Of a description: a model is built before its tensors can be compared with those of the file."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What is computed with; torch can do next to nothing with the types of 8 bits and fewer."""


@dataclass(frozen=True)
class WeightsInfo:
    """Where a model's pre-trained weights came from, for the record of a run.

    Attributes:
        source: what the user named.
        file: the file that was read.
        sha256: of that file.
        layout: see `medsaga.models.weights.sources.SourceFile`.
        architecture: as in `medsaga.models.encoders.encoder_spec`.
        image_size: side in pixels that the weights were made for.
        release: what the file is, if it is one of the known weights, or None.
        episodic: whether they were pre-trained to know a class by its mean embedding.
    """

    source: str
    file: str
    sha256: str
    layout: str
    architecture: str
    image_size: int
    release: str | None
    episodic: bool


@dataclass(frozen=True)
class Weights:
    """Complete weights, and the sizes that their tensors tell.

    Attributes:
        file: that holds them.
        sha256: of the file.
        architecture: as in `medsaga.models.encoders.encoder_spec`.
        classes: number of mask tokens.
        image_size: side in pixels that they were made for.
        in_channels: channels of the patch embedding.
        episodic: whether they were pre-trained to know a class by its mean embedding.
    """

    file: SourceFile
    sha256: str
    architecture: str
    classes: int
    image_size: int
    in_channels: int
    episodic: bool


def load_pretrained(model: SegmentationModel, source: str | Path) -> WeightsInfo:
    """Overwrite a model's weights by published ones, adapted to its classes, image size and channels.

    - Positions that depend on the image size are resized as the encoder says: absolute ones bicubically, relative ones
      of SAM's global layers linearly.
    - Class c starts as SAM's mask c modulo 4; where several classes start as the same mask, a little noise from a
      fixed seed tells the later ones apart.
    - What an ImageNet encoder's file lacks, the pyramid and the decoder, stays as the model has it.
    - A kernel for other than RGB input is the mean over RGB, scaled to keep the size of its sums.

    Args:
        model: of the architecture of the weights; see :func:`detect_architecture`.
        source: the name of known weights, an official ``.pth`` or ``.pt`` file or one of MedSAM or MedSAM2, a
            ``.safetensors`` file, a Hugging Face folder, or a hub id such as ``facebook/sam2.1-hiera-tiny``, which is
            downloaded once.

    Raises:
        InputError: as for :func:`read_weights`, or the weights belong to another architecture.
    """
    assert isinstance(model, KClassSam), "other models are trained from scratch"
    weights = read_weights(source)
    if weights.architecture != model.architecture:
        raise InputError(
            source,
            expected=f"weights of {model.architecture}",
            found=f"weights of {weights.architecture}",
            do=f"Use --model {weights.architecture}, or other weights.",
        )
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(weights.file.absent)}
    masks = model.classes if own else weights.classes
    model.load_state_dict(fit_to(model, own | weights.file.state, masks=masks))
    return WeightsInfo(
        source=str(source),
        file=weights.file.path.name,
        sha256=weights.sha256,
        layout=weights.file.layout,
        architecture=weights.architecture,
        image_size=weights.image_size,
        release=release_of(weights.sha256),
        episodic=weights.episodic,
    )


def read_weights(source: str | Path) -> Weights:
    """Read weights that can be loaded: every tensor is there and finite, and a known file is what it should be.

    Raises:
        InputError: the file is missing, cannot be read, holds code, is not the known file that its name promises, or
            lacks a tensor.
    """
    digest = checked_sha256(source, locate(source))
    file = read_source(source)
    architecture, side, in_channels = _recognise(source, file)
    tokens = file.state.get("mask_decoder.mask_tokens.weight")
    classes = max(2, len(tokens)) if tokens is not None else 4
    expected = _layout_of(architecture, classes, side, in_channels)
    check_tensors(
        source, file.state, {name: tensor for name, tensor in expected.items() if not name.startswith(file.absent)}
    )
    _check_finite(source, file.state)
    return Weights(file, digest, architecture, classes, side, in_channels, _is_episodic(file))


def detect_architecture(source: str | Path) -> str:
    """Return the architecture that a source of weights, as in :func:`load_pretrained`, belongs to.

    Raises:
        InputError: the file cannot be read, or belongs to none.
    """
    known = known_as(source)
    if known is not None:
        return known.architecture
    return _recognise(source, read_source(source))[0]


def save_model(path: Path, model: SegmentationModel) -> None:
    """Write a model as safetensors, whole or not at all; what it takes to build it goes into the file's metadata."""
    description = {name: getattr(model, name) for name in DESCRIPTION}
    save_state(path, float_state(model), symmetries=model.symmetries, **description)


def save_state(
    path: Path, state: State, *, episodic: bool = False, symmetries: Sequence[str] = (), **description: str | int
) -> None:
    """Write the tensors of a model as :func:`save_model` does.

    Args:
        path: of the file.
        state: of the model.
        episodic: whether they were pre-trained to know a class by its mean embedding.
        symmetries: of the model.
        description: has the keys ``DESCRIPTION``.
    """
    assert description.keys() == set(DESCRIPTION)
    # safetensors writes its metadata in random order: with one entry, equal models are equal files.
    facts: dict[str, Any] = {name: description[name] for name in DESCRIPTION}
    facts |= {EPISODIC: True} if episodic else {}
    facts |= {SYMMETRIES_OF_DATA: list(symmetries)} if symmetries else {}
    metadata = {"medsaga": json.dumps(facts)}
    with files.replacing(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata)


def load_model(path: Path, build: Callable[..., SegmentationModel] = build_sam) -> SegmentationModel:
    """Read a model that :func:`save_model` wrote, in the types it was saved in, on the CPU.

    Earlier versions, which had transformers' names, wrote the same tensors.

    Args:
        path: of the file.
        build: makes the model, from its architecture, ``classes``, ``image_size`` and ``in_channels``.

    Raises:
        InputError: the file is missing, damaged, of another program or of a model that is gone, or its tensors do not
            fit its own description.
    """
    model = open_model(path, build)
    # Memory-mapped tensors would keep the file open, and Windows would refuse to replace it.
    model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
    return model


def open_model(path: Path, build: Callable[..., SegmentationModel] = build_sam) -> SegmentationModel:
    """Return what :func:`load_model` does with tensors that lie in the file: they take no memory, and keep it open."""
    run_folder.require_model(path)
    state, metadata = read_safetensors(path)
    refuse_others(path, state)
    try:
        described = json.loads(metadata["medsaga"])
        architecture, classes, image_size, in_channels = (described[name] for name in DESCRIPTION)
        if not all(isinstance(described[name], int) and 0 < described[name] <= most for name, most in _MOST.items()):
            raise ValueError("numbers that no model has")
        symmetries = tuple(name for name in described.get(SYMMETRIES_OF_DATA, ()) if name in SYMMETRIES)
        with on_meta():
            model = build(architecture, classes=classes, image_size=image_size, in_channels=in_channels)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise InputError(
            path,
            expected="a model file of medsaga",
            found="a file without a valid description of one",
            do="Published weights are named by --model when a run is trained.",
        ) from None
    state = own_names(state)
    check_tensors(path, state, model.state_dict())
    _check_finite(path, state)
    model.load_state_dict(state, assign=True)
    model.make_constants()
    model.symmetries = symmetries
    return model


@torch.no_grad()
def load_in_place(path: Path, model: SegmentationModel) -> None:
    """Give a model the weights that :func:`save_model` wrote of it, one tensor at a time, so that none is held twice.

    It ends as :func:`load_model` would return it, in the types of the file; int8 weights become floating point.

    Args:
        path: of the file.
        model: that the file was written of; its parameters no longer take gradients.
    """
    state, _ = read_safetensors(path)
    for name in list(state):
        owner, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        value = state.pop(name).clone().to(model.device)
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[leaf] = value


def _facts(file: SourceFile) -> dict[str, object]:
    """Return what a file says of itself, if this package wrote it."""
    try:
        facts = json.loads(file.metadata.get("medsaga", "{}"))
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_episodic(file: SourceFile) -> bool:
    return _facts(file).get(EPISODIC) is True


def _candidates(file: SourceFile, encoder: State) -> Iterator[tuple[str, EncoderSpec]]:
    """Yield the architectures that a file may have, those first that are sure."""
    named = str(_facts(file).get("architecture"))
    if has_sizes(named):
        with contextlib.suppress(ValueError):
            yield named, spec_with_sizes(named)
    yield from ENCODERS.items()
    if spec := told_by(encoder):
        yield name_with_sizes(spec), spec


def _recognise(source: str | Path, file: SourceFile) -> tuple[str, int, int]:
    """Return the architecture of weights, and the side in pixels and the channels of the images they were made for."""
    state = file.state
    refuse_others(source, state)
    encoder = {name.removeprefix(ENCODER): tensor for name, tensor in state.items() if name.startswith(ENCODER)}
    for name, spec in _candidates(file, encoder):
        if sizes := spec.sizes_of(encoder):
            return name, *sizes
    trunk = {name.removeprefix(TRUNK): tensor for name, tensor in encoder.items()}
    patches = trunk.get("patch_embed.proj.weight")
    if patches is None or patches.dim() != 4:
        raise InputError(
            source,
            expected="weights of SAM or SAM 2.1 (image_encoder.* or vision_encoder.*)",
            found=_some(sorted(state)) if state else "no tensors",
            do="Use a file of SAM, MedSAM, MobileSAM, SAM 2.1 or MedSAM2, or a hub id: facebook/sam2.1-hiera-tiny.",
        )
    raise InputError(
        source,
        expected=f"one of {', '.join(ENCODERS)}",
        found=f"an image encoder of {count_blocks(trunk)} layers with {len(patches)} channels",
        do="Other sizes of SAM are read from a whole file that was made for images larger than a window.",
    )


def _layout_of(architecture: str, classes: int, image_size: int, in_channels: int) -> State:
    """Return a model's state without its values."""
    with on_meta():
        model = build_sam(architecture, classes=classes, image_size=image_size, in_channels=in_channels)
    return model.state_dict()


def check_tensors(source: str | Path, found: State, expected: State) -> None:
    """Raise InputError unless names and shapes agree, and what is to be computed with can be."""
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of wrong shape": [
            f"{name} {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(found.keys() & expected.keys())
            if found[name].shape != expected[name].shape
        ],
        "of wrong type": [
            f"{name} {str(found[name].dtype).removeprefix('torch.')}"
            for name in sorted(found.keys() & expected.keys())
            if expected[name].is_floating_point() and found[name].dtype not in _FLOATS
        ],
    }
    if not any(problems.values()):
        return
    raise InputError(
        source,
        expected=f"the {len(expected)} tensors of the model",
        found="; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names),
        do="The file is incomplete or of another model; nothing was loaded.",
    )


def _check_finite(source: str | Path, state: State) -> None:
    odd = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if odd:
        raise InputError(
            source,
            expected="finite numbers",
            found=f"NaN or infinity in {_some(odd)}",
            do="The training that made the file has failed; use other weights.",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
