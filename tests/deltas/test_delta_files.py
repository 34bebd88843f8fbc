"""A run becomes a small file and a model again: what is kept, what is lost, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import fit_only, write_toy_dataset
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsaga import files
from medsaga.cli import main
from medsaga.cli.runs import run_meant
from medsaga.data.dataset import read_dataset
from medsaga.deltas.applying import load_delta
from medsaga.deltas.file import FORMAT, Delta, _digest, read_delta, write_delta
from medsaga.deltas.header import KEY, is_delta
from medsaga.deltas.making import export_delta, run_weights
from medsaga.errors import InputError
from medsaga.models.sam import build_sam
from medsaga.models.weights import registry
from medsaga.models.weights.loading import save_model
from medsaga.prediction.segmenter import Segmenter
from medsaga.runs.export import export_run
from medsaga.settings.options import Settings
from medsaga.settings.run_config import read_config

pytestmark = pytest.mark.xdist_group("delta_files")

SETTINGS = Settings(
    model="tiny", shots=3, image_size=64, steps=6, batch_size=2, evaluate_every=6, refresh_every=2, rank=8, device="cpu"
)
LR: dict[str, Any] = {"encoder_lr": 5e-3, "decoder_lr": 5e-3}


@dataclasses.dataclass(frozen=True)
class Made:
    """A run from weights in a file, and the delta of it."""

    data: Path
    weights: Path
    run: Path
    file: Path
    done: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Nobody writes into its folders."""
    root = tmp_path_factory.mktemp("delta")
    data, weights = write_toy_dataset(root / "data"), root / "there" / "base.safetensors"
    torch.manual_seed(1)
    save_model(weights, build_sam("tiny", classes=4, image_size=64))
    fit_only(data, root / "run", dataclasses.replace(SETTINGS, model=str(weights), **LR))
    file = root / "sent" / "delta.safetensors"
    return Made(data, weights, root / "run", file, export_delta(root / "run", file, error=0.05))


def trained(run: Path) -> dict[str, Tensor]:
    weights = run_weights(run / "model.safetensors", read_config(run / "config.toml"))
    return {name: make().float() for name, make in weights.makers.items()}


def logits(model: Any) -> Tensor:
    images = 255 * torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: Tensor = model.float().eval()(images)
    return found


def test_a_run_comes_back_within_the_bound(made: Made) -> None:
    model, config = load_delta(made.file, str(made.weights))
    loaded, expected = model.state_dict(), trained(made.run)
    assert loaded.keys() == expected.keys()
    delta, tensors = read_delta(made.file)
    start, _ = load_delta(made.file, str(made.weights))
    base = load_file(made.weights)
    lost = changed = 0.0
    for name, weight in expected.items():
        if name in delta.unchanged:
            assert torch.equal(loaded[name], weight), name
        elif name in tensors:
            assert torch.equal(loaded[name], weight.half().float()), name
        else:
            lost += float((loaded[name].double() - weight).square().sum())
            changed += float((weight.double() - delta.shares[name] * base[name]).square().sum())
    bound, error = made.done["bound"], (lost / changed) ** 0.5
    assert 0.3 * bound < error <= bound
    assert error == pytest.approx(made.done["error_of_change"], rel=1e-3)
    assert made.done["factors"] == len(delta.shares) > 10
    assert all(name.startswith("image_encoder.") for name in delta.shares)
    assert config.labels == read_config(made.run / "config.toml").labels
    assert start.symmetries == Segmenter.load(made.run, "cpu").model.symmetries


def test_it_predicts_what_the_run_predicts(made: Made) -> None:
    ours, theirs = (
        Segmenter.load(made.file, "cpu", base=str(made.weights)),
        Segmenter.load(made.run, "cpu"),
    )
    expected = logits(theirs.model)
    assert (logits(ours.model) - expected).norm() < 0.02 * expected.norm()
    item = read_dataset(made.data).items[0]
    ones, others = (segmenter.predict_item(item, probabilities=True) for segmenter in (ours, theirs))
    assert (ones.labels == others.labels).mean() > 0.99
    assert ones.probabilities is not None
    assert ones.probabilities == pytest.approx(others.probabilities, abs=0.05)


