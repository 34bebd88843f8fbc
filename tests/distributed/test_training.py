"""Several processes make the steps that one process makes, and stay one: whatever happens to one happens to all."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from processes import Trained, Trouble, together, train_alone, train_several, train_together

from medsaga.distributed.group import ALONE, FailedElsewhereError
from medsaga.errors import RunError
from medsaga.planning.estimate import predict_memory
from medsaga.settings.options import Settings
from medsaga.settings.run_config import read_config

pytestmark = pytest.mark.xdist_group("processes")

BATCH = 4


@pytest.fixture
def settings() -> Settings:
    """Four images a step, which two processes and three can share; two changes of subspace."""
    return Settings(
        shots=3,
        image_size=32,
        steps=4,
        batch_size=BATCH,
        evaluate_every=100,
        refresh_every=2,
        rank=8,
        device="cpu",
        random_weights=True,
        model="tiny",
    )


def _of_method(settings: Settings, method: str, **changes: Any) -> Settings:
    # In float32 Adam makes much of the rounding errors in gradients that are next to 0, of which a U-Net has many.
    unet: dict[str, Any] = {"model": None, "random_weights": False, "image_size": 64, "optimizer": "sgd"}
    unet |= {"encoder_lr": 2e-3, "decoder_lr": 2e-3}
    own: dict[str, Any] = unet if method == "unet" else {}
    return dataclasses.replace(settings, method=method, **{**changes, **own})


@pytest.mark.exhaustive  # in float64, where nothing hides in rounding, the next test does it
@pytest.mark.parametrize(
    ("method", "size"),
    [
        ("medsaga", 2),
        ("full", 3),
        ("unet", 2),
    ],
)
def test_the_losses_are_those_of_one_process_and_the_weights_the_same_bits(
    toy: Path, tmp_path: Path, settings: Settings, method: str, size: int
) -> None:
    settings = _of_method(settings, method, steps=12, refresh_every=4, encoder_lr=1e-4, decoder_lr=1e-4)
    # Where it is possible, cut as the processes cut it: that alone changes a U-Net's losses by 1e-5 in 20 steps.
    cut = None if BATCH % size else BATCH // size
    one = train_alone(toy, tmp_path / "one", dataclasses.replace(settings, micro_batch_size=cut))
    all_of = together(size, tmp_path, train_together, toy, tmp_path / "run", settings)
    for each in all_of:
        assert isinstance(each, Trained), each
        assert each.losses == pytest.approx(one.losses, abs=1e-5)
        assert each.weights == all_of[0].weights
    assert len(one.losses) == 12
    assert sum(one.losses[-4:]) < sum(one.losses[:4])


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("medsaga", {}),
        *(
            pytest.param(method, changes, marks=pytest.mark.exhaustive)
            for method, changes in [
                # One exact basis: a later one has singular vectors of any sign, and the moments are kept as they are.
                ("medsaga", {"galore": "reference", "refresh_every": 8}),
                ("medsaga", {"projection": "two_sided", "micro_batch_size": 1}),
                ("samed", {}),
                ("full", {}),
                ("unet", {}),
                # At 64 px the deepest maps have 2 x 2 places: the gradients of four images have a rank of at most 16.
                ("medsaga", {"model": "lite", "image_size": 64, "rank": 64, "steps": 6}),
                # Of this model there are gradients that begin to travel during the backward pass.
                ("full", {"model": "lite", "image_size": 64, "steps": 4}),
            ]
        ),
    ],
)
def test_in_float64_nothing_but_rounding_is_left(
    toy: Path, tmp_path: Path, settings: Settings, method: str, changes: dict[str, Any]
) -> None:
    settings = dataclasses.replace(_of_method(settings, method, steps=8), **changes)
    one = train_alone(toy, tmp_path / "one", settings, double=True)
    all_of = together(2, tmp_path, train_together, toy, tmp_path / "run", settings, None, True)
    for each in all_of:
        assert isinstance(each, Trained), each
        assert each.losses == pytest.approx(one.losses, abs=1e-10)
        assert each.weights == all_of[0].weights


def test_every_method_makes_the_steps_of_one_process(toy: Path, tmp_path: Path, settings: Settings) -> None:
    several = [_of_method(settings, method, steps=2) for method in ("samed", "full", "frozen")]
    alone = train_several(ALONE, toy, tmp_path / "alone", several)
    for each in together(2, tmp_path, train_several, toy, tmp_path / "shared", several):
        assert not isinstance(each, Exception), each
        for one, ours in zip(alone, each, strict=True):
            assert len(ours.losses) == 2
            assert ours.losses == pytest.approx(one.losses, abs=1e-10)


def _with(
    trouble: Trouble, size: int, data: Path, out: Path, settings: Settings, folder: Path
) -> list[Trained | Exception | None]:
    return together(size, folder, train_together, data, out, settings, trouble)


# Two images each. In the first pass bases are made, and the second is the first after which weights move.
@pytest.mark.exhaustive  # that nobody waits for a process whose memory runs out, test_overlap shows, too
@pytest.mark.parametrize(("kind", "call"), [("memory", 2), ("memory", 1), ("bases", 0)])
def test_out_of_memory_in_one_makes_all_smaller_and_the_result_is_that_of_the_smaller_parts(
    toy: Path, tmp_path: Path, settings: Settings, kind: str, call: int
) -> None:
    settings = dataclasses.replace(settings, steps=2)
    small = dataclasses.replace(settings, micro_batch_size=1)
    expected = together(2, tmp_path, train_together, toy, tmp_path / "small", small)
    got = _with(Trouble(1, call, kind), 2, toy, tmp_path / "run", settings, tmp_path)
    for ours, theirs in zip(got, expected, strict=True):
        assert isinstance(ours, Trained), ours
        assert ours.micro_batch_size == 1
        assert isinstance(theirs, Trained), theirs
        assert ours.losses == theirs.losses
        assert ours.weights == theirs.weights
        assert ours.said == ["out of memory in step 1; going on with 1 image(s) at a time: the same result, more time"]


@pytest.mark.exhaustive
def test_memory_that_runs_out_in_one_while_gradients_travel_makes_all_smaller(
    toy: Path, tmp_path: Path, settings: Settings
) -> None:
    settings = dataclasses.replace(settings, model="lite", image_size=64, rank=64, steps=3)
    # The third forward pass is that of step 2, in which the other process has begun to add up when this one fails.
    first, second = _with(Trouble(1, 3, "backward"), 2, toy, tmp_path / "run", settings, tmp_path)
    assert isinstance(first, Trained), first
    assert isinstance(second, Trained), second
    assert first.said == second.said
    assert "out of memory in step 2; going on with 1 image(s)" in first.said[0]
    assert (len(first.losses), first.made) == (3, [True] * 3)
    assert first.weights == second.weights


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "how",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "int8", "state_bits": 8},
        {"state_on_host": True},
        {"galore": "reference"},
    ],
)
def test_weights_and_state_of_fewer_bits_stay_the_same_bits_in_all(
    toy: Path, tmp_path: Path, settings: Settings, how: dict[str, Any]
) -> None:
    settings = dataclasses.replace(settings, **how)
    one = train_alone(toy, tmp_path / "one", settings)
    first, second = together(2, tmp_path, train_together, toy, tmp_path / "run", settings)
    assert isinstance(first, Trained), first
    assert isinstance(second, Trained), second
    assert first.weights == second.weights
    # Gradients of 16 bits are known to one part in 256; the first losses are those of the same weights.
    assert first.losses[0] == pytest.approx(one.losses[0], rel=1e-3)
    assert first.losses == pytest.approx(one.losses, rel=0.05)


@pytest.mark.exhaustive
def test_a_process_takes_the_memory_of_one_that_has_its_share_of_the_batch(
    toy: Path, tmp_path: Path, settings: Settings
) -> None:
    settings = dataclasses.replace(settings, image_size=64)
    one = train_alone(toy, tmp_path / "one", dataclasses.replace(settings, batch_size=2))
    for each in together(2, tmp_path, train_together, toy, tmp_path / "run", settings):
        assert isinstance(each, Trained), each
        assert each.peak_bytes <= 1.03 * one.peak_bytes
        config = read_config(tmp_path / "run" / "config.toml")
        plan = predict_memory(config.settings, classes=3, in_channels=config.in_channels, processes=2)
        assert each.peak_bytes == pytest.approx(plan.peak_bytes, rel=0.02)


@pytest.mark.exhaustive
def test_a_gradient_that_is_not_finite_in_one_is_skipped_by_all(toy: Path, tmp_path: Path, settings: Settings) -> None:
    first, second = _with(Trouble(1, 3, "nan"), 2, toy, tmp_path / "run", settings, tmp_path)
    assert isinstance(first, Trained)
    assert isinstance(second, Trained)
    assert first.made == second.made == [True, False, True, True]
    assert first.weights == second.weights


def test_a_signal_to_one_ends_all_after_the_step_and_any_number_goes_on_from_there(
    toy: Path, tmp_path: Path, settings: Settings
) -> None:
    one = train_alone(toy, tmp_path / "one", settings)
    run = tmp_path / "run"
    stopped = _with(Trouble(1, 3, "signal"), 2, toy, run, settings, tmp_path)
    for each in stopped:
        assert isinstance(each, Trained), each
        assert each.reason == "cancelled"
        assert each.losses == pytest.approx(one.losses[:2], abs=1e-5)
    resumed = together(3, tmp_path, train_together, toy, run, settings, None, False, True)
    for each in resumed:
        assert isinstance(each, Trained), each
        assert each.losses == pytest.approx(one.losses[2:], abs=1e-4)
        assert each.weights == resumed[0].weights


@pytest.mark.exhaustive
def test_all_stop_early_at_the_step_at_which_one_process_does(toy: Path, tmp_path: Path, settings: Settings) -> None:
    # A rate of next to nothing: the Dice of the validation case does not rise after the first look at it.
    early: dict[str, Any] = {"validation_cases": 1, "patience": 2, "steps": 60, "evaluate_every": 3}
    settings = dataclasses.replace(settings, encoder_lr=1e-12, decoder_lr=1e-12, **early)
    one = train_alone(toy, tmp_path / "one", settings)
    assert one.reason == "patience"
    assert len(one.losses) < 60
    for each in together(2, tmp_path, train_together, toy, tmp_path / "run", settings):
        assert isinstance(each, Trained), each
        assert (each.reason, len(each.losses)) == (one.reason, len(one.losses))


def test_when_one_dies_the_others_end(toy: Path, tmp_path: Path, settings: Settings) -> None:
    first, second, third = _with(Trouble(1, 3, "kill"), 3, toy, tmp_path / "run", settings, tmp_path)
    assert second is None
    for each in (first, third):
        assert isinstance(each, FailedElsewhereError)
        assert each.exit_code == 1


@pytest.mark.exhaustive
def test_weights_that_differ_are_an_error_that_names_the_first(toy: Path, tmp_path: Path, settings: Settings) -> None:
    first, second = _with(Trouble(1, 3, "drift"), 2, toy, tmp_path / "run", settings, tmp_path)
    assert isinstance(first, RunError)
    assert isinstance(second, FailedElsewhereError)
    assert "of process 1 is not that of process 0" in str(first)
