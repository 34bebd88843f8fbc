"""The settings of a run: what a user may choose, checked for contradictions.

A field that is None is resolved when the run starts, from the recipe, the model and the data; see
`medsaga.planning.resolve`. The run folder holds the resolved values only.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from medsaga.errors import InputError
from medsaga.settings.amounts import parse_bytes
from medsaga.settings.help import option

Axis = Literal["auto", "axial", "coronal", "sagittal", "i", "j", "k"]
Augmentations = Literal["fewshot", "samed", "none"]
Checkpointing = Literal["auto", "none", "blocks"]
DiceForm = Literal["linear", "squared"]
LossResolution = Literal["image", "logits"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
SMALLEST_TILE = 32


@dataclass(frozen=True, kw_only=True)
class SharedSettings:
    """What the runs of a comparison have in common."""

    binary: bool | None = option(
        "Read every mask as background and foreground, whatever its values are.",
        group="data",
        shown="False",
    )
    model: str | None = option(
        "lite, vit_b, sam2.1_hiera_tiny, ..., auto, or weights: a name, a file, a hub id.",
        group="model",
        metavar="MODEL",
        shown="lite",
    )
    random_weights: bool | None = option(
        "Start from random weights, as architectures without published weights always do.",
        group="comparison with papers",
        shown="False",
    )
    steps: int | None = option("Optimizer steps.", group="length", metavar="N", shown="800; 400 above 320 px")
    batch_size: int | None = option("Images per optimizer step.", group="length", metavar="N", shown="4")
    image_size: int | None = option(
        "Side in pixels of the square that the model sees; a multiple of 16.",
        group="memory",
        metavar="N",
        shown="192 for lite and unet, more for fine structures, 224 for daeformer, else 1024",
    )
    micro_batch_size: int | None = option(
        "Images per backward pass: fewer need less memory and more time, for the same result.",
        group="precision and memory",
        metavar="N",
        shown="the batch size",
    )
    checkpointing: Checkpointing | None = option(
        "blocks computes each encoder block again in the backward pass: less memory, more time, the same result.",
        group="precision and memory",
        metavar="none|blocks",
        shown="none for lite, daeformer and unet, else blocks",
    )
    device: str = option(
        "cpu, cuda, cuda:N or mps.", default="auto", group="memory", metavar="DEVICE", shown="a GPU if any"
    )
    validation_cases: int | None = option(
        "Training cases put aside to choose the best checkpoint.",
        group="few-shot protocol",
        metavar="N",
        shown="a fifth of 10 or more, else 0",
    )
    fold: int | None = option(
        "Fold of an existing splits_final.json.", group="few-shot protocol", metavar="N", shown="0"
    )
    channels: tuple[str, ...] | None = option(
        "Names of the image channels to use, where each is a file of its own.",
        group="images",
        metavar="NAME [NAME ...]",
        shown="all",
    )
    tile: int | None = option(
        "Side in pixels of the image's own grid: larger slices are cut into tiles of it.",
        group="images",
        metavar="N",
        shown="slices are seen whole",
    )
    axis: Axis | None = option(
        "Axis along which volumes are cut into slices.",
        group="images",
        metavar="axial|coronal|sagittal|i|j|k",
        shown="that of the coarsest spacing",
    )
    neighbours: int | None = option(
        "Neighbouring slices on each side that the model sees as extra channels (2.5-D).",
        group="images",
        metavar="N",
        shown="0",
    )
    intensity: Literal["auto", "identity", "window", "percentile"] | None = option(
        "How grey values become 8 bits.",
        group="images",
        metavar="identity|window|percentile",
        shown="window for CT, identity for 8-bit images, else percentile",
    )
    window: tuple[float, float] | None = option(
        "Lowest and highest value of the intensity window, in HU for CT.",
        group="images",
        metavar="LOW HIGH",
        shown="for CT what holds 99 % of the labelled voxels, at least 400 HU",
    )
    augmentation: Augmentations | None = option(
        "Random changes of the training images; samed is the paper's recipe.",
        group="images",
        metavar="fewshot|samed|none",
        shown="fewshot",
    )
    dice_weight: float | None = option(
        "Share of Dice in the loss, from 0 to 1; cross-entropy has the rest.",
        group="loss and optimizer",
        metavar="SHARE",
        shown="0.8",
    )
    dice_form: DiceForm | None = option(
        "linear, our Dice, or squared, that of SAMed's and DAE-Former's code: probabilities squared, all classes.",
        group="comparison with papers",
        metavar="linear|squared",
        shown="linear",
    )
    loss_resolution: LossResolution | None = option(
        "Where the loss is taken: at the image's own resolution, or, as in the papers, at that of SAM's logits.",
        group="comparison with papers",
        metavar="image|logits",
        shown="image",
    )
    precision: Precision | None = option(
        "Of the weights. bf16, fp16 and int8 (the encoder's, in bf16 arithmetic) are updated with stochastic rounding.",
        group="precision and memory",
        metavar="fp32|bf16|fp16|int8",
        shown="fp32; on a GPU bf16, before Ampere fp16",
    )
    state_bits: Literal[8, 32] | None = option(
        "Bits of each number of the optimizer's state.",
        group="precision and memory",
        metavar="8|32",
        shown="32; on a GPU 8",
    )
    state_on_host: bool | None = option(
        "Keep the optimizer's state in the host's memory: less memory on the GPU, more time.",
        group="precision and memory",
        shown="False",
    )
    evaluate_every: int | None = option(
        "Steps between two evaluations, each of which saves a checkpoint.",
        group="evaluation",
        metavar="N",
        shown="a tenth of the steps",
    )
    patience: int | None = option(
        "Stop after this many evaluations without a better Dice; needs validation cases.",
        group="evaluation",
        metavar="N",
        shown="never",
    )
    protocol: Literal["mm", "transunet"] | None = option(
        "Metric protocol of the final evaluation; transunet is that of the papers on Synapse.",
        group="comparison with papers",
        metavar="mm|transunet",
        shown="mm",
    )


@dataclass(frozen=True, kw_only=True)
class Settings(SharedSettings):
    """What a training run can be told."""

    shots: int | None = option(
        "Labelled cases (patients) to train on, drawn by --seed; the others are the test.",
        group="data",
        metavar="N",
        shown="80 % of the cases",
    )
    method: str | None = option(
        "medsaga, samed, full, frozen, daeformer or unet.", group="model", metavar="METHOD", shown="medsaga"
    )
    recipe: str | None = option(
        "A publication's settings: medsaga-paper, samed-paper, daeformer-paper, or a TOML file; options override it.",
        group="comparison with papers",
        metavar="RECIPE",
        shown="none",
    )
    budget: str | None = option(
        "Memory that the run may take, such as 4GB: what is left open is chosen to fit.",
        group="memory",
        metavar="SIZE",
        shown="no limit",
    )
    test_cases: int | None = option(
        "Test on so many of the other cases only; with one --seed they are the same for every number of shots.",
        group="few-shot protocol",
        metavar="N",
        shown="all",
    )
    seed: int | None = option(
        "Chooses the cases, the initial weights, the batches and the augmentation.",
        group="few-shot protocol",
        metavar="N",
        shown="0",
    )
    encoder_lr: float | None = option(
        "Peak learning rate of the image encoder.",
        group="loss and optimizer",
        metavar="RATE",
        shown="1e-3 for lite, else 5e-4; samed 5e-3, daeformer 0.05, unet 1e-3",
    )
    decoder_lr: float | None = option(
        "Peak learning rate of the prompt encoder and the mask decoder.",
        group="loss and optimizer",
        metavar="RATE",
        shown="2e-3 for lite, else 5e-4; daeformer 0.05, unet 1e-3",
    )
    weight_decay: float | None = option(
        "Weight decay of the weight matrices.", group="loss and optimizer", metavar="DECAY", shown="0.1; daeformer 1e-4"
    )
    optimizer: Literal["adamw", "sgd"] | None = option(
        "AdamW, or stochastic gradient descent with a momentum of 0.9.",
        group="loss and optimizer",
        metavar="adamw|sgd",
        shown="adamw; daeformer sgd",
    )
    warmup: int | None = option(
        "Steps over which the learning rate rises.",
        group="loss and optimizer",
        metavar="N",
        shown="a tenth of the steps",
    )
    max_gradient_norm: float | None = option(
        "The gradient, as projected, is clipped to this norm; inf leaves it as it is.",
        group="loss and optimizer",
        metavar="NORM",
        shown="1",
    )
    rank: int | None = option(
        "Rank of GaLore's gradient projection, or of LoRA's update.", group="GaLore", metavar="N", shown="64; samed 4"
    )
    refresh_every: int | None = option(
        "Optimizer steps between two choices of the projection's subspace.",
        group="GaLore",
        metavar="N",
        shown="a twentieth of the steps",
    )
    galore: Literal["default", "reference"] | None = option(
        "reference does what GaLore's authors do: exact SVD, moments kept as they are, updates scaled by 0.25.",
        group="GaLore",
        metavar="default|reference",
        shown="default",
    )
    projection: Literal["std", "two_sided"] | None = option(
        "std projects a gradient onto one side, as GaLore does; two_sided onto both, the form of MedSAGa's text.",
        group="GaLore",
        metavar="std|two_sided",
        shown="std",
    )

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
            if value is not None and not 0 <= value < math.inf:
                raise InputError(flag(name), expected="0 or more", found=str(value), do="Give a larger number.")
        if self.seed is not None and self.seed >= 2**63:  # so many there are, for torch
            raise InputError(flag("seed"), expected="less than 2^63", found=str(self.seed), do="Give a smaller number.")
        for name, most in (("encoder_lr", 1e3), ("decoder_lr", 1e3), ("max_gradient_norm", float("inf"))):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise InputError(
                    flag(name), expected="a positive number", found=str(value), do="Give a positive number."
                )
        if self.dice_weight is not None and not 0 <= self.dice_weight <= 1:
            raise InputError(flag("dice_weight"), expected="0 to 1", found=str(self.dice_weight), do="Give a share.")
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            raise InputError(
                flag("window"),
                expected="the lower end before the upper end",
                found=f"{self.window[0]:g} {self.window[1]:g}",
                do="Give the lower one first.",
            )
        if self.window is not None and self.intensity not in (None, "auto", "window"):
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


MAY_CHANGE = frozenset(
    {
        *("steps", "batch_size", "micro_batch_size", "checkpointing", "precision", "state_bits", "state_on_host"),
        *("encoder_lr", "decoder_lr", "weight_decay", "optimizer", "warmup", "max_gradient_norm", "seed", "device"),
        *("rank", "refresh_every", "galore", "projection", "augmentation", "dice_weight", "dice_form"),
        *("loss_resolution", "evaluate_every", "patience", "protocol"),
    }
)
"""Settings that `medsaga continue` may change: how a run is trained. The others say what the model is, how it sees
images, and which cases are held out."""
DERIVED = ("micro_batch_size", "warmup", "refresh_every", "evaluate_every")
"""Settings that follow from the steps and the batch size unless somebody has named them."""


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(Settings):
    """Settings of a run that can start: nothing that training needs is left open."""

    binary: bool = field()
    random_weights: bool = field()
    checkpointing: Checkpointing = field()
    fold: int = field()
    axis: Axis = field()
    neighbours: int = field()
    intensity: Literal["auto", "identity", "window", "percentile"] = field()
    precision: Precision = field()
    state_on_host: bool = field()
    protocol: Literal["mm", "transunet"] = field()
    seed: int = field()
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
    projection: Literal["std", "two_sided"] = "std"
    evaluate_every: int = field()


def named(settings: Settings) -> dict[str, Any]:
    """Return the settings that the user has named, as JSON has them.

    The device is left out: it may change when a run goes on.
    """
    values = {option.name: getattr(settings, option.name) for option in dataclasses.fields(Settings)}
    return {name: in_json(value) for name, value in values.items() if value is not None and name != "device"}


def in_json(value: Any) -> Any:
    """Return the value of a setting as JSON has it, which knows no infinity."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if value == math.inf else value


def flag(name: str) -> str:
    """Return the command-line flag of a field, for messages."""
    return "--" + name.replace("_", "-")
