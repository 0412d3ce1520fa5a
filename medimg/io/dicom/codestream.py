"""Sizes read off a compressed frame before it is decoded, so that a forged one can't claim all memory."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["CodestreamSize", "codestream_size", "has_ycc_marker"]

_JPEG_STARTS_OF_FRAME: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_J2K_START: Final = b"\xff\x4f\xff\x51"
_JP2_START: Final = b"\x00\x00\x00\x0cjP  "
_JPEG_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})


class CodestreamSize(NamedTuple):
    """Rows, columns and components that a codestream declares."""

    rows: int
    columns: int
    components: int


def codestream_size(data: bytes) -> CodestreamSize | None:
    """
    Return the size that a JPEG, JPEG-LS or JPEG 2000 codestream declares, or None if it is none of these.

    Sources: ITU-T T.81 B.2.2 (SOF), T.87 C.2.2 (SOF55), T.800 A.5.1 (SIZ).
    """
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:4] != _J2K_START and data[:8] != _JP2_START:
        return None
    at = data.find(_J2K_START, 0, 4096)
    if at < 0 or len(data) < at + 42:
        return None
    x1, y1, x0, y0 = (int.from_bytes(data[at + i : at + i + 4], "big") for i in (8, 12, 16, 20))
    return CodestreamSize(y1 - y0, x1 - x0, int.from_bytes(data[at + 40 : at + 42], "big"))


def _jpeg_size(data: bytes) -> CodestreamSize | None:
    for marker, start in _jpeg_segments(data):
        if marker in _JPEG_STARTS_OF_FRAME and start + 8 <= len(data):
            rows, columns = (int.from_bytes(data[start + i : start + i + 2], "big") for i in (3, 5))
            return CodestreamSize(rows, columns, data[start + 7])
    return None


def _jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """Marker and place of the length field of each segment up to the first scan."""
    segments = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _JPEG_STANDALONE:
            at += 2
            continue
        segments.append((marker, at + 2))
        if marker == 0xDA:
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return segments


def has_ycc_marker(data: bytes) -> bool:
    """Whether a JPEG says of itself that it is YCbCr: a JFIF segment, or Adobe's with transform 1."""
    for marker, start in _jpeg_segments(data):
        if marker == 0xE0 and data[start + 2 : start + 6] == b"JFIF":
            return True
        if marker == 0xEE and data[start + 2 : start + 7] == b"Adobe":
            return data[start + 13 : start + 14] == b"\x01"
    return False
