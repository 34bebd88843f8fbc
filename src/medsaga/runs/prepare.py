"""From a folder of data and the user's settings to a run that can start: everything is checked before it does."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import shutil
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from medsaga import files, run_folder
from medsaga.data.augment import AUGMENTATIONS
from medsaga.data.known import Digests, digests_of_cases, images_on_both_sides
from medsaga.data.samples import Samples, build_samples
from medsaga.data.splits import Split
from medsaga.data.symmetries import symmetries_of
from medsaga.data.types import Item
from medsaga.device import choose_device, free_memory
from medsaga.errors import InputError
from medsaga.methods import build_model, loading, method_named, starting_model
from medsaga.models.base import SegmentationModel
from medsaga.models.precision import set_precision
from medsaga.models.weights.loading import load_model
from medsaga.planning.at_hand import AUTO, advice
from medsaga.planning.resolve import choose_model, find_weights, without_effect
from medsaga.progress import counting
from medsaga.runs.configuration import found_from_anywhere, new_config, note_on_size
from medsaga.runs.continuing import inherited, joined_data
from medsaga.runs.loading import (
    LoadedData,
    load_data,
    require_validation,
    split_of,
    unseen_labels,
    untested,
    warn,
)
from medsaga.runs.plan import Plan, Prepared, Run, require_images_for_all
from medsaga.runs.resuming import data_again, require_same
from medsaga.settings.options import Settings, flag, named
from medsaga.settings.run_config import RunConfig, parse_config, read_config
from medsaga.training.class_tokens import start_class_tokens

PACKAGES = ("torch", "nibabel", "numpy", "pillow", "safetensors", "scipy")
_OR_RESUME = "Choose another --out, or continue that run with --resume."


def joined_run(folder: Path, plan: Plan, console: Console) -> Run:
    """Open the folder of a run that another process has prepared, which has the weights and sends them."""
    model, device = _adapted(_empty_model(plan.config), plan.config), choose_device(plan.config.settings.device)
    return _with_samples(Prepared(folder, plan.config, plan.split, plan.dataset, model, {}, device), console)


def new_run(
    data: Path,
    out: Path,
    settings: Settings,
    console: Console,
    loaded: LoadedData | None = None,
    processes: int = 1,
    held: ExitStack | None = None,
) -> Run:
    """Check everything, then make the run folder.

    Args:
        data: the dataset.
        out: the run folder.
        settings: what is left open is filled in.
        console: where progress is shown.
        loaded: the same dataset, if it has been checked with the same channels.
        processes: that share each batch.
        held: keeps other commands from training the run until it is closed.

    Raises:
        InputError: the data, the settings or the weights cannot be used; nothing has been written.
    """
    files.require_new(out, "a run folder", _OR_RESUME)
    choice = choose_model(settings)
    find_weights(choice)
    warn(console, without_effect(choice))
    device = choose_device(settings.device)
    loaded = loaded or load_data(data, settings, console)
    split = split_of(loaded, choice.settings)  # with what the recipe says
    warn(console, (*unseen_labels(loaded, split), *untested(split)))
    config = found_from_anywhere(new_config(settings, loaded, split, device, processes))
    on_accelerator = free_memory(device) is not None
    if settings.model == AUTO and on_accelerator and (line := advice(str(config.settings.weights))):
        console.print(line, markup=False, highlight=False)
    if line := note_on_size(settings, config.settings):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    require_images_for_all(config.settings, processes)
    return begun_run(config, split, loaded, out, console, requested=named(settings), held=held)


def begun_run(
    config: RunConfig,
    split: Split,
    loaded: LoadedData,
    out: Path,
    console: Console,
    *,
    requested: dict[str, Any],
    model: tuple[SegmentationModel, dict[str, Any]] | None = None,
    held: ExitStack | None = None,
) -> Run:
    """Make the folder of a run whose configuration is settled.

    Args:
        config: of the run.
        split: of the cases of ``loaded``.
        loaded: the dataset.
        out: the run folder.
        console: where progress is shown.
        requested: what the user has asked for.
        model: of the run and the record of its weights, if they are there; else they are made.
        held: as for :func:`new_run`.
    """
    device = choose_device(config.settings.device)
    made, model_info = model or new_model(config, console)
    manifest = manifest_of(loaded.fingerprint, config, device, model_info) | {"requested": requested}
    return _begun(Prepared(out, config, split, loaded.dataset, made, model_info, device), manifest, console, held)


def continued_run(
    before: Path,
    data: Path,
    out: Path,
    settings: Settings,
    console: Console,
    processes: int = 1,
    held: ExitStack | None = None,
) -> Run:
    """Check everything, then make the folder of a run that goes on from another with new or corrected cases.

    Args:
        before: the folder of the other run, whose weights it starts from, and whose settings and split it keeps.
        data: a dataset with the same labels and channels. All of its cases are trained on; one that has the name of a
            training case takes its place.
        out: the run folder.
        settings: what is not as in the run before.
        console: where progress is shown.
        processes: that share each batch.
        held: as for :func:`new_run`.

    Raises:
        InputError: the run, its data, the new data or the settings cannot be used; nothing has been written.
    """
    files.require_new(out, "a run folder", _OR_RESUME)
    config = read_config(before / run_folder.CONFIG)
    run_folder.require_finished(before)
    config = dataclasses.replace(
        config, settings=inherited(config.settings, settings), added=(*config.added, str(data.resolve()))
    )
    require_images_for_all(config.settings, processes)
    device = choose_device(settings.device)
    split = Split.from_json(files.read_json(before / run_folder.SPLIT))
    require_validation(settings, split, "Leave it out: a run that continues another has its validation cases.")
    joined = joined_data(config, split, console)
    warn(console, untested(joined.split))
    earlier = files.read_json(before / run_folder.MANIFEST).get("data_fingerprint")
    if joined.fingerprint_before != earlier:
        console.print(
            f"the data of {before.resolve().name} have changed since it was trained: if test cases have, the results "
            "of the two runs do not compare",
            style="yellow",
            markup=False,
        )
    model, model_info = _model_of(before, config)
    continues = {"run": str(before.resolve()), "data_fingerprint": earlier, "cases": joined.cases}
    manifest = manifest_of(joined.fingerprint, config, device, model_info)
    manifest |= {"requested": named(settings), "continues": continues}
    prepared = Prepared(out, config, joined.split, joined.dataset, model, model_info, device)
    return _begun(prepared, manifest, console, held)


def resumed_run(
    data: Path,
    out: Path,
    settings: Settings,
    console: Console,
    before: Path | None = None,
    processes: int = 1,
    held: ExitStack | None = None,
) -> Run:
    """Open an existing run folder to go on with it.

    Args:
        data: the dataset; of a run that continues another, the new cases.
        out: the run folder.
        settings: none, or those that the run began with.
        console: where progress is shown.
        before: the run that it continues, if it does.
        processes: that share each batch; as many as before or not.
        held: as for :func:`new_run`.

    Raises:
        InputError: the folder is no run, another command trains it, its data have changed, or ``settings`` ask for
            something else than it has.
    """
    require_same(out, settings, before)
    files.require_writable(out)
    if held is not None:
        held.enter_context(run_folder.in_training(out))
    files.remove_temporary(out)
    config = read_config(out / run_folder.CONFIG)
    config = dataclasses.replace(config, settings=dataclasses.replace(config.settings, device=settings.device))
    require_images_for_all(config.settings, processes)
    manifest = files.read_json(out / run_folder.MANIFEST)
    device = choose_device(settings.device)
    split = Split.from_json(files.read_json(out / run_folder.SPLIT))
    dataset = data_again(data, config, split, out, manifest, console)
    if dataset is None:
        raise InputError(
            data,
            expected="the images and masks that the run began with",
            found="others",
            do="Restore them, or start a new run.",
        )
    # The weights of a run that has a state come from there; before its first checkpoint it starts from the source.
    model_info: dict[str, Any] = {}
    if (out / run_folder.STATE).exists():
        model = _adapted(_empty_model(config), config)
    else:
        model, model_info = new_model(config, console) if before is None else _model_of(before, config)
    begun_with = manifest.get("model", {}).get("sha256")
    if model_info and model_info.get("sha256") != begun_with:
        raise InputError(
            flag("model") if before is None else before,
            expected=f"{config.settings.weights if before is None else run_folder.MODEL} as the run began with, "
            f"SHA-256 {begun_with}",
            found=str(model_info.get("sha256")),
            do="Restore the file, or start a new run.",
        )
    return _with_samples(Prepared(out, config, split, dataset, model, model_info, device), console)


def _empty_model(config: RunConfig) -> SegmentationModel:
    torch.manual_seed(config.settings.seed)
    return build_model(config.settings, classes=len(config.labels), in_channels=config.in_channels)


def new_model(config: RunConfig, console: Console) -> tuple[SegmentationModel, dict[str, Any]]:
    """Return the model of a run that starts from pre-trained or random weights, and the record of these."""
    settings = config.settings
    model, info = starting_model(settings, classes=len(config.labels), in_channels=config.in_channels)
    if info is not None:
        return _adapted(model, config), {"architecture": settings.model, **dataclasses.asdict(info)}
    if method_named(settings.method).trains_sam:
        console.print(
            f"[yellow]{settings.model} starts from random weights; expect a floor, not SAM's accuracy."
            " Name pre-trained weights with --model.[/yellow]"
        )
    return _adapted(model, config), {"architecture": settings.model, "weights": "random"}


def _model_of(run: Path, config: RunConfig) -> tuple[SegmentationModel, dict[str, Any]]:
    """Return the model that another run has trained, with all of its weights, and the record of these."""
    file = run / run_folder.MODEL
    model = load_model(file, loading(config.settings))
    return model, {"architecture": config.settings.model, "source": str(file.resolve()), "sha256": files.sha256(file)}


def _adapted(model: SegmentationModel, config: RunConfig) -> SegmentationModel:
    method_named(config.settings.method).adapt(model, config.settings)
    return model


def manifest_of(
    data_fingerprint: str, config: RunConfig, device: torch.device, model_info: dict[str, Any]
) -> dict[str, Any]:
    """Return the record of what a run was made with."""
    versions = {package: metadata.version(package) for package in ("medsaga", *PACKAGES)}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "seed": config.settings.seed,
        "data_fingerprint": data_fingerprint,
        "model": model_info,
    }


def _begun(prepared: Prepared, manifest: dict[str, Any], console: Console, held: ExitStack | None) -> Run:
    """Make the run folder; what goes wrong after that takes it away again, but never one that another command has made.

    It gets its name when all is in it that resuming needs: a process that is killed leaves a run, or none.
    """
    out, tensors = prepared.folder, (*prepared.model.parameters(), *prepared.model.buffers())
    files.require_room(out, 2 * sum(tensor.nbytes for tensor in tensors), "the model and the state of the run")
    parse_config(out / run_folder.CONFIG, prepared.config.text())  # as it will be read when all is done
    digests = digests_of_cases(prepared.dataset.items)
    for fitted, tested in images_on_both_sides(prepared.split, digests):
        console.print(
            f"the same image is in {fitted!r}, which is trained on, and in the test case {tested!r}: the result will "
            "look better than it is. Remove one of the two, or give both the same case",
            style="yellow",
            markup=False,
        )
    with files.making_folder(out, "a run folder", _OR_RESUME) as starting:
        prepared.config.write(starting / run_folder.CONFIG)
        files.write_json(starting / run_folder.SPLIT, prepared.split.to_json())
        files.write_json(starting / run_folder.DIGESTS, _with_earlier(digests, manifest))
        files.write_json(starting / run_folder.MANIFEST, manifest)
    if held is not None:
        held.enter_context(run_folder.in_training(out))
    try:
        return _with_samples(prepared, console)
    except BaseException:
        if held is not None:
            held.close()  # Windows keeps open files
        shutil.rmtree(out, ignore_errors=True)
        raise


def _with_earlier(digests: Digests, manifest: dict[str, Any]) -> Digests:
    """Add the images of the run that is continued: those that new ones have replaced were trained on all the same."""
    earlier = Path(manifest.get("continues", {}).get("run", "")) / run_folder.DIGESTS
    if "continues" not in manifest or not earlier.exists():
        return digests
    before: Digests = files.read_json(earlier)
    return {case: sorted({*digests.get(case, ()), *before.get(case, ())}) for case in sorted({*digests, *before})}


def _with_samples(prepared: Prepared, console: Console) -> Run:
    config, split, dataset, model = prepared.config, prepared.split, prepared.dataset, prepared.model
    settings = config.settings
    set_precision(model, settings.precision)

    def samples(name: str, items: tuple[Item, ...]) -> Samples:
        return build_samples(
            prepared.folder / run_folder.CACHE / name,
            dataset,
            items,
            view_axis=settings.axis,
            intensities=config.intensities,
            image_size=settings.image_size,
            neighbours=settings.neighbours,
            tile=settings.tile,
            progress=counting(console, f"preparing {name} images"),
        )

    # What goes wrong lets go of the files, so that the folder can be removed.
    with ExitStack() as opened:
        train = opened.enter_context(contextlib.closing(samples("train", dataset.items_of(split.train))))
        train.check_labelled()
        # Those of the data, whatever a model brings from the run that it continues: a resumed one brings none.
        mirrors = AUGMENTATIONS[settings.augmentation].mirror > 0
        model.symmetries = symmetries_of(train, model.classes) if mirrors else ()
        monitor = train
        if split.validation:
            validation = samples("validation", dataset.items_of(split.validation))
            monitor = opened.enter_context(contextlib.closing(validation))
        model.to(prepared.device)
        if prepared.model_info.get("episodic"):
            start_class_tokens(model, train)
        opened.pop_all()
    return Run(config, split, dataset, prepared.folder, model, train, monitor, prepared.device)
