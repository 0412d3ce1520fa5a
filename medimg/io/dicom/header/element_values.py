"""
Values of one element as texts or numbers, whichever value representation (VR) it states.

Absent and blank values are one state, an empty result; what is present but can't be understood is another,
:class:`InvalidValueError`. A VR other than that of the dictionary (PS3.6) is accepted if the value is sound
in it: text is text under any VR, and numbers are numbers.
"""

from __future__ import annotations

import math
import re
import struct
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import IS, DSdecimal, DSfloat, PersonName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

__all__ = [
    "InvalidValueError",
    "collect_findings",
    "find_tag",
    "intern_tag",
    "is_blank",
    "is_padding",
    "note_finding",
    "parse_decimal",
    "parse_whole",
    "read_numbers",
    "read_texts",
    "read_values",
]

Values: TypeAlias = "list[str | float]"

#: A decimal string (PS3.5 6.2): Python's own grammar also takes "1_0", "nan", and digits of other scripts.
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DIGITS: Final = re.compile(r"[+-]?[0-9]+")
_MAX_DIGITS: Final = 1024
_TEXT_VRS: Final = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
#: Letter of struct for each VR of numbers.
_LETTERS: Final = {
    "FD": "d",
    "FL": "f",
    "SL": "i",
    "SS": "h",
    "SV": "q",
    "UL": "I",
    "US": "H",
    "UV": "Q",
}
_NUMBER_VRS: Final = frozenset(_LETTERS)
_BYTE_VRS: Final = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
_BINARY_VRS: Final = _NUMBER_VRS | _BYTE_VRS
_PLAIN_TEXT_VRS: Final = _TEXT_VRS - {"DS", "IS"}
_UNPRINTABLE: Final = re.compile(rb"[\x00-\x1f\x7f]")
_PADDING: Final = " \0"


class InvalidValueError(Exception):
    """Raised for a value that is present but can't be understood; never leaves its callers."""


_FINDINGS: Final[ContextVar[dict[str, None] | None]] = ContextVar("findings", default=None)


@contextmanager
def collect_findings() -> Iterator[dict[str, None]]:
    """Collect what :func:`note_finding` notes in this thread, each text once."""
    found: dict[str, None] = {}
    token = _FINDINGS.set(found)
    try:
        yield found
    finally:
        _FINDINGS.reset(token)


def note_finding(text: str) -> None:
    """Note an attribute that is present but is not used, for the report of the image being read."""
    found = _FINDINGS.get()
    if found is not None:
        found[text] = None


#: Returns one object for a tag, as pydicom's tags that are not identical are compared slowly.
intern_tag: Final = lru_cache(2**14)(BaseTag)


@cache
def find_tag(keyword: str | int) -> BaseTag:
    """Return the tag of a keyword or number; cached, as pydicom's lookup is slow."""
    return intern_tag(int(Tag(keyword)))


@cache
def _find_vr(tag: BaseTag) -> str:
    """Return the VR of the dictionary; "" for unknown tags."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


def parse_decimal(text: str) -> float | None:
    """Return the finite number that a decimal string (DS) writes; None for any other text."""
    text = text.strip(_PADDING)
    if len(text) > _MAX_DIGITS or _DECIMAL.fullmatch(text) is None:
        return None
    found = float(text)
    return found if math.isfinite(found) else None


def parse_whole(text: str) -> int | None:
    """Return the whole number that a decimal string (DS) writes, with all digits; None for any other text."""
    number = parse_decimal(text)
    if number is None or not number.is_integer():
        return None
    # a float would round numbers of more than 15 digits
    return int(text.strip(_PADDING)) if _DIGITS.fullmatch(text.strip(_PADDING)) else int(number)


def read_numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return all values as finite numbers, () if absent or blank; raise InvalidValueError otherwise."""
    numbers = []
    for value in read_values(dataset, keyword):
        number = parse_decimal(value) if isinstance(value, str) else value
        if number is None or not math.isfinite(number):
            raise InvalidValueError
        numbers.append(number)
    return tuple(numbers)


