"""`medsaga suggest`: which cases it chooses from, what it makes of them, and what it prints."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import tyro
from conftest import write_toy_dataset
from dicom_phantoms import AFFINES, BIRTH, IDENTITY, write_ct_series
from PIL import Image
from rich.console import Console

from medsaga import files, run_folder
from medsaga.cli.suggest import Suggest
from medsaga.data.inputs import find_inputs
from medsaga.data.intensity import Intensity
from medsaga.errors import InputError
from medsaga.models.daeformer import DAEFormer
from medsaga.models.sam import build_sam
from medsaga.models.unet import UNet
from medsaga.prediction.confidence import confidence
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.train import train
from medsaga.settings.options import Settings
from medsaga.suggest.embedding import CaseEmbedder
from medsaga.suggest.run import suggest

pytestmark = pytest.mark.xdist_group("suggest_run")

SILENT = Console(file=io.StringIO())
KINDS = {"dark": (20, 5), "bright": (220, 5), "noise": (120, 60)}


def write_images(folder: Path, *, each: int = 4) -> Path:
    """Write images of three kinds that nobody could take for each other."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for kind, (mean, spread) in KINDS.items():
        for number in range(each):
            grey = random.normal(mean, spread, (48, 64)).clip(0, 255).astype(np.uint8)
            Image.fromarray(grey).save(folder / f"{kind}_{number}.png")
    return folder


