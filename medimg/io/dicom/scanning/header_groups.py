"""
Header groups: files whose headers differ only in a few elements, which the bytes of the headers alone show.

Files of one class are equal in all elements that matter, but for those of a file and those of a series.
Headers are walked by the compiled library, or one after the other in Python where there is none.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from medimg._native.headers import HeaderScan, Role, WantedElement, WantedElements
from medimg._native.library import load_library
from medimg.io.dicom.header.acquisition import (
    ACQUISITION_TAGS,
    MAX_VALUE_BYTES,
    AcquisitionElements,
    pack_element,
)
from medimg.io.dicom.header.elements import (
    WALKED_SYNTAXES,
    ElementLocator,
    UnusualHeaderError,
    locate_elements,
)
from medimg.io.dicom.header.instance import HEADER_TAGS
from medimg.io.dicom.header.mosaic import CSA_TAGS
from medimg.io.dicom.header.open import to_tag_numbers
from medimg.io.dicom.header.transfer_syntax import IMPLICIT
from medimg.io.dicom.scanning.series_table import (
    FILE_ELEMENTS,
    SERIES_ELEMENTS,
    FileRow,
    InstanceColumns,
    ValueColumn,
)
from medimg.io.files.regular_file import read_start

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Sequence

    from medimg.io.dicom.header.elements import ElementOffsets

__all__ = ["HeaderGroup", "HeaderGroups", "make_header_groups"]

_OWN: Final = dict((*FILE_ELEMENTS, *SERIES_ELEMENTS))
#: Elements that must be equal. The Siemens header matters only if others indicate a mosaic.
_COMMON: Final = (HEADER_TAGS | to_tag_numbers("SpecificCharacterSet", "TransferSyntaxUID")) - {
    *_OWN,
    *CSA_TAGS,
}
#: Sequences that may contain the position.
_GROUPS: Final = to_tag_numbers("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_WANTED: Final = _COMMON | _OWN.keys() | ACQUISITION_TAGS
#: All that files of one class and acquisition have in common.
_SHARED: Final = _WANTED - _OWN.keys()
_MAX_VALUE: Final = 2**14
#: Bytes of a header that are read first, and at most.
_FIRST_READ: Final = 2**13
_MAX_HEAD: Final = 2**22
#: Files that a thread reads at once.
_CHUNK: Final = 16
#: Distinct headers, apart from elements of files and series, whose class is remembered.
_MAX_SHARED: Final = 2**12
_NO_VALUES: Final = dict.fromkeys(_OWN, b"")


class HeaderGroup(NamedTuple):
    """Files of one class and series: the values of :data:`SERIES_ELEMENTS`, and a row for each file."""

    header_class: int
    series: tuple[bytes, ...]
    rows: InstanceColumns


class HeaderGroups(Protocol):
    """Collects files; those that are left to the parser are in no group."""

    def add(self, names: Sequence[str], threads: int) -> None:
        """Read the headers of more files."""

    def finish(self) -> tuple[list[HeaderGroup], list[int]]:
        """Return the groups, and the indices of all other files, ascending."""


def make_header_groups() -> HeaderGroups:
    """Return an empty collection."""
    library = load_library()
    return PlainHeaderGroups() if library is None else CompiledHeaderGroups(library)


class CompiledHeaderGroups:
    """Header groups by the compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._names: list[str] = []
        self._scan = HeaderScan(
            library,
            _list_wanted(),
            max_value=_MAX_VALUE,
            max_acquisition=MAX_VALUE_BYTES,
            syntaxes=WALKED_SYNTAXES,
            implicit=IMPLICIT,
        )

    def add(self, names: Sequence[str], threads: int) -> None:
        """Read the headers of more files."""
        self._scan.add(names, threads)
        self._names += names

    def finish(self) -> tuple[list[HeaderGroup], list[int]]:
        """Return the groups, and the indices of all other files, ascending."""
        tables = self._scan.get_tables()
        acquisitions = [AcquisitionElements(packed) for packed in tables.packed_acquisitions]
        order = np.argsort(tables.groups, kind="stable")
        ends = np.cumsum(np.bincount(tables.groups + 1, minlength=len(tables.series) + 1))
        rest, *members = np.split(order, ends[:-1])
        starts = tables.offsets[:-1].reshape(-1, len(FILE_ELEMENTS))
        stops = tables.offsets[1:].reshape(-1, len(FILE_ELEMENTS))
        groups = []
        for number, chosen in enumerate(members):
            indices = chosen.tolist()
            rows = InstanceColumns(
                indices,
                [self._names[n] for n in indices],
                [
                    ValueColumn(tables.values, begin, end)
                    for begin, end in zip(starts[chosen].T, stops[chosen].T, strict=True)
                ],
                [acquisitions[n] if n >= 0 else None for n in tables.acquisitions[chosen].tolist()],
                tables.positions[chosen] if tables.regular[chosen].all() else None,
            )
            groups.append(HeaderGroup(int(tables.classes[number]), tables.series[number], rows))
        return groups, rest.tolist()


