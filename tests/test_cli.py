"""The command line as a user meets it: exit codes, one clear message, JSON on stdout and nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import write_toy_dataset
from PIL import Image

from medsaga.cli import main
from medsaga.prediction.segmenter import Segmenter

FAST = ["--model", "tiny", "--image-size", "64", "--steps", "2", "--batch-size", "2", "--rank", "4", "--device", "cpu"]


@pytest.fixture
def run(trained_toy: Path, tmp_path: Path) -> Path:
    """A run trained on the toy dataset; this copy may be changed."""
    return shutil.copytree(trained_toy / "run", tmp_path / "run")


def test_help_is_quick_and_needs_no_torch() -> None:
    probe = """
import sys
from medsaga.cli import main
try:
    main(["--help"])
except SystemExit:
    assert not {"torch", "transformers", "matplotlib", "nibabel"} & set(sys.modules)
"""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in done.stdout
    # Generous for a busy machine; the promise of a second is measured in benchmarks/.
    assert time.perf_counter() - began < 10


def test_info_needs_nothing_that_only_training_needs(toy: Path) -> None:
    heavy = "{'torch', 'torchvision', 'monai', 'transformers', 'matplotlib', 'scipy.stats', 'scipy.spatial'}"
    probe = f"import sys; from medsaga.cli import main; main(sys.argv[1:]); sys.exit(str({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", probe, "info", str(toy)], capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == "set()"
    assert "cases" in done.stdout


def test_a_few_labelled_images_among_many_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = write_toy_dataset(tmp_path / "data", images=9), tmp_path / "run"
    for number in range(3, 9):
        (data / f"masks/img{number}.png").unlink()
    said = "6 of 9 images have no mask and are left out, such as img3"
    assert main(["info", str(data)]) == 0
    assert said in " ".join(capsys.readouterr().out.split())
    assert main(["train", str(data), "--out", str(run), "--shots", "2", *FAST]) == 0
    assert f"warning: {said}" in " ".join(capsys.readouterr().err.split())
    assert json.loads((run / "split.json").read_text())["test"] != []
    # Another is labelled later: the run's own test stays what it is.
    write_toy_dataset(tmp_path / "all", images=9)
    shutil.copy(tmp_path / "all/masks/img5.png", data / "masks")
    assert main(["evaluate", str(run)]) == 0
    assert "5 of 9 images have no mask" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("argv", [["predict"], ["no-such-verb"], ["train", "x", "--out", "y", "--no-such-flag"]])
def test_unusable_arguments_exit_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2


def test_predict_imports_nothing_that_a_picture_does_not_need(run: Path, toy: Path, tmp_path: Path) -> None:
    never = "'torch._dynamo', 'sympy', 'torchvision', 'monai', 'transformers', 'matplotlib', 'scipy.stats'"
    heavy = f"{{{never}, 'scipy.ndimage', 'scipy.spatial', 'nibabel', 'pydicom'}}"
    probe = f"import sys; from medsaga.cli import main; main(sys.argv[1:]); sys.exit(str({heavy} & sys.modules.keys()))"
    command = [sys.executable, "-c", probe, "predict", str(run), str(toy / "images/img0.png")]
    command += ["--out", str(tmp_path / "p.png"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.strip().splitlines()[-1] == "set()"
    assert (tmp_path / "p.png").exists()


def test_the_confidence_in_one_image_is_that_of_the_folder(
    run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named alone it is said, in a folder of its own it has a table: the numbers are the same."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(toy / "images/img3.png", alone)
    assert main(["predict", str(run), str(alone), "--out", str(tmp_path / "out")]) == 0
    header, row = (tmp_path / "out/confidence.csv").read_text().splitlines()
    assert header == "case,confidence,disc,bar"
    mean, disc, bar = (float(value) for value in row.split(",")[1:])
    capsys.readouterr()
    for out, name in ((tmp_path / "file.png", "file"), (tmp_path / "folder", "img3")):
        assert main(["predict", str(run), str(toy / "images/img3.png"), "--out", str(out)]) == 0
        said = capsys.readouterr().err.splitlines()[-1]
        found = [float(number) for number in re.findall(r"\d\.\d\d", said)]
        assert found == pytest.approx([mean, disc, bar], abs=0.006)
        assert said.startswith(f"{name}: confidence ")
    assert not any(path.name == "confidence.csv" for path in (tmp_path, *(tmp_path / "folder").iterdir()))


def test_train_evaluate_predict(run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((run / "result.json").read_text())
    assert json.loads(captured.out)["metric_protocol"] == "mm"
    assert main(["predict", str(run), str(toy / "images"), "--out", str(tmp_path / "out"), "--overlay"]) == 0
    first, *order = (tmp_path / "out" / "confidence.csv").read_text().splitlines()
    assert first == "case,confidence,disc,bar"
    assert sorted(line.split(",")[0] for line in order) == [f"img{n}" for n in range(6)]
    confidence = [float(line.split(",")[1]) for line in order]
    assert confidence == sorted(confidence)
    labels = sorted(path for path in (tmp_path / "out").glob("*.png") if "overlay" not in path.name)
    assert [path.name for path in labels] == [f"img{n}.png" for n in range(6)]
    for path in labels:
        with Image.open(path) as picture:
            assert picture.size == (64, 48)
            assert set(np.unique(np.array(picture))) <= {0, 1, 2}
    with Image.open(tmp_path / "out" / "img0_overlay.png") as picture:
        assert picture.mode == "RGB"


def test_evaluate_on_other_data_leaves_the_result_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "result.json").read_text()
    other = write_toy_dataset(tmp_path / "other", seed=1)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(other), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cases"]) == 6
    assert (run / "result.json").read_text() == before


def test_predict_one_file_to_one_file_and_never_over_an_input(
    run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = toy / "images" / "img0.png"
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "x.tif"), "--probabilities"]) == 0
    with Image.open(tmp_path / "x.tif") as labels, Image.open(tmp_path / "x_probabilities.tif") as soft:
        assert labels.size == (64, 48)
        assert soft.n_frames == 3  # type: ignore[attr-defined]
    before = image.read_bytes()
    capsys.readouterr()
    assert main(["predict", str(run), str(image), "--out", str(image)]) == 2
    assert main(["predict", str(run), str(toy / "images"), "--out", str(toy / "images")]) == 2
    assert image.read_bytes() == before
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "x.nii.gz")]) == 2
    assert "png, tiff; found nifti" in capsys.readouterr().err
    for suffix in (".jpg", ".nrrd"):  # what its own kind of file does not hold without loss, and what others have
        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "predict_item", None)  # said before anything is segmented
            assert main(["predict", str(run), str(image), "--out", str(tmp_path / f"x{suffix}")]) == 2
        said = f"x{suffix}: expected a file that ends in .png, .tif, .tiff, .dcm, .nii.gz; found another suffix"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\0"])
def test_a_file_names_what_is_segmented(
    run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    names = tmp_path / "names.txt"
    listed = "".join(f"{toy / 'images' / f'img{number}.png'}{ending}" for number in (1, 4))
    names.write_bytes(listed.encode())
    asked = ["--out", str(tmp_path / "out"), "--tta", "none", "--device", "cpu"]
    assert main(["predict", str(run), f"@{names}", *asked]) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["img1.png", "img4.png"]
    names.write_bytes(b"\n")
    capsys.readouterr()
    assert main(["predict", str(run), f"@{names}", *asked]) == 2
    names.unlink()
    assert main(["predict", str(run), f"@{names}", *asked]) == 2
    assert capsys.readouterr().err.count(f"{names}: expected a list of images") == 2


def test_info(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(toy), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["cases"]) == 6
    assert document["labels"] == {"background": 0, "disc": 1, "bar": 2}
    assert document["problems"] == []
    assert main(["info", str(toy)]) == 0
    assert "disc" in capsys.readouterr().out
    (toy / "masks" / "img3.png").unlink()
    (toy / "images" / "img4.png").write_bytes(b"no picture")
    assert main(["info", str(toy), "--json"]) == 2
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["problems"]) >= 2
    assert "Traceback" not in captured.err


def test_info_says_each_problem_once(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["info", str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    expected = "expected a dataset folder; found nothing of this name. Check the path."
    assert said.err == f"medsaga: {tmp_path / 'none'}: {expected}\n"
    (toy / "images" / "img4.png").write_bytes(b"no picture")
    assert main(["info", str(toy)]) == 2
    assert "img4.png" in capsys.readouterr().err, "who writes the table to a file reads the problem here"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "300")  # wide enough for a path in one line
    with pytest.raises(SystemExit, match="2"):
        main(["info", str(toy)])
    said = capsys.readouterr()
    assert "img4.png" in said.out
    assert "img4.png" not in said.err


def test_errors_are_one_line_and_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("medsaga: ")
    assert "Traceback" not in message
    assert main(["train", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_file_name_with_brackets_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path / "[red]x[/red]")]) == 2
    assert "[red]x[/red]" in capsys.readouterr().err


def test_a_model_that_does_not_fit_its_configuration(run: Path, toy: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    config = run / "config.toml"
    config.write_text(config.read_text().replace("image_size = 64", "image_size = 128"))
    predict = ["predict", str(run), str(toy / "images" / "img0.png"), "--out", str(tmp_path / "o")]
    assert main(predict) == 2
    save_file({}, run / "model.safetensors")
    assert main(predict) == 2
    (run / "model.safetensors").write_bytes(b"\x00" * 100)
    assert main(predict) == 2
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(("flip", "neighbours"), [pytest.param(False, 0, marks=pytest.mark.exhaustive), (True, 1)])
def test_volumes_come_back_on_their_own_grid(tmp_path: Path, flip: bool, neighbours: int) -> None:
    import SimpleITK

    rng = np.random.default_rng(0)
    # Oblique, with a flipped axis, two channels, the coarse axis in the middle.
    turn = np.array([[0.96, -0.28, 0.0], [0.28, 0.96, 0.0], [0.0, 0.0, 1.0]])
    scale = np.diag([-0.8 if flip else 0.8, 5.0, 0.9])
    affine = np.eye(4)
    affine[:3, :3] = turn @ scale
    affine[:3, 3] = [10.5, -20.25, 30.0]
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "masks").mkdir()
    for name in ["a", "b"]:
        labels = np.zeros((40, 6, 30), np.uint8)
        labels[10:25, 1:5, 8:20] = 4
        volume = np.stack([labels * 50 + rng.normal(0, 5, labels.shape), rng.normal(0, 5, labels.shape)], -1)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), affine), tmp_path / f"data/images/{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / f"data/masks/{name}.nii.gz")
    run = tmp_path / "run"
    options = ["--shots", "1", "--neighbours", str(neighbours), *FAST]
    assert main(["train", str(tmp_path / "data"), "--out", str(run), *options]) == 0
    image = tmp_path / "data/images/b.nii.gz"
    assert main(["predict", str(run), str(image), "--out", str(tmp_path / "o"), "--probabilities"]) == 0
    predicted = nibabel.load(tmp_path / "o" / "b.nii.gz")
    assert predicted.shape == (40, 6, 30)
    np.testing.assert_array_equal(predicted.affine, nibabel.load(image).affine)
    assert set(np.unique(np.asarray(predicted.dataobj))) <= {0, 4}
    soft = np.asarray(nibabel.load(tmp_path / "o" / "b_probabilities.nii.gz").dataobj)
    assert soft.shape == (40, 6, 30, 2)
    np.testing.assert_allclose(soft.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(soft.argmax(-1) * 4, np.asarray(predicted.dataobj))
    mask, ours = (
        SimpleITK.ReadImage(str(path)) for path in [tmp_path / "data/masks/b.nii.gz", tmp_path / "o/b.nii.gz"]
    )
    assert ours.GetSize() == mask.GetSize()
    assert ours.GetSpacing() == mask.GetSpacing()
    assert ours.GetOrigin() == mask.GetOrigin()
    assert ours.GetDirection() == mask.GetDirection()
