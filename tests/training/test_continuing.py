"""A run that goes on from another: its weights, its settings, its held-out cases, and the new ones beside the old."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import interrupt_in, write_toy_dataset
from PIL import Image
from resolved import resolved as resolved_settings
from rich.console import Console

import medsaga
from medsaga import files, run_folder
from medsaga.data.dataset import read_dataset
from medsaga.data.items import read_mask
from medsaga.deltas.making import export_delta
from medsaga.errors import InputError, Interrupted
from medsaga.methods import METHODS
from medsaga.models.base import SegmentationModel
from medsaga.models.weights.loading import save_model
from medsaga.prediction.files import predict_files
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.continuing import inherited, joined
from medsaga.runs.evaluate import evaluate_run
from medsaga.runs.prepare import continued_run, new_run, resumed_run
from medsaga.runs.train import train
from medsaga.settings.options import Augmentations, ResolvedSettings, Settings
from medsaga.settings.run_config import read_config

pytestmark = pytest.mark.xdist_group("continuing")

SETTINGS = Settings(
    model="tiny",
    shots=3,
    validation_cases=1,
    image_size=64,
    steps=2,
    batch_size=2,
    evaluate_every=2,
    rank=8,
    device="cpu",
)
SILENT = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of two training cases, one validation case and three test cases, and its data."""
    root = tmp_path_factory.mktemp("first")
    train(write_toy_dataset(root / "data"), root / "run", SETTINGS, console=SILENT)
    return root


def cases_of(run: Path) -> dict[str, list[str]]:
    """The split of a run."""
    split: dict[str, list[str]] = files.read_json(run / run_folder.SPLIT)
    return split


def new_cases(root: Path, *names: str, seed: int = 9) -> Path:
    """Write a dataset of new images with these names."""
    write_toy_dataset(root, images=len(names), seed=seed)
    for number, name in enumerate(names):
        for kind in ("images", "masks"):
            path = root / kind / f"img{number}.png"
            path.rename(path.with_name(f"renamed_{name}.png"))
    for path in [*(root / "images").iterdir(), *(root / "masks").iterdir()]:
        path.rename(path.with_name(path.name.removeprefix("renamed_")))
    return root


