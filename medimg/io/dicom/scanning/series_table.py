"""
Files of one series that say the same of everything but themselves.

Of most files of a series, only the instance's UID, its number, position and times differ. What all the others
are is read once, as carefully as for any file; what each one is, is a row of a table.
"""

from __future__ import annotations

import re
import string
from dataclasses import replace
from functools import cached_property
from operator import methodcaller
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.io.dicom.header import frame_attributes
from medimg.io.dicom.header.datetimes import parse_datetime, parse_time
from medimg.io.dicom.header.frame_attributes import FrameAttribute
from medimg.io.files.blob import Blob

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.acquisition import AcquisitionElements
    from medimg.io.dicom.header.instance import Instance

__all__ = ["OF_EACH", "OF_SERIES", "InstanceColumns", "UniformFiles", "find_uniform_files", "is_plain"]

_UID, _NUMBER, _POSITION, _STARTED, _ACQUIRED, _MADE = range(6)
#: What differs from file to file, with the representation that it must have, in the order of a row.
OF_EACH: Final = (
    (0x00080018, b"UI"),  # SOP Instance UID
    (0x00200013, b"IS"),  # Instance Number
    (0x00200032, b"DS"),  # Image Position (Patient)
    (0x0008002A, b"DT"),  # Acquisition DateTime
    (0x00080032, b"TM"),  # Acquisition Time
    (0x00080033, b"TM"),  # Content Time
)
#: What differs from series to series, likewise.
OF_SERIES: Final = (
    (0x0020000E, b"UI"),  # Series Instance UID
    (0x0020000D, b"UI"),  # Study Instance UID
    (0x00200011, b"IS"),  # Series Number
    (0x00100020, b"LO"),  # Patient ID
    (0x0008103E, b"LO"),  # Series Description
)

_TIMES: Final = frozenset({"started", "acquired", "made"})
_IDENTIFIER: Final = re.compile(rb"[0-9A-Za-z._-]{0,64}")
#: Without what means something else in some character sets.
_PLAIN_TEXT: Final = re.compile(rb"[ !-\[\]-}]*")
_DESCRIPTION: Final = re.compile(rb"[ !-\[\]_-}]{0,64}")
_WHOLE: Final = re.compile(rb" *[+-]?[0-9]{1,9} *")
_FLOAT: Final = rb" *[+-]?[0-9]{1,9}(?:\.[0-9]{0,14})?(?:[eE][+-]?[0-9]{1,2})? *"
_POINT: Final = re.compile(rb"\\".join([_FLOAT] * 3))
_TIME: Final = re.compile(rb"[0-9.:+-]* *")
_GRAMMARS: Final = (_IDENTIFIER, _WHOLE, _POINT, _TIME, _TIME, _TIME)
#: For each column, the letters of which these are made, and a length that none exceeds.
_DIGITS: Final = string.digits.encode()
_LETTERS: Final = (
    _DIGITS + string.ascii_letters.encode() + b"._-",
    _DIGITS + b"+- ",
    _DIGITS + b"+-.eE\\ ",
    *(_DIGITS + b".:+- ",) * 3,
)
_LONGEST: Final = (64, 9, 64, 64, 64, 64)
_SEPARATORS: Final = methodcaller("count", b"\\")


def is_plain(instance: Instance) -> bool:
    """Whether a file holds one plain image, so that a row can stand for it."""
    if len(instance.facts) != 1 or instance.notes or instance.times is not None:
        return False
    return instance.facts[0].corner is None


