"""The settings of a run: what a user may choose, checked for contradictions, and written to ``config.toml``.

A field that is None is resolved when the run starts, from the preset, the model and the data; the run folder
holds the resolved values only.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

import tomli_w

from medsaga import files
from medsaga.data.intensity import Intensity
from medsaga.data.names import normal
from medsaga.errors import InputError

Axis = Literal["auto", "axial", "coronal", "sagittal", "i", "j", "k"]
Augmentations = Literal["fewshot", "samed", "none"]
Checkpointing = Literal["auto", "none", "blocks"]
DiceForm = Literal["linear", "squared"]
LossResolution = Literal["image", "logits"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
SMALLEST_TILE = 32
_FILE = "file://"


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What the runs of a comparison have in common. The docstring of a field is its help on the command line."""

    model: str | None = None
    """Architecture (tiny, vit_b, vit_l, vit_h), or the weights to start from: a name of `medsaga weights list`, a file,
    a Hugging Face folder or hub id; default tiny."""
    random_weights: bool = False
    """Start from random weights. An architecture without weights of its own in the package does so anyway."""
    fold: int = 0
    """Fold of an existing splits_final.json."""
    validation_cases: int | None = None
    """Training cases put aside to choose the best checkpoint; by default a fifth of 10 or more, else none."""
    image_size: int | None = None
    """Side in pixels of the square that the model sees; a multiple of 16."""
    tile: int | None = None
    """Side in pixels of the image's own grid: larger slices are cut into tiles of it; by default seen whole."""
    channels: tuple[str, ...] | None = None
    """Names of the image channels to use, where each is a file of its own; by default all."""
    binary: bool = False
    """Read every mask as background and foreground, whatever its values are: 0/255, smoothed, a number per cell."""
    axis: Axis = "auto"
    """Axis along which volumes are cut into slices; `auto` is the axis of coarsest spacing."""
    neighbours: int = 0
    """Neighbouring slices on each side that the model sees as extra channels (2.5-D)."""
    intensity: Literal["auto", "identity", "window", "percentile"] = "auto"
    """How grey values become 8 bits: a window for CT, percentiles for MR, as they are for 8-bit images."""
    window: tuple[float, float] | None = None
    """Lowest and highest value of the intensity window, in HU for CT."""
    augmentation: Augmentations | None = None
    """Random changes of the training images; `samed` is the paper's recipe."""
    steps: int | None = None
    """Optimizer steps."""
    batch_size: int | None = None
    """Images per optimizer step."""
    micro_batch_size: int | None = None
    """Images per backward pass: a smaller number needs less memory and more time, and gives the same result."""
    checkpointing: Checkpointing = "auto"
    """`blocks` computes each encoder block again in the backward pass: less memory, more time, the same result."""
    precision: Precision = "auto"
    """Of the weights. bf16, fp16 and int8 (the encoder's, in bf16 arithmetic) are updated with stochastic rounding."""
    state_bits: Literal[8, 32] | None = None
    """Bits of each number of the optimizer's state."""
    state_on_host: bool = False
    """Keep the optimizer's state in the host's memory: less memory on the GPU, more time."""
    dice_weight: float | None = None
    """Share of Dice in the loss, from 0 to 1; cross-entropy has the rest."""
    dice_form: DiceForm | None = None
    """`linear`, our Dice, or `squared`, that of SAMed's and DAE-Former's code: probabilities squared, all classes."""
    loss_resolution: LossResolution | None = None
    """Where the loss is taken: at the image's own resolution, or, as in the papers, at that of SAM's logits."""
    evaluate_every: int | None = None
    """Steps between two evaluations, each of which saves a checkpoint."""
    patience: int | None = None
    """Stop after this many evaluations without a better validation Dice."""
    protocol: Literal["mm", "transunet"] = "mm"
    """Metric protocol of the final evaluation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True, kw_only=True)
class Settings(SharedSettings):
    """What a training run can be told."""

    method: str | None = None
    """medsaga (default), samed, full, frozen; daeformer and unet train models of their own from scratch."""
    recipe: str | None = None
    """A publication's settings: medsaga-paper, samed-paper, daeformer-paper, or a TOML file; other options override."""
    shots: int | None = None
    """Number of labelled cases (patients) to train on, drawn by SEED; all others are held out for the test."""
    test_cases: int | None = None
    """Test on so many of the other cases only; with one SEED they are the same for every number of shots."""
    seed: int = 0
    """Chooses the cases, the initial weights, the batches and the augmentation."""
    budget: str | None = None
    """Memory that the run may take, such as 4GB: what is left open below and the image size are chosen to fit."""
    encoder_lr: float | None = None
    """Peak learning rate of the image encoder."""
    decoder_lr: float | None = None
    """Peak learning rate of the prompt encoder and the mask decoder."""
    weight_decay: float | None = None
    """Weight decay of the weight matrices."""
    optimizer: Literal["adamw", "sgd"] | None = None
    """AdamW, or stochastic gradient descent with a momentum of 0.9."""
    warmup: int | None = None
    """Steps over which the learning rate rises."""
    max_gradient_norm: float | None = None
    """The gradient, as projected, is clipped to this norm; inf leaves it as it is."""
    rank: int | None = None
    """Rank of GaLore's gradient projection, or of LoRA's update."""
    refresh_every: int | None = None
    """Optimizer steps between two choices of the projection's subspace."""
    galore: Literal["default", "reference"] | None = None
    """`reference` does what GaLore's authors do: exact SVD, moments kept as they are, updates scaled by 0.25."""

    def __post_init__(self) -> None:
        """Reject contradictions before anything is read.

        Raises:
            InputError: naming the flag.
        """
        positive = ["steps", "batch_size", "micro_batch_size", "rank", "refresh_every", "evaluate_every", "patience"]
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(flag(name), expected="at least 1", found=str(value), do="Give a larger number.")
        if self.tile is not None and self.tile < SMALLEST_TILE:
            raise InputError(
                flag("tile"),
                expected=f"at least {SMALLEST_TILE} pixels",
                found=str(self.tile),
                do="Give a larger tile.",
            )
        for name in ["neighbours", "seed", "fold", "validation_cases", "test_cases", "warmup", "weight_decay"]:
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(flag(name), expected="0 or more", found=str(value), do="Give a larger number.")
        for name, most in (("encoder_lr", 1e3), ("decoder_lr", 1e3), ("max_gradient_norm", float("inf"))):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise InputError(
                    flag(name), expected="a positive number", found=str(value), do="Give a positive number."
                )
        if self.dice_weight is not None and not 0 <= self.dice_weight <= 1:
            raise InputError(flag("dice_weight"), expected="0 to 1", found=str(self.dice_weight), do="Give a share.")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise InputError(
                flag("window"),
                expected="the lower end before the upper end",
                found=f"{self.window[0]:g} {self.window[1]:g}",
                do="Swap the two values.",
            )
        if self.window is not None and self.intensity not in ("auto", "window"):
            raise InputError(
                flag("window"),
                expected="--intensity window or auto beside it",
                found=f"--intensity {self.intensity}",
                do="Drop one of the two.",
            )
        if self.budget is not None:
            parse_bytes(self.budget)
        if self.batch_size and self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise InputError(
                flag("micro_batch_size"),
                expected=f"a divisor of --batch-size {self.batch_size}",
                found=str(self.micro_batch_size),
                do="Choose a divisor.",
            )


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(Settings):
    """Settings of a run that can start: nothing that training needs is left open."""

    model: str = field()
    weights: str | None = None
    method: str = field()
    image_size: int = field()
    augmentation: Augmentations = field()
    steps: int = field()
    batch_size: int = field()
    micro_batch_size: int = field()
    state_bits: Literal[8, 32] = field()
    encoder_lr: float = field()
    decoder_lr: float = field()
    weight_decay: float = field()
    optimizer: Literal["adamw", "sgd"] = field()
    dice_weight: float = field()
    dice_form: DiceForm = "linear"  # what runs had before there was another
    loss_resolution: LossResolution = field()
    warmup: int = field()
    max_gradient_norm: float = field()
    rank: int = field()
    refresh_every: int = field()
    galore: Literal["default", "reference"] = field()
    evaluate_every: int = field()


