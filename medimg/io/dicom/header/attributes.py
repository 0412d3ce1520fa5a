"""
Checked access to the attributes of a DICOM dataset.

A damaged element can raise anything when its value is first used, and a wrong length can swallow its
neighbors, the patient's name among them. Other modules therefore read values only through these functions,
which check text before it can appear in a message. An attribute that is absent or blank gives a default; for
one that is present but unusable, ``get_…`` gives the default and notes it (see `collect_findings`), and
``parse_…`` raises.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import warnings
from typing import TYPE_CHECKING, Any, Final

from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence

from medimg.errors import DecodeError
from medimg.io.dicom.header.element_values import (
    InvalidValueError,
    find_tag,
    is_blank,
    note_finding,
    parse_decimal,
    parse_whole,
    read_numbers,
    read_texts,
    read_values,
)
from medimg.io.dicom.header.private_tags import is_no_sequence, to_items

if TYPE_CHECKING:
    from collections.abc import Collection

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
    "get_number",
    "get_text",
    "get_texts",
    "get_value",
    "get_vr",
    "has_undefined_length",
    "has_value",
    "parse_code",
    "parse_defined_term",
    "parse_enumerated",
    "parse_float",
    "parse_integer",
    "parse_items",
    "parse_number",
    "parse_numbers",
    "parse_text",
    "quiet_pydicom",
]

_CODE: Final = re.compile(r"[A-Z0-9 _/%-]{1,16}")
# Wider than PS3.5 allows: anonymizers write UUIDs, hashes and words
_PRINTABLE: Final = re.compile(r"[^\x00-\x1f\x7f^]{1,128}")


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


def get_value(dataset: Dataset, keyword: str) -> Any:
    """Return a value as pydicom parses it; None if it is absent or can't be parsed."""
    tag = find_tag(keyword)
    if tag not in dataset:
        return None
    try:
        return dataset[tag].value
    # a value is parsed when it is first used, and a damaged one can raise anything
    except Exception:
        return None


def has_value(dataset: Dataset, keyword: str) -> bool:
    """Whether an attribute is present and not empty, readable or not."""
    try:
        element = dataset.get_item(find_tag(keyword))
    except Exception:
        return True
    if element is None or element.value is None or is_blank(element):
        return False
    return not (isinstance(element.value, str | bytes | MultiValue | list) and len(element.value) == 0)


def _note(keyword: str, expected: str) -> None:
    note_finding(f"{keyword} is present but is not {expected}; it is not used")


def _make_error(keyword: str, expected: str) -> DecodeError:
    return DecodeError(f"{keyword} is present but is not {expected}; the file is damaged")


def get_text(dataset: Dataset, keyword: str) -> str:
    """Return an attribute as text, unchecked and so not for messages; "" if absent or, noted, no text."""
    try:
        return "\\".join(read_texts(dataset, keyword))
    except InvalidValueError:
        _note(keyword, "text")
        return ""


def parse_text(dataset: Dataset, keyword: str) -> str:
    """Return an attribute as text, unchecked; "" if it is absent; raise DecodeError if it is no text."""
    try:
        return "\\".join(read_texts(dataset, keyword))
    except InvalidValueError:
        raise _make_error(keyword, "text") from None


