"""
The private header of Siemens MR ("CSA"), as far as geometry needs it.

Two layouts are known: CSA1 (Numaris 4 before VB) and CSA2, which begins with "SV10". Source:
https://nipy.org/nibabel/dicom/siemens_csa.html. nibabel's own reader follows lengths backwards and can be
made to exhaust the memory, so that it serves for comparison in the tests only.
"""

from __future__ import annotations

import struct
from typing import Final

from medimg.errors import DecodeError

__all__ = ["parse_csa"]

_MAX_BYTES: Final = 2**24
_MAX_TAGS: Final = 1000
_MAX_ITEMS: Final = 1000
_TAG: Final = struct.Struct("<64si4s3i")
_ITEM: Final = struct.Struct("<4i")


def parse_csa(header: bytes, *names: str) -> dict[str, tuple[str, ...]]:
    """Return the non-empty items of the named fields of a CSA header; raise DecodeError if it is damaged."""
    if len(header) > _MAX_BYTES:
        raise DecodeError(f"a CSA header of {len(header)} bytes is larger than {_MAX_BYTES}; it is damaged")
    try:
        return _parse_fields(header, frozenset(names))
    except struct.error:
        raise DecodeError("the CSA header ends before its last field; the file is damaged") from None


def _parse_fields(header: bytes, names: frozenset[str]) -> dict[str, tuple[str, ...]]:
    newer = header[:4] == b"SV10"
    start = 8 if newer else 0
    count = struct.unpack_from("<I", header, start)[0]
    if not 0 < count <= _MAX_TAGS:
        raise DecodeError(f"the CSA header declares {count} fields, 1 to {_MAX_TAGS} are expected")
    at, found, excess = start + 8, {}, None
    for _ in range(count):
        name, _vm, _vr, _type, items, _check = _TAG.unpack_from(header, at)
        at += _TAG.size
        if not 0 <= items <= _MAX_ITEMS:
            raise DecodeError(f"a field of the CSA header declares {items} items; the file is damaged")
        # the older layout adds the number of items of the first field to every length
        excess = items if excess is None else excess
        values, at = _parse_items(header, at, items, 0 if newer else excess, newer=newer)
        key = _decode_text(name)
        if key in names:
            found[key] = tuple(filter(None, map(_decode_text, values)))
    return found


def _parse_items(header: bytes, at: int, count: int, excess: int, *, newer: bool) -> tuple[list[bytes], int]:
    values = []
    for _ in range(count):
        first, second, _third, _fourth = _ITEM.unpack_from(header, at)
        at += _ITEM.size
        length = second if newer else first - excess
        if length < 0 or at + length > len(header):
            if not newer:
                break
            raise DecodeError("an item of the CSA header is longer than the header; the file is damaged")
        values.append(header[at : at + length])
        at += (length + 3) // 4 * 4
    return values, at


def _decode_text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("latin-1").strip()
