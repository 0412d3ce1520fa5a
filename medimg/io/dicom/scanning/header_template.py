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

from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from medimg.io.dicom.header.elements import (
    LAST_TAG,
    PIXEL_TAGS,
    TRANSFER_SYNTAX_TAG,
    UNDEFINED_LENGTH,
    Element,
    UnusualHeaderError,
    locate_elements,
)
from medimg.io.dicom.header.transfer_syntax import EXPLICIT, SYNTAXES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = [
    "INSTANCE_UID",
    "Header",
    "HeaderTemplate",
    "HeaderTemplateReader",
    "HeaderTemplateWalker",
    "template_of",
]

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


class HeaderTemplate(NamedTuple):
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

    def differing(self, other: HeaderTemplate) -> set[int]:
        """Return the tags of elements that differ from those of a layout of the same kinds, and may."""
        pairs = zip(self.elements, self.parts, other.parts, strict=True)
        return {element.tag for element, one, two in pairs if one != two} - self.fixed - other.fixed


def template_of(head: bytes) -> HeaderTemplate:
    """
    Return the elements of a header.

    Parameters
    ----------
    head : bytes
        The start of a file, at least up to the pixel values.

    Raises
    ------
    UnusualHeaderError
        See :func:`medimg.io.dicom.header.elements.locate_elements`.
    """
    outline = locate_elements(head)
    elements = [*(element for element in outline.elements if not element.depth), outline.pixels]
    ends = [*(element.at for element in elements[1:]), outline.pixels.value]
    # what the first element after the meta information looks like tells implicit files from others
    first = next(element.tag for element in elements if element.tag >> 16 != _META)
    fixed = {TRANSFER_SYNTAX_TAG, first, outline.pixels.tag}
    fixed |= {element.tag for element in elements if element.length == UNDEFINED_LENGTH}
    parts = [head[element.at : end] for element, end in zip(elements, ends, strict=True)]
    return HeaderTemplate(elements, parts, frozenset(fixed))