def test_a_tighter_bound_is_nearer_and_larger(made: Made, tmp_path: Path) -> None:
    sizes, errors = [], []
    for bound, codes in ((0.5, "int8"), (0.1, "int8"), (0.1, "fp16"), (0.003, "fp16")):
        done = export_delta(made.run, tmp_path / f"{codes}{bound}.safetensors", error=bound, codes=codes)
        assert done["error_of_change"] <= bound
        sizes.append(done["bytes_of_factors"] + done["bytes_of_matrices_stored_whole"])
        errors.append(done["error_of_change"])
        assert done["bytes"] == (tmp_path / f"{codes}{bound}.safetensors").stat().st_size
    assert sizes == sorted(sizes)
    assert errors[0] > errors[1] > errors[3]


def test_the_file_says_nothing_of_the_machine(made: Made) -> None:
    content = made.file.read_bytes()
    for place in (made.data, made.weights.parent, made.run):
        assert str(place).encode() not in content
    assert b"base.safetensors" in content


def test_the_base_is_found_beside_the_file_here_and_by_the_run(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "far" / "delta.safetensors"
    file.parent.mkdir()
    shutil.copy(made.file, file)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"made from: base.safetensors, SHA-256 .*no such file.*--base"):
        load_delta(file)
    expected = load_delta(file, str(made.weights))[0].state_dict()
    for place in (tmp_path / "far" / "base.safetensors", tmp_path / "base.safetensors"):
        shutil.copy(made.weights, place)
        found = load_delta(file)[0].state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        place.unlink()
    # In the run folder config.toml names the weights.
    shutil.copy(made.run / "config.toml", file.parent)
    load_delta(file)