def named(settings: Settings) -> dict[str, Any]:
    """Return the settings that are not at their defaults, which are those that the user has named, as JSON has them.

    The device is left out: it may change when a run goes on.
    """
    values = {
        option.name: getattr(settings, option.name)
        for option in dataclasses.fields(Settings)
        if option.name != "device" and getattr(settings, option.name) != option.default
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """Return the number of bytes in a text such as 4GB, 3.5 GiB or 800MB.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)\s*", text.upper())
    if found is None or found[2] not in UNITS or float(found[1]) == 0:
        raise InputError(
            "--budget", expected="an amount of memory, such as 4GB or 800MiB", found=text, do="Give number and unit."
        )
    return int(float(found[1]) * UNITS[found[2]])


def flag(name: str) -> str:
    """Return the command-line flag of a field, for messages."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class RunConfig:
    """Everything that prediction needs to know about a run; ``config.toml`` holds just this.

    Attributes:
        data: the dataset folder it was trained on.
        labels: label name to label value, background first; the position is the class index.
        channels: names of the image channels, in order.
        intensities: one resolved intensity mapping per channel.
        settings: nothing that training needs is left open.
        added: the dataset folders whose cases were added, one after the other, by continuing a run.
    """

    data: str
    labels: dict[str, int]
    channels: tuple[str, ...]
    intensities: tuple[Intensity, ...]
    settings: ResolvedSettings
    added: tuple[str, ...] = ()

    @property
    def in_channels(self) -> int:
        """Number of channels of the model's input: neighbouring slices count."""
        return len(self.channels) * (2 * self.settings.neighbours + 1)

    def write(self, path: Path) -> None:
        """Write ``config.toml``, whole or not at all."""
        document = {
            "data": _as_text(self.data),
            "added": [_as_text(path) for path in self.added],
            "channels": list(self.channels),
            "settings": {k: v for k, v in dataclasses.asdict(self.settings).items() if v is not None},
            "labels": self.labels,
            "intensities": [dataclasses.asdict(i) for i in self.intensities],
        }
        files.write_text(path, tomli_w.dumps(document))


def read_config(path: Path) -> RunConfig:
    """Read ``config.toml`` of a run folder.

    Raises:
        InputError: the file is missing, is no TOML, or holds unknown or contradictory settings.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = dict(document["settings"])
        for name in ("window", "channels"):
            if name in settings:
                settings[name] = tuple(settings[name])
        return RunConfig(
            data=_as_path(document["data"]),
            labels={normal(str(k)): int(v) for k, v in document["labels"].items()},
            channels=tuple(map(normal, document["channels"])),
            intensities=tuple(Intensity(**entry) for entry in document["intensities"]),
            settings=ResolvedSettings(**settings),
            added=tuple(_as_path(path) for path in document.get("added", ())),
        )
    except FileNotFoundError:
        raise InputError(
            path.parent, expected="a run folder with config.toml", found="none", do="Name the --out of a training run."
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            path, expected="the settings of a run", found=str(error), do="Restore the file or train again."
        ) from None


def _as_text(path: str) -> str:
    """Return an absolute path as TOML can hold it: one that is no UTF-8 as an address, ``file:///data/%FF``."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return _FILE + quote_from_bytes(os.fsencode(path))
    return path


def _as_path(text: object) -> str:
    address = str(text)
    return os.fsdecode(unquote_to_bytes(address.removeprefix(_FILE))) if address.startswith(_FILE) else address
