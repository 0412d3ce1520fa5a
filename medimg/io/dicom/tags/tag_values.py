"""Values of elements as Python's own types: valid ones, and None for absent and blank ones."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from pydicom.datadict import dictionary_VR

from medimg.io.dicom.header.element_values import InvalidValueError, parse_decimal, parse_whole, read_values
from medimg.io.dicom.header.private_tags import is_no_sequence, to_items

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

    from medimg.io.tag_names import TagValue

__all__ = ["get_tag_value"]

_BYTES: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_WHOLE: Final = frozenset({"IS", "SL", "SS", "SV", "UL", "US", "UV"})
_NUMBERS: Final = _WHOLE | {"DS", "FD", "FL"}
#: Texts with lines, in which a backslash is no separator (PS3.5 6.2).
_PARAGRAPHS: Final = frozenset({"LT", "ST", "UR", "UT"})
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
_UNPRINTABLE_IN_LINES: Final = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f]")


def get_tag_value(dataset: Dataset, tag: BaseTag) -> TagValue:
    """Return a value, None if it is blank; raise InvalidValueError if it can't be understood."""
    # a value is parsed when it is first used, and a damaged one can raise anything
    try:
        vr = _find_vr(dataset, tag)
        if vr == "SQ":
            return _get_items(dataset, tag)
        if vr in _BYTES or vr == "AT":
            return _get_other(dataset, tag)
        found = read_values(dataset, tag)
    except InvalidValueError:
        raise
    except Exception:
        raise InvalidValueError from None
    if vr in _PARAGRAPHS:
        found = ["\\".join(map(str, found))] if found else []
    values = [_convert(value, vr) for value in found]
    return values[0] if len(values) == 1 else tuple(values) or None


def _find_vr(dataset: Dataset, tag: BaseTag) -> str:
    """Return the VR of the dictionary, of private attributes that of the file or of pydicom's dictionary."""
    try:
        expected = dictionary_VR(tag)
    except KeyError:
        expected = ""
    # one of several is chosen by other elements
    return expected if len(expected) == 2 else str(dataset[tag].VR)


def _get_items(dataset: Dataset, tag: BaseTag) -> TagValue:
    if is_no_sequence(dataset, tag):
        raise InvalidValueError
    value = dataset[tag].value
    items = to_items(value)
    if value and not items:
        raise InvalidValueError
    return tuple(items) or None


def _get_other(dataset: Dataset, tag: BaseTag) -> TagValue:
    """Return bytes, or tags as text."""
    value: Any = dataset[tag].value
    if value is None or isinstance(value, bytes):
        return value or None
    several = [value] if isinstance(value, int) else list(value)
    if not all(isinstance(one, int) for one in several):
        raise InvalidValueError
    texts = [f"{one >> 16:04x},{one & 0xFFFF:04x}" for one in several]
    return texts[0] if len(texts) == 1 else tuple(texts) or None


def _convert(value: str | float, vr: str) -> str | int | float | None:
    """Return a number of a text, or a text, or None for a blank one of several."""
    if vr not in _NUMBERS:
        text = value if isinstance(value, str) else f"{value:.17g}"
        if (_UNPRINTABLE_IN_LINES if vr in _PARAGRAPHS else _UNPRINTABLE).search(text):
            raise InvalidValueError
        return text or None
    if value == "":
        return None
    number: float | None = value if not isinstance(value, str) else parse_decimal(value)
    if vr in _WHOLE and number is not None and number.is_integer():
        return parse_whole(value) if isinstance(value, str) else int(value)
    # in a table, NaN is an absent value
    if number is None or vr in _WHOLE or math.isnan(number):
        raise InvalidValueError
    return number