@cache
def _list_wanted() -> WantedElements:
    """Return what the compiled scan keeps."""
    files, series = ({tag: n for n, (tag, _) in enumerate(e)} for e in (FILE_ELEMENTS, SERIES_ELEMENTS))
    tags_of = {
        Role.COMMON: _COMMON,
        Role.FILE: files,
        Role.SERIES: series,
        Role.ACQUISITION: ACQUISITION_TAGS,
        Role.REFUSED: _GROUPS,
    }
    wanted = []
    for tag in sorted(_WANTED):
        roles = reduce(or_, (role for role, tags in tags_of.items() if tag in tags))
        wanted.append(WantedElement(tag, _OWN.get(tag, b""), roles, files.get(tag, series.get(tag, 0))))
    return WantedElements(wanted)


class PlainHeaderGroups:
    """Header groups without the compiled library."""

    def __init__(self) -> None:
        self._locator = ElementLocator(_OWN, joined=_SHARED)
        self._classes: dict[bytes, int] = {}  # by the common elements
        self._groups: dict[tuple[int, tuple[bytes, ...]], list[FileRow]] = {}
        self._acquisitions: dict[bytes, AcquisitionElements] = {}
        self._shared: dict[bytes, tuple[int, AcquisitionElements | None] | None] = {}
        self._rest: list[int] = []
        self._count = 0

    def add(self, names: Sequence[str], threads: int) -> None:
        """Read the headers of more files."""
        chunks = [names[at : at + _CHUNK] for at in range(0, len(names), _CHUNK)]
        with ThreadPoolExecutor(threads) as pool:
            read = map if threads == 1 else pool.map
            for some, heads in zip(chunks, read(_read_first, chunks), strict=True):
                for name, head in zip(some, heads, strict=True):
                    if not self._add(name, head):
                        self._rest.append(self._count)
                    self._count += 1

    def finish(self) -> tuple[list[HeaderGroup], list[int]]:
        """Return the groups, and the indices of all other files, ascending."""
        found = self._groups.items()
        return [HeaderGroup(*key, InstanceColumns.from_rows(rows)) for key, rows in found], self._rest

    def _add(self, name: str, head: bytes) -> bool:
        """Add a file; False if it is left to the parser."""
        try:
            head, offsets = self._locate(name, head)
        except UnusualHeaderError:
            return False
        own = _NO_VALUES.copy()
        for tag, _, value, _, vr, end in offsets.elements:
            if vr not in (_OWN[tag], b"") or end - value > _MAX_VALUE:
                return False
            own[tag] = head[value:end].rstrip(b"\0")
        shared = offsets.joined
        if shared not in self._shared:
            if len(self._shared) >= _MAX_SHARED:
                self._shared.clear()
            self._shared[shared] = self._describe(head)
        known = self._shared[shared]
        if known is None:
            return False
        header_class, acquisition = known
        values = tuple(own.values())
        group = header_class, values[len(FILE_ELEMENTS) :]
        row = FileRow(self._count, name, values[: len(FILE_ELEMENTS)], acquisition)
        self._groups.setdefault(group, []).append(row)
        return True

    def _locate(self, name: str, head: bytes) -> tuple[bytes, ElementOffsets]:
        """Locate elements, reading more of the file as needed, and return what was read."""
        while True:
            try:
                return head, self._locator.locate(head)
            except UnusualHeaderError as error:
                if not error.ends or len(head) < _FIRST_READ or len(head) >= _MAX_HEAD:
                    raise
            longer = read_start(name, 8 * len(head))
            if len(longer) <= len(head):
                raise UnusualHeaderError
            head = longer

    def _describe(self, head: bytes) -> tuple[int, AcquisitionElements | None] | None:
        """Return class and acquisition of a header, of its shared elements alone; None if it is refused."""
        common: list[bytes] = []
        kept: list[bytes] | None = []
        for tag, at, value, _, vr, end in locate_elements(head, _SHARED).elements:
            is_common, size = tag in _COMMON, end - value
            if tag in _GROUPS or (is_common and size > _MAX_VALUE):
                return None
            if is_common:
                common.append(head[at:end])
            if tag in ACQUISITION_TAGS:
                if size > MAX_VALUE_BYTES:
                    kept = None
                elif kept is not None:
                    kept.append(pack_element(tag, vr, head[value:end]))
        header_class = self._classes.setdefault(b"".join(common), len(self._classes))
        if kept is None:
            return header_class, None
        joined = b"".join(kept)
        return header_class, self._acquisitions.setdefault(joined, AcquisitionElements(joined))


def _read_first(names: Sequence[str]) -> list[bytes]:
    return [read_start(name, _FIRST_READ) for name in names]
