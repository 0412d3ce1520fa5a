"""
Checked access to the attributes of a DICOM dataset.

A damaged element can raise anything when its value is first used, and a wrong length can swallow its
neighbors, the patient's name among them. Other modules therefore read values only through these functions,
which check text before it can appear in a message. ``get_…`` returns a default for an unusable value,
``parse_…`` raises.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.tag import BaseTag, Tag

from medimg.errors import DecodeError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "get_code",
    "get_codes",
    "get_description",
    "get_descriptions",
    "get_floats",
    "get_identifier",
    "get_integer",
    "get_items",
    "get_text",
    "get_texts",
    "get_value",
    "get_vr",
    "has_undefined_length",
    "has_value",
    "parse_code",
    "parse_float",
    "parse_integer",
    "parse_number",
    "quiet_pydicom",
]

_CODE: Final = re.compile(r"[A-Z0-9 _/%-]{1,16}")
# Wider than PS3.5 allows: anonymizers write UUIDs
_IDENTIFIER: Final = re.compile(r"[0-9A-Za-z._-]{1,64}")
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f^]{1,64}")


class _QuietPydicom:
    """
    Context that silences pydicom's warnings and log, which quote values, while any thread is inside.

    Warning filters and loggers are process-wide: the first thread to enter sets them, the last to leave
    restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._entered == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
                _PYDICOM_LOG.addFilter(_reject)
            self._entered += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if self._entered == 0:
                self._filters.__exit__(None, None, None)
                _PYDICOM_LOG.removeFilter(_reject)

    def reset_after_fork(self) -> None:
        """Forget the threads of the parent process, which do not exist in this one."""
        self._lock = threading.Lock()
        if self._entered:
            self._entered = 0
            self._filters.__exit__(None, None, None)
            _PYDICOM_LOG.removeFilter(_reject)


def _reject(record: logging.LogRecord) -> bool:
    return False


_PYDICOM_LOG: Final = logging.getLogger("pydicom")
_QUIET: Final = _QuietPydicom()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_QUIET.reset_after_fork)


def quiet_pydicom() -> _QuietPydicom:
    """Return the context that silences pydicom's warnings and log."""
    return _QUIET


@cache
def _find_tag(keyword: str) -> BaseTag:
    """Return the tag of a keyword; cached, as pydicom's lookup is slow."""
    return Tag(keyword)


def get_value(dataset: Dataset, keyword: str) -> Any:
    """Return a value as pydicom parses it; None if it is absent or can't be parsed."""
    tag = _find_tag(keyword)
    if tag not in dataset:
        return None
    try:
        return dataset[tag].value
    # a value is parsed when it is first used, and a damaged one can raise anything
    except Exception:
        return None


def _get_values(dataset: Dataset, keyword: str) -> list[Any]:
    found = get_value(dataset, keyword)
    if found is None or (isinstance(found, str | bytes) and not found):
        return []
    return list(found) if isinstance(found, MultiValue | list | tuple) else [found]


def has_value(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is present and not empty, readable or not."""
    try:
        element = dataset.get_item(_find_tag(keyword))
    except Exception:
        return True
    if element is None or element.value is None:
        return False
    return not (isinstance(element.value, str | bytes | MultiValue | list) and len(element.value) == 0)


def get_text(dataset: Dataset, keyword: str) -> str:
    """Return the first value as text, unchecked and so not for messages; "" if there is none."""
    found = _get_values(dataset, keyword)
    return str(found[0]).strip(" \0") if found else ""


def get_texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values as texts, unchecked and so not for messages; empty if there is none."""
    return tuple(str(v).strip(" \0") for v in _get_values(dataset, keyword))


def get_code(dataset: Dataset, keyword: str, default: str = "") -> str:
    """Return a code string in upper case; the default if it is absent or malformed."""
    found = get_text(dataset, keyword).upper()
    return found if _CODE.fullmatch(found) else default


def parse_code(dataset: Dataset, keyword: str, default: str) -> str:
    """Return a code string, the default if it is absent or empty; raise DecodeError if it is malformed."""
    found = get_code(dataset, keyword)
    if not found and has_value(dataset, keyword):
        raise DecodeError(f"{keyword} is present but is not a code string; the file is damaged")
    return found or default


def get_codes(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values of a code string in upper case, "" for malformed ones."""
    found = (str(v).strip(" \0").upper() for v in _get_values(dataset, keyword))
    return tuple(v if _CODE.fullmatch(v) else "" for v in found)


def get_identifier(dataset: Dataset, keyword: str) -> str:
    """Return a UID, or what anonymizers write instead; "" if it is absent or malformed."""
    found = get_text(dataset, keyword)
    return found if _IDENTIFIER.fullmatch(found) else ""


def get_description(dataset: Dataset, keyword: str) -> str:
    """Return a short text for display; "" if it is absent, too long or not printable."""
    found = get_text(dataset, keyword)
    return found if _PRINTABLE.fullmatch(found) else ""


def get_descriptions(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values of a short text for display, "" for those too long or not printable."""
    found = (str(v).strip(" \0") for v in _get_values(dataset, keyword))
    return tuple(v if _PRINTABLE.fullmatch(v) else "" for v in found)


def get_vr(dataset: Dataset, keyword: str) -> str:
    """Return the value representation (VR) of an element; "" if it is absent or can't be parsed."""
    try:
        return str(dataset[_find_tag(keyword)].VR)
    # an element is parsed when it is first used, and a damaged one can raise anything
    except Exception:
        return ""


def has_undefined_length(dataset: Dataset, keyword: str) -> bool:
    """Whether an element has undefined length, as encapsulated pixel data has."""
    try:
        return bool(dataset[_find_tag(keyword)].is_undefined_length)
    except Exception:
        return False


def get_floats(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Return all values as floats; None if absent, not finite, or not `count` of them."""
    found = _get_values(dataset, keyword)
    if not found or count not in {None, len(found)} or any(isinstance(v, BaseTag) for v in found):
        return None
    try:
        numbers = tuple(float(v) for v in found)
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(math.isfinite(v) for v in numbers) else None


def get_integer(dataset: Dataset, keyword: str) -> int | None:
    """Return the first value as an integer; None if it is absent or unusable."""
    numbers = get_floats(dataset, keyword)
    return None if numbers is None else int(numbers[0])


def parse_number(dataset: Dataset, keyword: str, default: float) -> float:
    """Return a finite number, the default if it is absent or empty; raise DecodeError if it is malformed."""
    found = get_floats(dataset, keyword, 1)
    if found is None and has_value(dataset, keyword):
        raise DecodeError(f"{keyword} is present but is not one finite number; the file is damaged")
    return default if found is None else found[0]


def parse_float(dataset: Dataset, keyword: str) -> float | None:
    """Return a number that may be infinite or NaN, None if it is absent; raise DecodeError if malformed."""
    found = _get_values(dataset, keyword)
    if not found and not has_value(dataset, keyword):
        return None
    try:
        (single,) = found
        return float(single)
    except (TypeError, ValueError, OverflowError):
        raise DecodeError(f"{keyword} is present but is not a number; the file is damaged") from None


def parse_integer(dataset: Dataset, keyword: str, default: int) -> int:
    """Return an integer, the default if it is absent or empty; raise DecodeError if it is malformed."""
    found = parse_number(dataset, keyword, default)
    if not float(found).is_integer():
        raise DecodeError(f"{keyword} is present but is not a whole number; the file is damaged")
    return int(found)


def get_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an empty list if it is absent or damaged."""
    found = get_value(dataset, keyword)
    return list(found) if isinstance(found, DicomSequence) else []
