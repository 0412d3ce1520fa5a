"""Dates and times (PS3.5 6.2: DA, TM, DT) in seconds, so that they can be subtracted."""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from medimg.io.dicom.header.attributes import get_text
from medimg.io.dicom.header.element_values import note_finding

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "SECONDS_PER_DAY",
    "get_datetime",
    "get_local_datetime",
    "get_time",
    "parse_datetime",
    "parse_local_datetime",
    "parse_time",
]

#: Seconds of a day.
SECONDS_PER_DAY: Final = 86400.0

_DATE: Final = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})", re.ASCII)
_TIME: Final = re.compile(r"(\d{2}):?(\d{2})?:?(\d{2}(?:\.\d*)?)?", re.ASCII)
_DATE_TIME: Final = re.compile(r"(\d{8})(\d{4}(?:\d{2}(?:\.\d*)?)?)([+-]\d{4})?", re.ASCII)
#: A date and time (DT) that states less than the minute (PS3.5 6.2), or a time zone alone.
_WITHOUT_TIME: Final = re.compile(r"\d{4}(?:\d{2}){0,3}(?:[+-]\d{4})?", re.ASCII)
_OFFSET: Final = re.compile(r"([+-])(\d{2})(\d{2})", re.ASCII)


@lru_cache(256)
def _parse_date(written: str) -> float | None:
    """Return a date (DA) in seconds since the common origin; None if it is malformed."""
    found = _DATE.fullmatch(written)
    if found is None:
        return None
    year, month, day = map(int, found.groups())
    try:
        return date(year, month, day).toordinal() * SECONDS_PER_DAY
    except ValueError:
        return None


def parse_time(written: str) -> float | None:
    """Return a time (TM) in seconds after midnight; None if it is malformed."""
    found = _TIME.fullmatch(written)
    if found is None:
        return None
    hour, minute, second = map(float, found.groups("0"))
    return hour * 3600 + minute * 60 + second if hour < 24 and minute < 60 and second < 61 else None


def _parse_utc_offset(written: str) -> float | None:
    """Return a time zone offset (±ZZZZ) in seconds; None if it is malformed."""
    found = _OFFSET.fullmatch(written)
    if found is None:
        return None
    sign, hours, minutes = found.groups()
    return (-1 if sign == "-" else 1) * (int(hours) * 3600.0 + int(minutes) * 60.0)


def get_time(dataset: Dataset, keyword: str) -> float | None:
    """Return a time attribute (TM) in seconds after midnight; None if it is absent or, noted, malformed."""
    written = get_text(dataset, keyword)
    found = parse_time(written)
    if written and found is None:
        note_finding(f"{keyword} is present but is not a time; it is not used")
    return found


def get_datetime(dataset: Dataset, date_keyword: str, time_keyword: str) -> float | None:
    """Return a date (DA) and a time (TM) in seconds since a common origin; None if either is unusable."""
    day, seconds = _parse_date(get_text(dataset, date_keyword)), get_time(dataset, time_keyword)
    return None if day is None or seconds is None else day + seconds


def get_local_datetime(dataset: Dataset, keyword: str) -> float | None:
    """Return a date and time attribute (DT) in seconds; None if it is absent or, noted, malformed."""
    offset = get_text(dataset, "TimezoneOffsetFromUTC")
    if offset and _parse_utc_offset(offset) is None:
        note_finding("TimezoneOffsetFromUTC is present but is not a time zone; it is not used")
    written = get_text(dataset, keyword)
    found = parse_datetime(written, offset)
    if written and found is None and not _WITHOUT_TIME.fullmatch(written):
        note_finding(f"{keyword} is present but is not a date and time; it is not used")
    return found


def parse_local_datetime(dataset: Dataset, written: str) -> float | None:
    """Return a date and time (DT) in seconds, in the dataset's own time zone; see :func:`parse_datetime`."""
    return parse_datetime(written, get_text(dataset, "TimezoneOffsetFromUTC"))


def parse_datetime(written: str, offset: str = "") -> float | None:
    """
    Return a date and time (DT) in seconds since the origin of :func:`get_datetime`; None if it is malformed.

    It is converted to the time zone `offset`, if both state one; without it, local time is meant.
    """
    found = _DATE_TIME.fullmatch(written)
    if found is None:
        return None
    day, seconds = _parse_date(found.group(1)), parse_time(found.group(2))
    if day is None or seconds is None:
        return None
    there, here = _parse_utc_offset(found.group(3) or ""), _parse_utc_offset(offset)
    return day + seconds + (here - there if here is not None and there is not None else 0.0)
