"""From a folder of data and the user's settings to a run that can start: everything is checked before it does."""

from __future__ import annotations

import dataclasses
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medsaga import files, run_folder
from medsaga.config import ResolvedSettings, RunConfig, Settings, flag, read_config
from medsaga.data.dataset import (
    check_items,
    fingerprint,
    labels_of_cases,
    raise_problems,
    read_dataset,
    select_channels,
)
from medsaga.data.intensity import choose_intensity
from medsaga.data.samples import Samples, build_samples
from medsaga.data.slices import common_axis, slice_view
from medsaga.data.splits import Split, split_cases
from medsaga.data.types import Dataset, Item
from medsaga.device import choose_device, defaults_for
from medsaga.errors import InputError
from medsaga.methods import build_model, method_named
from medsaga.models.base import SegmentationModel
from medsaga.models.precision import set_precision
from medsaga.models.registry import RANDOM, STARTER, weights_named
from medsaga.models.sam import KClassSam
from medsaga.models.sources import locate
from medsaga.models.weights import detect_architecture, load_pretrained
from medsaga.planning.plan import plan, useful_sizes
from medsaga.presets import METHOD, fill_in
from medsaga.progress import counting
from medsaga.recipes import with_recipe
from medsaga.training.class_tokens import start_class_tokens

PACKAGES = ("torch", "transformers", "nibabel", "numpy", "pillow", "safetensors", "scipy")


@dataclass(frozen=True)
class Run:
    """A run that can start or go on.

    Attributes:
        folder: the run folder; it exists.
        config: resolved.
        split: which cases are for what.
        dataset: checked.
        model: with its initial weights, on ``device``.
        train: samples to train on.
        monitor: samples whose Dice is followed during the run: the validation cases, or else the training cases.
        device: where it runs.
    """

    folder: Path
    config: RunConfig
    split: Split
    dataset: Dataset
    model: SegmentationModel
    train: Samples
    monitor: Samples
    device: torch.device


@dataclass(frozen=True, eq=False)
class CheckedData:
    """A dataset of which every file has been decoded once; see `check_data`.

    Attributes:
        dataset: without problems, with the channels that the settings name.
        labels_of_cases: label values of each case.
        fingerprint: of all images and masks.
    """

    dataset: Dataset
    labels_of_cases: dict[str, frozenset[int]]
    fingerprint: str


def new_run(data: Path, out: Path, settings: Settings, console: Console, checked: CheckedData | None = None) -> Run:
    """Check everything, then make the run folder.

    Args:
        data: the dataset.
        out: the run folder.
        settings: what is left open is filled in.
        console: where progress is shown.
        checked: the same dataset, if it has been checked with the same channels.

    Raises:
        InputError: the data, the settings or the weights cannot be used; nothing has been written.
    """
    if out.exists():
        raise InputError(
            out,
            expected="a run folder that does not exist yet",
            found="one that does",
            do="Choose another --out, or continue that run with --resume.",
        )
    asked, settings = requested(settings), settled(settings)
    find_weights(settings)
    device = choose_device(settings.device)
    checked = checked or check_data(data, settings, console)
    dataset = checked.dataset
    split = split_of(checked, settings)
    config = _resolve(settings, dataset, split, device)
    model, model_info = _new_model(config, console)
    manifest = _manifest(checked.fingerprint, config, device, model_info) | {"requested": asked}
    out.mkdir(parents=True)
    try:
        config.write(out / run_folder.CONFIG)
        files.write_json(out / run_folder.SPLIT, split.to_json())
        files.write_json(out / run_folder.MANIFEST, manifest)
        return _with_samples(out, config, split, dataset, model, device, console, model_info)
    except BaseException:
        shutil.rmtree(out)
        raise


