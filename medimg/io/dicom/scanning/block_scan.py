"""Block scan: groups many DICOM files into uniform ones; irregular files are left to the parser."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import MedimgError
from medimg.io.dicom.header.acquisition import ACQUISITION_TAGS, MAX_VALUE_BYTES, AcquisitionElements
from medimg.io.dicom.header.elements import (
    UNDEFINED_LENGTH,
    ElementOffsets,
    UnusualHeaderError,
    locate_elements,
)
from medimg.io.dicom.header.instance import HEADER_TAGS, read_instance
from medimg.io.dicom.header.mosaic import CSA_TAGS
from medimg.io.dicom.header.open import to_tag_numbers
from medimg.io.dicom.scanning._templates import Block, BlockTemplate, ElementSlot, LocatedRows
from medimg.io.dicom.scanning.series_table import (
    FILE_ELEMENTS,
    SERIES_ELEMENTS,
    InstanceColumns,
    UniformFiles,
    build_uniform_files,
    is_plain,
)
from medimg.io.files.blob import Blob
from medimg.io.files.prefetch import FileHeads, read_start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.instance import Instance

__all__ = ["scan_blocks"]

_OWN_VRS: Final = (*FILE_ELEMENTS, *SERIES_ELEMENTS)
_OWN: Final = frozenset(tag for tag, _ in _OWN_VRS)
#: Elements that must be equal. The Siemens header matters only if others indicate a mosaic.
_COMMON: Final = (HEADER_TAGS | to_tag_numbers("SpecificCharacterSet", "TransferSyntaxUID")) - _OWN.union(
    CSA_TAGS
)
_WANTED: Final = _COMMON | _OWN
_KEPT: Final = _WANTED | ACQUISITION_TAGS
#: Templates tried on a block, and walks that may find new ones, before files are walked one by one.
_MAX_TRIED: Final = 6
_MAX_KNOWN: Final = 64
_MAX_HEAD: Final = 2**20
_MAX_VALUE: Final = 2**14
#: Sequences that may contain the position.
_GROUPS: Final = to_tag_numbers("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_MAX_WIDTH: Final = 2**17
_FIRST_BLOCK: Final = 64
#: Groups of a block that are found by comparing arrays; further ones row by row.
_FEW_GROUPS: Final = 6
#: Makes a named tuple in a third of the time.
_make_tuple: Final = tuple.__new__


def scan_blocks(
    names: Sequence[str], *, workers: int | None = None, done: Callable[[int], object] | None = None
) -> tuple[list[UniformFiles], list[int]]:
    """
    Return the regular DICOM files among `names`, by series, and the indices of the others, ascending.

    `done` is called after each block with the number of its files.
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
    return collector.finish()


_SHARED: Final = _COMMON.union(tag for tag, _ in SERIES_ELEMENTS)
#: Tag, VR and length of common elements; their values; the values of the series.
_Name: TypeAlias = tuple[tuple[int, bytes, int], ...]
_Key: TypeAlias = tuple[_Name, bytes, tuple[bytes, ...]]


class _HeaderClass:
    """Files that differ only in series and file elements."""

    def __init__(self, first: str) -> None:
        self._first = first
        self.series: dict[tuple[bytes, ...], InstanceColumns] = {}

    def get_columns(self, series: tuple[bytes, ...]) -> InstanceColumns:
        """Return the files of a series."""
        if series not in self.series:
            self.series[series] = InstanceColumns()
        return self.series[series]

    def read_prototype(self) -> Instance | None:
        """Return the common header; None if the files are not single images."""
        try:
            found = read_instance(Blob(self._first))
        except MedimgError:
            return None
        return found if is_plain(found) else None


