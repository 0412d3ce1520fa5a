"""Size and color space of a codestream, read before decoding: a forged size must not exhaust memory."""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "Codestream",
    "CodestreamSize",
    "find_j2k_end",
    "find_jpeg_process",
    "find_jpeg_scan",
    "find_jpeg_segment",
    "has_ycc",
    "read_box",
    "read_codestream",
]

_JPEG_STARTS_OF_FRAME: Final = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_J2K_START: Final = b"\xff\x4f\xff\x51"
_J2K_TILE_PART: Final = b"\xff\x90"
_J2K_END: Final = b"\xff\xd9"
_JP2_START: Final = b"\x00\x00\x00\x0cjP  "
_JXL_START: Final = b"\xff\x0a"
_JXL_BOXES: Final = b"\x00\x00\x00\x0cJXL "
#: A few boxes precede the codestream, with colors and the like.
_MAX_BOXES: Final = 1000
_EXTENDED_LENGTH: Final = 1
_JPEG_SCAN: Final = 0xDA
_JPEG_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD9)})
_JXL_RATIOS: Final = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_JXL_SIZE_BITS: Final = (9, 13, 18, 30)


class CodestreamSize(NamedTuple):
    """Rows, columns and components of a codestream; 0 components if not read."""

    rows: int
    columns: int
    components: int


class Codestream(NamedTuple):
    """Size, bits per value (0 if not read) and signedness (JPEG 2000 only) of a codestream."""

    size: CodestreamSize
    precision: int
    signed: bool


def read_codestream(data: bytes) -> Codestream | None:
    """
    Return size and precision of a codestream; None if it is not JPEG, JPEG-LS, JPEG 2000 or JPEG XL.

    Sources: ITU-T T.81 B.2.2 (SOF), T.87 C.2.2 (SOF55), T.800 A.5.1 (SIZ), ISO/IEC 18181-1 (SizeHeader).
    """
    if data[:2] == b"\xff\xd8":
        return _read_jpeg(data)
    if data[:2] == _JXL_START or data[:8] == _JXL_BOXES:
        return _read_jpeg_xl(data)
    if data[:4] != _J2K_START and data[:8] != _JP2_START:
        return None
    at = _find_j2k_start(data)
    if at < 0 or len(data) < at + 45:
        return None
    x1, y1, x0, y0 = (int.from_bytes(data[at + i : at + i + 4], "big") for i in (8, 12, 16, 20))
    size = CodestreamSize(y1 - y0, x1 - x0, int.from_bytes(data[at + 40 : at + 42], "big"))
    return Codestream(size, (data[at + 42] & 0x7F) + 1, data[at + 42] >= 0x80)


def read_box(data: bytes, box_type: bytes) -> bytes:
    """Return the contents of the first box of a type; b"" if there is none."""
    start, end = _find_box_range(data, box_type)
    return data[start:end] if start >= 0 else b""


def _find_box(data: bytes, box_type: bytes) -> int:
    """Return the offset of the contents of the first box of a type; -1 if there is none."""
    return _find_box_range(data, box_type)[0]