def resumed_run(data: Path, out: Path, settings: Settings, console: Console) -> Run:
    """Open an existing run folder to go on with it.

    Raises:
        InputError: the folder is no run, its data have changed, or ``settings`` ask for something else than it has.
    """
    config = read_config(out / run_folder.CONFIG)
    manifest = files.read_json(out / run_folder.MANIFEST)
    config = _with_named_weights(config)
    _check_same(requested(settings), manifest.get("requested", {}), config.settings)
    config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, device=settings.device))
    device = choose_device(settings.device)
    checked = check_data(data, config.settings, console)
    if manifest.get("data_fingerprint") != checked.fingerprint:
        raise InputError(
            data,
            expected="the images and masks that the run began with",
            found="others",
            do="Restore them, or start a new run.",
        )
    split = Split.from_json(files.read_json(out / run_folder.SPLIT))
    # The weights of a run that has a state come from there; before its first checkpoint it starts from the source.
    has_state = (out / run_folder.STATE).exists()
    model, model_info = (_empty_model(config), {}) if has_state else _new_model(config, console)
    before = manifest.get("model", {}).get("sha256")
    if model_info and model_info.get("sha256") != before:
        raise InputError(
            flag("weights"),
            expected=f"{config.settings.weights} as the run began with, SHA-256 {before}",
            found=str(model_info.get("sha256")),
            do="Restore the file, or start a new run.",
        )
    return _with_samples(out, config, split, checked.dataset, model, device, console, model_info)


