"""The planner keeps what matters most, never touches what the user has fixed, and stays within the budget."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from real_steps import measure
from resolved import resolved

from medsaga.errors import InputError
from medsaga.models.encoders import useful_image_sizes
from medsaga.planning.budget import USABLE, plan
from medsaga.planning.defaults import DeviceDefaults
from medsaga.planning.estimate import predict_memory
from medsaga.planning.resolve import Completion, Facts, choose_model, resolve, useful_sizes
from medsaga.settings.options import ResolvedSettings, Settings

MB = 10**6


def peak(settings: ResolvedSettings) -> int:
    """Bytes that grow with what a run's memory grows with: the planner is given its predictor."""
    width = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}[settings.precision]
    state = 10**5 * (settings.rank or 256) * settings.state_bits // 8
    image = 100 * settings.image_size**2 * width * (1 if settings.checkpointing == "blocks" else 10)
    return 10**7 * width + state + image * settings.micro_batch_size


def predicted(settings: ResolvedSettings) -> int:
    """The bytes of a run with three classes of colour images."""
    prediction = predict_memory(settings, classes=3, in_channels=3)
    return max(prediction.peak_bytes, prediction.inference_bytes)


def choose(
    budget: int | str,
    *,
    suits: Any = "fp32",
    sizes: tuple[int, ...] = (128, 256),
    peak: Callable[[ResolvedSettings], int] = peak,
    processes: int = 1,
    **given: Any,
) -> ResolvedSettings:
    """The settings that a budget leads to, in bytes or as text, on a device that a precision suits."""
    amount = f"{budget}B" if isinstance(budget, int) else budget
    asked = Settings(**{"model": "tiny", "budget": amount, "augmentation": "none", **given})
    choice = choose_model(asked)
    complete = Completion(choice, choice.settings, DeviceDefaults(suits, 32))
    chosen = plan(
        choice.settings,
        complete,
        choice.method,
        peak=peak,
        sizes=sizes,
        precision=suits,
        int8=choice.int8,
        processes=processes,
    )
    if isinstance(budget, int):
        assert peak(chosen) <= USABLE * budget
    return chosen


def just_enough_for(settings: ResolvedSettings, **changes: Any) -> int:
    """The smallest budget in bytes in which a variant of some settings fits."""
    return math.ceil(peak(dataclasses.replace(settings, **changes)) / USABLE)


@pytest.fixture(scope="module")
def best() -> ResolvedSettings:
    """What an ample budget leads to, in the slowest way."""
    ample = choose("100GB")
    assert (ample.image_size, ample.rank, ample.precision, ample.state_bits) == (256, 64, "fp32", 32)
    assert (ample.checkpointing, ample.micro_batch_size) == ("none", ample.batch_size)
    return dataclasses.replace(ample, checkpointing="blocks", micro_batch_size=1)


def test_time_is_given_up_before_anything_else(best: ResolvedSettings) -> None:
    whole = just_enough_for(best, checkpointing="none", micro_batch_size=4)
    blocks = just_enough_for(best, micro_batch_size=4)
    two, one = just_enough_for(best, micro_batch_size=2), just_enough_for(best)
    assert one < two < blocks < whole
    expected = [(whole, "none", 4), (whole - 1, "blocks", 4), (blocks, "blocks", 4), (blocks - 1, "blocks", 2)]
    for budget, checkpointing, micro_batch_size in [*expected, (two, "blocks", 2), (one, "blocks", 1)]:
        chosen = choose(budget)
        assert (chosen.checkpointing, chosen.micro_batch_size) == (checkpointing, micro_batch_size)
        assert (chosen.image_size, chosen.rank, chosen.precision, chosen.state_bits) == (256, 64, "fp32", 32)


@pytest.mark.parametrize(("batch_size", "processes", "most"), [(4, 2, 2), (12, 5, 3), (10, 4, 5), (7, 3, 7), (2, 2, 1)])
def test_processes_take_their_share_of_a_batch_at_once(batch_size: int, processes: int, most: int) -> None:
    chosen = choose("100GB", batch_size=batch_size, processes=processes)
    assert (chosen.batch_size, chosen.micro_batch_size, chosen.checkpointing) == (batch_size, most, "none")


def test_a_budget_is_for_each_process_with_its_share_of_the_batch() -> None:
    asked = Settings(model="tiny", image_size=64, batch_size=4, rank=4, state_bits=32, precision="fp32")
    asked = dataclasses.replace(asked, augmentation="none")
    whole, half = (predicted(resolved(asked, micro_batch_size=images, batch_size=images)) for images in (4, 2))
    budget = int((whole - 1) / USABLE)
    facts = Facts(device=DeviceDefaults("fp32", 32), classes=3, channels=3, processes=2)
    chosen = resolve(dataclasses.replace(asked, budget=f"{budget}B"), facts)
    assert (chosen.batch_size, chosen.micro_batch_size, chosen.checkpointing) == (4, 2, "none")
    taken = predict_memory(chosen, classes=3, in_channels=3, processes=2)
    assert max(taken.peak_bytes, taken.inference_bytes) == half <= USABLE * budget < whole


