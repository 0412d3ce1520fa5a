"""
Header templates: headers that repeat the one before, except for a few values.

A template has runs of bytes that every header must repeat, and between these, elements whose values may
differ. A run has whole elements, and ends before the length of one that may differ. As each step of a walk
depends only on the first bytes of the next element, a header that matches has the elements of the template.
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
    "build_template",
]

INSTANCE_UID: Final = 0x00080018
_META: Final = 0x0002
_START: Final = 128
_SHORT_HEADER: Final = 8
_SHORT_LENGTH: Final = struct.Struct("<H").unpack_from
_LONG_LENGTH: Final = struct.Struct("<I").unpack_from
#: Builds a named tuple in a third of the time.
_new: Final = tuple.__new__
#: Run and its size, reader of the next length, size of the length, and bytes of the element before it, 0 if
#: the element is not kept.
_Link: TypeAlias = "tuple[bytes, int, Callable[[bytes, int], tuple[int]], int, int]"


class Header(NamedTuple):
    """Result of a walk: pixel data, transfer syntax UID, SOP Instance UID, and the wanted elements."""

    pixels: Element
    syntax: str
    uid: bytes
    wanted: bytes


class HeaderTemplate(NamedTuple):
    """
    Elements of a header, without those in sequences, and the bytes of each (without pixel values).

    `fixed` are the tags of elements that decide how others are read, or whose ends depend on their values.
    """

    elements: list[Element]
    parts: list[bytes]
    fixed: frozenset[int]

    @property
    def element_types(self) -> list[tuple[int, bytes]]:
        """Tag and VR of each element."""
        return [(element.tag, element.vr) for element in self.elements]

    def find_differing(self, other: HeaderTemplate) -> set[int]:
        """Return the tags of variable elements that differ from a template of the same types."""
        pairs = zip(self.elements, self.parts, other.parts, strict=True)
        return {element.tag for element, one, two in pairs if one != two} - self.fixed - other.fixed


def build_template(head: bytes) -> HeaderTemplate:
    """Return the template of a header that is complete up to the pixel values."""
    offsets = locate_elements(head)
    elements = [*(element for element in offsets.elements if not element.depth), offsets.pixels]
    ends = [*(element.at for element in elements[1:]), offsets.pixels.value]
    # the first element after the meta information distinguishes implicit from explicit files
    first = next(element.tag for element in elements if element.tag >> 16 != _META)
    fixed = {TRANSFER_SYNTAX_TAG, first, offsets.pixels.tag}
    fixed |= {element.tag for element in elements if element.length == UNDEFINED_LENGTH}
    parts = [head[element.at : end] for element, end in zip(elements, ends, strict=True)]
    return HeaderTemplate(elements, parts, frozenset(fixed))


class HeaderTemplateReader:
    """Reads headers that match a template, except for `differing` elements; `tags` are wanted."""

    def __init__(
        self, template: HeaderTemplate, header: Header, differing: Collection[int], tags: Collection[int]
    ) -> None:
        self._syntax, self._uid, self._wanted = header.syntax, header.uid, header.wanted
        self._links: list[_Link] = []
        # wanted elements before each wanted one that may differ, and those after the last one
        between: list[list[bytes]] = [[]]
        #: Index of the SOP Instance UID among the elements kept.
        self._uid_index, self._uid_header = -1, 0
        run = [b"DICM"]
        for element, part in zip(template.elements, template.parts, strict=True):
            if element.tag in differing and element.tag not in template.fixed:
                if element.tag == INSTANCE_UID:
                    self._uid_index, self._uid_header = len(between) - 1, element.value - element.at
                elif element.tag in tags:
                    between.append([])
                is_kept = element.tag == INSTANCE_UID or element.tag in tags
                self._links.append(_make_link(element, part, run, is_kept=is_kept))
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

    def read_header(self, head: bytes) -> Header | None:
        """Return the header, as a walk would; None if it does not match."""
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
        return self._make_header(pixels, kept)

    def _make_header(self, pixels: Element, kept: list[bytes]) -> Header:
        uid, wanted = self._uid, self._wanted
        if self._uid_index >= 0:
            uid = kept.pop(self._uid_index)[self._uid_header :].rstrip(b"\0 ")
        if kept:
            wanted = b"".join(chain.from_iterable(zip(self._between, [*kept, b""], strict=True)))
        return _new(Header, (pixels, self._syntax, uid, wanted))


def _make_link(element: Element, part: bytes, run: list[bytes], *, is_kept: bool) -> _Link:
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
#: The meta information comes first; without it, the encoding is unknown.
_BEFORE_META: Final = 0x0001FFFF
_META_LENGTH: Final = 0x00020000
#: Functional groups and offset tables, which single-frame files do not have.
_MANY_FRAMES: Final = frozenset({0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002})
#: Maximum number of first bytes kept; a series has some hundreds.
_MAX_KNOWN: Final = 2**14
#: Elements that usually differ between slices: identity, time, exposure, position, extremes. Wanted elements
#: cost more if they may differ; these are learned.
_USUALLY_DIFFERENT: Final = frozenset(
    {
        *(0x00020000, 0x00020003, 0x00080012, 0x00080013, 0x00080018, 0x00080022, 0x0008002A, 0x00080032),
        *(0x00080033, 0x00181150, 0x00181151, 0x00181152, 0x00181153, 0x00189345, 0x00200013, 0x00200032),
        *(0x00201041, 0x00280106, 0x00280107),
    }
)
#: Headers without a match, beyond those with one, after which no template is built.
_MAX_FAILURES: Final = 8


class _Step(NamedTuple):
    """Tag and size of an element from its first bytes, 0 if the size follows, and whether it is wanted."""

    tag: int
    size: int
    is_special: bool


class HeaderTemplateWalker:
    """Walks headers of single-frame files, from any thread; `tags` are the wanted elements."""

    def __init__(self, tags: Collection[int]) -> None:
        self._tags = tags
        self._steps: dict[bytes, _Step] = {}
        self._differing = _USUALLY_DIFFERENT
        self._first: bytes | None = None
        self._template: HeaderTemplate | None = None
        self._reader: HeaderTemplateReader | None = None
        self._followed = self._failures = 0

    def read_header(self, head: bytes) -> Header:
        """
        Return the header of a file, from bytes that are complete up to the pixel values.

        Raises UnusualHeaderError if it can't be walked, is incomplete, or has several frames.
        """
        reader = self._reader
        found = None if reader is None else reader.read_header(head)
        if found is not None:
            self._followed += 1
            return found
        found = self._walk(head) or self._walk_carefully(head)
        if self._failures < _MAX_FAILURES + self._followed:
            self._failures += 1
            self._update_template(head[: found.pixels.value], found)
        return found

    def _update_template(self, head: bytes, header: Header) -> None:
        """Build a template from the second header on that matches none."""
        if self._first is None:
            self._first = head
            return
        try:
            template, last = build_template(head), self._template or build_template(self._first)
        except UnusualHeaderError:
            return
        if template.element_types == last.element_types:
            self._differing = self._differing | template.find_differing(last)
        self._template = template
        self._reader = HeaderTemplateReader(template, header, self._differing, self._tags)

    def _walk(self, head: bytes) -> Header | None:
        """Walk an explicit VR header; None if it is another one."""
        if head[128:_FIRST] != _MARK:
            return None
        steps, special = self._steps, dict[int, bytes]()
        at, last = _FIRST, _BEFORE_META
        while True:
            start = head[at : at + _SHORT]
            step = steps.get(start) or self._learn(start)
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

    def _learn(self, start: bytes) -> _Step | None:
        """Parse the first bytes of an element; None if they are irregular."""
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
        if len(self._steps) >= _MAX_KNOWN:
            self._steps.clear()
        self._steps[start] = step
        return step

    def _walk_carefully(self, head: bytes) -> Header:
        offsets = locate_elements(head)
        wanted: list[bytes] = []
        uid, start = b"", -1
        for tag, at, value, length, _, depth in offsets.elements:
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
            wanted.append(head[start : offsets.pixels.at])
        return Header(offsets.pixels, offsets.syntax, uid, b"".join(wanted))