def requested(settings: Settings) -> dict[str, Any]:
    """Return what the user asked for other than the defaults, as JSON has it.

    The device is left out: it may change when a run goes on.
    """
    asked = {
        option.name: getattr(settings, option.name)
        for option in dataclasses.fields(Settings)
        if option.name != "device" and getattr(settings, option.name) != option.default
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


def _with_named_weights(config: RunConfig) -> RunConfig:
    """Say what a run without weights starts from: before ``starter`` existed, no name meant random ones."""
    settings = config.settings
    if settings.weights is not None or not method_named(settings.method).trains_sam:
        return config
    return dataclasses.replace(config, settings=dataclasses.replace(settings, weights=RANDOM))


def _check_same(asked: dict[str, Any], before: dict[str, Any], kept: ResolvedSettings) -> None:
    """Raise InputError unless every setting is as it was asked for when the run began, or as it was resolved then."""
    for name, value in asked.items():
        if value not in (before.get(name), getattr(kept, name)):
            raise InputError(
                flag(name),
                expected=f"the run's own setting, {before.get(name, getattr(kept, name))}, with --resume",
                found=str(value),
                do="Leave it out, or start a new run.",
            )


def check_data(data: Path, settings: Settings, console: Console) -> CheckedData:
    """Read a dataset with the channels that the settings name, and decode every file of it once.

    Raises:
        InputError: the first problem.
    """
    dataset = read_dataset(data)
    raise_problems(dataset.problems)
    dataset = select_channels(dataset, settings.channels)
    raise_problems(check_items(dataset, counting(console, "checking images")))
    return CheckedData(dataset, labels_of_cases(dataset), fingerprint(dataset))


def split_of(checked: CheckedData, settings: Settings) -> Split:
    """Return the cases of a run; InputError where there are not enough."""
    return split_cases(
        checked.dataset,
        shots=settings.shots,
        seed=settings.seed,
        validation=settings.validation_cases,
        fold=settings.fold,
        labels_of=checked.labels_of_cases,
        test_cases=settings.test_cases,
    )


def settled(settings: Settings) -> Settings:
    """Return the settings with the method, the architecture and the source of the weights settled.

    SAM in the architecture of ``starter`` starts from these weights unless others are named, or ``random``; in another
    architecture from random ones. The weights of a method that trains another model than SAM stay None.

    Raises:
        InputError: there is no such recipe, method or model, or they do not go together.
    """
    settings = with_recipe(settings)
    name = settings.method or METHOD
    method = method_named(name)
    model, weights = settings.model, settings.weights
    if model is None and method.trains_sam and weights not in (None, RANDOM):
        model = detect_architecture(weights)
    model = model or method.architectures[0]
    if model not in method.architectures:
        if not method.trains_sam:
            only = ", ".join(method.architectures)
            raise InputError("--model", expected=f"{only} for {name}", found=model, do="Leave --model out.")
        if weights is not None:
            raise InputError(
                "--model",
                expected=f"one of {', '.join(method.architectures)} beside --weights",
                found=model,
                do="Name the weights once.",
            )
        model, weights = detect_architecture(model), model
    for flag_name, given in (("--weights", weights), ("--precision int8", settings.precision == "int8")):
        if given and not method.trains_sam:
            raise InputError(
                flag_name, expected=f"no such option for {name}", found=str(weights or "int8"), do="Leave it out."
            )
    if weights is None and method.trains_sam:
        weights = STARTER if model == weights_named(STARTER).architecture else RANDOM
    if settings.optimizer == "sgd" and method.ranks:
        raise InputError("--optimizer", expected="adamw: GaLore is made for it", found="sgd", do="Leave it out.")
    return dataclasses.replace(settings, method=name, model=model, weights=weights)


def find_weights(settings: Settings) -> None:
    """Raise InputError if the weights of settled settings are not there, before anything that takes long."""
    if settings.weights not in (None, RANDOM):
        locate(settings.weights)


def _resolve(settings: Settings, dataset: Dataset, split: Split, device: torch.device) -> RunConfig:
    """Fill in all that the user has left open, from the preset, the budget, the device and the data."""
    items = dataset.items_of(split.train)
    # One axis for the whole run: a volume with other spacing must not be cut another way at prediction.
    axis: Any = common_axis((item.header.grid for item in items), settings.axis)
    settings = dataclasses.replace(settings, axis=axis)
    config = RunConfig(
        data=str(dataset.root.resolve()),
        labels=dataset.labels,
        channels=dataset.channels,
        intensities=choose_intensity(dataset, items, settings.intensity, settings.window),
        settings=fill_in(settings, defaults=defaults_for(device)),
    )
    if settings.budget is None:
        return config
    side = max(max(slice_view(item.header.grid, axis).slice_shape) for item in items)
    fitting = plan(
        settings,
        sizes=useful_sizes(config.settings, side),
        classes=len(config.labels),
        in_channels=config.in_channels,
        defaults=defaults_for(device),
    )
    return dataclasses.replace(config, settings=fitting.settings)


def _empty_model(config: RunConfig) -> SegmentationModel:
    torch.manual_seed(config.settings.seed)
    return build_model(config.settings, classes=len(config.labels), in_channels=config.in_channels)


def _new_model(config: RunConfig, console: Console) -> tuple[SegmentationModel, dict[str, Any]]:
    model, settings = _empty_model(config), config.settings
    if settings.weights not in (None, RANDOM):
        assert isinstance(model, KClassSam)
        info = load_pretrained(model, settings.weights)
        return model, {"architecture": settings.model, **dataclasses.asdict(info)}
    if isinstance(model, KClassSam):
        console.print(
            f"[yellow]{settings.model} starts from random weights; expect a floor, not SAM's accuracy."
            " Name pre-trained weights with --weights.[/yellow]"
        )
    return model, {"architecture": settings.model, "weights": "random"}


def _manifest(
    data_fingerprint: str, config: RunConfig, device: torch.device, model_info: dict[str, Any]
) -> dict[str, Any]:
    versions = {package: metadata.version(package) for package in ("medsaga", *PACKAGES)}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "seed": config.settings.seed,
        "data_fingerprint": data_fingerprint,
        "model": model_info,
    }


def _with_samples(
    out: Path,
    config: RunConfig,
    split: Split,
    dataset: Dataset,
    model: SegmentationModel,
    device: torch.device,
    console: Console,
    model_info: dict[str, Any],
) -> Run:
    settings = config.settings
    method_named(settings.method).adapt(model, settings)
    set_precision(model, settings.precision)

    def samples(name: str, items: tuple[Item, ...]) -> Samples:
        return build_samples(
            out / run_folder.CACHE / name,
            dataset,
            items,
            view_axis=settings.axis,
            intensities=config.intensities,
            image_size=settings.image_size,
            neighbours=settings.neighbours,
            progress=counting(console, f"preparing {name} images"),
        )

    train = samples("train", dataset.items_of(split.train))
    train.check_labelled()
    monitor = samples("validation", dataset.items_of(split.validation)) if split.validation else train
    model.to(device)
    if model_info.get("episodic"):
        assert isinstance(model, KClassSam)
        start_class_tokens(model, train)
    return Run(out, config, split, dataset, model, train, monitor, device)
