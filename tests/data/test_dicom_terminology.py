from __future__ import annotations

import pytest
from pydicom.sr.codedict import codes

from medsaga.data.dicom import terminology


def test_the_codes_are_those_of_the_standard() -> None:
    known = {(code.value, code.scheme_designator) for code in map(codes.SCT.__getattr__, codes.SCT.dir())}
    written = {terminology.TISSUE, terminology.ANATOMY, terminology.MORPHOLOGY, *terminology._SIDES.values()}
    assert {(code.value, code.scheme) for code in written} <= known


@pytest.mark.parametrize("structure", sorted(terminology._SYNONYMS))
def test_a_synonym_leads_to_a_word_of_the_standard(structure: str) -> None:
    assert terminology.terminology_of(structure) != terminology.Terminology()


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
        ("vertebra", "Vertebra", None),
        ("portal vein", "Portal vein", None),
        ("aorta", "Aorta", None),
        ("bone", "Bone", None),
        ("dir", "Tissue", None),
        ("__class__", "Tissue", None),
        ("left right kidney", "Tissue", None),
        ("widget", "Tissue", None),
        ("", "Tissue", None),
    ],
)
def test_names_are_understood(name: str, meaning: str, side: str | None) -> None:
    found = terminology.terminology_of(name)
    assert found.type.meaning == meaning
    assert (found.side.meaning if found.side else None) == side
