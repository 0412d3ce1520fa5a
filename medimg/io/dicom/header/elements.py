"""
Offsets of the elements of a header, found by their lengths alone without parsing a value.

Only usual headers are walked: meta information, explicit or implicit little endian, ascending tags, even
lengths, pixel data last; pydicom reads all others. A walk costs a few microseconds, and a dataset of the
wanted elements can be built from it later.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element, empty_value_for_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_sequence
from pydicom.tag import BaseTag

from medimg.io.dicom.header.transfer_syntax import EXPLICIT, IMPLICIT, SYNTAXES

if TYPE_CHECKING:
    from collections.abc import Collection, MutableSequence

__all__ = [
    "LAST_TAG",
    "LONG_VRS",
    "PIXEL_TAGS",
    "SHORT_VRS",
    "TRANSFER_SYNTAX_TAG",
    "UNDEFINED_LENGTH",
    "WALKED_SYNTAXES",
    "Element",
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


class UnusualHeaderError(Exception):
    """A header that can't be walked, never raised to users; `ends`: the bytes end before it does."""

    def __init__(self, *, ends: bool = False) -> None:
        super().__init__()
        self.ends = ends


class Element(NamedTuple):
    """Offsets in a file of an element, or of an item of a sequence with undefined length."""

    tag: int
    at: int  # of the element
    value: int  # of its value
    length: int  # of the value; UNDEFINED_LENGTH if it has none
    vr: bytes  # empty for items and implicit VR
    depth: int  # 0 at the top level, above within sequences of undefined length


@dataclass(frozen=True, slots=True)
class ElementOffsets:
    """Offsets of all elements of a header, in the order of the file."""

    syntax: str  # Transfer Syntax UID
    elements: list[Element]  # before the pixel data
    pixels: Element

    @property
    def is_implicit(self) -> bool:
        """Whether the dataset is in implicit VR."""
        return self.syntax == IMPLICIT

    def select(self, tags: Collection[int]) -> list[Element]:
        """Return the top-level elements that have one of these tags."""
        return [e for e in self.elements if e[0] in tags and e[5] == 0]

    def find_end(self, element: Element) -> int:
        """Return the offset of the end of a top-level element: a sequence ends where the next one begins."""
        if element.length != UNDEFINED_LENGTH:
            return element.value + element.length
        following = self.elements[self.elements.index(element) + 1 :]
        return next((e.at for e in following if e.depth == 0), self.pixels.at)


def locate_elements(head: bytes) -> ElementOffsets:
    """Walk the start of a file; raise UnusualHeaderError if it is unusual or ends before the pixel values."""
    if head[128:132] != b"DICM":
        raise UnusualHeaderError
    try:
        return _walk_elements(head)
    except struct.error:
        raise UnusualHeaderError(ends=True) from None


def _walk_elements(head: bytes) -> ElementOffsets:
    elements: list[Element] = []
    at = _walk_meta(head, elements)
    syntax = _find_syntax(head, elements)
    implicit = syntax == IMPLICIT
    letters = head[at + 4 : at + 6]
    if implicit and letters.isalpha() and letters.isupper():
        raise UnusualHeaderError
    pixels = _walk_dataset(head, at, elements, implicit=implicit)
    return ElementOffsets(syntax, elements, pixels)


def _walk_dataset(head: bytes, at: int, elements: list[Element], *, implicit: bool) -> Element:
    """Walk the dataset up to the pixel data, in one loop as it runs a hundred times per file."""
    last, vr = 0, b""
    while True:
        if implicit:
            group, number, length = _IMPLICIT_ELEMENT(head, at)
            value = at + 8
        else:
            group, number, vr, length = _EXPLICIT_ELEMENT(head, at)
            if vr in SHORT_VRS:
                value = at + 8
            elif vr in LONG_VRS:
                value = at + 12
                length = _LENGTH(head, at + 8)[0]
            else:
                raise UnusualHeaderError
        tag = group << 16 | number
        if tag <= last or tag > LAST_TAG:
            raise UnusualHeaderError
        element = _make_tuple(Element, (tag, at, value, length, vr, 0))
        if tag in PIXEL_TAGS:
            if len(elements) > _MAX_ELEMENTS:
                raise UnusualHeaderError
            return element
        elements.append(element)
        if not length & 1:
            at = value + length
        elif length == UNDEFINED_LENGTH:
            at = _walk_sequence(head, element, elements, implicit=implicit)
        else:
            raise UnusualHeaderError
        last = tag