def test_named_weights_that_are_not_in_the_cache_are_found_beside_the_file(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no internet copies SAM's file anywhere, and names its path."""
    named = next(known for known in registry.known_weights().values() if known.url is not None)
    known = dataclasses.replace(named, sha256=files.sha256(made.weights))
    monkeypatch.setattr("medsaga.deltas.base.known_weights", lambda: {known.name: known})
    monkeypatch.setattr(registry, "cache_folder", lambda: tmp_path / "cache")
    file = tmp_path / "delta.safetensors"
    shutil.copy(made.file, file)
    with pytest.raises(InputError, match=rf"--base WEIGHTS, or with internet .*medsaga weights fetch {known.name}"):
        load_delta(file)
    shutil.copy(made.weights, tmp_path / "base.safetensors")
    load_delta(file)


def test_another_base_is_refused(made: Made, tmp_path: Path) -> None:
    torch.manual_seed(2)
    other = tmp_path / "base.safetensors"
    save_model(other, build_sam("tiny", classes=4, image_size=64))
    with pytest.raises(InputError, match=r"expected base.safetensors, SHA-256 .*found SHA-256"):
        load_delta(made.file, str(other))
    shutil.copy(made.file, tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match=r"no such file named base\.safetensors"):
        load_delta(tmp_path / "delta.safetensors")
    with pytest.raises(InputError, match="the weights that the run started from, SHA-256"):
        export_delta(made.run, tmp_path / "new.safetensors", base=str(other))
    assert not (tmp_path / "new.safetensors").exists()
    with pytest.raises(InputError, match="expected a delta file to put onto it"):
        Segmenter.load(made.run, "cpu", base=str(other))


@pytest.mark.exhaustive  # the how-to page does it, too
def test_weights_that_come_with_the_package_are_found(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "data", images=4)
    fit_only(data, tmp_path / "run", dataclasses.replace(SETTINGS, model=None, steps=1, evaluate_every=1, shots=1))
    done = export_delta(tmp_path / "run", tmp_path / "sent" / "delta.safetensors")
    assert done["base"] == "starter"
    ours, theirs = (Segmenter.load(tmp_path / name, "cpu").model for name in ("sent/delta.safetensors", "run"))
    expected = logits(theirs)
    assert (logits(ours) - expected).norm() < 0.02 * expected.norm()


def test_a_start_from_random_weights_is_drawn_again(trained_toy: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    file = tmp_path / "delta.safetensors"
    done = export_delta(trained_toy / "run", file)
    assert (done["base"], done["base_sha256"]) == ("random", None)
    found = logits(load_delta(file)[0])
    assert torch.equal(torch.random.get_rng_state(), before)
    expected = logits(Segmenter.load(trained_toy / "run", "cpu").model)
    assert (found - expected).norm() < 0.02 * expected.norm()
    with pytest.raises(InputError, match="the delta is one of random weights"):
        load_delta(file, "starter")
    delta, tensors = read_delta(file)
    elsewhere = dataclasses.replace(delta.base, drawn="0" * 64)
    write_delta(tmp_path / "other.safetensors", dataclasses.replace(delta, base=elsewhere), tensors)
    with pytest.raises(InputError, match=r"another version of torch.*Ask for the run's model.safetensors"):
        load_delta(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("method", "precision"),
    [
        ("samed", "fp32"),
        ("frozen", "fp32"),
        pytest.param("samed", "bf16", marks=pytest.mark.exhaustive),
        pytest.param("samed", "fp16", marks=pytest.mark.exhaustive),
        pytest.param("full", "fp32", marks=pytest.mark.exhaustive),
        pytest.param("medsaga", "int8", marks=pytest.mark.exhaustive),
        pytest.param("unet", "fp32", marks=pytest.mark.exhaustive),
        pytest.param("daeformer", "fp32", marks=pytest.mark.exhaustive),
    ],
)
def test_every_method_becomes_the_same_kind_of_file(method: str, precision: Any, made: Made, tmp_path: Path) -> None:
    own = method in ("unet", "daeformer")
    rates: dict[str, Any] = {} if method == "daeformer" else LR
    settings = dataclasses.replace(
        SETTINGS, method=method, model=None if own else str(made.weights), precision=precision, steps=2, **rates
    )
    fit_only(made.data, tmp_path / "run", dataclasses.replace(settings, evaluate_every=2))
    file = tmp_path / "sent.safetensors"
    done = export_delta(tmp_path / "run", file, error=0.05)
    model, config = load_delta(file, None if own else str(made.weights))
    expected = logits(Segmenter.load(tmp_path / "run", "cpu").model)
    # Random half-precision weights forgive nothing: there what the run itself computes is rounded.
    assert (logits(model) - expected).norm() < (0.02 if precision == "fp32" else 0.05) * expected.norm()
    assert config.settings.method == method
    delta, _ = read_delta(file)
    if method == "samed":
        assert list(delta.shares) == [f"image_encoder.blocks.{n}.attn.qkv.weight" for n in range(4)]
        assert done["rank_largest"] <= 16
    if method in ("samed", "frozen"):
        rest = {name for name in model.state_dict() if name.startswith("image_encoder.")} - {*delta.shares}
        assert rest <= {*delta.unchanged}
        assert done["bytes_of_factors"] < 0.1 * done["bytes"]


def spoiled(made: Made, path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """Write the file again with something else in it, and with a digest that is right."""
    delta, tensors = read_delta(made.file)
    facts: dict[str, Any] = {field.name: getattr(delta, field.name) for field in dataclasses.fields(delta)}
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    change(facts, copies)
    write_delta(path, Delta(**facts), copies)
    return path


MATRIX = "image_encoder.blocks.1.mlp.lin1.weight"
NORM = "image_encoder.blocks.1.norm1.weight"
CHANGES: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], Any]] = {
    "no tensor": lambda facts, tensors: tensors.pop(NORM),
    "no factor": lambda facts, tensors: tensors.pop(f"{MATRIX}/right"),
    "no scales": lambda facts, tensors: tensors.pop(f"{MATRIX}/left/scales"),
    "one more": lambda facts, tensors: tensors.update(more=torch.zeros(2)),
    "one more factor": lambda facts, tensors: tensors.update({"more/left": torch.zeros(2)}),
    "twice": lambda facts, tensors: facts.update(unchanged=(*facts["unchanged"], NORM)),
    "another shape": lambda facts, tensors: tensors.update({NORM: torch.zeros(3).half()}),
    "another type": lambda facts, tensors: tensors.update({NORM: tensors[NORM].double()}),
    "two ranks": lambda facts, tensors: tensors.update({f"{MATRIX}/left": tensors[f"{MATRIX}/left"][1:].clone()}),
    "another side": lambda facts, tensors: tensors.update({f"{MATRIX}/right": torch.zeros(8, 65, dtype=torch.int8)}),
    "factors of floats": lambda facts, tensors: tensors.update({f"{MATRIX}/left": tensors[f"{MATRIX}/left"].float()}),
    "a rank above all": lambda facts, tensors: tensors.update(
        {
            f"{MATRIX}/left": torch.zeros(65, 256, dtype=torch.int8),
            f"{MATRIX}/right": torch.zeros(65, 64, dtype=torch.int8),
            f"{MATRIX}/left/scales": torch.ones(65),
            f"{MATRIX}/right/scales": torch.ones(65),
        }
    ),
    "NaN": lambda facts, tensors: tensors[NORM].fill_(float("nan")),
    "infinite scales": lambda facts, tensors: tensors[f"{MATRIX}/left/scales"].fill_(float("inf")),
    "c of infinity": lambda facts, tensors: facts["shares"].update({MATRIX: float("inf")}),
    "factors of a norm": lambda facts, tensors: facts["shares"].update({NORM: 1.0}),
    "no such tensor": lambda facts, tensors: facts["shares"].update(more=1.0),
    "very many classes": lambda facts, tensors: facts.update(
        config=dataclasses.replace(facts["config"], labels={str(n): n for n in range(300)})
    ),
    "a very large image": lambda facts, tensors: facts.update(
        config=dataclasses.replace(
            facts["config"], settings=dataclasses.replace(facts["config"].settings, image_size=16 * 2048)
        )
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_with_anything_else_in_it_is_refused(
    change: Callable[[dict[str, Any], dict[str, Tensor]], None], made: Made, tmp_path: Path
) -> None:
    path = spoiled(made, tmp_path / "delta.safetensors", change)
    with pytest.raises(InputError, match="expected a whole delta file"):
        load_delta(path, str(made.weights))


def test_one_bit_more_or_less_is_noticed(made: Made, tmp_path: Path) -> None:
    content, path = made.file.read_bytes(), tmp_path / "delta.safetensors"
    for place in range(0, len(content), len(content) // 40):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(InputError):
            load_delta(path, str(made.weights))
    for length in (0, 7, 8, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="a whole safetensors file"):
            load_delta(path, str(made.weights))


def rewritten(made: Made, path: Path, **changes: Any) -> Path:
    """Write the file again with another description."""
    with safe_open(made.file, framework="pt") as file:
        document = json.loads(file.metadata()[KEY]) | changes
    save_file(load_file(made.file), path, {KEY: json.dumps(document)})
    return path


def test_other_versions_are_refused_in_a_sentence(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    assert FORMAT == 1
    with pytest.raises(InputError, match=r"expected format 1 .*found format 2, of a newer .*Install a newer medsaga"):
        load_delta(rewritten(made, path, format=2, more={}))
    with pytest.raises(InputError, match=r"found format 0, of an earlier .*Export the run again"):
        load_delta(rewritten(made, path, format=0))
    with pytest.raises(InputError, match="found a format 'x'"):
        load_delta(rewritten(made, path, format="x"))
    with pytest.raises(InputError, match="changed since it was written"):
        load_delta(rewritten(made, path, unchanged=[]))
    save_file({"x": torch.zeros(1)}, path, {KEY: "[]"})
    with pytest.raises(InputError, match="no description of what it holds"):
        load_delta(path)
    save_file({"x": torch.zeros(1)}, path, {"medsaga_adapter": "{}"})
    with pytest.raises(InputError, match=r"an adapter of an earlier version.*medsaga export RUN --delta FILE"):
        load_delta(path)


def test_files_that_are_no_deltas_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a run folder, or a delta file.*of another kind"):
        Segmenter.load(made.weights, "cpu")
    (tmp_path / "words").write_text("words")
    with pytest.raises(InputError, match="a whole safetensors file"):
        Segmenter.load(tmp_path / "words", "cpu")
    for path in (made.weights, tmp_path / "words", tmp_path / "nothing", tmp_path):
        assert not is_delta(path)
    assert is_delta(made.file)


def test_a_delta_in_a_run_folder_stands_for_itself(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.run / "config.toml", tmp_path)
    shutil.copy(made.file, tmp_path / "delta.safetensors")
    (tmp_path / "model.safetensors").touch()
    assert run_meant(tmp_path / "delta.safetensors") == tmp_path / "delta.safetensors"
    assert run_meant(tmp_path / "model.safetensors") == tmp_path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"error": 0.02}, "expected 0.03 to 1 with int8.*--codes fp16 allows smaller"),
        ({"error": 1.0, "codes": "fp16"}, "expected 0.002 to 1 with fp16"),
        ({"error": float("nan")}, "--error"),
        ({"codes": "int4"}, "int8, fp16"),
    ],
)
def test_bounds_that_cannot_be_held_are_refused(given: dict[str, Any], words: str, made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        export_delta(made.run, tmp_path / "new.safetensors", **given)


def test_a_run_that_has_failed_is_refused(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    state[MATRIX][3, 3] = float("nan")
    save_file(state, path, metadata)
    with pytest.raises(InputError, match=f"NaN or infinity in {MATRIX}"):
        export_delta(tmp_path / "run", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize(("written", "instead"), [("image_size = 64", 'image_size = "64"'), ("disc = 1", "disc = inf")])
def test_a_configuration_that_no_run_has_is_refused(made: Made, tmp_path: Path, written: str, instead: str) -> None:
    with safe_open(made.file, framework="pt") as file:
        document = json.loads(file.metadata()[KEY])
    tensors = load_file(made.file)
    del document["sha256"]
    assert written in document["config"]
    document["config"] = document["config"].replace(written, instead)
    document["sha256"] = _digest(document, tensors)
    save_file(tensors, tmp_path / "odd.safetensors", {KEY: json.dumps(document)})
    with pytest.raises(InputError, match=r"odd\.safetensors: expected the settings of a run"):
        read_delta(tmp_path / "odd.safetensors")


def test_a_description_of_endless_depth_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "deep.safetensors", {KEY: "[" * 200_000})
    with pytest.raises(InputError, match="a whole delta file"):
        read_delta(tmp_path / "deep.safetensors")


def test_the_data_of_the_check_are_looked_at_first(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nope"):
        export_run(made.run, tmp_path / "new.safetensors", check=tmp_path / "nope")
    other = shutil.copytree(made.data, tmp_path / "other")
    (other / "dataset.json").write_text('{"labels": {"background": 0, "something else": 1}}')
    with pytest.raises(InputError, match="the labels of the run"):
        export_run(made.run, tmp_path / "new.safetensors", check=other)
    assert not (tmp_path / "new.safetensors").exists()


def test_weights_that_have_moved_can_be_named(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    config = tmp_path / "run" / "config.toml"
    config.write_text(config.read_text().replace(json.dumps(str(made.weights)), '"/moved/base.safetensors"'))
    with pytest.raises(InputError, match=r"/moved/base\.safetensors.*--base WEIGHTS"):
        export_delta(tmp_path / "run", tmp_path / "new.safetensors")
    export_delta(tmp_path / "run", tmp_path / "new.safetensors", base=str(made.weights))


def test_a_decoder_that_float16_cannot_hold_is_stored_in_float32(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.run, tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    name = "mask_decoder.mask_tokens.weight"
    state[name][0, 0] = 1e5
    save_file(state, path, metadata)
    export_delta(tmp_path / "run", tmp_path / "new.safetensors")
    model, _ = load_delta(tmp_path / "new.safetensors", str(made.weights))
    assert torch.equal(model.state_dict()[name], state[name])


def test_from_the_command_line(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "delta.safetensors"
    export = ["export", str(made.run), "--delta", str(file), "--json", "--check", str(made.data), "--device", "cpu"]
    assert main(export) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(file)
    assert said["bytes"] == file.stat().st_size
    assert said["cases_compared"] == 3
    assert abs(said["dice_of_run"] - said["dice_of_file"]) < 0.02

    assert main(export) == 2
    assert "expected a file that does not exist yet" in capsys.readouterr().err
    assert main(["export", str(made.run), "--delta", str(tmp_path / "delta.bin")]) == 2
    assert "a name that ends in .safetensors" in capsys.readouterr().err

    base = ["--base", str(made.weights), "--device", "cpu"]
    assert main(["predict", str(file), str(made.data), "--out", str(tmp_path / "out"), *base]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert main(["predict", str(file), str(made.data), "--out", str(tmp_path / "other")]) == 2
    assert "--base WEIGHTS" in capsys.readouterr().err

    assert main(["evaluate", str(file), str(made.data), "--json", *base]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["case_count"] == 6
    assert "all cases are scored" in printed.err
    assert main(["evaluate", str(file), *base]) == 2
    assert "a dataset beside a delta file" in capsys.readouterr().err
    assert main(["continue", str(file), str(made.data), "--out", str(tmp_path / "run2")]) == 2
    assert "expected a run folder" in capsys.readouterr().err
