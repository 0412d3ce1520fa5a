"""Headers that are text: bounded lines, numbers, and the name of the file with the values."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from medimg.errors import DecodeError, ReadError

if TYPE_CHECKING:
    from medimg.io.files.blob import Blob

__all__ = ["data_file", "numbers", "quoted", "text_lines", "whole_numbers"]

_LONGEST: Final = 2**24
_MOST_LINES: Final = 2**17
_WORD: Final = re.compile(r"[A-Za-z0-9_ -]{0,30}")
_NUMBERS: Final = re.compile(r"(?:[-+0-9.eE,() ]|nan|inf){0,60}", re.IGNORECASE)
_FILE_NAME: Final = re.compile(r"[\w ./()+-]{0,200}")


def text_lines(blob: Blob, *, blank_ends: bool = False, last: str = "") -> tuple[list[str], int]:
    """
    Return the lines of a header, and where it ends in the file.

    Parameters
    ----------
    blob : Blob
        The file.
    blank_ends : bool
        Whether an empty line ends the header.
    last : str
        With what the last line starts.

    Raises
    ------
    DecodeError
        If no end comes within 16 MB and 131072 lines.
    ReadError
        If the file can't be read.
    """
    lines: list[str] = []
    end = 0
    with blob.stream() as file:
        while line := file.readline(_LONGEST + 1 - end):
            end += len(line)
            if end > _LONGEST:
                raise DecodeError(f"{blob.name}: its header does not end within {_LONGEST >> 20} MB")
            if len(lines) == _MOST_LINES:
                raise DecodeError(f"{blob.name}: its header does not end within {_MOST_LINES} lines")
            text = line.decode("latin-1").rstrip("\r\n")
            if blank_ends and not text and lines:
                break
            lines.append(text)
            if last and re.match(rf"\s*{last}\s*[=:]", text):
                break
    return lines, end


def quoted(text: str, pattern: re.Pattern[str] = _WORD) -> str:
    """
    Return a text of a header for a message, unless it is of another kind than expected.

    Where the end of a line is damaged, a value holds the next line too: a comment, or a patient's name.
    """
    return repr(text) if pattern.fullmatch(text) else "something else"


def numbers(text: str, what: str, count: int | None = None) -> list[float]:
    """
    Return numbers that are separated by spaces; they can be infinite or not a number.

    Raises
    ------
    DecodeError
        If one is no number, or there are not as many as asked for.
    """
    words = text.split()
    try:
        found = [float(word) for word in words]
    except ValueError:
        found = []
    if not found or count not in (None, len(found)):
        raise DecodeError(f"{what}: expected {count or 'some'} number(s), found {quoted(text, _NUMBERS)}")
    return found


def whole_numbers(text: str, count: int, what: str) -> list[int]:
    """
    Return whole numbers that are separated by spaces.

    Raises
    ------
    DecodeError
        If one is no whole number of a sensible size, or there are not as many as asked for.
    """
    found = numbers(text, what, count)
    if not all(math.isfinite(v) and v.is_integer() and abs(v) < 2**53 for v in found):
        raise DecodeError(f"{what}: expected {count} whole number(s), found {quoted(text, _NUMBERS)}")
    return [int(v) for v in found]


def data_file(header: Blob, stated: str) -> Blob:
    """
    Return the file beside a header, or below its folder, that holds the values.

    Raises
    ------
    ReadError
        If it is not there, lies elsewhere, or there are several.
    """
    if re.match(r"LIST\b", stated) or "%" in stated:
        raise ReadError(
            f"{header.name} has its values in several files, which is not supported; join them into one"
        )
    parts = stated.split("/")
    if not stated or ".." in parts or stated.startswith("/") or set(stated) & set("\\:\0"):
        raise ReadError(
            f"{header.name} names a file of values that does not lie in its own folder or below, which is "
            "not followed"
        )
    found = header.sibling(stated)
    if found is None:
        shown = quoted(stated, _FILE_NAME)
        where = "a header in memory has no files beside it" if header.data is not None else "it is not there"
        raise ReadError(f"{header.name} has its values in the file {shown}: {where}")
    return found
