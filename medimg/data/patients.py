"""Identifiers of patients, normalized so that spellings of one patient are equal."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "FILE_PLACEHOLDER",
    "UNKNOWN",
    "check_exact",
    "is_placeholder",
    "normalize_number",
    "normalize_patient",
    "patient_key",
    "patient_of_site",
]

#: Before the UID or file of an image whose patient is not known.
UNKNOWN: Final = "unknown: "

#: With a decimal comma as exports of some countries have it; "1,00" could be a part of a thousand.
_WHOLE: Final = re.compile(r"([+-]?\d+)(?:\.0*|,0)?")
#: A long number as spreadsheets abbreviate it.
_ABBREVIATED: Final = re.compile(r"[+-]?\d([.,]\d+)?e\+\d+", re.IGNORECASE)
#: Characters that text has after copying: soft hyphen, blanks of no width, marks of direction and byte order.
_INVISIBLE: Final = dict.fromkeys((0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF))
#: Hyphens and dashes, which word processors put for one another.
_DASHES: Final = dict.fromkeys((*range(0x2010, 0x2016), 0x207B, 0x208B, 0x2212, 0xFE31, 0xFE32, 0xFE58), "-")
#: From here on float64 does not have every whole number.
_EXACT: Final = 2**53

#: Placeholders of anonymizers and of tables, without punctuation.
_NOBODY: Final = re.compile(
    r"(patient|subject)?(anon(ym(ous|e|i[sz](ed|iert))?)?|de?ident(ified)?|pseudonymi[sz]ed|unknown"
    r"|undefined|unnamed|unbekannt|inconnue?|desconocid[oa]|sconosciut[oa]|none|null|nil|nan?|nat|nn"
    r"|notavailable|notapplicable|notknown|no(?=patient|subject|name|id)|test|missing|empty|removed|deleted|redacted|masked|hidden|xx+)?"
    r"(patient|subject|name)?(id|name|male|female)?",
    re.IGNORECASE,
)
#: In files also one letter or zeros, which are identifiers in tables.
FILE_PLACEHOLDER: Final = re.compile(rf"{_NOBODY.pattern}|x|0+", re.IGNORECASE)


def normalize_patient(value: object) -> str:
    """
    Return an identifier such that all spellings of one patient are equal; "" if it is a placeholder.

    Whole numbers are compared as numbers, other texts without regard to blanks at the ends, repeated blanks,
    invisible characters and Unicode's compatible forms; :func:`patient_key` also ignores case and the width
    of dashes.

    >>> [normalize_patient(value) for value in (3, 3.0, "003", " 3 ", "3,0", "P  7", "P 7 ", "N/A")]
    ['3', '3', '3', '3', '3', 'P 7', 'P 7', '']
    """
    text = normalize_number(value)
    match = _WHOLE.fullmatch(text)
    if match:
        return str(int(match[1]))
    return "" if is_placeholder(text) else text


def patient_key(value: object) -> str:
    """
    Return what all spellings of a patient have in common, by which datasets are compared.

    >>> patient_key("P-7 ") == patient_key("p\u20137"), patient_key("007")
    (True, '7')
    """
    text = str(value)
    return text if text.startswith(UNKNOWN) else normalize_patient(text.translate(_DASHES)).casefold()


def patient_of_site(patient: str, site: str) -> str:
    """
    Return the identifier of a site's patient, different from those of other sites; "" if it is unknown.

    >>> patient_of_site("003", "Lyon"), patient_key(patient_of_site("3", " lyon")), patient_of_site("NA", "b")
    ('3 of site Lyon', '3 of site lyon', '')
    """
    known = normalize_patient(patient)
    return f"{known} of site {normalize_number(site)}" if known else ""


def check_exact(values: Iterable[object]) -> None:
    """Raise DatasetError if a column of patients has lost digits, as different patients may look the same."""
    for value in values:
        rounded = isinstance(value, float | np.floating) and math.inf > abs(float(value)) >= _EXACT
        if rounded or _ABBREVIATED.fullmatch(str(value).strip()):
            raise DatasetError(
                "a patient in the table is a rounded number, such as 1.23E+17, by which patients can't be "
                "distinguished: export the column as text, and read it with dtype=str or pass the file itself"
            )


def normalize_number(value: object) -> str:
    """
    Return the text of a cell, a whole number without decimals, without blanks at the ends or repeated ones.

    >>> [normalize_number(value) for value in (1.0, "1.0", "01", 1.5, True, "a  b ", "-0.0")]
    ['1', '1', '01', '1.5', 'True', 'a b', '0']
    """
    if isinstance(value, float | np.floating) and np.isfinite(value) and value == int(value):
        return str(int(value))
    plain = unicodedata.normalize("NFKC", str(value).translate(_INVISIBLE))
    text = " ".join(plain.replace("\0", " ").split())
    match = _WHOLE.fullmatch(text)
    if match is None:
        return text
    return match[1].lstrip("+-") if int(match[1]) == 0 else match[1]


def is_placeholder(text: str, pattern: re.Pattern[str] = _NOBODY) -> bool:
    """
    Whether a text, such as "ANONYMOUS" or "N/A", identifies nobody.

    >>> [is_placeholder(text) for text in ("Anonymized", "<NA>", "", "anon-7", "0")]
    [True, True, True, False, False]
    """
    return pattern.fullmatch(re.sub(r"[\W_]", "", text)) is not None
