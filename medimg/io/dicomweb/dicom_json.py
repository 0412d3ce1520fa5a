"""DICOM JSON (PS3.18 annex F) as bytes of a DICOM header, which is parsed as that of a file."""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from medimg.errors import MedimgError, ReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = [
    "JsonObject",
    "encode_header",
    "get_json_number",
    "get_json_value",
    "has_lost_backslashes",
    "has_nested_bulk",
    "iterate_json",
    "parse_json",
]

JsonObject: TypeAlias = "dict[str, Any]"

#: Objects, arrays and values of an answer: each takes some 100 bytes once parsed.
_MAX_NODES: Final = 2**22
#: Characters of a list that are parsed together: no more nodes than that.
_PIECE: Final = 2**20
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_MAX_DEPTH: Final = 32
_TAG: Final = re.compile(r"[0-9A-Fa-f]{8}")
_PIXEL_DATA: Final = 0x7FE00010
_ITEM: Final = struct.pack("<HH", 0xFFFE, 0xE000)
_CHARACTER_SET: Final = 0x00080005
_META: Final = (
    bytes(128)
    + b"DICM"
    + struct.pack("<HH2sHI", 2, 0, b"UL", 4, 28)
    + struct.pack("<HH2sH", 2, 0x10, b"UI", 20)
    + b"1.2.840.10008.1.2.1\0"
)
_LONG_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
_BINARY_VRS: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_NUMBERS: Final = {
    "FD": "d", "FL": "f", "SL": "i", "SS": "h", "SV": "q", "UL": "I", "US": "H", "UV": "Q",
}  # fmt: skip
_TEXT_VRS: Final = frozenset(
    {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
)
_NAME_PARTS: Final = ("Alphabetic", "Ideographic", "Phonetic")
#: Of Siemens and Philips, with functional groups of their own.
_PRIVATE_GROUPS: Final = frozenset({0x0021, 0x2005})
_MAX_SHORT: Final = 2**16 - 2
_MOST_DIGITS: Final = 10


def parse_json(data: bytes | bytearray, what: str) -> list[JsonObject]:
    """Return the objects of an answer; ReadError if it is no JSON, too complex, or has another structure."""
    if not data.strip():
        return []
    nodes = sum(data.count(sign) for sign in (b"{", b"[", b","))
    if nodes > _MAX_NODES:
        raise ReadError(f"{what} has more than {_MAX_NODES} JSON values; it is not read")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ReadError(f"{what} is not JSON; expected application/dicom+json") from None
    objects = [found] if isinstance(found, dict) else found
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise ReadError(f"{what} is JSON, but not a list of objects as DICOM JSON is (PS3.18 F.2)")
    return objects


def iterate_json(data: bytes | bytearray, what: str) -> Iterator[JsonObject]:
    """Yield what :func:`parse_json` returns; a list may be long, as only a part of it is parsed at a time."""
    try:
        text = data.decode()
        at = _skip_space(text, 0)
        if text[at : at + 1] != "[":
            yield from parse_json(data, what)
            return
        for found in _iterate_list(text, at + 1, what):
            if not isinstance(found, dict):
                raise ReadError(f"{what} is JSON, but not a list of objects as DICOM JSON is (PS3.18 F.2)")
            yield found
    except (ValueError, RecursionError) as error:
        if isinstance(error, MedimgError):
            raise
        raise ReadError(f"{what} is not JSON; expected application/dicom+json") from None


def _iterate_list(text: str, at: int, what: str) -> Iterator[Any]:
    """Yield the values of a list that begins before `at`; ValueError if it is none."""
    decode = json.JSONDecoder().raw_decode
    size, is_first = _PIECE, True
    while True:
        piece = text[at : at + size]
        if size > _PIECE and sum(map(piece.count, "{[,")) > _MAX_NODES:
            raise ReadError(f"{what} has more than {_MAX_NODES} JSON values for one instance; it is not read")
        done = 0
        while True:
            position = _skip_space(piece, done)
            if piece[position : position + 1] == "]":
                if _skip_space(text, at + position + 1) < len(text):
                    raise ValueError
                return
            try:
                if not is_first:
                    position = _skip_space(piece, piece.index(",", position, position + 1) + 1)
                found, done = decode(piece, position)
            except ValueError:
                # its end may be in the next piece
                if at + size >= len(text):
                    raise
                break
            is_first = False
            yield found
        size = _PIECE if done else 4 * size
        at += done


def _skip_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # of nothing, too
    return found.end()


def get_json_value(item: JsonObject, tag: str) -> str:
    """Return the first value of an element as text, "" if it is absent; names give their first spelling."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else None
    if isinstance(first, dict):
        first = first.get("Alphabetic")
    if isinstance(first, bool) or not isinstance(first, str | int | float):
        return ""
    return str(first).strip(" \0")


def get_json_number(item: JsonObject, tag: str) -> int | None:
    """Return the first value of an element as a number from 0; None if it is absent, none, or huge."""
    text = get_json_value(item, tag)
    return int(text) if text.isdecimal() and len(text) < _MOST_DIGITS else None


def has_nested_bulk(item: JsonObject, tags: Collection[int]) -> bool:
    """Whether a value in the sequences among `tags` that could be used is not in the metadata."""
    elements = (element for tag, element in _sort_elements(item) if tag in tags)
    return any(_has_bulk_items(element, tags, 0) for element in elements)


def has_lost_backslashes(item: JsonObject) -> bool:
    """
    Whether a server took the backslashes between values for letters of a character set (PS3.5 6.1.2.3).

    In ISO_IR 13 their byte is the yen sign, in some Korean fonts the won sign. Numbers of several values are
    then lost, as Orthanc finds none in "0.5¥0.5".
    """
    codes = (element for _, element in _sort_elements(item) if element.get("vr") in ("CS", "DS", "IS", "UI"))
    values = (value for element in codes for value in element.get("Value") or () if isinstance(value, str))
    return any("¥" in value or "₩" in value for value in values)


def _has_bulk_items(element: JsonObject, tags: Collection[int], depth: int) -> bool:
    items = element.get("Value")
    if element.get("vr") != "SQ" or not isinstance(items, list) or depth > _MAX_DEPTH:
        return False
    for item in items:
        for tag, inner in _sort_elements(item) if isinstance(item, dict) else ():
            # private functional groups are sequences, of which servers may only know the bytes
            is_used = tag in tags or (tag >> 16 in _PRIVATE_GROUPS and inner.get("vr") == "UN")
            if ("BulkDataURI" in inner and is_used) or _has_bulk_items(inner, tags, depth + 1):
                return True
    return False


def encode_header(item: JsonObject, tags: Collection[int], read_bulk: Callable[[int, str], bytes]) -> bytes:
    """
    Return the elements `tags` of an object as a DICOM file in explicit VR little endian, with empty pixels.

    Texts are in UTF-8. `read_bulk` gives the values that are not in the object; those in sequences stay
    absent. Raises ReadError if a value contradicts its VR.
    """
    pieces = [_META]
    elements = _sort_elements(item)
    for tag, element in elements:
        if tag in tags and 0x0002FFFF < tag < _PIXEL_DATA and tag != _CHARACTER_SET:
            pieces.append(_encode_element(tag, element, read_bulk, 0))
        elif tag == _CHARACTER_SET:
            pieces.append(_join(tag, "CS", b"ISO_IR 192"))
    if not any(tag == _CHARACTER_SET for tag, _ in elements):
        pieces.insert(1, _join(_CHARACTER_SET, "CS", b"ISO_IR 192"))
    pieces.append(_join(_PIXEL_DATA, "OW", b""))
    return b"".join(pieces)


def _sort_elements(item: JsonObject) -> list[tuple[int, JsonObject]]:
    found = []
    for name, element in item.items():
        if not _TAG.fullmatch(name) or not isinstance(element, dict):
            raise ReadError("an attribute is no tag with an object; the metadata are malformed")
        found.append((int(name, 16), element))
    return sorted(found, key=lambda pair: pair[0])


def _encode_element(
    tag: int, element: JsonObject, read_bulk: Callable[[int, str], bytes] | None, depth: int
) -> bytes:
    vr = element.get("vr")
    if not isinstance(vr, str) or (vr not in _LONG_VRS and vr not in _TEXT_VRS | {"AT", *_NUMBERS}):
        raise ReadError(f"{_name(tag)} has no valid VR; the metadata are malformed")
    if "BulkDataURI" in element:
        uri = element["BulkDataURI"]
        if read_bulk is None or not isinstance(uri, str):
            return b""
        return _join(tag, vr, read_bulk(tag, uri))
    if "InlineBinary" in element:
        return _join(tag, vr, _decode_base64(tag, element["InlineBinary"]))
    values = element.get("Value", [])
    if not isinstance(values, list):
        raise ReadError(f"{_name(tag)} has no list of values; the metadata are malformed")
    if vr == "SQ":
        return _join(tag, vr, b"".join(_encode_items(tag, values, depth)))
    if vr in _BINARY_VRS and values:
        raise ReadError(f"{_name(tag)} is binary, but has values; the metadata are malformed")
    return _join(tag, vr, _encode_values(tag, vr, values))


def _encode_items(tag: int, items: list[Any], depth: int) -> Iterator[bytes]:
    if depth > _MAX_DEPTH:
        raise ReadError(f"{_name(tag)} has sequences in more than {_MAX_DEPTH} levels; it is malformed")
    for item in items:
        if item is not None and not isinstance(item, dict):
            raise ReadError(f"{_name(tag)} has an item that is no object; the metadata are malformed")
        elements = _sort_elements(item or {})
        data = b"".join(_encode_element(n, element, None, depth + 1) for n, element in elements)
        yield _ITEM + struct.pack("<I", len(data)) + data


def _encode_values(tag: int, vr: str, values: list[Any]) -> bytes:
    if vr in _NUMBERS:
        return b"".join(_encode_number(tag, vr, value) for value in values)
    if vr == "AT":
        return b"".join(_encode_tag(tag, value) for value in values)
    return "\\".join(_to_text(tag, vr, value) for value in values).encode("utf-8", "surrogatepass")


def _encode_number(tag: int, vr: str, value: Any) -> bytes:
    code = "<" + _NUMBERS[vr]
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        return struct.pack(code, float(value) if vr in ("FD", "FL") else _to_whole(value))
    except (ValueError, OverflowError, struct.error):
        raise ReadError(f"{_name(tag)} is no number of type {vr}; the metadata are malformed") from None


def _to_whole(value: str | float) -> int:
    number = int(value)
    if isinstance(value, float) and value != number:
        raise ValueError
    return number


def _encode_tag(tag: int, value: Any) -> bytes:
    if not isinstance(value, str) or not _TAG.fullmatch(value):
        raise ReadError(f"{_name(tag)} is no tag; the metadata are malformed")
    return struct.pack("<HH", int(value[:4], 16), int(value[4:], 16))


def _to_text(tag: int, vr: str, value: Any) -> str:
    if value is None:
        return ""
    if vr == "PN" and isinstance(value, dict):
        parts = [value.get(name, "") for name in _NAME_PARTS]
        if all(isinstance(part, str) for part in parts):
            return "=".join(parts).rstrip("=")
    elif isinstance(value, str):
        return value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    raise ReadError(f"{_name(tag)} has a value that is no {vr}; the metadata are malformed")


def _decode_base64(tag: int, text: Any) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ReadError(f"{_name(tag)} is not base64; the metadata are malformed") from None


def _join(tag: int, vr: str, value: bytes) -> bytes:
    """Return an element, its value padded to an even length."""
    if len(value) % 2:
        value += b"\0" if vr in _BINARY_VRS or vr == "UI" else b" "
    start = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in _LONG_VRS:
        return start + struct.pack("<HI", 0, len(value)) + value
    if len(value) > _MAX_SHORT:
        raise ReadError(f"{_name(tag)} is longer than {vr} can be; the metadata are malformed")
    return start + struct.pack("<H", len(value)) + value


def _name(tag: int) -> str:
    return f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
