"""
Block templates: files with the same elements in the same order, walked once and verified for many.

Many headers are in one block of memory, one per row. Given the lengths that may differ, the position of every
element is known, and verified by comparing every element header (tag, VR, length) with the expected one. A
walk of the row would visit the same headers. DICOM lengths are even: everything is counted in 16-bit words.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg.io.dicom.header.elements import TRANSFER_SYNTAX_TAG, UNDEFINED_LENGTH, ElementOffsets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.elements import Element

__all__ = ["Block", "BlockTemplate", "ElementSlot", "LocatedRows"]

_PREFIX: Final = (64, 65)
_PIXEL_GROUP: Final = 0x7FE0
#: Elements whose length varies in most series: UIDs, dates and times, current and exposure, numbers and
#: positions.
_USUALLY_ELASTIC: Final = frozenset(
    (
        0x00020003, 0x00080013, 0x00080018, 0x0008002A, 0x00080032, 0x00080033, 0x00181151, 0x00181152,
        0x00200013, 0x00200032, 0x00201041,
    )
)  # fmt: skip
#: In implicit headers, the least length whose two bytes could be read as a VR.
_LETTERS: Final = 0x4141


class Block:
    """First bytes of files: `starts` (files, width), width a multiple of 8, and `counts` (files,) read."""

    def __init__(self, starts: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> None:
        self.starts = starts
        self.counts = counts
        self.words = starts.view(np.uint16).reshape(-1)

    @property
    def width(self) -> int:
        """Bytes per row."""
        return int(self.starts.shape[1])

    def get_head(self, row: int) -> bytes:
        """Return the bytes of one file."""
        return self.starts[row, : self.counts[row]].tobytes()


class ElementSlot(NamedTuple):
    """Start and end of a value, and its VR."""

    start: int
    stop: int
    vr: bytes


class _Gatherer:
    """Words of a template, in runs between the elements whose length varies."""

    def __init__(self, parts: Iterable[tuple[int, Iterable[int]]]) -> None:
        runs: dict[int, list[int]] = {}
        for slot, words in parts:
            runs.setdefault(slot, []).extend(words)
        self.words = np.array([word for run in runs.values() for word in run], np.int64)
        self._runs: list[tuple[int, slice]] = []
        self._at = np.empty((0, self.words.size), np.int64)
        self._found = np.empty((0, self.words.size), np.uint16)
        at = 0
        for slot, run in runs.items():
            self._runs.append((slot, slice(at, at + len(run))))
            at += len(run)

    def gather(
        self, words: npt.NDArray[np.uint16], starts: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[np.uint16]:
        """Return these words (rows, words), valid until the next call, given the start of each run."""
        count = len(starts[0])
        if len(self._at) < count:
            # reused, as allocation costs more than the work
            self._at = np.empty((count, self.words.size), np.int64)
            self._found = np.empty((count, self.words.size), np.uint16)
        at = self._at[:count]
        for slot, run in self._runs:
            np.add(starts[slot][:, None], self.words[run], out=at[:, run])
        return words.take(at, out=self._found[:count], mode="clip")


class BlockTemplate:
    """Elements in their order, some of varying length, and which of them are `wanted`."""

    def __init__(self, offsets: ElementOffsets, head: bytes, wanted: frozenset[int]) -> None:
        self.elements = [*offsets.elements, offsets.pixels]
        self.end = offsets.pixels.value
        self.numbers = {
            e.tag: number for number, e in enumerate(offsets.elements) if e.depth == 0 and e.tag in wanted
        }
        self._head = np.frombuffer(head[: self.end], np.uint16)
        self._elastic = [n for n, e in enumerate(offsets.elements) if e.tag in _USUALLY_ELASTIC]
        self._tables: dict[frozenset[int], tuple[_Gatherer, list[int]]] = {}

    @staticmethod
    def make_signature(offsets: ElementOffsets) -> tuple[Any, ...]:
        """Return what headers of one template have in common."""
        parts = [(e.tag, e.vr, e.depth, e.length == UNDEFINED_LENGTH) for e in offsets.elements]
        return (offsets.syntax, offsets.pixels.tag, offsets.pixels.vr, *parts)

    def stretch(self, offsets: ElementOffsets) -> None:
        """Let lengths vary that differ in another header of the same signature."""
        differing = {
            number
            for number, (known, found) in enumerate(zip(self.elements, offsets.elements, strict=False))
            if known.length != found.length and known.tag != TRANSFER_SYNTAX_TAG
        }
        if not differing.issubset(self._elastic):
            self._elastic = sorted(differing.union(self._elastic))
            self.__dict__.pop("_fixed_words", None)
            self.__dict__.pop("places", None)
            self._tables.clear()

    def count_elastic_before(self, number: int) -> int:
        """Return the number of elements of varying length before the value of an element."""
        return bisect_left(self._elastic, number)

    def is_elastic(self, number: int) -> bool:
        """Whether the length of an element varies."""
        return number in self._elastic

    @cached_property
    def places(self) -> dict[int, tuple[Element, int, int, int]]:
        """The wanted elements by tag, the runs in which each value begins and ends, and where it ends."""
        found = {}
        for tag, number in self.numbers.items():
            element, slot = self.elements[number], self.count_elastic_before(number)
            if element.length != UNDEFINED_LENGTH:
                stop = element.value + element.length
                found[tag] = element, slot, slot + self.is_elastic(number), stop
                continue
            following = self._find_following(number)
            found[tag] = element, slot, self.count_elastic_before(following), self.elements[following].at
        return found

    def _find_following(self, number: int) -> int:
        """Return the number of the next element at the top level."""
        return next(n for n in range(number + 1, len(self.elements)) if self.elements[n].depth == 0)

    @cached_property
    def _fixed_words(self) -> tuple[_Gatherer, npt.NDArray[np.uint16]]:
        """Words that all rows must have, and their values."""
        parts: list[tuple[int, Iterable[int]]] = [(0, _PREFIX)]
        for number, element in enumerate(self.elements):
            parts.append((self.count_elastic_before(number), self._list_header_words(number, element)))
            if element.tag == TRANSFER_SYNTAX_TAG:
                parts.append((self.count_elastic_before(number), _list_value_words(element)))
        gatherer = _Gatherer(parts)
        return gatherer, self._head[gatherer.words]

    def get_gatherer(self, tags: frozenset[int]) -> tuple[_Gatherer, list[int]]:
        """Return a gatherer of the values of some tags, and those of them with varying length."""
        if tags not in self._tables:
            chosen = [number for tag, number in self.numbers.items() if tag in tags]
            # elements of sequences of undefined length follow these
            nested = (n for number in chosen for n in range(number + 1, self._find_following(number)))
            numbers = sorted({*chosen, *nested})
            parts = [
                (self.count_elastic_before(n), _list_value_words(self.elements[n]))
                for n in numbers
                if self.elements[n].length != UNDEFINED_LENGTH and not self.is_elastic(n)
            ]
            self._tables[tags] = _Gatherer(parts), [n for n in numbers if self.is_elastic(n)]
        return self._tables[tags]

    def _list_header_words(self, number: int, element: Element) -> list[int]:
        first, offset = element.at // 2, _find_length_field(element)[0] // 2
        named = [first + n for n in range(3 if element.vr else 2)]
        if element.tag >> 16 == _PIXEL_GROUP or self.is_elastic(number):
            return named
        return named + list(range(first + offset, element.value // 2))

    def locate(
        self, block: Block, rows: npt.NDArray[np.int64]
    ) -> tuple[LocatedRows | None, npt.NDArray[np.int64]]:
        """Return those of the `rows` (n,) of a block that match the template, and the others."""
        starts, is_usual = self._find_starts(block, rows)
        is_usual &= 2 * (starts[-1] - rows * (block.width // 2)) + self.end <= block.counts[rows]
        candidates = np.flatnonzero(is_usual)
        gatherer, expected = self._fixed_words
        words = gatherer.gather(block.words, [start[candidates] for start in starts])
        met = candidates[(words == expected).all(axis=1)]
        if not met.size:
            return None, rows
        is_usual[:] = False
        is_usual[met] = True
        return LocatedRows(self, block, rows[met], [start[met] for start in starts]), rows[~is_usual]

    def _find_starts(
        self, block: Block, rows: npt.NDArray[np.int64]
    ) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]:
        """Return the words before each run, less those of the template, and which lengths are valid."""
        start = rows * (block.width // 2)
        starts, is_usual = [start], np.ones(len(rows), np.bool_)
        for number in self._elastic:
            element = self.elements[number]
            offset, size = _find_length_field(element)
            position = start + (element.at + offset) // 2
            length = block.words.take(position, mode="clip").astype(np.int64)
            if size > 2:
                length |= block.words.take(position + 1, mode="clip").astype(np.int64) << 16
            most = block.width if element.vr else _LETTERS - 1
            is_usual &= (length & 1 == 0) & (length <= most)
            start = start + ((length - element.length) >> 1)
            starts.append(start)
        return starts, is_usual


@dataclass(frozen=True, slots=True)
class LocatedRows:
    """
    Rows of a block that match a template.

    `rows` (n,) are their indices; `starts` has for each run between elements of varying length the words
    before it in the block, less those of the template, (n,).
    """

    template: BlockTemplate
    block: Block
    rows: npt.NDArray[np.int64]
    starts: list[npt.NDArray[np.int64]]

    def get_slots(self, row: int, tags: frozenset[int]) -> dict[int, ElementSlot]:
        """Return the slots of the wanted values of one row."""
        first = int(self.rows[row]) * (self.block.width // 2)
        shifts = [2 * (int(start[row]) - first) for start in self.starts]
        found = {}
        for tag, (element, begins, ends, stop) in self.template.places.items():
            if tag in tags:
                found[tag] = ElementSlot(element.value + shifts[begins], stop + shifts[ends], element.vr)
        return found

    def read_table(self, tags: frozenset[int]) -> npt.NDArray[np.uint16]:
        """Return values side by side (n, words), valid until the next call: equal rows have equal values."""
        gatherer, elastic = self.template.get_gatherer(tags)
        tables = [gatherer.gather(self.block.words, self.starts)]
        for number in elastic:
            words, lengths = self._gather_elastic(number)
            tables += [words, lengths.astype(np.uint16)[:, None]]
        return np.concatenate(tables, axis=1) if len(tables) > 1 else tables[0]

    def read_texts(self, tag: int) -> list[bytes]:
        """Return a value of each row, without zero padding; empty if absent."""
        number = self.template.numbers.get(tag)
        if number is None:
            return [b""] * len(self.rows)
        if self.template.is_elastic(number):
            words, _ = self._gather_elastic(number)
        else:
            starts = self.starts[self.template.count_elastic_before(number)][:, None]
            words = self.block.words.take(
                starts + np.array(_list_value_words(self.template.elements[number]), np.int64)
            )
        if not words.shape[1]:
            return [b""] * len(self.rows)
        found: list[bytes] = words.view(f"S{2 * words.shape[1]}").ravel().tolist()
        return found

    def _gather_elastic(self, number: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """Return a value of varying length (n, words), padded with zeros, and its lengths in words."""
        element, slot = self.template.elements[number], self.template.count_elastic_before(number)
        lengths = element.length // 2 + self.starts[slot + 1] - self.starts[slot]
        within = np.arange(lengths.max())
        at = (self.starts[slot] + element.value // 2)[:, None] + within
        words = self.block.words.take(at, mode="clip")
        words[within >= lengths[:, None]] = 0
        return words, lengths


def _list_value_words(element: Element) -> range:
    return range(element.value // 2, (element.value + element.length) // 2)


def _find_length_field(element: Element) -> tuple[int, int]:
    """Return offset and size of the length in the header of an element, in bytes."""
    if not element.vr:
        return 4, 4
    return (6, 2) if element.value - element.at == 8 else (8, 4)
