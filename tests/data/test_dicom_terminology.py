from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from medsaga.data.dicom import terminology


def test_the_codes_are_those_of_the_standard() -> None:
    known = {(code.value, code.scheme_designator): code for code in map(codes.SCT.__getattr__, codes.SCT.dir())}
    entries = [*terminology._KNOWN.values(), terminology.Terminology()]
    for code in {code for each in entries for code in (each.type, each.category)} | set(terminology._SIDES.values()):
        assert (code.value, code.scheme) in known, code
    for each in entries:
        assert each.type.meaning in {
            code.meaning for code in map(codes.SCT.__getattr__, codes.SCT.dir()) if code.value == each.type.value
        }


@pytest.mark.parametrize(
    ("name", "meaning", "side"),
    [
        ("liver", "Liver", None),
        ("Left Kidney", "Kidney", "Left"),
        ("kidney_right", "Kidney", "Right"),
        ("lung-left", "Lung", "Left"),
        ("Oesophagus", "Esophagus", None),
        ("tumour", "Neoplasm", None),
        ("inferior_vena_cava", "Inferior vena cava", None),
        ("left right kidney", "Tissue", None),
        ("widget", "Tissue", None),
        ("", "Tissue", None),
    ],
)
def test_names_are_understood(name: str, meaning: str, side: str | None) -> None:
    found = terminology.terminology_of(name)
    assert found.type.meaning == meaning
    assert (found.side.meaning if found.side else None) == side