def _walk_meta(head: bytes, elements: list[Element]) -> int:
    """Walk the meta information and return the offset of the dataset."""
    at, last = 132, 0
    while _IMPLICIT_ELEMENT(head, at)[0] == _META:
        element = _read_explicit(head, at, 0)
        if element.tag <= last or element.length & 1:
            raise UnusualHeaderError
        # pydicom parses it at once, and refuses a file with another one
        if element.tag == _META_LENGTH and (element.vr, element.length) != (b"UL", 4):
            raise UnusualHeaderError
        elements.append(element)
        last, at = element.tag, element.value + element.length
    return at


def _find_syntax(head: bytes, elements: list[Element]) -> str:
    """Return the Transfer Syntax UID if it is a known one."""
    for tag, _, value, length, vr, _ in elements:
        if tag == TRANSFER_SYNTAX_TAG and vr == b"UI":
            found = head[value : value + length].rstrip(b"\0 ").decode("latin-1")
            if found in WALKED_SYNTAXES:
                return found
    raise UnusualHeaderError


def _read_explicit(head: bytes, at: int, depth: int) -> Element:
    group, number, vr, length = _EXPLICIT_ELEMENT(head, at)
    if vr in SHORT_VRS:
        return _make_tuple(Element, (group << 16 | number, at, at + 8, length, vr, depth))
    if vr in LONG_VRS:
        length = _LENGTH(head, at + 8)[0]
        return _make_tuple(Element, (group << 16 | number, at, at + 12, length, vr, depth))
    raise UnusualHeaderError


def _read_implicit(head: bytes, at: int, depth: int) -> Element:
    group, number, length = _IMPLICIT_ELEMENT(head, at)
    return Element(group << 16 | number, at, at + 8, length, b"", depth)


def _walk_sequence(head: bytes, sequence: Element, elements: list[Element], *, implicit: bool) -> int:
    """Walk a sequence of undefined length and return the offset of the next element."""
    if sequence.vr not in (b"SQ", b"") or sequence.depth >= _MAX_DEPTH or len(elements) > _MAX_ELEMENTS:
        raise UnusualHeaderError
    at = sequence.value
    while True:
        item = _read_implicit(head, at, sequence.depth + 1)
        elements.append(item)
        if item.tag == _SEQUENCE_END and item.length == 0:
            return item.value
        if item.tag != _ITEM or (item.length & 1 and item.length != UNDEFINED_LENGTH):
            raise UnusualHeaderError
        at = item.value
        if item.length == UNDEFINED_LENGTH:
            at = _walk_item(head, item, elements, implicit=implicit)
        else:
            at += item.length


def _walk_item(head: bytes, item: Element, elements: list[Element], *, implicit: bool) -> int:
    """Walk an item of undefined length and return the offset of the next one."""
    at = item.value
    while True:
        if _IMPLICIT_ELEMENT(head, at) == (_ITEM_END >> 16, _ITEM_END & 0xFFFF, 0):
            elements.append(Element(_ITEM_END, at, at + 8, 0, b"", item.depth))
            return at + 8
        element = (_read_implicit if implicit else _read_explicit)(head, at, item.depth)
        if element.tag >> 16 == _ITEM >> 16:
            raise UnusualHeaderError
        elements.append(element)
        if element.length == UNDEFINED_LENGTH:
            at = _walk_sequence(head, element, elements, implicit=implicit)
        elif element.length & 1:
            raise UnusualHeaderError
        else:
            at = element.value + element.length


def build_dataset(outline: ElementOffsets, head: bytes, tags: Collection[int]) -> Dataset:
    """
    Return a dataset of meta information, character set and the elements `tags`, parsed when used.

    UnusualHeaderError is raised if a wanted sequence is so long that parsing it needs a bound.
    """
    implicit = outline.is_implicit
    meta, found = FileMetaDataset(), dict[BaseTag, DataElement | RawDataElement]()
    encoding: str | MutableSequence[str] = default_encoding
    for element in outline.elements:
        tag, _, _, length, vr, depth = element
        if depth:
            continue
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
