"""
Headers that repeat the one before, but for a few values.

A chain is made of one header: runs of bytes that every header must repeat, and between these, elements whose
values may differ. A run holds whole elements, and ends right before the length of one that may differ. Each
step of a walk depends on nothing but the first bytes of the element that it has come to: a header that
follows the chain has the same elements as that one, but for those values and their lengths.
"""

from __future__ import annotations

import struct
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from medimg.io.dicom.outline import TRANSFER_SYNTAX, UNDEFINED, Element, outline_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["INSTANCE_UID", "Chain", "Header", "Layout", "layout_of"]

INSTANCE_UID: Final = 0x00080018
_META: Final = 0x0002
_START: Final = 128
_SHORT_HEADER: Final = 8
_SHORT_LENGTH: Final = struct.Struct("<H").unpack_from
_LONG_LENGTH: Final = struct.Struct("<I").unpack_from
#: Makes a named tuple in a third of the time.
_new: Final = tuple.__new__
#: A run and its size, what reads the length that comes next, the bytes of that, and how many bytes of the
#: element are before it; 0 where the element is not kept.
_Link: TypeAlias = "tuple[bytes, int, Callable[[bytes, int], tuple[int]], int, int]"


class Header(NamedTuple):
    """
    A header that was walked.

    Attributes
    ----------
    pixels : Element
        Where the pixel data lies.
    syntax : str
        Transfer Syntax UID.
    uid : bytes
        SOP Instance UID, without padding.
    wanted : bytes
        The elements that are wanted, as they are, one after the other.
    """

    pixels: Element
    syntax: str
    uid: bytes
    wanted: bytes


class Layout(NamedTuple):
    """
    The elements of a header, those within sequences left out.

    Attributes
    ----------
    elements : list of Element
        In the order of the file, the pixels included.
    parts : list of bytes
        All bytes of each, of the pixels those before their values.
    fixed : frozenset of int
        Tags of elements that decide how others are read, or whose ends depend on their values.
    """

    elements: list[Element]
    parts: list[bytes]
    fixed: frozenset[int]

    @property
    def kinds(self) -> list[tuple[int, bytes]]:
        """Tag and value representation of each element."""
        return [(element.tag, element.vr) for element in self.elements]

    def differing(self, other: Layout) -> set[int]:
        """Return the tags of elements that differ from those of a layout of the same kinds, and may."""
        pairs = zip(self.elements, self.parts, other.parts, strict=True)
        return {element.tag for element, one, two in pairs if one != two} - self.fixed - other.fixed


def layout_of(head: bytes) -> Layout:
    """
    Return the elements of a header.

    Parameters
    ----------
    head : bytes
        The start of a file, at least up to the pixel values.

    Raises
    ------
    UnusualHeaderError
        See :func:`medimg.io.dicom.outline.outline_of`.
    """
    outline = outline_of(head)
    elements = [*(element for element in outline.elements if not element.depth), outline.pixels]
    ends = [*(element.at for element in elements[1:]), outline.pixels.value]
    # what the first element after the meta information looks like tells implicit files from others
    first = next(element.tag for element in elements if element.tag >> 16 != _META)
    fixed = {TRANSFER_SYNTAX, first, outline.pixels.tag}
    fixed |= {element.tag for element in elements if element.length == UNDEFINED}
    parts = [head[element.at : end] for element, end in zip(elements, ends, strict=True)]
    return Layout(elements, parts, frozenset(fixed))


class Chain:
    """
    What a header must be like to have the elements of another.

    Parameters
    ----------
    layout : Layout
        Of the other header.
    header : Header
        What a walk of that came to.
    differing : collection of int
        Tags of elements whose values may differ.
    tags : collection of int
        Elements that are wanted; none of the UIDs.
    """

    def __init__(
        self, layout: Layout, header: Header, differing: Collection[int], tags: Collection[int]
    ) -> None:
        self._syntax, self._uid, self._wanted = header.syntax, header.uid, header.wanted
        self._links: list[_Link] = []
        # wanted elements before each one that may differ and is wanted, and those behind the last one
        between: list[list[bytes]] = [[]]
        #: Which of the elements that are kept is the SOP Instance UID.
        self._uid_place, self._uid_header = -1, 0
        run = [b"DICM"]
        for element, part in zip(layout.elements, layout.parts, strict=True):
            if element.tag in differing and element.tag not in layout.fixed:
                if element.tag == INSTANCE_UID:
                    self._uid_place, self._uid_header = len(between) - 1, element.value - element.at
                elif element.tag in tags:
                    between.append([])
                is_kept = element.tag == INSTANCE_UID or element.tag in tags
                self._links.append(_link(element, part, run, is_kept=is_kept))
                run = []
                continue
            run.append(part)
            if element.tag in tags:
                between[-1].append(part)
        pixels = header.pixels
        self._between = [b"".join(parts) for parts in between]
        self._last = b"".join(run)
        self._tag, self._header_size = pixels.tag, pixels.value - pixels.at
        self._pixels = pixels.length, pixels.vr, pixels.depth

    def header_of(self, head: bytes) -> Header | None:
        """Return what a walk of a header would come to; None where it does not follow the chain."""
        at, kept = _START, list[bytes]()
        follows = head.startswith
        try:
            for run, size, length_at, width, before in self._links:
                if not follows(run, at):
                    return None
                at += size
                (length,) = length_at(head, at)
                if length & 1:
                    return None
                end = at + width + length
                if before:
                    kept.append(head[at - before : end])
                at = end
        except struct.error:
            return None
        if not follows(self._last, at):
            return None
        value = at + len(self._last)
        pixels = _new(Element, (self._tag, value - self._header_size, value, *self._pixels))
        return self._header(pixels, kept)

    def _header(self, pixels: Element, kept: list[bytes]) -> Header:
        uid, wanted = self._uid, self._wanted
        if self._uid_place >= 0:
            uid = kept.pop(self._uid_place)[self._uid_header :].rstrip(b"\0 ")
        if kept:
            wanted = b"".join(chain.from_iterable(zip(self._between, [*kept, b""], strict=True)))
        return _new(Header, (pixels, self._syntax, uid, wanted))


def _link(element: Element, part: bytes, run: list[bytes], *, is_kept: bool) -> _Link:
    """Return a link that ends with an element."""
    header = element.value - element.at
    width = 2 if element.vr and header == _SHORT_HEADER else 4
    literal = b"".join([*run, part[: header - width]])
    length = _SHORT_LENGTH if width == 2 else _LONG_LENGTH
    return literal, len(literal), length, width, header - width if is_kept else 0