def read_texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return all values as text, [] if absent or blank; raise InvalidValueError otherwise."""
    found = read_values(dataset, keyword)
    return [value if isinstance(value, str) else f"{value:.17g}" for value in found]


def read_values(dataset: Dataset, keyword: str | int) -> Values:
    """Return the values of an attribute, texts without padding; [] if it is absent or blank."""
    tag = find_tag(keyword)
    # an element is parsed when it is first used, and a damaged one can raise anything
    try:
        element: Any = dataset.get_item(tag)
        if element is None or element.value is None:
            return []
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            found = _read_raw(dataset, element)
        else:
            found = _convert_value(element.value)
    except InvalidValueError:
        raise
    except Exception:
        raise InvalidValueError from None
    return found if found.count("") < len(found) else []


def is_blank(element: DataElement | RawDataElement) -> bool:
    """Whether the value of an element that holds text is padding alone."""
    if (element.VR or _find_vr(element.tag)) not in _TEXT_VRS:
        return False
    value: Any = element.value
    return is_padding(value)


def is_padding(value: object) -> bool:
    """Whether a value is text of padding and separators alone."""
    if isinstance(value, bytes):
        return not value.strip(b" \0\\")
    return isinstance(value, str) and not value.strip(" \0\\")


def _read_raw(dataset: Dataset, element: RawDataElement) -> Values:
    """Return the values of an element that pydicom has not converted yet."""
    expected = _find_vr(element.tag)
    data: bytes = element.value or b""
    stated = element.VR or expected
    if stated == "UN":
        stated = expected or stated
    if is_padding(data) and (stated in _TEXT_VRS or expected in _TEXT_VRS):
        return []
    is_text = stated in _TEXT_VRS or (stated in _BINARY_VRS and expected in _TEXT_VRS)
    if is_text and data.isascii() and b"\x1b" not in data:
        text = data.decode("ascii").strip(_PADDING)
        if stated in _TEXT_VRS or _is_sound(text, expected):
            return [part.strip(_PADDING) for part in text.split("\\")]
    if stated in _BYTE_VRS and expected in _NUMBER_VRS:
        return _convert_value(convert_raw_data_element(element._replace(VR=expected)).value)
    if stated in _NUMBER_VRS and expected in _PLAIN_TEXT_VRS:
        raise InvalidValueError
    if stated in _NUMBER_VRS and element.is_little_endian:
        letter = _LETTERS[stated]
        count, odd = divmod(len(data), struct.calcsize(letter))
        if count and not odd:
            return [float(number) for number in struct.unpack(f"<{count}{letter}", data)]
    return _convert_value(dataset[element.tag].value)


def _is_sound(text: str, expected: str) -> bool:
    """Whether bytes under a binary VR are the text that the dictionary expects."""
    if expected in {"DS", "IS"}:
        return all(parse_decimal(part) is not None for part in text.split("\\"))
    return _UNPRINTABLE.search(text.encode("ascii")) is None


def _convert_value(value: Any) -> Values:
    """Return the values that pydicom made of an element."""
    if value is None:
        return []
    several = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return [part for one in several for part in _convert_single(one)]


def _convert_single(value: Any) -> Values:
    if value is None:
        return [""]
    # these keep the text that was written
    if isinstance(value, str | DSfloat | DSdecimal | IS | PersonName):
        return [part.strip(_PADDING) for part in str(value).split("\\")]
    if isinstance(value, bytes) and value.isascii() and _UNPRINTABLE.search(value.strip(b"\0")) is None:
        return [part.strip(_PADDING) for part in value.decode("ascii").split("\\")]
    if isinstance(value, int | float) and not isinstance(value, BaseTag):
        return [float(value)]
    raise InvalidValueError