def test_precision_goes_first_then_rank_then_image_size(best: ResolvedSettings) -> None:
    precisions = [("fp32", 32), ("bf16", 32), ("bf16", 8), ("int8", 8)]
    budget = just_enough_for(best)
    for precision, bits in precisions[1:]:
        chosen = choose(budget - 1)
        assert (chosen.image_size, chosen.rank, chosen.precision, chosen.state_bits) == (256, 64, precision, bits)
        budget = just_enough_for(best, precision=precision, state_bits=bits)
    for rank in (16, 4):
        chosen = choose(budget - 1)
        assert (chosen.image_size, chosen.rank) == (256, rank)
        # At a lower rank there is room for a better precision again, and the one above it does not fit.
        place = precisions.index((chosen.precision, chosen.state_bits))
        better = dict(zip(("precision", "state_bits"), precisions[place - 1], strict=True))
        assert place > 0
        assert just_enough_for(best, rank=rank, **better) > budget - 1
        budget = just_enough_for(best, rank=rank, precision="int8", state_bits=8)
    assert choose(budget - 1).image_size == 128


@pytest.mark.parametrize(
    "fixed",
    [
        {"image_size": 192},
        {"rank": 32},
        {"rank": 8, "image_size": 256},
        {"precision": "fp32", "state_bits": 32},
        {"precision": "fp16"},
        {"state_bits": 32},
        {"micro_batch_size": 4},
        {"checkpointing": "none"},
        {"checkpointing": "blocks"},
        {"batch_size": 6, "micro_batch_size": 3, "state_on_host": True},
    ],
    ids=str,
)
def test_what_the_user_has_fixed_is_not_changed(fixed: dict[str, Any]) -> None:
    if fixed == {"checkpointing": "none"} or "fp32" in fixed.values():
        with pytest.raises(InputError) as refused:
            choose(20 * MB, **fixed)
        assert all(f"--{name.replace('_', '-')} {value}" in str(refused.value) for name, value in fixed.items())
    chosen = choose(200 * MB, **fixed)
    assert {name: getattr(chosen, name) for name in fixed} == fixed


def test_a_published_recipe_stays_what_it_is() -> None:
    ample = choose("100GB", recipe="medsaga-paper", model="tiny")
    assert (ample.image_size, ample.rank, ample.precision, ample.state_bits) == (240, 4, "fp32", 32)
    tight = choose(130 * MB, recipe="medsaga-paper", model="tiny")
    assert tight == dataclasses.replace(
        ample, micro_batch_size=tight.micro_batch_size, checkpointing="blocks", budget=tight.budget
    )
    assert tight.micro_batch_size < 12
    assert choose("100GB", recipe="medsaga-paper", model="tiny", rank=8).rank == 8


@pytest.mark.parametrize("given", [{}, {"image_size": 256, "rank": 64}, {"method": "full"}], ids=str)
def test_the_smallest_budget_that_is_named_would_do_and_no_less(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least") as refused:
        choose("1KB", **given)
    named = re.search(r"at least (\d+)MB", str(refused.value))
    assert named is not None
    least = int(named[1])
    assert choose(least * MB, **given).model == "tiny"
    with pytest.raises(InputError, match=f"at least {least}MB for tiny; found {least - 1}MB"):
        choose(f"{least - 1}MB", **given)


@pytest.mark.exhaustive  # that a whole run stays within its budget, test_cli_memory shows
@pytest.mark.parametrize("budget", [60, 100, 400])
def test_a_real_step_stays_within_the_budget(budget: int) -> None:
    chosen = choose(budget * MB, peak=predicted)
    assert measure(chosen, classes=3, in_channels=3).peak_bytes <= budget * MB


@pytest.mark.parametrize(
    ("model", "precision", "leanest"),
    [("tiny", "fp16", "fp16"), ("tiny", "bf16", "int8"), ("tiny", "fp32", "int8"), ("lite", "fp32", "bf16")],
)
def test_what_the_device_or_the_model_cannot_do_is_not_chosen(model: str, precision: str, leanest: str) -> None:
    sizes = (128,)
    assert choose("100GB", suits=precision, sizes=sizes, model=model).precision == precision
    with pytest.raises(InputError, match=f"--precision {leanest} --state-bits 8 --rank 4") as refused:
        choose("1B", suits=precision, sizes=sizes, model=model)
    assert "--image-size 128" in str(refused.value)


@pytest.mark.parametrize("given", [{}, {"budget": "1GB"}], ids=str)
def test_int8_is_refused_where_there_is_no_linear_layer(given: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"--precision: expected fp32, bf16 or fp16 for lite, whose encoder has no lin"
    ):
        resolved(Settings(model="lite", precision="int8", **given))
    # Which model `auto` is, nobody knows before the device.
    assert choose_model(Settings(model="auto", precision="int8")).model == "lite"
    assert resolved(Settings(model="vit_b", precision="int8")).precision == "int8"


def test_useful_sizes_waste_nothing_of_a_window_and_do_not_enlarge_for_nothing() -> None:
    published = useful_image_sizes("vit_b")
    assert published == useful_image_sizes("vit_h") == [224, 448, 672, 896, 1024]
    assert useful_image_sizes("tiny") == [32, 64, 96, 128]
    assert useful_image_sizes("lite") == [96, 128, 160, 192]
    assert useful_sizes(published, None) == useful_sizes(published, 5000) == published
    assert useful_sizes(published, 512) == [224, 448, 672]
    assert useful_sizes(published, 448) == [224, 448]
    assert useful_sizes(published, 48) == [224]


@pytest.mark.parametrize(("budget", "at_most"), [("100GB", 2), ("100MB", 8), ("50MB", 9), ("1KB", 5)])
def test_few_predictions_lead_to_the_choice(budget: str, at_most: int) -> None:
    asked: set[ResolvedSettings] = set()

    def noting(settings: ResolvedSettings) -> int:
        asked.add(settings)
        return peak(settings)

    try:
        choose(budget, peak=noting)
    except InputError:
        assert budget == "1KB"
    assert len(asked) <= at_most
    assert torch.get_default_device() == torch.device("cpu")