def get_texts(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values as texts, unchecked and so not for messages; () if absent or, noted, no text."""
    try:
        return tuple(read_texts(dataset, keyword))
    except InvalidValueError:
        _note(keyword, "text")
        return ()


def get_code(dataset: Dataset, keyword: str, default: str = "") -> str:
    """Return a code string in upper case; the default if it is absent or, noted, malformed."""
    found = get_text(dataset, keyword).upper()
    if _CODE.fullmatch(found):
        return found
    if found:
        _note(keyword, "a code string")
    return default


def parse_code(dataset: Dataset, keyword: str, default: str) -> str:
    """Return a code string, the default if it is absent or blank; raise DecodeError if it is malformed."""
    found = parse_text(dataset, keyword).upper()
    if found and not _CODE.fullmatch(found):
        raise _make_error(keyword, "a code string")
    return found or default


def get_codes(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values of a code string in upper case; unusual ones as any text, see `_make_safe`."""
    try:
        found = read_texts(dataset, keyword)
    except InvalidValueError:
        _note(keyword, "code strings")
        return ()
    return tuple(v if _CODE.fullmatch(v) else _make_safe(v) for v in (text.upper() for text in found))


def _make_safe(text: str) -> str:
    """Return an identifying text; its digest if it may have swallowed other elements."""
    if not text or _PRINTABLE.fullmatch(text):
        return text
    return f"sha256-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def get_identifier(dataset: Dataset, keyword: str) -> str:
    """
    Return a UID, or what is written in place of one: any text identifies; "" if it is absent or blank.

    DecodeError is raised if it is no text; a text that is not printable, or very long, is replaced by its
    digest.
    """
    return _make_safe(parse_text(dataset, keyword))


def get_description(dataset: Dataset, keyword: str) -> str:
    """Return a short text for display; "" if it is absent, too long or not printable."""
    found = get_descriptions(dataset, keyword)
    return found[0] if found else ""


def get_descriptions(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """Return all values of a short text for display, "" for those too long or not printable."""
    try:
        found = read_texts(dataset, keyword)
    except InvalidValueError:
        return ()
    return tuple(v if _PRINTABLE.fullmatch(v) else "" for v in found)


def get_vr(dataset: Dataset, keyword: str) -> str:
    """Return the value representation (VR) of an element; "" if it is absent or can't be parsed."""
    try:
        return str(dataset[find_tag(keyword)].VR)
    # an element is parsed when it is first used, and a damaged one can raise anything
    except Exception:
        return ""


def has_undefined_length(dataset: Dataset, keyword: str) -> bool:
    """Whether an element has undefined length, as encapsulated pixel data has."""
    try:
        return bool(dataset[find_tag(keyword)].is_undefined_length)
    except Exception:
        return False


def _read_numbers(dataset: Dataset, keyword: str, count: int | None) -> tuple[float, ...] | None:
    found = read_numbers(dataset, keyword)
    if found and count not in {None, len(found)}:
        raise InvalidValueError
    return found or None


def _name_numbers(count: int | None) -> str:
    if count is None:
        return "finite numbers"
    return "one finite number" if count == 1 else f"{count} finite numbers"


def get_floats(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Return all values as finite numbers; None if absent or, noted, malformed or not `count` of them."""
    try:
        return _read_numbers(dataset, keyword, count)
    except InvalidValueError:
        _note(keyword, _name_numbers(count))
        return None


def parse_numbers(dataset: Dataset, keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    """Return all values as finite numbers, None if absent or blank; raise DecodeError if malformed."""
    try:
        return _read_numbers(dataset, keyword, count)
    except InvalidValueError:
        raise _make_error(keyword, _name_numbers(count)) from None


def get_number(dataset: Dataset, keyword: str) -> float | None:
    """Return a single finite number; None if it is absent or, noted, malformed."""
    found = get_floats(dataset, keyword, 1)
    return None if found is None else found[0]


def get_integer(dataset: Dataset, keyword: str) -> int | None:
    """Return a single whole number; None if it is absent or, noted, malformed."""
    found = get_number(dataset, keyword)
    if found is None:
        return None
    if not found.is_integer():
        _note(keyword, "a whole number")
        return None
    whole = parse_whole(get_text(dataset, keyword))
    return int(found) if whole is None else whole


def parse_number(dataset: Dataset, keyword: str, default: float) -> float:
    """Return a finite number, the default if it is absent or blank; raise DecodeError if it is malformed."""
    found = parse_numbers(dataset, keyword, 1)
    return default if found is None else found[0]


def parse_float(dataset: Dataset, keyword: str) -> float | None:
    """Return a number that may be infinite or NaN, None if it is absent; raise DecodeError if malformed."""
    try:
        found = read_values(dataset, keyword)
    except InvalidValueError:
        raise _make_error(keyword, "a number") from None
    if not found:
        return None
    number = parse_decimal(found[0]) if isinstance(found[0], str) else found[0]
    if number is None or len(found) > 1:
        raise _make_error(keyword, "a number")
    return number


def parse_integer(dataset: Dataset, keyword: str, default: int) -> int:
    """Return an integer, the default if it is absent or blank; raise DecodeError if it is malformed."""
    found = parse_number(dataset, keyword, default)
    if not float(found).is_integer():
        raise _make_error(keyword, "a whole number")
    return int(found)


def parse_enumerated(dataset: Dataset, keyword: str, values: Collection[int], default: int) -> int:
    """Return one of the defined integers, the default if absent or empty; raise DecodeError for another."""
    found = parse_integer(dataset, keyword, default)
    if found not in values:
        raise DecodeError(f"{keyword} is {found}; expected {_list_choices(values)}; the file is damaged")
    return found


def parse_defined_term(dataset: Dataset, keyword: str, values: Collection[str], default: str) -> str:
    """Return one of the defined codes, the default if absent or empty; raise DecodeError for another."""
    found = parse_code(dataset, keyword, default)
    if found not in values:
        raise DecodeError(f"{keyword} is {found!r}; expected {_list_choices(values)}; the file is damaged")
    return found


def _list_choices(values: Collection[object]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def _read_items(dataset: Dataset, keyword: str) -> list[Dataset] | None:
    """Return the items of a sequence, [] if it is absent or empty, None if it can't be parsed."""
    if is_no_sequence(dataset, find_tag(keyword)):
        return None
    found = get_value(dataset, keyword)
    if isinstance(found, DicomSequence):
        return list(found)
    if not has_value(dataset, keyword):
        return []
    return to_items(found) or None


def get_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; an empty list if it is absent or, noted, damaged."""
    found = _read_items(dataset, keyword)
    if found is None:
        _note(keyword, "a sequence that can be parsed")
    return found or []


def parse_items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence, an empty list if it is absent; raise DecodeError if it is damaged."""
    found = _read_items(dataset, keyword)
    if found is None:
        raise _make_error(keyword, "a sequence that can be parsed")
    return found