def names(found: dict[str, Any]) -> list[str]:
    """The suggested cases."""
    return [suggestion["case"] for suggestion in found["suggestions"]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, three cases for training and three for the test, and its data."""
    root = tmp_path_factory.mktemp("trained")
    settings = Settings(
        model="tiny", shots=3, image_size=64, steps=4, batch_size=2, evaluate_every=4, rank=8, device="cpu"
    )
    train(write_toy_dataset(root / "data"), root / "run", settings, console=SILENT)
    return root


def test_before_any_label_one_of_each_kind(tmp_path: Path) -> None:
    found = suggest(write_images(tmp_path / "images"), count=3, console=SILENT)
    assert sorted(name.split("_")[0] for name in names(found)) == sorted(KINDS)
    assert [suggestion["stands_for"] for suggestion in found["suggestions"]] == [4, 4, 4]
    assert {suggestion["uncertainty"] for suggestion in found["suggestions"]} == {None}
    assert (found["unlabelled"], found["labelled"], found["looked_with"]) == (12, 0, "starter")
    assert found == suggest(tmp_path / "images", count=3, console=SILENT)


def test_labelled_cases_of_a_dataset_count_as_chosen(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    (tmp_path / "masks").mkdir()
    for name in ("dark_1", "noise_0"):
        Image.fromarray(np.ones((48, 64), np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    found = suggest(tmp_path, count=2, console=SILENT)
    assert names(found)[0].startswith("bright")
    assert (found["unlabelled"], found["labelled"]) == (10, 2)
    assert not {"dark_1", "noise_0"} & set(names(found))


def test_a_case_is_suggested_with_all_of_its_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    lines = [f"{kind}_{number},{kind}{number // 2}" for kind in KINDS for number in range(4)]
    (tmp_path / "cases.csv").write_text("\n".join(["name,case", *lines]))
    found = suggest(tmp_path, count=3, console=SILENT)
    assert sorted(name[:-1] for name in names(found)) == sorted(KINDS)
    assert [suggestion["images"] for suggestion in found["suggestions"]] == [2, 2, 2]
    assert found["unlabelled"] == 6


def test_volumes_of_sixteen_bits(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shape in (("a", (40, 32, 5)), ("b", (40, 32, 70)), ("c", (24, 32, 6))):
        values = random.integers(-1000, 1000, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 3, 1])), tmp_path / f"{name}.nii.gz")
    assert sorted(names(suggest(tmp_path, count=3, console=SILENT))) == ["a", "b", "c"]


def test_an_export_of_dicom_says_nothing_of_the_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for number in range(3):
        values = random.integers(-1000, 1000, (24, 32, 4))
        write_ct_series(tmp_path / "export" / f"study{number}", values, AFFINES["axial"], patient_name="Secret^Name")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "export" / "logo.png")
    run_verb(str(tmp_path / "export"), "--n", "3")
    printed = "".join(capsys.readouterr())
    assert "left out" in printed
    assert all(f"study{number}" in printed for number in range(3))
    assert "3 unlabelled cases, 0 labelled; looked at with starter" in printed
    assert not [secret for secret in ("Secret", IDENTITY, BIRTH, "1.2.") if secret in printed]


def test_a_run_is_asked_how_sure_it_is(trained: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    found = suggest(images, run=trained / "run", count=12, device="cpu", console=SILENT)
    model = Segmenter.load(trained / "run", "cpu").model
    assert (found["unlabelled"], found["labelled"]) == (12, 3)
    assert all(suggestion["distance"] is not None for suggestion in found["suggestions"])
    for suggestion in found["suggestions"]:
        square = np.zeros((1, 1, 64, 64), np.float32)
        square[..., :48, :] = np.asarray(Image.open(images / f"{suggestion['case']}.png"))
        with torch.inference_mode():
            soft = model(torch.from_numpy(square))[0, :, :24].softmax(0).numpy()
        assert suggestion["uncertainty"] == pytest.approx(1 - confidence(soft)["mean"], abs=1e-5)


def _altered(image: Path, out: Path) -> None:
    """Save an image with one grey value changed by one: to the eye the same, to a digest another."""
    values = np.array(Image.open(image))
    values[0, 0] ^= 1
    Image.fromarray(values).save(out)


def test_cases_of_the_run_are_not_suggested(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    shutil.copytree(trained / "data" / "images", folder)
    shutil.copy(folder / "img0.png", folder / "copy.png")
    _altered(folder / "img0.png", folder / "new.png")
    said = io.StringIO()
    found = suggest(folder, run=trained / "run", count=1, device="cpu", console=Console(file=said, width=300))
    assert names(found) == ["new"]
    assert found["unlabelled"] == 1
    assert "left out, because the run has cases of these names: img0, img1, img2, img3, img4, img5" in said.getvalue()
    assert "copy" not in names(found), "it has the content of a case of the run"
    (folder / "new.png").unlink()
    with pytest.raises(InputError, match="cases to choose from"):
        suggest(folder, run=trained / "run", count=1, device="cpu", console=SILENT)


def test_what_looks_like_a_training_case_comes_last(trained: Path, tmp_path: Path) -> None:
    split = files.read_json(trained / "run" / run_folder.SPLIT)
    folder = write_images(tmp_path / "images", each=1)
    _altered(trained / "data" / "images" / f"{split['train'][0]}.png", folder / "twin.png")
    found = suggest(folder, run=trained / "run", count=4, device="cpu", console=SILENT)
    assert names(found)[-1] == "twin"
    assert found["suggestions"][-1]["distance"] < 0.1 * found["suggestions"][0]["distance"]


def test_without_the_data_of_the_run_it_goes_on_and_says_so(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    config = run / run_folder.CONFIG
    config.write_text(config.read_text().replace(str((trained / "data").resolve()), str(tmp_path / "gone")))
    said = io.StringIO()
    images = write_images(tmp_path / "images")
    found = suggest(images, run=run, count=2, device="cpu", console=Console(file=said))
    assert (len(names(found)), found["labelled"]) == (2, 0)
    assert "not taken into account" in " ".join(said.getvalue().split())


@pytest.mark.parametrize(
    ("build", "grid"),
    [
        (lambda: build_sam("lite", classes=3, image_size=64, in_channels=1), (512, 8, 8)),
        (lambda: UNet(classes=3, image_size=64, in_channels=1), (512, 4, 4)),
        (lambda: DAEFormer(classes=3, image_size=64, in_channels=1), (512, 4, 4)),
    ],
)
def test_every_model_has_an_encoder_to_look_with(build: Any, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = build().eval()
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        encoded, logits = model.encoded_and_logits(images.float(), decode=True)
        assert logits is not None
        assert torch.allclose(logits, model(images.float()), atol=1e-5)
        assert model.encoded_and_logits(images.float(), decode=False)[1] is None
    assert encoded.shape == (2, *grid)


def test_the_embedding_is_the_mean_over_slices_and_positions_without_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_sam("tiny", classes=2, image_size=64, in_channels=1).eval()
    values = np.random.default_rng(0).integers(0, 256, (64, 32, 5)).astype(np.uint8)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 1, 3, 1])), tmp_path / "volume.nii.gz")
    (item,) = find_inputs(tmp_path)
    looker = CaseEmbedder(model, (Intensity("identity", 0.0, 255.0),), "auto", 0, None, 2, classes=False)
    # Axial slices: 32 rows from anterior downwards, 64 columns from the patient's right; the file's axes run R, A, S.
    square = np.zeros((5, 1, 64, 64), np.float32)
    square[:, 0, :32] = values.transpose(2, 1, 0)[:, ::-1, ::-1]
    with torch.inference_mode():
        expected = model.pack(model.encode(torch.from_numpy(square)))[:, :, :4].double().mean(dim=(0, 2, 3))
    assert looker.embed([item]).embedding == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": 13}, "--n: expected 1 to 12"),
        ({"count": 0}, "--n"),
        ({"model": "vit_b"}, "--model: expected pre-trained weights"),
        ({"model": "starter", "run": Path("run")}, "--model: expected no other model beside a run"),
    ],
)
def test_what_cannot_be_asked(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    with pytest.raises(InputError, match=message):
        suggest(images, console=SILENT, **given)


def test_a_folder_that_is_not_there_is_called_that(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nope: expected a folder of images; found nothing of this name"):
        suggest(tmp_path / "nope")


def test_images_that_do_not_fit_together_or_the_run(trained: Path, tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    Image.fromarray(np.full((8, 8, 3), (200, 0, 0), np.uint8)).save(folder / "red.png")
    # Grey pictures go with coloured ones, but not with two channels.
    assert suggest(folder, console=SILENT)["unlabelled"] == 13
    with pytest.raises(InputError, match=r"red.png: expected 1 channel\(s\), as the run takes"):
        suggest(folder, run=trained / "run", device="cpu", console=SILENT)


def run_verb(*arguments: str) -> None:
    """Do what the command line would."""
    tyro.cli(Suggest, args=list(arguments), config=(tyro.conf.FlagCreatePairsOff,)).run()


def test_the_verb_prints_a_table_or_json(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = write_images(tmp_path / "images")
    run_verb(str(images), "--n", "2")
    printed = capsys.readouterr().out
    assert "stands for" in printed
    assert "uncertainty" not in printed
    run_verb(str(trained / "run"), str(images), "--n", "2", "--json", "--device", "cpu")
    document = json.loads(capsys.readouterr().out)
    expected = suggest(images, run=trained / "run", count=2, device="cpu", console=SILENT)
    assert document == expected
    run_verb(str(trained / "run"), str(images), "--n", "2", "--device", "cpu")
    table = capsys.readouterr().out
    assert all(name in table for name in (*names(expected), "uncertainty"))
    with pytest.raises(InputError, match="3 folders"):
        run_verb("a", "b", "c")


def test_a_model_of_tiles_looks_at_tiles(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_sam("tiny", classes=2, image_size=64, in_channels=1).eval()
    values = np.random.default_rng(0).integers(0, 256, (64, 128)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "wide.png")
    looker = CaseEmbedder(model, (Intensity("identity", 0.0, 255.0),), "auto", 0, 64, 1, classes=False)
    halves = torch.from_numpy(np.stack([values[:, :64], values[:, 64:]])[:, None]).float()
    with torch.inference_mode():
        expected = model.pack(model.encode(halves)).double().mean(dim=(0, 2, 3))
    assert looker.embed(find_inputs(tmp_path)).embedding == pytest.approx(expected.numpy(), abs=1e-5)
