"""
Uniform files: files of one series whose headers differ only in a few elements.

In most files of a series, only the UID, number, position and times differ. All other values are read once,
from one header; the values of each file are a row of a table.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from operator import methodcaller
from typing import TYPE_CHECKING, Any, Final, NamedTuple, overload

import numpy as np

from medimg.io.dicom.header import frame_attributes
from medimg.io.dicom.header.datetimes import parse_datetime, parse_time
from medimg.io.dicom.header.distinguishing_attributes import FrameAttribute
from medimg.io.files.blob import Blob

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.io.dicom.header.acquisition import AcquisitionElements
    from medimg.io.dicom.header.instance import Instance

__all__ = [
    "FILE_ELEMENTS",
    "SERIES_ELEMENTS",
    "FileRow",
    "InstanceColumns",
    "UniformFiles",
    "ValueColumn",
    "build_uniform_files",
    "is_plain",
]

_UID, _NUMBER, _POSITION, _STARTED, _ACQUIRED, _MADE = range(6)
#: Elements that differ between files, with the VR that they must have, in the order of a row.
FILE_ELEMENTS: Final = (
    (0x00080018, b"UI"),  # SOP Instance UID
    (0x00200013, b"IS"),  # Instance Number
    (0x00200032, b"DS"),  # Image Position (Patient)
    (0x0008002A, b"DT"),  # Acquisition DateTime
    (0x00080032, b"TM"),  # Acquisition Time
    (0x00080033, b"TM"),  # Content Time
)
#: Elements that differ between series.
SERIES_ELEMENTS: Final = (
    (0x0020000E, b"UI"),  # Series Instance UID
    (0x0020000D, b"UI"),  # Study Instance UID
    (0x00200011, b"IS"),  # Series Number
    (0x00100020, b"LO"),  # Patient ID
    (0x0008103E, b"LO"),  # Series Description
)

_TIMES: Final = frozenset({"started", "acquired", "made"})
#: Any text identifies; without characters that are hidden, or differ in some character sets.
_IDENTIFIER: Final = re.compile(rb"(?:[!-\[\]_-}](?:[ !-\[\]_-}]{0,126}[!-\[\]_-}])?)?")
#: Without characters that differ in some character sets.
_PLAIN_TEXT: Final = re.compile(rb"[ !-\[\]-}]*")
_DESCRIPTION: Final = re.compile(rb"[ !-\[\]_-}]{0,64}")
_WHOLE: Final = re.compile(rb" *[+-]?[0-9]{1,9} *")
_FLOAT: Final = rb" *[+-]?[0-9]{1,9}(?:\.[0-9]{0,14})?(?:[eE][+-]?[0-9]{1,2})? *"
_POINT: Final = re.compile(rb"\\".join([_FLOAT] * 3))
_CLOCK: Final = rb"(?:[01][0-9]|2[0-3])%b(?:[0-5][0-9](?:%b(?:[0-5][0-9]|60)(?:\.[0-9]*)?)?)?"
_TIME: Final = re.compile(_CLOCK % (b":?", b":?") + b" *")
#: Or a date alone, which is no time. Leap days are left to the parser.
_DATE_TIME: Final = re.compile(
    rb"[0-9]{4}(?:[0-9]{2}){0,3}(?:[+-][0-9]{4})? *|(?!0000)[0-9]{4}"
    rb"(?:(?:0[1-9]|1[0-2])(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])(?:29|30)|(?:0[13578]|1[02])31)"
    rb"(?:[01][0-9]|2[0-3])[0-5][0-9](?:(?:[0-5][0-9]|60)(?:\.[0-9]*)?)?(?:[+-][0-9]{4})? *"
)
_GRAMMARS: Final = (_IDENTIFIER, _WHOLE, _POINT, _DATE_TIME, _TIME, _TIME)
_CLOCK_TO_SECONDS: Final = rb"(?:[01][0-9]|2[0-3])[0-5][0-9][0-5][0-9](?:\.[0-9]*+)? *+"
#: Whole columns of times, a line each. Times without seconds or with colons are left to the grammar of each.
_TIME_COLUMNS: Final = {
    _STARTED: re.compile(rb"(?:(?:%b)?\n)*+" % _DATE_TIME.pattern),
    _ACQUIRED: re.compile(rb"(?:(?:%b)?\n)*+" % _CLOCK_TO_SECONDS),
    _MADE: re.compile(rb"(?:(?:%b)?\n)*+" % _CLOCK_TO_SECONDS),
}
_DIGITS: Final = string.digits.encode()
#: For each column, the characters of regular values, and their maximum length.
_CHARACTERS: Final = (
    _DIGITS + string.ascii_letters.encode() + b"._-",
    _DIGITS + b"+- ",
    _DIGITS + b"+-.eE\\ ",
    *(_DIGITS + b".:+- ",) * 3,
)
_MAX_LENGTHS: Final = (64, 9, 64, 64, 64, 64)
_SEPARATORS: Final = methodcaller("count", b"\\")


def is_plain(instance: Instance) -> bool:
    """Whether a file is a single image without further attributes, so that a row can represent it."""
    if len(instance.facts) != 1 or instance.notes or instance.times is not None:
        return False
    return instance.facts[0].corner is None


class ValueColumn(Sequence[bytes]):
    """Values cut from a table on access."""

    def __init__(self, table: bytes, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> None:
        self._table = table
        self._starts = starts
        self._stops = stops

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        if isinstance(index, slice):
            return ValueColumn(self._table, self._starts[index], self._stops[index])
        return self._table[self._starts[index] : self._stops[index]]

    def __reduce__(self) -> Any:
        # the table has the values of all files that were scanned together
        ends = np.cumsum(self._stops - self._starts)
        return ValueColumn, (b"".join(self), ends - (self._stops - self._starts), ends)


class FileRow(NamedTuple):
    """A file: its number, name, values of :data:`FILE_ELEMENTS`, and the elements of its acquisition."""

    number: int
    name: str
    values: Sequence[bytes]
    acquisition: AcquisitionElements | None = None


class InstanceColumns:
    """
    Values of :data:`FILE_ELEMENTS` of files as written, without zero padding, a column for each element.

    `positions` (n, 3) are given if all values are known to be regular; they are not numbers if there is none.
    """

    def __init__(
        self,
        indices: list[int],
        names: list[str],
        columns: Sequence[Sequence[bytes]],
        acquisitions: Sequence[AcquisitionElements | None],
        positions: npt.NDArray[np.float64] | None = None,
    ) -> None:
        if len(columns) != len(FILE_ELEMENTS):
            raise ValueError(f"{len(columns)} columns")
        self.indices = indices
        self.names = names
        self.columns = columns
        self.acquisitions = acquisitions
        self._regular_positions = positions

    @classmethod
    def from_rows(cls, rows: Sequence[FileRow]) -> InstanceColumns:
        """Return the columns of files."""
        indices, names, values, acquisitions = (list(column) for column in zip(*rows, strict=True))
        return cls(indices, names, list(zip(*values, strict=True)), acquisitions)

    @cached_property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """Image Position (Patient) (n, 3), LPS millimeters; None if one is missing or absurd."""
        found = self._regular_positions
        if found is None:
            written = self.columns[_POSITION]
            if not all(written):
                return None
            found = np.array(list(map(float, b"\\".join(written).split(b"\\")))).reshape(-1, 3)
        # False as well for one that is not a number
        return found if np.abs(found).max() <= frame_attributes.MAX_COORDINATE_MM else None

    def split_irregular(self) -> tuple[InstanceColumns | None, list[int]]:
        """Return the files whose values need no parser, if any, and the numbers of the others."""
        if self._is_regular():
            return self, []
        irregular = {
            number
            for grammar, column in zip(_GRAMMARS, self.columns, strict=True)
            for number, value in enumerate(column)
            if value and grammar.fullmatch(value) is None
        }
        irregular.update(n for n, value in enumerate(self.columns[_POSITION]) if _is_far(value))
        kept = [n for n in range(len(self.names)) if n not in irregular]
        return self._select(kept) if kept else None, [self.indices[n] for n in sorted(irregular)]

    def split_placed(self) -> list[tuple[bool, InstanceColumns]]:
        """Return the files with a position, after True, and those without, as far as there are any."""
        found = self._regular_positions
        written = self.columns[_POSITION]
        missing = np.array([not value for value in written]) if found is None else np.isnan(found[:, 0])
        if missing.all() or not missing.any():
            return [(not missing[0], self)]
        placed, others = np.flatnonzero(~missing).tolist(), np.flatnonzero(missing).tolist()
        return [(True, self._select(placed)), (False, self._select(others))]

    def _select(self, numbers: list[int]) -> InstanceColumns:
        found = self._regular_positions
        return InstanceColumns(
            [self.indices[n] for n in numbers],
            [self.names[n] for n in numbers],
            [[column[n] for n in numbers] for column in self.columns],
            [self.acquisitions[n] for n in numbers],
            None if found is None else found[numbers],
        )

    def _is_regular(self) -> bool:
        """Whether all values are regular, by a fast test that may miss some."""
        found = self._regular_positions
        if found is not None:
            return self.positions is not None or bool(np.isnan(found).all())
        for letters, longest, column in zip(_CHARACTERS, _MAX_LENGTHS, self.columns, strict=True):
            if b"".join(column).translate(None, letters) or max(map(len, column), default=0) > longest:
                return False
        for n, grammar in _TIME_COLUMNS.items():
            if any(self.columns[n]) and grammar.fullmatch(b"\n".join(self.columns[n]) + b"\n") is None:
                return False
        written = self.columns[_POSITION]
        try:
            list(map(int, filter(None, self.columns[_NUMBER])))
            points = set(map(_SEPARATORS, written)) == {2} and self.positions is not None
        except ValueError:
            return False
        return points or not any(written)


def _is_far(written: bytes) -> bool:
    """Whether a regular position is no place in a patient."""
    if _POINT.fullmatch(written) is None:
        return False
    return max(map(abs, map(float, written.split(b"\\")))) > frame_attributes.MAX_COORDINATE_MM


class UniformFiles:
    """Files of one series that differ from `prototype` only in :data:`FILE_ELEMENTS`."""

    def __init__(self, prototype: Instance, rows: InstanceColumns) -> None:
        self.prototype = prototype
        self.names = rows.names
        self.indices = rows.indices
        self._rows = rows
        self._instances: dict[int, Instance] = {}

    @property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """Image Position (Patient) (n, 3), LPS millimeters; None if one is missing or absurd."""
        return self._rows.positions

    def get_instance(self, row: int) -> Instance:
        """Return the instance that reading the header of that file gives."""
        if row not in self._instances:
            number = self._rows.columns[_NUMBER][row]
            plain = self.prototype.facts[0]
            self._instances[row] = replace(
                self.prototype,
                blob=Blob(self.names[row]),
                acquisition=self._rows.acquisitions[row],
                sop_instance_uid=self._rows.columns[_UID][row].decode("ascii"),
                instance_number=int(number) if number else None,
                facts=(
                    replace(
                        plain,
                        position=self._get_position(row),
                        temporal_attributes=self._get_temporal_attributes(row),
                    ),
                ),
            )
        return self._instances[row]

    def get_stored_values(self, row: int) -> list[str]:
        """Return the values of :data:`FILE_ELEMENTS` of a file, as written."""
        return [column[row].decode("ascii") for column in self._rows.columns]

    def _get_position(self, row: int) -> tuple[float, float, float] | None:
        value = self._rows.columns[_POSITION][row]
        if not value:
            return None
        x, y, z = map(float, value.split(b"\\"))
        return x, y, z

    def _get_temporal_attributes(self, row: int) -> tuple[FrameAttribute, ...]:
        columns = self._rows.columns
        started, acquired, made = (
            columns[n][row].decode("ascii").strip() for n in (_STARTED, _ACQUIRED, _MADE)
        )
        found = (
            ("started", parse_datetime(started)),
            ("acquired", parse_time(acquired)),
            ("made", parse_time(made)),
        )
        same = tuple(
            label for label in self.prototype.facts[0].temporal_attributes if label.name not in _TIMES
        )
        return (*same, *(FrameAttribute(name, value) for name, value in found if value is not None))


def build_uniform_files(
    prototype: Instance, series: tuple[bytes, ...], rows: InstanceColumns
) -> UniformFiles | None:
    """
    Return the files of a series, given the values of :data:`SERIES_ELEMENTS` without zero padding.

    `prototype` is equal in all other elements. None if the values of the series need a parser.
    """
    *uids, number, patient, described = series
    is_regular = (
        all(_IDENTIFIER.fullmatch(uid) for uid in uids)
        and (not number or _WHOLE.fullmatch(number))
        and _PLAIN_TEXT.fullmatch(patient)
        and _DESCRIPTION.fullmatch(described)
    )
    if not is_regular:
        return None
    series_uid, study_uid = (uid.decode("ascii") for uid in uids)
    found = replace(
        prototype,
        series_uid=series_uid,
        study_uid=study_uid,
        series_number=int(number) if number else None,
        patient_id=patient.decode("ascii").strip(),
        description=described.decode("ascii").strip(),
    )
    return UniformFiles(found, rows)
