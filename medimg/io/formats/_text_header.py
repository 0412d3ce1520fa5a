"""Text headers: bounded lines, numbers, and the name of the file with the values."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from medimg.errors import DecodeError, ReadError, also
from medimg.io.dicom.header.element_values import parse_decimal

if TYPE_CHECKING:
    from collections.abc import Collection

    from medimg.io.files.blob import Blob

__all__ = [
    "find_data_file",
    "find_misspelled",
    "parse_numbers",
    "parse_whole_numbers",
    "quote_text",
    "read_text_lines",
]

_MAX_BYTES: Final = 2**24
_MAX_LINES: Final = 2**17
#: Similarity of a misspelled name.
_CLOSE: Final = 0.8
_WORD: Final = re.compile(r"[A-Za-z0-9_ -]{0,30}")
_NUMBERS: Final = re.compile(r"(?:[-+0-9.eE,() ]|nan|inf){0,60}", re.IGNORECASE)
_NOT_FINITE: Final = re.compile(r"[-+]?(?:nan|inf|infinity)", re.IGNORECASE)
_FILE_NAME: Final = re.compile(r"[\w ./()+-]{0,200}")


def read_text_lines(blob: Blob, *, blank_ends: bool = False, last: str = "") -> tuple[list[str], int]:
    """
    Return the lines of a header, and the position where it ends in the file.

    An empty line ends it if `blank_ends`, or a line that starts with the word `last`. Raises DecodeError if
    it does not end within 16 MB and 131072 lines.
    """
    lines: list[str] = []
    end = 0
    with blob.stream() as file:
        while line := file.readline(_MAX_BYTES + 1 - end):
            end += len(line)
            if end > _MAX_BYTES:
                raise DecodeError(f"{blob.name}: its header does not end within {_MAX_BYTES >> 20} MB")
            if len(lines) == _MAX_LINES:
                raise DecodeError(f"{blob.name}: its header does not end within {_MAX_LINES} lines")
            text = line.decode("latin-1").rstrip("\r\n")
            if blank_ends and not text and lines:
                break
            lines.append(text)
            if last and re.match(rf"\s*{last}\s*[=:]", text):
                break
    return lines, end


def quote_text(text: str, pattern: re.Pattern[str] = _WORD) -> str:
    """
    Return header text for a message, or "something else" if it does not match the pattern.

    If the end of a line is damaged, a value includes the next line: a comment, or a patient's name.
    """
    return repr(text) if pattern.fullmatch(text) else "something else"


def find_misspelled(keys: Collection[str], fields: Collection[str]) -> tuple[str, ...]:
    """Return a warning for each key of a header that is no field, but close to one that the header lacks."""
    by_lower = {field.lower(): field for field in fields}
    notes = []
    for key in keys:
        close = get_close_matches(key.lower(), by_lower, n=1, cutoff=_CLOSE) if key not in fields else []
        if close and by_lower[close[0]] not in keys:
            notes.append(
                f"the header has an unknown field {quote_text(key)}, which is not used: "
                f"did you mean {by_lower[close[0]]!r}?"
            )
    return tuple(notes)


def parse_numbers(text: str, what: str, count: int | None = None) -> list[float]:
    """Return numbers separated by spaces, inf and nan included; raise DecodeError for other text."""
    # zeros are padding in DICOM alone
    words = [] if "\0" in text else text.split()
    found = [float(word) for word in words if _NOT_FINITE.fullmatch(word) or parse_decimal(word) is not None]
    if not found or len(found) < len(words) or count not in (None, len(found)):
        raise DecodeError(f"{what}: expected {count or 'some'} number(s), found {quote_text(text, _NUMBERS)}")
    return found


def parse_whole_numbers(text: str, count: int, what: str) -> list[int]:
    """Return `count` whole numbers separated by spaces; raise DecodeError for anything else."""
    found = parse_numbers(text, what, count)
    if not all(math.isfinite(v) and v.is_integer() and abs(v) < 2**53 for v in found):
        raise DecodeError(f"{what}: expected {count} whole number(s), found {quote_text(text, _NUMBERS)}")
    return [int(v) for v in found]


def find_data_file(header: Blob, stated: str) -> Blob:
    """Return the file with the values, in the folder of the header or below; raise ReadError otherwise."""
    if re.match(r"LIST\b", stated) or "%" in stated:
        raise ReadError(
            f"{header.name} has its values in several files, which is not supported; merge them into one"
        )
    parts = stated.split("/")
    if not stated or ".." in parts or stated.startswith("/") or set(stated) & set("\\:\0"):
        raise ReadError(
            f"{header.name} names a file of values outside of its own folder, which is not read; move "
            "it beside the header"
        )
    found = header.sibling(stated)
    if found is None:
        shown = f"the file {stated!r}" if _FILE_NAME.fullmatch(stated) else "a file with an unusual name"
        where = "a header in memory has no files beside it" if header.data is not None else "it is not there"
        raise also(ReadError, FileNotFoundError)(f"{header.name} has its values in {shown}: {where}")
    return found
