"""
Offsets of the elements of a header, found by their lengths alone without parsing a value.

Only usual headers are walked: meta information, explicit or implicit little endian, ascending tags, even
lengths, pixel data last; pydicom reads all others. A walk costs some ten microseconds, as what repeats from
header to header is remembered; a dataset of the wanted elements can be built from it later.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag

from medimg.io.dicom.header.transfer_syntax import EXPLICIT, IMPLICIT, SYNTAXES

if TYPE_CHECKING:
    from collections.abc import Collection, Container, MutableSequence

__all__ = [
    "LAST_TAG",
    "LONG_VRS",
    "PIXEL_TAGS",
    "SHORT_VRS",
    "TRANSFER_SYNTAX_TAG",
    "UNDEFINED_LENGTH",
    "WALKED_SYNTAXES",
    "Element",
    "ElementLocator",
    "ElementOffsets",
    "UnusualHeaderError",
    "build_dataset",
    "locate_elements",
]

UNDEFINED_LENGTH: Final = 0xFFFFFFFF
#: Transfer syntaxes of the headers that are walked.
WALKED_SYNTAXES: Final = frozenset({EXPLICIT, IMPLICIT, *SYNTAXES})

#: Value representations of elements with a length of two bytes, and of four.
SHORT_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_EXPLICIT_ELEMENT: Final = struct.Struct("<HH2sH").unpack_from
_IMPLICIT_ELEMENT: Final = struct.Struct("<HHI").unpack_from
_LENGTH: Final = struct.Struct("<I").unpack_from
#: Makes a named tuple in a third of the time.
_make_tuple: Final = tuple.__new__
_META: Final = 0x0002
_META_GROUP: Final = b"\2\0"
_META_LENGTH: Final = 0x00020000
TRANSFER_SYNTAX_TAG: Final = 0x00020010
_CHARACTER_SET_NUMBER: Final = 0x00080005
_CHARACTER_SET: Final = BaseTag(_CHARACTER_SET_NUMBER)
PIXEL_TAGS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LAST_TAG: Final = 0x7FE00010
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_MAX_DEPTH: Final = 16
_MAX_ELEMENTS: Final = 20_000
#: Bytes of a sequence that is parsed here; longer ones need the bounded parser.
_MAX_SEQUENCE_BYTES: Final = 2**16
_ALL_TAGS: Final = range(2**32)

#: Tag, bytes up to the next element (0: a sequence without length, or pixel data), bytes up to the value,
#: length of the value, and VR.
_Start: TypeAlias = tuple[int, int, int, int, bytes]
#: What eight bytes say that begin an element: headers repeat the same ones, whatever their layout.
_EXPLICIT_STARTS: Final[dict[bytes, _Start]] = {}
_IMPLICIT_STARTS: Final[dict[bytes, _Start]] = {}
_MAX_STARTS: Final = 2**13

#: A run of elements: its bytes, first and last tag, number of elements after the first, and joined bytes.
_Run: TypeAlias = tuple[bytes, int, int, int, bytes]
#: Runs by the eight bytes that they begin with.
_Runs: TypeAlias = dict[bytes, _Run]
_MAX_RUNS: Final = 2**8
#: Longer headers are walked element by element.
_MAX_RUN_BYTES: Final = 2**16
#: Headers between two collections of runs, at least.
_RUN_HEADERS: Final = 16


class UnusualHeaderError(Exception):
    """A header that can't be walked, never raised to users; `ends`: the bytes end before it does."""

    def __init__(self, *, ends: bool = False) -> None:
        super().__init__()
        self.ends = ends


class Element(NamedTuple):
    """Offsets in a file of an element at the top level."""

    tag: int
    at: int  # of the element
    value: int  # of its value
    length: int  # of the value; UNDEFINED_LENGTH if it has none
    vr: bytes  # empty if implicit
    end: int  # where the next element begins; that of pixel data, which are not walked, is their value


@dataclass(frozen=True, slots=True)
class ElementOffsets:
    """Offsets of elements of a header, and bytes of others, in the order of the file."""

    syntax: str  # Transfer Syntax UID
    elements: list[Element]  # before the pixel data
    joined: bytes
    pixels: Element
    in_runs: bool = field(default=False, compare=False)  # most elements were

    @property
    def is_implicit(self) -> bool:
        """Whether the dataset is in implicit VR."""
        return self.syntax == IMPLICIT


def locate_elements(
    head: bytes,
    tags: Container[int] = _ALL_TAGS,
    *,
    joined: Container[int] = (),
    runs: tuple[_Runs, _Runs] = ({}, {}),
) -> ElementOffsets:
    """
    Walk the start of a file; return offsets of the elements `tags`, and the bytes of the elements `joined`.

    `runs` are those of explicit and of implicit VR. UnusualHeaderError is raised if the header is unusual or
    ends before the pixel values.
    """
    if head[128:132] != b"DICM":
        raise UnusualHeaderError
    try:
        return _walk_elements(head, tags, joined, runs)
    except struct.error:
        raise UnusualHeaderError(ends=True) from None