class _Collector:
    def __init__(self) -> None:
        self._templates: OrderedDict[tuple[Any, ...], BlockTemplate] = OrderedDict()
        self._classes: dict[tuple[_Name, bytes], _HeaderClass] = {}
        self._rest: list[int] = []
        self._acquisitions: dict[bytes, AcquisitionElements] = {}
        self.width = 8192

    def finish(self) -> tuple[list[UniformFiles], list[int]]:
        """Return the uniform files, and the indices of the others."""
        found, rest = [], list(self._rest)
        for header_class in self._classes.values():
            prototype = header_class.read_prototype()
            for series, rows in header_class.series.items():
                regular, irregular = rows.split_irregular()
                uniform = (
                    build_uniform_files(prototype, series, regular) if prototype and regular.names else None
                )
                if uniform is None:
                    irregular = rows.indices
                else:
                    found.append(uniform)
                rest += irregular
        return found, sorted(rest)

    def add(self, block: Block, names: Sequence[str], first: int) -> None:
        """Group the files of a block."""
        pending = np.arange(len(names))
        for signature in reversed(tuple(self._templates)[-_MAX_TRIED:]):
            before = pending.size
            pending = self._match(self._templates[signature], block, pending, (names, first))
            if pending.size < before:
                self._templates.move_to_end(signature)
            if not pending.size:
                return
        for _ in range(_MAX_TRIED):
            if not pending.size:
                return
            walk = self._walk(block, int(pending[0]), names, first)
            pending = pending[1:]
            if walk is not None:
                pending = self._match(self._get_template(*walk), block, pending, (names, first))
        for row in pending.tolist():
            self._walk(block, row, names, first)

    def _match(
        self,
        template: BlockTemplate,
        block: Block,
        pending: npt.NDArray[np.int64],
        files: tuple[Sequence[str], int],
    ) -> npt.NDArray[np.int64]:
        located, rest = template.locate(block, pending)
        if located is not None:
            self._assign(located, *files)
        return rest

    def _assign(self, located: LocatedRows, names: Sequence[str], first: int) -> None:
        values = [located.read_texts(tag) for tag, _ in FILE_ELEMENTS]
        rows = located.rows.tolist()
        for members in _group_rows(located.read_table(_SHARED | ACQUISITION_TAGS)):
            chosen, own = rows, values
            if len(members) < len(rows):
                chosen = [rows[m] for m in members]
                own = [[column[m] for m in members] for column in values]
            head = located.block.starts[chosen[0]].data
            slots = located.get_slots(members[0], _KEPT)
            key = _make_key(head, {tag: slot for tag, slot in slots.items() if tag in _WANTED})
            if key is None:
                self._rest += [first + n for n in chosen]
                continue
            acquisition = self._pack_acquisition(head, slots)
            header_class = self._get_class(key[:2], names[chosen[0]])
            header_class.get_columns(key[2]).extend(
                [first + n for n in chosen], [names[n] for n in chosen], own, [acquisition] * len(chosen)
            )

    def _pack_acquisition(
        self, head: memoryview, slots: Mapping[int, ElementSlot]
    ) -> AcquisitionElements | None:
        """Return what describes the acquisition of files; equal ones are one object."""
        chosen = [(tag, slot) for tag, slot in slots.items() if tag in ACQUISITION_TAGS]
        if any(slot.stop - slot.start > MAX_VALUE_BYTES for _, slot in chosen):
            return None
        packed = AcquisitionElements.pack(
            (tag, slot.vr, bytes(head[slot.start : slot.stop])) for tag, slot in chosen
        )
        return self._acquisitions.setdefault(packed.packed, packed)

    def _get_class(self, key: tuple[_Name, bytes], name: str) -> _HeaderClass:
        if key not in self._classes:
            self._classes[key] = _HeaderClass(name)
        return self._classes[key]

    def _walk(
        self, block: Block, row: int, names: Sequence[str], first: int
    ) -> tuple[ElementOffsets, bytes] | None:
        """Add a file by walking its header; return element offsets and header."""
        head = block.get_head(row)
        try:
            offsets, head = _walk_header(head, names[row], block.width)
        except UnusualHeaderError:
            self._rest.append(first + row)
            return None
        elements = offsets.select(_KEPT)
        slots = {
            e[0]: _make_tuple(
                ElementSlot,
                (e[2], e[2] + e[3] if e[3] != UNDEFINED_LENGTH else offsets.find_end(e), e[4]),
            )
            for e in elements
            if e[0] in _WANTED
        }
        key = _make_key(memoryview(head), slots)
        if key is None:
            self._rest.append(first + row)
        else:
            own = [[_get_value(head, slots.get(tag, _NO_SLOT))] for tag, _ in FILE_ELEMENTS]
            header_class = self._get_class(key[:2], names[row])
            acquisition = AcquisitionElements.from_header(
                head, [e for e in elements if e[0] in ACQUISITION_TAGS]
            )
            header_class.get_columns(key[2]).extend([first + row], [names[row]], own, [acquisition])
        return offsets, head

    def _get_template(self, offsets: ElementOffsets, head: bytes) -> BlockTemplate:
        signature = BlockTemplate.make_signature(offsets)
        if signature in self._templates:
            self._templates[signature].stretch(offsets)
        else:
            self._templates[signature] = BlockTemplate(offsets, head, _KEPT)
            if len(self._templates) > _MAX_KNOWN:
                self._templates.popitem(last=False)
        self._templates.move_to_end(signature)
        end = offsets.pixels.value
        if self.width < end <= _MAX_WIDTH:
            self.width = min(_MAX_WIDTH, -(-(end + end // 8) // 4096) * 4096)
        return self._templates[signature]


def _walk_header(head: bytes, name: str, width: int) -> tuple[ElementOffsets, bytes]:
    """Walk a header, reading more of it as needed."""
    while True:
        try:
            return locate_elements(head), head
        except UnusualHeaderError as error:
            if not error.ends or len(head) < width or width >= _MAX_HEAD:
                raise
        width *= 8
        head = read_start(name, width)


def _make_key(head: memoryview, slots: Mapping[int, ElementSlot]) -> _Key | None:
    """Return the values that a file shares with others; None if it is irregular."""
    for tag, vr in _OWN_VRS:
        if tag in slots and slots[tag].vr not in (vr, b""):
            return None
    if not _GROUPS.isdisjoint(slots):
        return None
    name, values = [], []
    for tag, (start, stop, vr) in slots.items():
        if stop - start > _MAX_VALUE:
            return None
        if tag in _COMMON:
            name.append((tag, vr, stop - start))
            values.append(head[start:stop])
    series = tuple([_get_value(head, slots.get(tag, _NO_SLOT)) for tag, _ in SERIES_ELEMENTS])
    return tuple(name), b"".join(values), series


_NO_SLOT: Final = ElementSlot(0, 0, b"")


def _get_value(head: memoryview | bytes, slot: ElementSlot) -> bytes:
    """Return a value without zero padding."""
    return bytes(head[slot.start : slot.stop]).rstrip(b"\0")


def _group_rows(table: npt.NDArray[np.uint16]) -> list[npt.NDArray[np.int64]]:
    """Return groups of equal rows of a table."""
    found: list[npt.NDArray[np.int64]] = []
    rest = np.arange(len(table))
    while rest.size and len(found) < _FEW_GROUPS:
        same = (table[rest] == table[rest[0]]).all(axis=1)
        found.append(rest[same])
        rest = rest[~same]
    members: dict[bytes, list[int]] = {}
    for row in rest.tolist():
        members.setdefault(table[row].tobytes(), []).append(row)
    return [*found, *map(np.asarray, members.values())]
