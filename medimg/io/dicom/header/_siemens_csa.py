"""
The private header of Siemens MR ("CSA"), as far as geometry needs it.

Two layouts are known, CSA1 (Numaris 4 before VB) and CSA2, which begins with "SV10". The description followed
is https://nipy.org/nibabel/dicom/siemens_csa.html; nibabel's own reader follows lengths backwards and can be
made to fill the memory, so that it serves for comparison in the tests only.
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
    """
    Return fields of a CSA header.

    Parameters
    ----------
    header : bytes
        The value of CSA Image Header Info or CSA Series Header Info.
    *names : str
        The fields wanted.

    Returns
    -------
    dict of str to tuple of str
        The items of each field that is there, without the empty ones.

    Raises
    ------
    DecodeError
        If it is no CSA header, or ends before its last field.
    """
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
    place, found, less = start + 8, {}, None
    for _ in range(count):
        name, _vm, _vr, _type, items, _check = _TAG.unpack_from(header, place)
        place += _TAG.size
        if not 0 <= items <= _MAX_ITEMS:
            raise DecodeError(f"a field of the CSA header declares {items} items; the file is damaged")
        # the older layout adds the number of items of the first field to every length
        less = items if less is None else less
        values, place = _parse_items(header, place, items, 0 if newer else less, newer=newer)
        key = _decode_text(name)
        if key in names:
            found[key] = tuple(filter(None, map(_decode_text, values)))
    return found


def _parse_items(header: bytes, place: int, count: int, less: int, *, newer: bool) -> tuple[list[bytes], int]:
    values = []
    for _ in range(count):
        first, second, _third, _fourth = _ITEM.unpack_from(header, place)
        place += _ITEM.size
        length = second if newer else first - less
        if length < 0 or place + length > len(header):
            if not newer:
                break
            raise DecodeError("an item of the CSA header is longer than the header; the file is damaged")
        values.append(header[place : place + length])
        place += (length + 3) // 4 * 4
    return values, place


def _decode_text(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode("latin-1").strip()