class HeaderTemplateReader:
    """
    What a header must be like to have the elements of another.

    Parameters
    ----------
    layout : HeaderTemplate
        Of the other header.
    header : Header
        What a walk of that came to.
    differing : collection of int
        Tags of elements whose values may differ.
    tags : collection of int
        Elements that are wanted; none of the UIDs.
    """

    def __init__(
        self, layout: HeaderTemplate, header: Header, differing: Collection[int], tags: Collection[int]
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


_START_OF_ITEM: Final = struct.Struct("<HH2sH")
_LENGTH: Final = struct.Struct("<I").unpack_from
_SHORT_FORMS: Final = frozenset(str(form).encode() for form in EXPLICIT_VR_LENGTH_16)
_LONG_FORMS: Final = frozenset(str(form).encode() for form in EXPLICIT_VR_LENGTH_32)
_MARK: Final = b"DICM"
_FIRST: Final = 132
_SHORT, _LONG = 8, 12
_UIDS: Final = (TRANSFER_SYNTAX_TAG, INSTANCE_UID)
#: The meta information comes first; without it, the rest may be written in any way.
_BEFORE_META: Final = 0x0001FFFF
_META_LENGTH: Final = 0x00020000
#: Functional groups and offset tables: not what a file of one classic image has.
_MANY_FRAMES: Final = frozenset({0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002})
#: Beginnings of elements that are remembered; a series has some hundreds.
_MOST_KNOWN: Final = 2**14
#: What usually differs between slices: identity, time, exposure, place, and extremes. Elements that are
#: wanted cost more where they may differ; these are learned.
_USUAL: Final = frozenset(
    {
        *(0x00020000, 0x00020003, 0x00080012, 0x00080013, 0x00080018, 0x00080022, 0x0008002A, 0x00080032),
        *(0x00080033, 0x00181150, 0x00181151, 0x00181152, 0x00181153, 0x00189345, 0x00200013, 0x00200032),
        *(0x00201041, 0x00280106, 0x00280107),
    }
)
#: How often no chain helped before that is held to be the rule.
_MOST_FAILURES: Final = 8


class _Step(NamedTuple):
    """What the first bytes of an element say: its size, 0 if that follows, and whether to look at it."""

    tag: int
    size: int
    is_special: bool


class HeaderTemplateWalker:
    """
    Walks headers of files of one image each, from any thread.

    Parameters
    ----------
    tags : collection of int
        Elements that are wanted.
    """

    def __init__(self, tags: Collection[int]) -> None:
        self._tags = tags
        self._steps: dict[bytes, _Step] = {}
        self._differing = _USUAL
        self._first: bytes | None = None
        self._layout: HeaderTemplate | None = None
        self._chain: HeaderTemplateReader | None = None
        self._followed = self._failures = 0

    def header_of(self, head: bytes) -> Header:
        """
        Walk a header.

        Parameters
        ----------
        head : bytes
            The start of a file, at least up to the pixel values.

        Raises
        ------
        UnusualHeaderError
            If it can't be walked, ends before the pixel values start, or is that of many frames.
        """
        chain = self._chain
        found = None if chain is None else chain.header_of(head)
        if found is not None:
            self._followed += 1
            return found
        found = self._walked(head) or self._carefully(head)
        if self._failures < _MOST_FAILURES + self._followed:
            self._failures += 1
            self._link(head[: found.pixels.value], found)
        return found

    def _link(self, head: bytes, header: Header) -> None:
        """Make a chain of a header that none was there for, once it is not the only one."""
        if self._first is None:
            self._first = head
            return
        try:
            layout, last = template_of(head), self._layout or template_of(self._first)
        except UnusualHeaderError:
            return
        if layout.kinds == last.kinds:
            self._differing = self._differing | layout.differing(last)
        self._layout = layout
        self._chain = HeaderTemplateReader(layout, header, self._differing, self._tags)

    def _walked(self, head: bytes) -> Header | None:
        """Walk a header of elements with lengths and representations; None where it has others."""
        if head[128:_FIRST] != _MARK:
            return None
        steps, special = self._steps, dict[int, bytes]()
        at, last = _FIRST, _BEFORE_META
        while True:
            start = head[at : at + _SHORT]
            step = steps.get(start) or self._learned(start)
            if step is None:
                return None
            tag, size, is_special = step
            if not last < tag <= LAST_TAG:
                return None
            last = tag
            if not size:
                if at + _LONG > len(head):
                    raise UnusualHeaderError(ends=True)
                length = _LENGTH(head, at + _SHORT)[0]
                if tag in PIXEL_TAGS:
                    break
                if length & 1:
                    return None
                size = _LONG + length
            if is_special:
                special[tag] = head[at : at + size]
            at += size
        name, uid = (special.pop(tag, b"")[_SHORT:].rstrip(b"\0 ") for tag in _UIDS)
        if not _MANY_FRAMES.isdisjoint(special):
            raise UnusualHeaderError
        syntax = name.decode("latin-1")
        if syntax != EXPLICIT and syntax not in SYNTAXES:
            return None
        pixels = Element(tag, at, at + _LONG, length, start[4:6], 0)
        return Header(pixels, syntax, uid, b"".join(special.values()))

    def _learned(self, start: bytes) -> _Step | None:
        """Take the first bytes of an element apart; None where they are unusual."""
        if len(start) < _SHORT:
            raise UnusualHeaderError(ends=True)
        group, number, form, length = _START_OF_ITEM.unpack(start)
        tag = group << 16 | number
        is_uid = tag in _UIDS
        is_special = is_uid or tag in _MANY_FRAMES or tag in self._tags
        if tag == _META_LENGTH and (form, length) != (b"UL", 4):
            return None
        if (
            form in _SHORT_FORMS
            and not length & 1
            and tag not in PIXEL_TAGS
            and (not is_uid or form == b"UI")
        ):
            step = _Step(tag, _SHORT + length, is_special)
        elif form in _LONG_FORMS and not is_uid:
            step = _Step(tag, 0, is_special)
        else:
            return None
        if len(self._steps) >= _MOST_KNOWN:
            self._steps.clear()
        self._steps[start] = step
        return step

    def _carefully(self, head: bytes) -> Header:
        outline = locate_elements(head)
        wanted: list[bytes] = []
        uid, start = b"", -1
        for tag, at, value, length, _, depth in outline.elements:
            if depth:
                continue
            if start >= 0:
                wanted.append(head[start:at])
                start = -1
            if tag in self._tags:
                start = at
            elif tag == INSTANCE_UID:
                uid = head[value : value + length].rstrip(b"\0 ")
            elif tag in _MANY_FRAMES:
                raise UnusualHeaderError
        if start >= 0:
            wanted.append(head[start : outline.pixels.at])
        return Header(outline.pixels, outline.syntax, uid, b"".join(wanted))
