"""What structures are called in SNOMED CT, so that programs understand a segmentation and not only people.

Codes and meanings are those of the DICOM standard, part 16.
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
_SIDES = {"left": Code("7771000", "SCT", "Left"), "right": Code("24028007", "SCT", "Right")}


@dataclass(frozen=True)
class Terminology:
    """What a segment is: its category, its type within it, and which of two it is.

    Without arguments it is unspecified tissue.
    """

    category: Code = TISSUE
    type: Code = TISSUE
    side: Code | None = None


def _anatomy(value: str, meaning: str) -> Terminology:
    return Terminology(ANATOMY, Code(value, "SCT", meaning))


def _morphology(value: str, meaning: str) -> Terminology:
    return Terminology(MORPHOLOGY, Code(value, "SCT", meaning))


_KNOWN = {
    "adrenal gland": _anatomy("23451007", "Adrenal gland"),
    "aorta": _anatomy("15825003", "Aorta"),
    "bladder": _anatomy("89837001", "Bladder"),
    "bone": _anatomy("272673000", "Bone"),
    "brain": _anatomy("12738006", "Brain"),
    "colon": _anatomy("71854001", "Colon"),
    "duodenum": _anatomy("38848004", "Duodenum"),
    "esophagus": _anatomy("32849002", "Esophagus"),
    "gallbladder": _anatomy("28231008", "Gallbladder"),
    "heart": _anatomy("80891009", "Heart"),
    "inferior vena cava": _anatomy("64131007", "Inferior vena cava"),
    "kidney": _anatomy("64033007", "Kidney"),
    "liver": _anatomy("10200004", "Liver"),
    "lung": _anatomy("39607008", "Lung"),
    "pancreas": _anatomy("15776009", "Pancreas"),
    "portal vein": _anatomy("32764006", "Portal vein"),
    "prostate": _anatomy("41216001", "Prostate"),
    "spinal cord": _anatomy("2748008", "Spinal cord"),
    "spleen": _anatomy("78961009", "Spleen"),
    "stomach": _anatomy("69695003", "Stomach"),
    "trachea": _anatomy("44567001", "Trachea"),
    "uterus": _anatomy("35039007", "Uterus"),
    "cyst": _morphology("367643001", "Cyst"),
    "edema": _morphology("79654002", "Edema"),
    "lesion": _morphology("52988006", "Lesion"),
    "necrosis": _morphology("6574001", "Necrosis"),
    "neoplasm": _morphology("108369006", "Neoplasm"),
}
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
    """Return what a label name means, unspecified tissue where it is not known.

    Case and punctuation do not matter, and ``left`` or ``right`` may stand anywhere: ``kidney_left``.
    """
    words = re.findall(r"[^\W_]+", name.casefold())
    sides = [word for word in words if word in _SIDES]
    structure = " ".join(word for word in words if word not in _SIDES)
    known = _KNOWN.get(_SYNONYMS.get(structure, structure))
    if known is None or len(sides) > 1:
        return Terminology()
    return Terminology(known.category, known.type, _SIDES[sides[0]] if sides else None)
