"""What sites agree on before the first round."""

from __future__ import annotations

import dataclasses

from medsaga.data.intensity import Intensity
from medsaga.federated.agreement import agreed_config, agreed_symmetries
from medsaga.planning.defaults import planned_defaults
from medsaga.planning.resolve import Facts, resolve
from medsaga.settings.options import Settings
from medsaga.settings.run_config import RunConfig


def test_all_see_what_the_finest_structures_of_a_site_ask_for() -> None:
    settings = resolve(Settings(), Facts(device=planned_defaults("cpu"), classes=2, channels=1))
    config = RunConfig("", {"background": 0, "bar": 1}, ("grey",), (Intensity("identity", 0, 255),), settings)
    finer = dataclasses.replace(config, settings=dataclasses.replace(settings, image_size=320))
    assert settings.image_size == 192
    for configs in ({"north": config, "south": finer}, {"north": finer, "south": config}):
        assert agreed_config(configs) == finer


def test_sites_mirror_what_all_of_them_may_and_nobody_has_agreed_to_anything() -> None:
    assert agreed_symmetries([("left-right", "up-down"), ("up-down", "transposed")]) == ("up-down",)
    assert agreed_symmetries([]) == ()