def _find_box_range(data: bytes, box_type: bytes) -> tuple[int, int]:
    """
    Return start and end of the contents of the first box of a type; -1 and -1 if there is none.

    Boxes are followed by their lengths, as a search could find a forged codestream.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        length, header = int.from_bytes(data[at : at + 4], "big"), 8
        if length == _EXTENDED_LENGTH:
            length, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if data[at + 4 : at + 8] == box_type:
            # a length of 0 means the rest of the file
            return at + header, at + length if length else len(data)
        if length < header:
            break
        at += length
    return -1, -1


def _find_j2k_start(data: bytes) -> int:
    """Return the offset of a JPEG 2000 codestream, bare or in boxes; -1 if there is none."""
    at = 0 if data[:4] == _J2K_START else _find_box(data, b"jp2c")
    return at if at >= 0 and data[at : at + 4] == _J2K_START else -1


def _find_jxl_start(data: bytes) -> int:
    """Return the offset of a JPEG XL codestream, whole or in numbered parts; -1 if there is none."""
    at = 0 if data[:2] == _JXL_START else _find_box(data, b"jxlc")
    if at < 0:
        at = _find_box(data, b"jxlp") + 4
    return at if data[at : at + 2] == _JXL_START else -1


def _read_jpeg(data: bytes) -> Codestream | None:
    for marker, start in _list_jpeg_segments(data):
        if marker in _JPEG_STARTS_OF_FRAME and start + 8 <= len(data):
            rows, columns = (int.from_bytes(data[start + i : start + i + 2], "big") for i in (3, 5))
            return Codestream(CodestreamSize(rows, columns, data[start + 7]), data[start + 2], False)
    return None


def _list_jpeg_segments(data: bytes) -> list[tuple[int, int]]:
    """Return marker and offset of the length of each segment up to the first scan."""
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
        if marker == _JPEG_SCAN:
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return segments


def find_jpeg_process(data: bytes) -> int:
    """Return the second byte of the start of frame of a JPEG, which names the process; 0 if there is none."""
    return next((m for m, _ in _list_jpeg_segments(data) if m in _JPEG_STARTS_OF_FRAME), 0)


def find_jpeg_scan(data: bytes) -> int:
    """Return the offset of the first scan of a JPEG or JPEG-LS; the end of the data if there is none."""
    return next((start for marker, start in _list_jpeg_segments(data) if marker == _JPEG_SCAN), len(data))


def find_jpeg_segment(data: bytes, wanted: int, start: bytes) -> bytes:
    """Return the first segment of a marker whose content starts so, without its length; b"" if none."""
    for marker, at in _list_jpeg_segments(data):
        if marker == wanted and data[at + 2 : at + 2 + len(start)] == start:
            return data[at + 2 : at + int.from_bytes(data[at : at + 2], "big")]
    return b""


def has_ycc(data: bytes, *, declared: bool) -> bool:
    """
    Whether the three components of a JPEG are YCbCr, not RGB.

    It takes precedence over Photometric Interpretation (`declared`), which often is wrong: Adobe segment
    (transform 0 is RGB, 1 YCbCr), JFIF segment (YCbCr), components named R, G, B, subsampled components
    (YCbCr).
    """
    jfif = False
    for marker, start in _list_jpeg_segments(data):
        if marker == 0xEE and data[start + 2 : start + 7] == b"Adobe":
            length = int.from_bytes(data[start : start + 2], "big")
            if length >= 14 and data[start + 13] <= 1:
                return data[start + 13] == 1
        if marker == 0xE0 and data[start + 2 : start + 7] == b"JFIF\0":
            jfif = True
        if marker in _JPEG_STARTS_OF_FRAME:
            names, sampling = data[start + 8 : start + 17 : 3], data[start + 9 : start + 17 : 3]
            if names == b"RGB":
                return jfif
            return jfif or declared or len(set(sampling)) > 1
    return jfif or declared


def find_j2k_end(data: bytes) -> int | None:
    """
    Return the end of the tile-parts of a JPEG 2000 codestream by their lengths (ITU-T T.800 A.4.2).

    It exceeds the data if that is truncated; None if the last tile-part extends to the end, or there is none.
    """
    at = _find_j2k_start(data) + 2
    # segments of the main header: marker, then a length that does not count the marker
    while at + 4 <= len(data) and data[at : at + 2] != _J2K_TILE_PART:
        if data[at] != 0xFF:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    found = False
    while data[at : at + 2] == _J2K_TILE_PART and at + 12 <= len(data):
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if length < 12:
            return None
        at, found = at + length, True
    return at if found else None


class _BitReader:
    """Bits of a JPEG XL header, lowest bit of a byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def read(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken


def _read_jpeg_xl(data: bytes) -> Codestream | None:
    start = _find_jxl_start(data)
    if start < 0:
        return None
    bits = _BitReader(data[start + 2 : start + 14])
    small = bits.read(1)
    rows = _read_jxl_extent(bits, small)
    ratio = bits.read(3)
    if ratio:
        across, down = _JXL_RATIOS[ratio - 1]
        columns = rows * across // down
    else:
        columns = _read_jxl_extent(bits, small)
    return Codestream(CodestreamSize(rows, columns, 0), 0, False)


def _read_jxl_extent(bits: _BitReader, small: int) -> int:
    if small:
        return 8 * (bits.read(5) + 1)
    return bits.read(_JXL_SIZE_BITS[bits.read(2)]) + 1
