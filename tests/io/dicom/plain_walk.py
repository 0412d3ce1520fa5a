"""Reference of header walks: each element read by itself, nothing remembered."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from medimg.io.dicom.header.elements import WALKED_SYNTAXES, Element, ElementOffsets, UnusualHeaderError

SHORT = [b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH"]
SHORT += [b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"]
LONG = [b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"]
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)


def plain_walk(head: bytes) -> ElementOffsets:
    """Return all elements of a header, or raise what `locate_elements` raises."""
    require(head[128:132] == b"DICM")
    walk = PlainWalk(head)
    try:
        elements = list(walk.walk_meta())
        (syntax,) = [head[e.value : e.end] for e in elements if e.tag == 0x00020010 and e.vr == b"UI"] or [
            b""
        ]
        name = syntax.decode("latin-1").rstrip("\0 ")
        require(name in WALKED_SYNTAXES)
        walk.is_implicit = name == "1.2.840.10008.1.2"
        elements += walk.walk_dataset(elements[-1].end)
    except struct.error:
        raise UnusualHeaderError(ends=True) from None
    return ElementOffsets(name, elements[:-1], b"", elements[-1])


def require(condition: object) -> None:
    if not condition:
        raise UnusualHeaderError


class PlainWalk:
    def __init__(self, head: bytes) -> None:
        self.head = head
        self.is_implicit = False
        self.count = 0

    def read(self, at: int, *, is_implicit: bool) -> tuple[int, int, int, bytes]:
        """Return tag, offset of the value, length and VR of an element."""
        group, number, length = struct.unpack_from("<HHI", self.head, at)
        tag = group << 16 | number
        if is_implicit:
            return tag, at + 8, length, b""
        vr = self.head[at + 4 : at + 6]
        if vr in SHORT:
            return tag, at + 8, length >> 16, vr
        require(vr in LONG)
        return tag, at + 12, struct.unpack_from("<I", self.head, at + 8)[0], vr

    def note(self) -> None:
        self.count += 1
        require(self.count <= 20_000)

    def walk_meta(self) -> Iterator[Element]:
        at, last = 132, 0
        while struct.unpack_from("<HHI", self.head, at)[0] == 2:
            self.note()
            tag, value, length, vr = self.read(at, is_implicit=False)
            require(tag > last and length % 2 == 0)
            require(tag != 0x00020000 or (vr == b"UL" and length == 4))
            yield Element(tag, at, value, length, vr, value + length)
            at, last = value + length, tag

    def walk_dataset(self, at: int) -> Iterator[Element]:
        require(not self.is_implicit or not self.head[at + 4 : at + 6].decode("latin-1").isupper() or
                not self.head[at + 4 : at + 6].isalpha())  # fmt: skip
        last = 0
        while True:
            tag, value, length, vr = self.read(at, is_implicit=self.is_implicit)
            require(last < tag <= max(PIXELS))
            if tag in PIXELS:
                yield Element(tag, at, value, length, vr, value)
                return
            self.note()
            end = self.find_end(value, length, vr, 0)
            yield Element(tag, at, value, length, vr, end)
            at, last = end, tag

    def find_end(self, value: int, length: int, vr: bytes, depth: int) -> int:
        if length != UNDEFINED:
            require(length % 2 == 0)
            return value + length
        require(vr in (b"SQ", b"") and depth < 16)
        at = value
        while True:
            self.note()
            tag, at, length, _ = self.read(at, is_implicit=True)
            if (tag, length) == (SEQUENCE_END, 0):
                return at
            require(tag == ITEM)
            at = self.find_item_end(at, depth + 1) if length == UNDEFINED else at + length
            require(length == UNDEFINED or length % 2 == 0)

    def find_item_end(self, at: int, depth: int) -> int:
        while True:
            self.note()
            tag, value, length, _ = self.read(at, is_implicit=True)
            if (tag, length) == (ITEM_END, 0):
                return value
            tag, value, length, vr = self.read(at, is_implicit=self.is_implicit)
            require(tag >> 16 != 0xFFFE)
            at = self.find_end(value, length, vr, depth)