def _walk_elements(
    head: bytes, tags: Container[int], joined: Container[int], known: tuple[_Runs, _Runs]
) -> ElementOffsets:
    meta, syntax, at = _walk_meta(head)
    implicit = syntax == IMPLICIT
    letters = head[at + 4 : at + 6]
    if implicit and letters.isalpha() and letters.isupper():
        raise UnusualHeaderError
    elements = [element for element in meta if element[0] in tags]
    parts = [head[element[1] : element[5]] for element in meta if element[0] in joined]
    starts, runs = _IMPLICIT_STARTS if implicit else _EXPLICIT_STARTS, known[implicit]
    last, walked = 0, len(meta)
    # one loop up to the pixel data, as it runs a hundred times per file
    for count in range(_MAX_ELEMENTS + 1):
        eight = head[at : at + 8]
        run = runs.get(eight)
        if run is not None and run[1] > last and head.startswith(run[0], at):
            data, _, last, more, part = run
            walked += more
            parts.append(part)
            at += len(data)
            continue
        tag, step, size, length, vr = starts.get(eight) or _read_start(head, at, starts, implicit=implicit)
        if tag <= last:
            raise UnusualHeaderError
        last = tag
        if step:
            end = at + step
        elif tag not in PIXEL_TAGS:
            end, walked = _walk_sequence(head, at + size, vr, walked, implicit=implicit)
        elif count + walked > _MAX_ELEMENTS:
            break
        else:
            pixels = Element(tag, at, at + size, length, vr, at + size)
            return ElementOffsets(syntax, elements, b"".join(parts), pixels, count < walked)
        if tag in joined:
            parts.append(head[at:end])
        if tag in tags:
            elements.append(_make_tuple(Element, (tag, at, at + size, length, vr, end)))
        at = end
    raise UnusualHeaderError


def _walk_meta(head: bytes) -> tuple[list[Element], str, int]:
    """Return the meta information, the Transfer Syntax UID if it is known, and the offset of the dataset."""
    elements: list[Element] = []
    at, last, syntax = 132, 0, ""
    while head[at : at + 2] == _META_GROUP:
        start = _EXPLICIT_STARTS.get(head[at : at + 8])
        tag, step, size, length, vr = start or _read_start(head, at, _EXPLICIT_STARTS, implicit=False)
        # pydicom parses the length of the group at once, and refuses a file with another one
        if tag <= last or not step or (tag == _META_LENGTH and (vr, length) != (b"UL", 4)):
            raise UnusualHeaderError
        value, end = at + size, at + step
        elements.append(_make_tuple(Element, (tag, at, value, length, vr, end)))
        if tag == TRANSFER_SYNTAX_TAG and vr == b"UI":
            syntax = head[value:end].rstrip(b"\0 ").decode("latin-1")
        last, at = tag, end
    if syntax not in WALKED_SYNTAXES:
        raise UnusualHeaderError(ends=len(head) < at + 8)
    return elements, syntax, at


def _read_start(head: bytes, at: int, starts: dict[bytes, _Start], *, implicit: bool) -> _Start:
    """Read tag, VR and length of an element at the top level, and remember what eight bytes determine."""
    tag, size, length, vr = (_read_implicit if implicit else _read_explicit)(head, at)
    if tag > LAST_TAG:
        raise UnusualHeaderError
    step = 0 if tag in PIXEL_TAGS or length == UNDEFINED_LENGTH else size + length
    if step & 1:
        raise UnusualHeaderError
    if size == 8:
        if len(starts) >= _MAX_STARTS:
            starts.clear()
        starts[head[at : at + 8]] = tag, step, size, length, vr
    return tag, step, size, length, vr


def _read_explicit(head: bytes, at: int) -> tuple[int, int, int, bytes]:
    """Return tag, size of the element up to its value, length of the value, and VR."""
    group, number, vr, length = _EXPLICIT_ELEMENT(head, at)
    if vr in SHORT_VRS:
        return group << 16 | number, 8, length, vr
    if vr in LONG_VRS:
        return group << 16 | number, 12, _LENGTH(head, at + 8)[0], vr
    raise UnusualHeaderError


def _read_implicit(head: bytes, at: int) -> tuple[int, int, int, bytes]:
    group, number, length = _IMPLICIT_ELEMENT(head, at)
    return group << 16 | number, 8, length, b""


def _walk_sequence(
    head: bytes, at: int, vr: bytes, walked: int, *, implicit: bool, depth: int = 0
) -> tuple[int, int]:
    """Return the offset behind a sequence of undefined length, and how many elements were walked by then."""
    if vr not in (b"SQ", b"") or depth >= _MAX_DEPTH:
        raise UnusualHeaderError
    while walked <= _MAX_ELEMENTS:
        tag, _, length, _ = _read_implicit(head, at)
        at += 8
        walked += 1
        if tag == _SEQUENCE_END and length == 0:
            return at, walked
        if tag != _ITEM or (length & 1 and length != UNDEFINED_LENGTH):
            raise UnusualHeaderError
        if length == UNDEFINED_LENGTH:
            at, walked = _walk_item(head, at, walked, implicit=implicit, depth=depth + 1)
        else:
            at += length
    raise UnusualHeaderError


