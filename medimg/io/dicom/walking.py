"""
Walks through headers of alike files, which learn.

The first eight bytes of most elements say how far it is to the next one, and files of a series repeat them:
what they say is looked up rather than taken apart. All that can't be walked like that is left to
:func:`medimg.io.dicom.outline.outline_of`, which must come to the same.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

from medimg.io.dicom.codecs import SYNTAXES
from medimg.io.dicom.outline import EXPLICIT, Element, UnusualHeaderError, outline_of

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
_INSTANCE_UID: Final = 0x00080018
_TRANSFER_SYNTAX: Final = 0x00020010
_UIDS: Final = (_TRANSFER_SYNTAX, _INSTANCE_UID)
_PIXELS: Final = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
_LAST: Final = 0x7FE00010
#: The meta information comes first; without it, the rest may be written in any way.
_BEFORE_META: Final = 0x0001FFFF
#: Functional groups and offset tables: not what a file of one classic image has.
_MANY_FRAMES: Final = frozenset({0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002})
#: Beginnings of elements that are remembered; a series has some hundreds.
_MOST_KNOWN: Final = 2**14


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
        found = self._walked(head)
        return self._carefully(head) if found is None else found

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
            if not last < tag <= _LAST:
                return None
            last = tag
            if not size:
                if at + _LONG > len(head):
                    raise UnusualHeaderError(ends=True)
                length = _LENGTH(head, at + _SHORT)[0]
                if tag in _PIXELS:
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
        if form in _SHORT_FORMS and not length & 1 and tag not in _PIXELS and (not is_uid or form == b"UI"):
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
            elif tag == _INSTANCE_UID:
                uid = head[value : value + length].rstrip(b"\0 ")
            elif tag in _MANY_FRAMES:
                raise UnusualHeaderError
        if start >= 0:
            wanted.append(head[start : outline.pixels.at])
        return Header(outline.pixels, outline.syntax, uid, b"".join(wanted))
