"""
Layouts: files of one kind have the same elements in the same order, so that one walk serves many.

Many headers lie in one block of memory, one to a row. Where the elements of a row lie is known once the
lengths are that may differ; that they lie there is then proved by comparing every element header, tag,
representation and length, with those expected. Whoever walked the row would visit the same headers: each one
tells where the next one starts.

DICOM's lengths are even, so that all is counted in words of two bytes.
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

__all__ = ["Block", "BlockTemplate", "ElementSlot", "Located", "RawField"]

_PREFIX: Final = (64, 65)
_PIXEL_GROUP: Final = 0x7FE0
#: What differs in length between the files of most series: UIDs, dates and times, current and exposure,
#: numbers and places.
_USUALLY_ELASTIC: Final = frozenset(
    (
        0x00020003, 0x00080013, 0x00080018, 0x0008002A, 0x00080032, 0x00080033, 0x00181151, 0x00181152,
        0x00200013, 0x00200032, 0x00201041,
    )
)  # fmt: skip
#: In implicit headers, the least length of which two bytes could be taken for a value representation.
_LETTERS: Final = 0x4141


class Block:
    """
    The starts of files, one to a row.

    Parameters
    ----------
    starts : numpy.ndarray
        (files, width) uint8; the width is a multiple of 8.
    counts : numpy.ndarray
        (files,) int64: how many bytes of each row are of its file.
    """

    def __init__(self, starts: npt.NDArray[np.uint8], counts: npt.NDArray[np.int64]) -> None:
        self.starts = starts
        self.counts = counts
        self.words = starts.view(np.uint16).reshape(-1)

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return int(self.starts.shape[1])

    def head(self, row: int) -> bytes:
        """Return what is there of one file."""
        return self.starts[row, : self.counts[row]].tobytes()


class ElementSlot(NamedTuple):
    """Where a value starts and stops, and its representation; it stops at UNDEFINED if it has no length."""

    start: int
    stop: int
    vr: bytes


class RawField(NamedTuple):
    """Bytes of a row that hold a value; if its length varies, where its length in words is."""

    tag: int
    vr: bytes
    start: int
    stop: int
    words: int | None

    def value(self, row: bytes) -> bytes:
        """Return the value in a row."""
        if self.words is None:
            return row[self.start : self.stop]
        return row[self.start : self.start + 2 * int.from_bytes(row[self.words : self.words + 2], "little")]


class _Gatherer:
    """
    Words of a layout, in runs between the elements whose length varies.

    Parameters
    ----------
    parts : iterable of (int, iterable of int)
        The number of elements of varying length before some words, ascending, and where these words are.
    """

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

    def of(
        self, words: npt.NDArray[np.uint16], starts: Sequence[npt.NDArray[np.int64]]
    ) -> npt.NDArray[np.uint16]:
        """
        Return these words of each row, (rows, words), valid until the next call.

        `starts` has for each run the start of its rows.
        """
        count = len(starts[0])
        if len(self._at) < count:
            # used again, as fresh memory costs more than what is done with it
            self._at = np.empty((count, self.words.size), np.int64)
            self._found = np.empty((count, self.words.size), np.uint16)
        at = self._at[:count]
        for slot, run in self._runs:
            np.add(starts[slot][:, None], self.words[run], out=at[:, run])
        return words.take(at, out=self._found[:count], mode="clip")


class BlockTemplate:
    """
    Elements in their order, with lengths of which some may differ from file to file.

    Parameters
    ----------
    outline : ElementOffsets
        Of a header that has it.
    head : bytes
        That header.
    wanted : frozenset of int
        Tags of the elements whose values :class:`Located` gives.
    """

    def __init__(self, outline: ElementOffsets, head: bytes, wanted: frozenset[int]) -> None:
        self.elements = [*outline.elements, outline.pixels]
        self.end = outline.pixels.value
        self.numbers = {
            e.tag: number for number, e in enumerate(outline.elements) if e.depth == 0 and e.tag in wanted
        }
        self._head = np.frombuffer(head[: self.end], np.uint16)
        self._elastic = [n for n, e in enumerate(outline.elements) if e.tag in _USUALLY_ELASTIC]
        self._tables: dict[frozenset[int], tuple[_Gatherer, list[int]]] = {}

    @staticmethod
    def signature(outline: ElementOffsets) -> tuple[Any, ...]:
        """Return what two headers have in common if they are of one layout."""
        parts = [(e.tag, e.vr, e.depth, e.length == UNDEFINED_LENGTH) for e in outline.elements]
        return (outline.syntax, outline.pixels.tag, outline.pixels.vr, *parts)

    def stretch(self, outline: ElementOffsets) -> None:
        """Let the lengths vary in which another header of the same signature differs."""
        differing = {
            number
            for number, (known, found) in enumerate(zip(self.elements, outline.elements, strict=False))
            if known.length != found.length and known.tag != TRANSFER_SYNTAX_TAG
        }
        if not differing.issubset(self._elastic):
            self._elastic = sorted(differing.union(self._elastic))
            self.__dict__.pop("_checked", None)
            self._tables.clear()

    def slot(self, number: int) -> int:
        """Return how many elements of varying length lie before the value of an element."""
        return bisect_left(self._elastic, number)

    def is_elastic(self, number: int) -> bool:
        """Whether the length of an element varies."""
        return number in self._elastic

    @cached_property
    def _checked(self) -> tuple[_Gatherer, npt.NDArray[np.uint16]]:
        """The words that all rows must have, and what they are."""
        parts: list[tuple[int, Iterable[int]]] = [(0, _PREFIX)]
        for number, element in enumerate(self.elements):
            parts.append((self.slot(number), self._header_words(number, element)))
            if element.tag == TRANSFER_SYNTAX_TAG:
                parts.append((self.slot(number), _value_words(element)))
        gatherer = _Gatherer(parts)
        return gatherer, self._head[gatherer.words]

    def tabled(self, tags: frozenset[int]) -> tuple[_Gatherer, list[int]]:
        """Return what gathers the values of some tags, and the elements of these whose length varies."""
        if tags not in self._tables:
            numbers = sorted(number for tag, number in self.numbers.items() if tag in tags)
            parts = [
                (self.slot(n), _value_words(self.elements[n]))
                for n in numbers
                if self.elements[n].length != UNDEFINED_LENGTH and not self.is_elastic(n)
            ]
            self._tables[tags] = _Gatherer(parts), [n for n in numbers if self.is_elastic(n)]
        return self._tables[tags]

    def _header_words(self, number: int, element: Element) -> list[int]:
        first, offset = element.at // 2, _length_field(element)[0] // 2
        named = [first + n for n in range(3 if element.vr else 2)]
        if element.tag >> 16 == _PIXEL_GROUP or self.is_elastic(number):
            return named
        return named + list(range(first + offset, element.value // 2))

    def locate(
        self, block: Block, rows: npt.NDArray[np.int64]
    ) -> tuple[Located | None, npt.NDArray[np.int64]]:
        """
        Find the rows of a block that have this layout.

        Parameters
        ----------
        block : Block
            The starts of files.
        rows : numpy.ndarray
            Which of its rows to look at.

        Returns
        -------
        found : Located or None
            Those that have it.
        rest : numpy.ndarray
            The others.
        """
        starts, usual = self._starts(block, rows)
        usual &= 2 * (starts[-1] - rows * (block.width // 2)) + self.end <= block.counts[rows]
        candidates = np.flatnonzero(usual)
        gatherer, expected = self._checked
        words = gatherer.of(block.words, [start[candidates] for start in starts])
        met = candidates[(words == expected).all(axis=1)]
        if not met.size:
            return None, rows
        usual[:] = False
        usual[met] = True
        return Located(self, block, rows[met], [start[met] for start in starts]), rows[~usual]

    def _starts(
        self, block: Block, rows: npt.NDArray[np.int64]
    ) -> tuple[list[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]:
        """Return for each run the words before it, less those of the layout, and which lengths are usual."""
        start = rows * (block.width // 2)
        starts, usual = [start], np.ones(len(rows), np.bool_)
        for number in self._elastic:
            element = self.elements[number]
            offset, size = _length_field(element)
            place = start + (element.at + offset) // 2
            length = block.words.take(place, mode="clip").astype(np.int64)
            if size > 2:
                length |= block.words.take(place + 1, mode="clip").astype(np.int64) << 16
            most = block.width if element.vr else _LETTERS - 1
            usual &= (length & 1 == 0) & (length <= most)
            start = start + ((length - element.length) >> 1)
            starts.append(start)
        return starts, usual


@dataclass(frozen=True, slots=True)
class Located:
    """
    Rows of a block whose layout is known.

    Attributes
    ----------
    layout : BlockTemplate
        What they have.
    block : Block
        Where they are.
    rows : numpy.ndarray
        (n,) int64: which rows they are.
    starts : list of numpy.ndarray
        For each run of elements between those of varying length, (n,) int64: the words before it in all of
        the block, less those of the layout.
    """

    layout: BlockTemplate
    block: Block
    rows: npt.NDArray[np.int64]
    starts: list[npt.NDArray[np.int64]]

    def places(self, row: int, tags: frozenset[int]) -> dict[int, ElementSlot]:
        """Return where the values of some tags of one of these lie in its file."""
        first = int(self.rows[row]) * (self.block.width // 2)
        numbers = self.layout.numbers
        return {tag: self._place(number, row, first) for tag, number in numbers.items() if tag in tags}

    def _place(self, number: int, row: int, first: int) -> ElementSlot:
        element, slot = self.layout.elements[number], self.layout.slot(number)
        start = element.value + 2 * (int(self.starts[slot][row]) - first)
        if element.length == UNDEFINED_LENGTH:
            return ElementSlot(start, UNDEFINED_LENGTH, element.vr)
        length = element.length
        if self.layout.is_elastic(number):
            length += 2 * int(self.starts[slot + 1][row] - self.starts[slot][row])
        return ElementSlot(start, start + length, element.vr)

    def table(self, tags: frozenset[int]) -> npt.NDArray[np.uint16]:
        """
        Return values side by side, (n, words): rows are equal if all of these values are.

        They are valid until the next call for rows of this layout.
        """
        gatherer, elastic = self.layout.tabled(tags)
        tables = [gatherer.of(self.block.words, self.starts)]
        for number in elastic:
            words, lengths = self._elastic(number)
            tables += [words, lengths.astype(np.uint16)[:, None]]
        return np.concatenate(tables, axis=1) if len(tables) > 1 else tables[0]

    def raw_rows(self, tags: frozenset[int]) -> tuple[list[RawField], list[bytes]]:
        """Return undecoded values of some tags, all values of a row in one bytes object, and their fields."""
        gatherer, elastic = self.layout.tabled(tags)
        tables = [gatherer.of(self.block.words, self.starts)]
        fields: list[RawField] = []
        at = 0
        for number in sorted(number for tag, number in self.layout.numbers.items() if tag in tags):
            element = self.layout.elements[number]
            if element.length == UNDEFINED_LENGTH or number in elastic:
                continue
            fields.append(RawField(element.tag, element.vr, at, at + element.length, None))
            at += element.length
        for number in elastic:
            element, (words, lengths) = self.layout.elements[number], self._elastic(number)
            end = at + 2 * words.shape[1]
            fields.append(RawField(element.tag, element.vr, at, end, end))
            tables += [words, lengths.astype(np.uint16)[:, None]]
            at = end + 2
        data = np.concatenate(tables, axis=1).tobytes()
        return fields, [data[at * n : at * (n + 1)] for n in range(len(self.rows))]

    def texts(self, tag: int) -> list[bytes]:
        """Return a value of each row, without the zeros that fill it up; empty where it is absent."""
        number = self.layout.numbers.get(tag)
        if number is None:
            return [b""] * len(self.rows)
        if self.layout.is_elastic(number):
            words, _ = self._elastic(number)
        else:
            starts = self.starts[self.layout.slot(number)][:, None]
            words = self.block.words.take(
                starts + np.array(_value_words(self.layout.elements[number]), np.int64)
            )
        if not words.shape[1]:
            return [b""] * len(self.rows)
        found: list[bytes] = words.view(f"S{2 * words.shape[1]}").ravel().tolist()
        return found

    def _elastic(self, number: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """Return a value of varying length, (n, words), filled up with zeros, and its lengths in words."""
        element, slot = self.layout.elements[number], self.layout.slot(number)
        lengths = element.length // 2 + self.starts[slot + 1] - self.starts[slot]
        within = np.arange(lengths.max())
        at = (self.starts[slot] + element.value // 2)[:, None] + within
        words = self.block.words.take(at, mode="clip")
        words[within >= lengths[:, None]] = 0
        return words, lengths


def _value_words(element: Element) -> range:
    return range(element.value // 2, (element.value + element.length) // 2)


def _length_field(element: Element) -> tuple[int, int]:
    """Return where the length stands in the header of an element, and how many bytes it has."""
    if not element.vr:
        return 4, 4
    return (6, 2) if element.value - element.at == 8 else (8, 4)
