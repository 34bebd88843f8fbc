"""What structures are called in SNOMED CT, so that programs understand a segmentation and not only people.

Codes and meanings are those of the DICOM standard, part 16, as pydicom has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medsaga.data.names import normal
from medsaga.errors import InputError
from medsaga.files import read_json


class Code(NamedTuple):
    """A coded concept: value, coding scheme (``SCT`` is SNOMED CT, ``DCM`` is DICOM's own) and meaning."""

    value: str
    scheme: str
    meaning: str


TISSUE = Code("85756007", "SCT", "Tissue")
ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
MORPHOLOGY = Code("49755003", "SCT", "Morphologically Abnormal Structure")
_TYPES = {"cid7192": ANATOMY, "cid7194": MORPHOLOGY, "cid8134": ANATOMY}
"""The context groups of part 16 that hold the types of a category; the first that has a word counts."""
_SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}


@dataclass(frozen=True)
class Terminology:
    """What a segment is: its category, its type within it, and which of two it is.

    Without arguments it is unspecified tissue.
    """

    category: Code = TISSUE
    type: Code = TISSUE
    side: Code | None = None


_SYNONYMS = {
    "adrenal": "adrenal gland",
    "gall bladder": "gallbladder",
    "ivc": "inferior vena cava",
    "kidneys": "kidney",
    "lungs": "lung",
    "oedema": "edema",
    "oesophagus": "esophagus",
    "postcava": "inferior vena cava",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "urinary bladder": "bladder",
}


def read_codes(path: Path) -> dict[str, Terminology]:
    """Return the codes of a JSON file: label name to ``type`` and, if wanted, ``category`` and ``side``.

    Each is a code of three texts, value, scheme and meaning: ``{"liver": {"type": ["10200004", "SCT", "Liver"]}}``.

    Raises:
        InputError: the file is missing or says something else.
    """
    document = read_json(path)
    codes = {}
    for name, entry in document.items() if isinstance(document, dict) else ((str(path), None),):
        parts = {key: _code(value) for key, value in entry.items()} if isinstance(entry, dict) else {}
        if not parts.get("type") or None in parts.values() or not set(parts) <= {"category", "type", "side"}:
            raise InputError(
                path,
                expected='{"liver": {"type": ["10200004", "SCT", "Liver"]}}, with "category" and "side" if wanted',
                found=f"something else for {name!r}",
                do="Give value, coding scheme and meaning of each code as three texts.",
            )
        codes[normal(name)] = Terminology(parts.get("category") or ANATOMY, parts["type"] or TISSUE, parts.get("side"))
    return codes


def _code(value: object) -> Code | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(text, str) and text for text in value):
        return Code(*value)
    return None


def terminology_of(name: str) -> Terminology:
    """Return what a label name means, unspecified tissue where the standard has no such word.

    Case and punctuation do not matter, and ``left`` or ``right`` may stand anywhere: ``kidney_left``.
    """
    from pydicom.sr.codedict import codes

    words = re.findall(r"[^\W_]+", name.casefold())
    sides = [word for word in words if word in _SIDES]
    structure = " ".join(word for word in words if word not in _SIDES)
    keyword = _SYNONYMS.get(structure, structure).title().replace(" ", "")
    if len(sides) > 1 or not keyword.isidentifier():
        return Terminology()
    for group, category in _TYPES.items():
        code = getattr(getattr(codes, group), keyword, None)
        if code is not None:
            found = Code(code.value, code.scheme_designator, code.meaning)
            return Terminology(category, found, _SIDES[sides[0]] if sides else None)
    return Terminology()