def _walk_item(head: bytes, at: int, walked: int, *, implicit: bool, depth: int) -> tuple[int, int]:
    """Return the offset behind an item of undefined length, and how many elements were walked by then."""
    while walked <= _MAX_ELEMENTS:
        walked += 1
        if _IMPLICIT_ELEMENT(head, at) == (_ITEM_END >> 16, _ITEM_END & 0xFFFF, 0):
            return at + 8, walked
        tag, size, length, vr = (_read_implicit if implicit else _read_explicit)(head, at)
        at += size
        if tag >> 16 == _ITEM >> 16:
            raise UnusualHeaderError
        if length == UNDEFINED_LENGTH:
            at, walked = _walk_sequence(head, at, vr, walked, implicit=implicit, depth=depth)
        elif length & 1:
            raise UnusualHeaderError
        else:
            at += length
    raise UnusualHeaderError


class ElementLocator:
    """
    Locates elements of many headers, from any thread; see :func:`locate_elements`.

    Runs of elements that two headers have in common are compared at once in those that follow. A walk reads
    nothing outside of the elements that it passes: if their bytes are equal, it ends at the same offset.
    """

    def __init__(self, tags: Collection[int], *, joined: Collection[int]) -> None:
        self._tags = frozenset(tags)
        self._joined = frozenset(joined)
        self._runs: tuple[_Runs, _Runs] = ({}, {})
        self._last = b""  # header, if it had few runs
        self._count = _RUN_HEADERS  # headers since runs were collected

    def locate(self, head: bytes) -> ElementOffsets:
        """Return the elements of a header."""
        found = locate_elements(head, self._tags, joined=self._joined, runs=self._runs)
        self._count += 1
        end = found.pixels.value
        kept = b"" if found.in_runs or end > _MAX_RUN_BYTES else head[:end]
        last, self._last = self._last, kept
        if last and kept and self._count > _RUN_HEADERS:
            self._count = 0
            self._collect_runs(last, kept)
        return found

    def _collect_runs(self, earlier: bytes, head: bytes) -> None:
        """Remember runs of elements that two headers have in common."""
        same = {earlier[element.at : element.end] for element in locate_elements(earlier).elements}
        found = locate_elements(head)
        runs, run = self._runs[found.is_implicit], list[Element]()
        if len(runs) >= _MAX_RUNS:
            runs.clear()
        for element in (*found.elements, found.pixels):
            tag, at, _, length, _, end = element
            is_walked = tag >> 16 == _META or tag in self._tags or length == UNDEFINED_LENGTH
            if not is_walked and head[at:end] in same:
                run.append(element)
                continue
            if len(run) > 1:
                start, stop = run[0].at, run[-1].end
                part = b"".join(head[e.at : e.end] for e in run if e.tag in self._joined)
                runs[head[start : start + 8]] = (
                    head[start:stop],
                    run[0].tag,
                    run[-1].tag,
                    len(run) - 1,
                    part,
                )
            run = []


def build_dataset(outline: ElementOffsets, head: bytes, tags: Collection[int]) -> Dataset:
    """
    Return a dataset of meta information, character set and the elements `tags`, parsed when used.

    UnusualHeaderError is raised if a wanted sequence is so long that parsing it needs a bound.
    """
    implicit = outline.is_implicit
    meta, found = FileMetaDataset(), dict[BaseTag, DataElement | RawDataElement]()
    encoding: str | MutableSequence[str] = default_encoding
    for element in outline.elements:
        tag, _, _, length, vr, _ = element
        if tag >> 16 == _META:
            meta[BaseTag(tag)] = _build_raw_element(element, head, implicit=False)
        elif tag == _CHARACTER_SET:
            if vr not in (b"CS", b""):
                raise UnusualHeaderError
            raw = _build_raw_element(element, head, implicit=implicit)
            encoding = convert_encodings(convert_raw_data_element(raw).value)
            found[_CHARACTER_SET] = raw
        elif tag in tags:
            read = _parse_sequence if length == UNDEFINED_LENGTH else _build_raw_element
            found[BaseTag(tag)] = read(element, head, implicit=implicit)
    dataset = Dataset(found)
    dataset.file_meta = meta
    dataset.set_original_encoding(implicit, True, encoding)
    return dataset


def _build_raw_element(element: Element, head: bytes, *, implicit: bool) -> RawDataElement:
    tag, _, start, length, vr, _ = element
    name = vr.decode() or None
    if vr in (b"SQ", b"UN", b"") and length > _MAX_SEQUENCE_BYTES:
        raise UnusualHeaderError
    empty = cast("bytes | None", empty_value_for_VR(name, raw=True))
    value = head[start : start + length] if length else empty
    return RawDataElement(BaseTag(tag), name, length, value, start, implicit, True)


def _parse_sequence(element: Element, head: bytes, *, implicit: bool) -> DataElement:
    file = io.BytesIO(head[element.value : element.value + _MAX_SEQUENCE_BYTES])
    sequence = read_sequence(file, implicit, True, UNDEFINED_LENGTH, default_encoding)
    return DataElement(BaseTag(element.tag), "SQ", sequence, element.value, is_undefined_length=True)