class InstanceColumns:
    """
    Values of files as they are written, one list for each attribute.

    Attributes
    ----------
    indices : list of int
        Which file each is.
    names : list of str
        Its path.
    columns : tuple of list of bytes
        The values of :data:`OF_EACH`, without the zeros that fill them up.
    acquisitions : list of AcquisitionElements or None
        Undecoded elements of each; None if unknown.
    """

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.names: list[str] = []
        self.acquisitions: list[AcquisitionElements | None] = []
        self.columns: tuple[list[bytes], ...] = tuple([] for _ in OF_EACH)

    def extend(
        self,
        indices: list[int],
        names: list[str],
        columns: Sequence[list[bytes]],
        acquisitions: Sequence[AcquisitionElements | None] | None = None,
    ) -> None:
        """Add files."""
        if len(columns) != len(OF_EACH):
            raise ValueError(f"{len(columns)} columns")
        self.indices += indices
        self.names += names
        self.acquisitions += acquisitions or [None] * len(names)
        for mine, more in zip(self.columns, columns, strict=True):
            mine.extend(more)

    @cached_property
    def numbers(self) -> list[int | None]:
        """Instance Number of each."""
        return [int(value) if value else None for value in self.columns[_NUMBER]]

    @cached_property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """(n, 3) Image Position (Patient), LPS millimeters; None if one has none, or an absurd one."""
        written = self.columns[_POSITION]
        if not all(written):
            return None
        found = np.array(list(map(float, b"\\".join(written).split(b"\\")))).reshape(-1, 3)
        return found if np.abs(found).max() <= frame_attributes.MAX_COORDINATE_MM else None

    def without_odd(self) -> tuple[InstanceColumns, list[int]]:
        """Set files apart that write a value in a way that takes a parser; return those left, and these."""
        if self._are_usual():
            return self, []
        odd = {
            number
            for grammar, column in zip(_GRAMMARS, self.columns, strict=True)
            for number, value in enumerate(column)
            if value and grammar.fullmatch(value) is None
        }
        kept = [n for n in range(len(self.names)) if n not in odd]
        rows = InstanceColumns()
        columns = [[column[n] for n in kept] for column in self.columns]
        rows.extend(
            [self.indices[n] for n in kept],
            [self.names[n] for n in kept],
            columns,
            [self.acquisitions[n] for n in kept],
        )
        return rows, [self.indices[n] for n in sorted(odd)]

    def _are_usual(self) -> bool:
        """Whether all values are, told quickly: some that are may be missed."""
        for letters, longest, column in zip(_LETTERS, _LONGEST, self.columns, strict=True):
            if b"".join(column).translate(None, letters) or max(map(len, column), default=0) > longest:
                return False
        written = self.columns[_POSITION]
        try:
            list(map(int, filter(None, self.columns[_NUMBER])))
            points = set(map(_SEPARATORS, written)) == {2} and self.positions is not None
        except ValueError:
            return False
        return points or not any(written)


class UniformFiles:
    """
    Files of one series that differ in nothing but what :data:`OF_EACH` lists.

    Parameters
    ----------
    prototype : Instance
        What is the same for all.
    rows : InstanceColumns
        What differs.

    Attributes
    ----------
    names : list of str
        The paths of the files.
    indices : list of int
        Their numbers.
    """

    def __init__(self, prototype: Instance, rows: InstanceColumns) -> None:
        self.prototype = prototype
        self.names = rows.names
        self.indices = rows.indices
        self._rows = rows
        self._made: dict[int, Instance] = {}

    @property
    def positions(self) -> npt.NDArray[np.float64] | None:
        """(n, 3) Image Position (Patient), LPS millimeters; None if one has none, or an absurd one."""
        return self._rows.positions

    def instance(self, row: int) -> Instance:
        """Return what reading the header of that file alone gives."""
        if row not in self._made:
            number = self._rows.columns[_NUMBER][row]
            plain = self.prototype.facts[0]
            self._made[row] = replace(
                self.prototype,
                blob=Blob(self.names[row]),
                acquisition=self._rows.acquisitions[row],
                sop_instance_uid=self._rows.columns[_UID][row].decode("ascii"),
                instance_number=int(number) if number else None,
                facts=(replace(plain, position=self._place(row), temporal_attributes=self._moments(row)),),
            )
        return self._made[row]

    def written(self, row: int) -> list[str]:
        """Return the values of :data:`OF_EACH` of a file, as they are written."""
        return [column[row].decode("ascii") for column in self._rows.columns]

    def _place(self, row: int) -> tuple[float, float, float] | None:
        value = self._rows.columns[_POSITION][row]
        if not value:
            return None
        x, y, z = map(float, value.split(b"\\"))
        return (x, y, z) if max(abs(x), abs(y), abs(z)) <= frame_attributes.MAX_COORDINATE_MM else None

    def _moments(self, row: int) -> tuple[FrameAttribute, ...]:
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


def find_uniform_files(
    prototype: Instance, series: tuple[bytes, ...], rows: InstanceColumns
) -> UniformFiles | None:
    """
    Return the files of a series.

    Parameters
    ----------
    prototype : Instance
        A file that is as these in all but what :data:`OF_EACH` and :data:`OF_SERIES` list.
    series : tuple of bytes
        The values of :data:`OF_SERIES`, without the zeros that fill them up.
    rows : InstanceColumns
        The files.

    Returns
    -------
    Alike or None
        None if what identifies the series is written in a way that takes a parser.
    """
    *uids, number, patient, described = series
    usual = (
        all(_IDENTIFIER.fullmatch(uid) for uid in uids)
        and (not number or _WHOLE.fullmatch(number))
        and _PLAIN_TEXT.fullmatch(patient)
        and _DESCRIPTION.fullmatch(described)
    )
    if not usual:
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
