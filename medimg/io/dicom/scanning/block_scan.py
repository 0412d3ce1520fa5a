"""Which of many DICOM files are alike, block by block; what is unusual is left for the parser."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import MedimgError
from medimg.io.dicom.header.elements import (
    UNDEFINED,
    ElementOffsets,
    UnusualHeaderError,
    element_offsets,
)
from medimg.io.dicom.header.instance import HEADER_TAGS, read_instance
from medimg.io.dicom.header.mosaic import CSA_TAGS
from medimg.io.dicom.header.open import numbers_of
from medimg.io.dicom.scanning._templates import Block, BlockTemplate, ElementSlot, Located
from medimg.io.dicom.scanning.series_table import (
    OF_EACH,
    OF_SERIES,
    InstanceColumns,
    UniformFiles,
    find_uniform_files,
    is_plain,
)
from medimg.io.files.blob import Blob
from medimg.io.files.prefetch import FileHeads, read_start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.instance import Instance

__all__ = ["scan_blocks"]

_OWN: Final = frozenset(tag for tag, _ in (*OF_EACH, *OF_SERIES))
#: What must be the same for all. Siemens' own header matters only if the rest says it is a mosaic.
_COMMON: Final = (HEADER_TAGS | numbers_of("SpecificCharacterSet", "TransferSyntaxUID")) - _OWN.union(
    CSA_TAGS
)
_WANTED: Final = _COMMON | _OWN
#: Layouts tried on a block, and walks that may find new ones, before its files are walked one by one.
_MOST_TRIED: Final = 6
_MOST_KNOWN: Final = 64
_LONGEST_HEAD: Final = 2**20
_LONGEST_VALUE: Final = 2**14
#: Where the position may be.
_GROUPS: Final = numbers_of("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_WIDEST: Final = 2**17
_FIRST_BLOCK: Final = 64
#: Kinds of files in a block that are told apart all at once; more are, one by one.
_FEW: Final = 6


def scan_blocks(
    names: Sequence[str], *, workers: int | None = None, done: Callable[[int], object] | None = None
) -> tuple[list[UniformFiles], list[int]]:
    """
    Read the headers of files.

    Parameters
    ----------
    names : sequence of str
        Their paths.
    workers : int, optional
        Threads that read; see :class:`medimg.io.files.prefetch.FileHeads`.
    done : callable, optional
        Is told after each block how many files it had.

    Returns
    -------
    alike : list of UniformFiles
        Usual DICOM files, by series and kind.
    rest : list of int
        Which files are none, ascending.
    """
    collector = _Collector()
    at, size = 0, _FIRST_BLOCK
    with FileHeads(workers) as heads:
        while at < len(names):
            some = names[at : at + min(size, heads.max_files)]
            collector.add(Block(*heads.read(some)), some, at)
            heads.width = collector.width
            at, size = at + len(some), heads.max_files
            if done is not None:
                done(len(some))
    return collector.result()


_SHARED: Final = _COMMON.union(tag for tag, _ in OF_SERIES)
#: Tag, representation and length of all that is common; its values; what tells series apart.
_Name: TypeAlias = tuple[tuple[int, bytes, int], ...]
_Key: TypeAlias = tuple[_Name, bytes, tuple[bytes, ...]]


class _Kind:
    """Files that have all in common but what tells series apart and what is of each file."""

    def __init__(self, first: str) -> None:
        self._first = first
        self.series: dict[tuple[bytes, ...], InstanceColumns] = {}

    def rows(self, series: tuple[bytes, ...]) -> InstanceColumns:
        """Return the files of a series."""
        if series not in self.series:
            self.series[series] = InstanceColumns()
        return self.series[series]

    def prototype(self) -> Instance | None:
        """Return what is common; None where it takes more than one image, or is none."""
        try:
            found = read_instance(Blob(self._first))
        except MedimgError:
            return None
        return found if is_plain(found) else None


class _Collector:
    def __init__(self) -> None:
        self._layouts: OrderedDict[tuple[Any, ...], BlockTemplate] = OrderedDict()
        self._kinds: dict[tuple[_Name, bytes], _Kind] = {}
        self._rest: list[int] = []
        self.width = 8192

    def result(self) -> tuple[list[UniformFiles], list[int]]:
        """Return what has been found."""
        found, rest = [], list(self._rest)
        for kind in self._kinds.values():
            prototype = kind.prototype()
            for series, rows in kind.series.items():
                plain, odd = rows.without_odd()
                alike = find_uniform_files(prototype, series, plain) if prototype and plain.names else None
                if alike is None:
                    odd = rows.indices
                else:
                    found.append(alike)
                rest += odd
        return found, sorted(rest)

    def add(self, block: Block, names: Sequence[str], first: int) -> None:
        """Sort the files of a block."""
        pending = np.arange(len(names))
        for signature in reversed(tuple(self._layouts)[-_MOST_TRIED:]):
            before = pending.size
            pending = self._match(self._layouts[signature], block, pending, (names, first))
            if pending.size < before:
                self._layouts.move_to_end(signature)
            if not pending.size:
                return
        for _ in range(_MOST_TRIED):
            if not pending.size:
                return
            walked = self._walked(block, int(pending[0]), names, first)
            pending = pending[1:]
            if walked is not None:
                pending = self._match(self._layout(*walked), block, pending, (names, first))
        for row in pending.tolist():
            self._walked(block, row, names, first)

    def _match(
        self,
        layout: BlockTemplate,
        block: Block,
        pending: npt.NDArray[np.int64],
        files: tuple[Sequence[str], int],
    ) -> npt.NDArray[np.int64]:
        located, rest = layout.locate(block, pending)
        if located is not None:
            self._take(located, *files)
        return rest

    def _take(self, located: Located, names: Sequence[str], first: int) -> None:
        values = [located.texts(tag) for tag, _ in OF_EACH]
        rows = located.rows.tolist()
        for members in _alike(located.table(_SHARED)):
            chosen, own = rows, values
            if len(members) < len(rows):
                chosen = [rows[m] for m in members]
                own = [[column[m] for m in members] for column in values]
            key = _key(located.block.starts[chosen[0]].data, located.places(members[0]))
            if key is None:
                self._rest += [first + n for n in chosen]
                continue
            kind = self._kind(key[:2], names[chosen[0]])
            kind.rows(key[2]).extend([first + n for n in chosen], [names[n] for n in chosen], own)

    def _kind(self, key: tuple[_Name, bytes], name: str) -> _Kind:
        if key not in self._kinds:
            self._kinds[key] = _Kind(name)
        return self._kinds[key]

    def _walked(
        self, block: Block, row: int, names: Sequence[str], first: int
    ) -> tuple[ElementOffsets, bytes] | None:
        """Take a file by walking its header; return the walk and the header."""
        head = block.head(row)
        try:
            outline, head = _outlined(head, names[row], block.width)
        except UnusualHeaderError:
            self._rest.append(first + row)
            return None
        places = {
            e.tag: ElementSlot(e.value, UNDEFINED if e.length == UNDEFINED else e.value + e.length, e.vr)
            for e in outline.wanted(_WANTED)
        }
        key = _key(memoryview(head), places)
        if key is None:
            self._rest.append(first + row)
        else:
            own = [[_value(head, places.get(tag, _NOWHERE))] for tag, _ in OF_EACH]
            kind = self._kind(key[:2], names[row])
            kind.rows(key[2]).extend([first + row], [names[row]], own)
        return outline, head

    def _layout(self, outline: ElementOffsets, head: bytes) -> BlockTemplate:
        signature = BlockTemplate.signature(outline)
        if signature in self._layouts:
            self._layouts[signature].stretch(outline)
        else:
            self._layouts[signature] = BlockTemplate(outline, head, _WANTED)
            if len(self._layouts) > _MOST_KNOWN:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(signature)
        end = outline.pixels.value
        if self.width < end <= _WIDEST:
            self.width = min(_WIDEST, -(-(end + end // 8) // 4096) * 4096)
        return self._layouts[signature]


def _outlined(head: bytes, name: str, width: int) -> tuple[ElementOffsets, bytes]:
    """Walk a header, of which more is read as long as it goes on."""
    while True:
        try:
            return element_offsets(head), head
        except UnusualHeaderError as error:
            if not error.ends or len(head) < width or width >= _LONGEST_HEAD:
                raise
        width *= 8
        head = read_start(name, width)


def _key(head: memoryview, places: Mapping[int, ElementSlot]) -> _Key | None:
    """Return what a file shares with others; None where something is not as it usually is."""
    for tag, vr in (*OF_EACH, *OF_SERIES):
        if tag in places and places[tag].vr not in (vr, b""):
            return None
    if not _GROUPS.isdisjoint(places) or any(p.stop - p.start > _LONGEST_VALUE for p in places.values()):
        return None
    common = [(tag, place) for tag, place in places.items() if tag in _COMMON]
    name = tuple((tag, vr, stop - start) for tag, (start, stop, vr) in common)
    values = b"".join(head[start:stop] for _, (start, stop, _) in common)
    return name, values, tuple(_value(head, places.get(tag, _NOWHERE)) for tag, _ in OF_SERIES)


_NOWHERE: Final = ElementSlot(0, 0, b"")


def _value(head: memoryview | bytes, place: ElementSlot) -> bytes:
    """Return a value without the zeros that fill it up."""
    return bytes(head[place.start : place.stop]).rstrip(b"\0")


def _alike(table: npt.NDArray[np.uint16]) -> list[npt.NDArray[np.int64]]:
    """Return which rows of a table are the same."""
    found: list[npt.NDArray[np.int64]] = []
    rest = np.arange(len(table))
    while rest.size and len(found) < _FEW:
        same = (table[rest] == table[rest[0]]).all(axis=1)
        found.append(rest[same])
        rest = rest[~same]
    members: dict[bytes, list[int]] = {}
    for row in rest.tolist():
        members.setdefault(table[row].tobytes(), []).append(row)
    return [*found, *map(np.asarray, members.values())]
