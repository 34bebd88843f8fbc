"""The weights that have a name: complete records, an intact file in the package, and names that mean one thing."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources
from pathlib import Path

import pytest
import torch

from medsaga import files
from medsaga.errors import InputError
from medsaga.models.encoders import ENCODERS
from medsaga.models.sam import build_sam
from medsaga.models.weights import registry
from medsaga.models.weights.loading import detect_architecture, load_pretrained
from medsaga.models.weights.registry import STARTER, cache_folder, known_weights, release_of, weights_named
from medsaga.models.weights.sources import locate

ROOT = Path(__file__).parent.parent.parent


def test_the_packaged_file_is_the_one_that_its_record_describes() -> None:
    starter = weights_named(STARTER)
    shipped = resources.files("medsaga.models.weights").joinpath("pretrained").joinpath(starter.file)
    assert Path(str(shipped)) == starter.path == locate(STARTER)
    assert files.sha256(starter.path) == starter.sha256
    assert starter.megabytes == round(starter.path.stat().st_size / 1e6)
    model = build_sam(starter.architecture, classes=4, image_size=starter.image_size)
    info = load_pretrained(model, STARTER)
    assert (info.source, info.architecture, info.image_size) == (STARTER, starter.architecture, starter.image_size)
    assert info.sha256 == starter.sha256
    assert info.release == starter.release == release_of(starter.sha256)


@pytest.mark.parametrize(("classes", "in_channels", "side"), [(2, 1, 64), (9, 5, 128)])
def test_starter_fits_any_classes_channels_and_size(classes: int, in_channels: int, side: int) -> None:
    torch.manual_seed(0)
    architecture = weights_named(STARTER).architecture
    model = build_sam(architecture, classes=classes, image_size=side, in_channels=in_channels).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_pretrained(model, STARTER)
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert model(torch.full((1, in_channels, side, side), 100.0)).isfinite().all()


@pytest.mark.parametrize("known", known_weights().values(), ids=lambda known: known.name)
def test_every_record_is_complete(known: registry.KnownWeights) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", known.sha256)
    assert known.licence == "Apache-2.0"
    assert all((known.description, known.author, known.file))
    assert ENCODERS[known.architecture].image_size == known.image_size
    assert known.url is None or re.fullmatch(rf"https://[^ ]+/{re.escape(known.file)}", known.url)
    assert known.name not in (registry.RANDOM, *ENCODERS)
    assert (registry.FOLDER / f"{known.name}.toml").is_file()


def test_no_record_lacks_its_file_or_url() -> None:
    packaged = {known.file for known in known_weights().values() if known.url is None}
    assert packaged == {path.name for path in registry.FOLDER.iterdir() if path.suffix != ".toml"}


@pytest.mark.parametrize("page", ["NOTICE", "docs/model-card-starter.md"])
def test_what_the_data_licences_ask_for_is_in_the_record_and_the_pages(page: str) -> None:
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    data = weights_named(STARTER).data
    assert data
    for source in data:
        for said in dataclasses.astuple(source):
            assert said is None or str(said).strip()
        assert source.licence_url.startswith("https://")
        if not source.source.startswith("https://"):  # drawn by our own code
            continue
        for said in (source.name, source.authors, source.reference, source.licence, source.licence_url, source.source):
            assert said in text, said


def test_a_name_means_the_same_whatever_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / STARTER).write_bytes(b"something else")
    assert locate(STARTER) == weights_named(STARTER).path
    assert locate(f"./{STARTER}") == locate(Path(STARTER)) == Path(STARTER)


def test_weights_that_were_not_fetched_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="medsaga weights fetch sam_vit_l_0b3195") as caught:
        locate("sam_vit_l_0b3195")
    place = tmp_path / "medsaga" / "weights" / "sam_vit_l_0b3195.pth"
    assert str(place) in str(caught.value)
    assert detect_architecture("sam_vit_l_0b3195") == "vit_l"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"carried here by hand")
    assert locate("sam_vit_l_0b3195") == place
    with pytest.raises(InputError, match="SHA-256"):
        load_pretrained(build_sam("tiny", classes=2, image_size=64), "sam_vit_l_0b3195")


def test_a_damaged_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(weights_named(STARTER).path.read_bytes())
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    model = build_sam("tiny", classes=2, image_size=64)
    with pytest.raises(InputError, match="Install medsaga again"):
        load_pretrained(model, STARTER)
    content[-1000] ^= 1
    (tmp_path / "starter.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"SHA-256.*Install medsaga again"):
        load_pretrained(model, STARTER)


def test_the_cache_is_a_folder_of_ours_among_the_users_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = cache_folder()
    assert folder.name == "weights"
    assert "medsaga" in folder.parts
    assert folder.is_relative_to(Path.home())


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"one of starter, mobile_sam_vit_t, sam2\.1_.*sam_vit_h_4b8939"):
        weights_named("medsam")
