"""`--model auto`: the first weights at hand that fit the memory, and the starter where there is no accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsaga.errors import InputError
from medsaga.models.weights.registry import STARTER, cache_folder, known_weights
from medsaga.planning.at_hand import BEST_FIRST, advice, candidates
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Facts, choose_model, resolve
from medsaga.settings.options import ResolvedSettings, Settings

MIB = 2**20
VIT_B, TINY, MOBILE = "sam_vit_b_01ec64", "sam2.1_hiera_tiny_092824", "mobile_sam_vit_t"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def put(*names: str) -> None:
    """Act as if weights had been fetched: nothing reads a file before the run loads it."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    for name in names:
        known_weights()[name].path.touch()


def chosen(memory: int | None, **given: object) -> ResolvedSettings:
    asked = Settings(**{"model": "auto", "image_size": 256, "batch_size": 1, **given})  # type: ignore[arg-type]
    return resolve(asked, Facts(device=DeviceDefaults("bf16", 8), classes=3, channels=3, memory=memory))


def test_the_starter_is_all_there_is_on_a_new_machine_and_a_run_says_what_is_missing() -> None:
    assert candidates(accelerator=True) == [STARTER]
    assert "medsaga weights fetch sam2.1_hiera_large_092824" in str(advice(STARTER))
    put(*(known.name for known in known_weights().values() if known.url))
    assert advice(STARTER) is None
    assert advice(VIT_B) is None


def test_the_order_is_that_of_preference_and_every_published_file_has_a_place() -> None:
    put(MOBILE, VIT_B, TINY)
    assert candidates(accelerator=True) == [VIT_B, TINY, MOBILE, STARTER]
    assert {known.architecture for known in known_weights().values() if known.url} == set(BEST_FIRST)


def test_a_cpu_takes_the_starter() -> None:
    put(VIT_B)
    assert chosen(None).weights == STARTER


@pytest.mark.exhaustive
def test_the_first_that_fits_the_memory_is_taken() -> None:
    put(VIT_B, MOBILE)
    ample = chosen(8192 * MIB)
    assert (ample.weights, ample.model) == (VIT_B, "vit_b")
    tight = chosen(150 * MIB)
    assert tight.weights == MOBILE
    assert predict_memory(tight, classes=3, in_channels=3).peak_bytes <= 150 * MIB
    # A budget counts instead of what the device has.
    assert chosen(8192 * MIB, budget="150MB").weights == MOBILE


def test_random_weights_are_of_an_architecture_that_somebody_names() -> None:
    with pytest.raises(InputError, match="--random-weights"):
        choose_model(Settings(model="auto", random_weights=True))


def test_a_method_without_sam_has_no_weights_to_choose_from() -> None:
    with pytest.raises(InputError, match="--model: expected unet for unet"):
        chosen(None, method="unet")
