"""
Walks through headers of alike files, which learn.

The first eight bytes of most elements say how far it is to the next one, and files of a series repeat them:
what they say is looked up rather than taken apart. All that can't be walked like that is left to
:func:`medimg.io.dicom.outline.outline_of`, which must come to the same. A header that says the same as the
one before, but for what was seen to differ, is not even walked; see :mod:`medimg.io.dicom.chains`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from medimg.io.dicom.chains import INSTANCE_UID, Chain, Header, Layout, layout_of
from medimg.io.dicom.codecs import SYNTAXES
from medimg.io.dicom.outline import (
    EXPLICIT,
    LAST,
    PIXELS,
    TRANSFER_SYNTAX,
    Element,
    UnusualHeaderError,
    outline_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Header", "Walker"]

_START: Final = struct.Struct("<HH2sH")
_LENGTH: Final = struct.Struct("<I").unpack_from
_SHORT_FORMS: Final = frozenset(str(form).encode() for form in EXPLICIT_VR_LENGTH_16)
_LONG_FORMS: Final = frozenset(str(form).encode() for form in EXPLICIT_VR_LENGTH_32)
_MARK: Final = b"DICM"
_FIRST: Final = 132
_SHORT, _LONG = 8, 12
_UIDS: Final = (TRANSFER_SYNTAX, INSTANCE_UID)
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


class Walker:
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
        self._layout: Layout | None = None
        self._chain: Chain | None = None
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
            layout, last = layout_of(head), self._layout or layout_of(self._first)
        except UnusualHeaderError:
            return
        if layout.kinds == last.kinds:
            self._differing = self._differing | layout.differing(last)
        self._layout = layout
        self._chain = Chain(layout, header, self._differing, self._tags)

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
            if not last < tag <= LAST:
                return None
            last = tag
            if not size:
                if at + _LONG > len(head):
                    raise UnusualHeaderError(ends=True)
                length = _LENGTH(head, at + _SHORT)[0]
                if tag in PIXELS:
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
        group, number, form, length = _START.unpack(start)
        tag = group << 16 | number
        is_uid = tag in _UIDS
        is_special = is_uid or tag in _MANY_FRAMES or tag in self._tags
        if tag == _META_LENGTH and (form, length) != (b"UL", 4):
            return None
        if form in _SHORT_FORMS and not length & 1 and tag not in PIXELS and (not is_uid or form == b"UI"):
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
        outline = outline_of(head)
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