def save_changed(run: Path, model: SegmentationModel) -> None:
    """Write a run's model with other values everywhere than it began with, as if it had been trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(run / run_folder.MODEL, model)


def test_new_cases_join_the_training_cases_and_corrected_ones_replace_them(first: Path, tmp_path: Path) -> None:
    before = cases_of(first / "run")
    corrected = before["train"][0]
    data = new_cases(tmp_path / "new", "extra", corrected)
    run = continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)
    after = cases_of(tmp_path / "run")
    assert after == {**before, "train": sorted([*before["train"], "extra"])}
    assert set(run.train.item_names) == {*before["train"], "extra"}
    items = {item.name: item for item in run.dataset.items}
    assert set(items) == {name for names in after.values() for name in names}
    for name in before["train"]:
        place = data if name == corrected else first / "data"
        truth = np.asarray(Image.open(place / "masks" / f"{name}.png"))
        assert (read_mask(items[name]) == truth).all()
        row = run.train.item_names.index(name)
        # 64 x 48 pixels fill the square of 64 without scaling.
        assert (run.train.labels[row, :48] == truth).all()


def test_it_knows_the_images_again_that_corrected_ones_replaced(first: Path, tmp_path: Path) -> None:
    corrected, tested = cases_of(first / "run")["train"][0], cases_of(first / "run")["test"][0]
    data = new_cases(tmp_path / "new", corrected)
    continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)
    known = files.read_json(tmp_path / "run" / run_folder.DIGESTS)
    of_both = [files.sha256(root / "images" / f"{corrected}.png") for root in (first / "data", data)]
    assert known[corrected] == sorted(of_both)
    assert known[tested] == [files.sha256(first / "data" / "images" / f"{tested}.png")]


def test_it_says_what_it_continues(first: Path, tmp_path: Path) -> None:
    data = new_cases(tmp_path / "new", "extra")
    continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)
    earlier, manifest = (files.read_json(run / run_folder.MANIFEST) for run in (first / "run", tmp_path / "run"))
    assert manifest["continues"] == {
        "run": str((first / "run").resolve()),
        "data_fingerprint": earlier["data_fingerprint"],
        "cases": [sorted(files.read_json(first / "run" / run_folder.DIGESTS)), ["extra"]],
    }
    assert manifest["model"]["sha256"] == files.sha256(first / "run" / run_folder.MODEL)
    assert manifest["data_fingerprint"] != earlier["data_fingerprint"]
    assert read_config(tmp_path / "run" / run_folder.CONFIG).added == (str(data.resolve()),)


def test_a_run_that_was_stopped_is_to_be_finished_first(first: Path, tmp_path: Path) -> None:
    run, data = tmp_path / "stopped", new_cases(tmp_path / "new", "extra")
    shutil.copytree(first / "run", run)
    log = run / run_folder.METRICS
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"stopped"' not in line))
    finish = re.escape(f"Finish it: medsaga train --resume --out {run}.")
    with pytest.raises(InputError, match=f"a run that has trained; found.*before its last step. {finish}"):
        continued_run(run, data, tmp_path / "run2", Settings(), SILENT)
    # What it has learned so far is enough for these.
    for look in (
        lambda console: predict_files(run, data / "images", tmp_path / "out", device="cpu", console=console),
        lambda console: evaluate_run(run, data=data, device="cpu", console=console),
    ):
        said = io.StringIO()
        look(Console(file=said, width=200))
        assert f"{run} has not been trained to its end: this is its model up to step" in said.getvalue()
    log.write_text("".join(line for line in log.read_text().splitlines(True) if '"evaluation"' not in line))
    (run / run_folder.MODEL).unlink()
    for use in (
        lambda: continued_run(run, data, tmp_path / "run2", Settings(), SILENT),
        lambda: Segmenter.load(run, "cpu"),
        lambda: export_delta(run, tmp_path / "delta.safetensors"),
    ):
        with pytest.raises(InputError, match=f"a run that has trained; found.*before its first evaluation. {finish}"):
            use()
    assert not (tmp_path / "run2").exists()


@pytest.mark.parametrize("method", ["medsaga", "samed", "frozen", "unet", "daeformer"])
def test_it_starts_from_all_of_the_weights(method: str, toy: Path, tmp_path: Path) -> None:
    model = "tiny" if METHODS[method].trains_sam else None
    settings = dataclasses.replace(SETTINGS, method=method, model=model, steps=1, rank=4)
    before = new_run(toy, tmp_path / "before", settings, SILENT)
    save_changed(tmp_path / "before", before.model)
    run = continued_run(
        tmp_path / "before", new_cases(tmp_path / "new", "extra"), tmp_path / "run", Settings(device="cpu"), SILENT
    )
    expected = Segmenter.load(tmp_path / "before", "cpu").model.state_dict()
    state = run.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert run.config.settings.method == method


def test_images_are_treated_as_before(first: Path, tmp_path: Path) -> None:
    data = new_cases(tmp_path / "new", "extra")
    continued_run(first / "run", data, tmp_path / "run", Settings(steps=4), SILENT)
    before, after = (read_config(run / run_folder.CONFIG) for run in (first / "run", tmp_path / "run"))
    changed = dataclasses.replace(before.settings, steps=4, warmup=1, refresh_every=1, evaluate_every=2, device="auto")
    assert after == dataclasses.replace(before, settings=changed, added=(str(data.resolve()),))


def resolved(**given: Any) -> ResolvedSettings:
    """Settings of a finished run."""
    return resolved_settings(**given)


def test_what_follows_from_the_steps_follows_from_the_new_ones() -> None:
    after = inherited(resolved(steps=400, batch_size=8), Settings(steps=100, batch_size=2))
    alone = resolved(steps=100, batch_size=2)
    names = ("warmup", "refresh_every", "evaluate_every", "micro_batch_size")
    assert [getattr(after, name) for name in names] == [getattr(alone, name) for name in names]


def test_what_was_named_before_stays_and_what_is_named_now_counts() -> None:
    before = resolved(steps=400, warmup=7, micro_batch_size=2, batch_size=4, encoder_lr=3e-4, augmentation="none")
    after = inherited(before, Settings(steps=100, decoder_lr=1e-5))
    assert (after.warmup, after.micro_batch_size, after.augmentation) == (7, 2, "none")
    assert (after.encoder_lr, after.decoder_lr) == (3e-4, 1e-5)


def test_what_is_named_counts_even_if_it_is_what_is_taken_where_nobody_names_it() -> None:
    before = resolved_settings(seed=3, protocol="transunet")
    assert inherited(before, Settings()).seed == 3
    after = inherited(before, Settings(seed=0, protocol="mm"))
    assert (after.seed, after.protocol) == (0, "mm")


def test_recipe_and_budget_are_used_up() -> None:
    before = resolved(recipe="medsaga-paper", budget="4GB", model="tiny")
    after = inherited(before, Settings(steps=10))
    assert (after.recipe, after.budget) == (None, None)
    assert (after.rank, after.encoder_lr, after.augmentation) == (before.rank, before.encoder_lr, before.augmentation)


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ({"image_size": 96}, "--image-size"),
        ({"axis": "coronal"}, "--axis"),
        ({"window": (0.0, 100.0)}, "--window"),
        ({"shots": 5}, "--shots"),
        ({"random_weights": True}, "--random-weights"),
        ({"tile": 64}, "--tile"),
    ],
)
def test_the_model_the_images_and_the_split_cannot_change(given: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError, match=flag):
        inherited(resolved(steps=400, image_size=64), Settings(**given))  # type: ignore[arg-type]
    assert inherited(resolved(image_size=96), Settings(image_size=96)).image_size == 96


def test_the_rank_cannot_change_where_it_is_the_models_shape() -> None:
    with pytest.raises(InputError, match="--rank"):
        inherited(resolved(method="samed", rank=4), Settings(rank=8))
    assert inherited(resolved(method="medsaga", rank=4), Settings(rank=8)).rank == 8


def test_patience_needs_the_validation_cases_of_the_run(first: Path, tmp_path: Path) -> None:
    before = shutil.copytree(first / "run", tmp_path / "before")
    files.write_json(before / run_folder.SPLIT, cases_of(before) | {"validation": []})
    with pytest.raises(InputError, match=r"--patience: .* found none, with 2 training cases\. Leave it out"):
        continued_run(before, new_cases(tmp_path / "new", "a"), tmp_path / "run", Settings(patience=2), SILENT)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("use", ["test", "validation"])
def test_a_held_out_case_is_refused_by_its_name(use: str, first: Path, tmp_path: Path) -> None:
    held_out = cases_of(first / "run")[use][0]
    data = new_cases(tmp_path / "new", "extra", held_out)
    with pytest.raises(InputError, match=f"what it was trained on; found {held_out}, a {use} case"):
        train(data, tmp_path / "run", continue_from=first / "run", console=SILENT)
    assert not (tmp_path / "run").exists()


def test_a_held_out_image_is_refused_under_another_name(first: Path, tmp_path: Path) -> None:
    held_out = cases_of(first / "run")["test"][0]
    data = new_cases(tmp_path / "new", "extra", "innocent")
    shutil.copy(first / "data" / "images" / f"{held_out}.png", data / "images" / "innocent.png")
    with pytest.raises(InputError, match=f"the image of {held_out}, of the test case"):
        train(data, tmp_path / "run", continue_from=first / "run", console=SILENT)
    assert not (tmp_path / "run").exists()


def test_labels_and_channels_have_to_be_those_of_the_run(first: Path, tmp_path: Path) -> None:
    data = new_cases(tmp_path / "new", "extra")
    description: dict[str, object] = {"labels": {"background": 0, "disc": 1, "rod": 2}}
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"the labels of the run.*rod"):
        continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)
    description = {"labels": {"background": 0, "disc": 1, "bar": 2}, "channel_names": {"0": "red"}}
    (data / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"the channels of the run, channel_0; found red"):
        continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)


def test_masks_alone_do_as_long_as_their_values_are_the_runs(first: Path, tmp_path: Path) -> None:
    data = new_cases(tmp_path / "new", "extra")
    (data / "dataset.json").unlink()
    mask = np.asarray(Image.open(data / "masks" / "extra.png")).copy()
    mask[mask == 1] = 0  # the disc does not occur
    Image.fromarray(mask).save(data / "masks" / "extra.png")
    run = continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)
    assert run.dataset.labels == {"background": 0, "disc": 1, "bar": 2}
    row = run.train.item_names.index("extra")
    assert set(np.unique(run.train.labels[row])) == {0, 2}
    mask[0, 0] = 3
    Image.fromarray(mask).save(data / "masks" / "extra.png")
    with pytest.raises(InputError, match="the labels of the run"):
        continued_run(first / "run", data, tmp_path / "other", Settings(), SILENT)


def test_the_data_of_the_run_have_to_be_there(first: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(first, tmp_path / "moved")
    config = moved / "run" / run_folder.CONFIG
    config.write_text(config.read_text().replace(str((first / "data").resolve()), str(moved / "gone")))
    data = new_cases(tmp_path / "new", "extra")
    with pytest.raises(InputError, match=r"gone: expected the data that the run was trained on.*--model"):
        continued_run(moved / "run", data, tmp_path / "run", Settings(), SILENT)
    assert not (tmp_path / "run").exists()


def test_changed_data_of_the_run_are_noticed(first: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(first / "data", tmp_path / "data")
    shutil.copytree(first / "run", tmp_path / "before")
    config = tmp_path / "before" / run_folder.CONFIG
    config.write_text(config.read_text().replace(str((first / "data").resolve()), str(copied)))
    data = new_cases(tmp_path / "new", "extra")
    said = {}
    for name in ("same", "changed"):
        said[name] = io.StringIO()
        continued_run(tmp_path / "before", data, tmp_path / name, Settings(), Console(file=said[name]))
        mask = copied / "masks" / f"{cases_of(first / 'run')['test'][0]}.png"
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    assert "do not compare" not in said["same"].getvalue()
    assert "do not compare" in " ".join(said["changed"].getvalue().split())


def test_without_augmentation_nothing_is_mirrored_whatever_the_run_before_did(first: Path, tmp_path: Path) -> None:
    assert Segmenter.load(first / "run", "cpu").model.symmetries
    data = new_cases(tmp_path / "new", "extra")
    settings = Settings(augmentation="none", device="cpu")
    run = continued_run(first / "run", data, tmp_path / "run", settings, SILENT)
    assert run.model.symmetries == ()
    again = resumed_run(data, tmp_path / "run", settings, SILENT, first / "run")
    assert again.model.symmetries == ()


def test_the_other_images_of_a_case_stay_where_one_is_corrected(tmp_path: Path) -> None:
    """People correct single images, of patients who have several."""
    data, new = write_toy_dataset(tmp_path / "data"), new_cases(tmp_path / "new", "img2")
    patients = {f"img{number}": f"P{number // 2}" for number in range(6)}
    (data / "cases.csv").write_text("".join(f"{name},{case}\n" for name, case in {"name": "case", **patients}.items()))
    (new / "cases.csv").write_text("name,case\nimg2,P1\n")
    whole = read_dataset(data)
    run = joined(whole, [read_dataset(new)], ("P0", "P1"))
    assert [(item.name, item.case) for item in run.items] == [(f"img{n}", f"P{n // 2}") for n in range(4)]
    places = {item.name: item.masks[0].parent.parent for item in run.items}
    assert places == {"img0": data, "img1": data, "img2": new, "img3": data}


@pytest.mark.exhaustive
@pytest.mark.parametrize("augmentation", [None, "none"])
def test_interrupted_and_resumed_equals_never_interrupted(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: Augmentations | None
) -> None:
    data = new_cases(tmp_path / "new", "extra")
    settings = Settings(steps=3, augmentation=augmentation, device="cpu")
    whole = train(data, tmp_path / "whole", settings, continue_from=first / "run", console=SILENT)
    with monkeypatch.context() as patch:
        interrupt_in(patch, 2)
        with pytest.raises(Interrupted):
            train(data, tmp_path / "run", settings, continue_from=first / "run", console=SILENT)
    with pytest.raises(InputError, match=r"^continue: "):
        train(data, tmp_path / "run", settings, resume=True, console=SILENT)
    with pytest.raises(InputError, match="--steps"):
        train(
            data,
            tmp_path / "run",
            dataclasses.replace(settings, steps=5),
            continue_from=first / "run",
            resume=True,
            console=SILENT,
        )
    again = train(data, tmp_path / "run", settings, continue_from=first / "run", resume=True, console=SILENT)
    assert again["cases"] == whole["cases"]
    assert files.sha256(tmp_path / "run" / run_folder.MODEL) == files.sha256(tmp_path / "whole" / run_folder.MODEL)
    assert files.sha256(tmp_path / "run" / run_folder.MODEL) != files.sha256(first / "run" / run_folder.MODEL)
    # What evaluating the folder finds again is what the run found.
    assert medsaga.evaluate(tmp_path / "run", device="cpu")["cases"] == whole["cases"]
    assert [case["name"] for case in whole["cases"]] == cases_of(first / "run")["test"]


def test_before_its_first_checkpoint_it_goes_on_from_the_same_weights_only(first: Path, tmp_path: Path) -> None:
    before = shutil.copytree(first / "run", tmp_path / "before")
    data = new_cases(tmp_path / "new", "extra")
    run = continued_run(before, data, tmp_path / "run", Settings(), SILENT)
    again = resumed_run(data, tmp_path / "run", Settings(), SILENT, before)
    expected = run.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.model.state_dict().items())
    extra = data / "masks" / "extra.png"
    original = extra.read_bytes()
    Image.fromarray(np.ones((48, 64), np.uint8)).save(extra)
    with pytest.raises(InputError, match="that the run began with"):
        resumed_run(data, tmp_path / "run", Settings(), SILENT, before)
    extra.write_bytes(original)
    save_changed(before, run.model)
    with pytest.raises(InputError, match="as the run began with"):
        resumed_run(data, tmp_path / "run", Settings(), SILENT, before)


def test_resumed_it_leaves_out_what_came_later_into_any_of_its_folders(first: Path, tmp_path: Path) -> None:
    copied, before = shutil.copytree(first / "data", tmp_path / "data"), shutil.copytree(first / "run", tmp_path / "1")
    config = before / run_folder.CONFIG
    config.write_text(config.read_text().replace(str((first / "data").resolve()), str(copied)))
    data, said = new_cases(tmp_path / "new", "extra"), io.StringIO()
    run = continued_run(before, data, tmp_path / "run", Settings(), SILENT)
    corrected, tested = run.split.train[1], run.split.test[0]  # the first is the new one
    for folder, names in ((copied, ["more"]), (data, ["other", corrected, tested])):
        for kind in ("images", "masks"):
            for name in names:
                shutil.copy(first / "data" / kind / f"{run.split.train[-1]}.png", folder / kind / f"{name}.png")
    again = resumed_run(data, tmp_path / "run", Settings(), Console(file=said, width=300), before)
    assert again.split == run.split
    assert [item.masks for item in again.dataset.items] == [item.masks for item in run.dataset.items]
    assert "more came after the run began" in said.getvalue()
    assert all(name in said.getvalue().splitlines()[-1] for name in ("other", corrected, tested))
    (data / "images" / "extra.png").unlink()
    (data / "masks" / "extra.png").unlink()
    with pytest.raises(InputError, match="that the run began with"):
        resumed_run(data, tmp_path / "run", Settings(), SILENT, before)


def test_a_continued_run_can_be_continued(first: Path, tmp_path: Path) -> None:
    second, third = (new_cases(tmp_path / name, "extra", name, seed=seed) for name, seed in (("b", 7), ("c", 8)))
    run2 = continued_run(first / "run", second, tmp_path / "run2", Settings(), SILENT)
    save_changed(tmp_path / "run2", run2.model)
    run = continued_run(tmp_path / "run2", third, tmp_path / "run3", Settings(), SILENT)
    assert run.split.train == tuple(sorted([*cases_of(first / "run")["train"], "extra", "b", "c"]))
    assert run.config.added == (str(second.resolve()), str(third.resolve()))
    items = {item.name: item for item in run.dataset.items}
    assert items["extra"].masks == (third.resolve() / "masks" / "extra.png",)
    assert items["b"].masks == (second.resolve() / "masks" / "b.png",)
    second.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"b: expected the data that the run was trained on.*Put the folder back"):
        continued_run(tmp_path / "run2", third, tmp_path / "run4", Settings(), SILENT)


def test_two_cases_with_an_image_of_one_name_are_refused(first: Path, tmp_path: Path) -> None:
    taken = cases_of(first / "run")["train"][0]
    data = new_cases(tmp_path / "new", taken)
    (data / "cases.csv").write_text(f"name,case\n{taken},somebody\n")
    with pytest.raises(InputError, match="a name that no image of another case has"):
        continued_run(first / "run", data, tmp_path / "run", Settings(), SILENT)
