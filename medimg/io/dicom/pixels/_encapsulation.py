"""Codestreams of frames from encapsulated pixel data (PS3.5 A.4)."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from medimg.errors import DecodeError, TruncatedError
from medimg.io.dicom.header.image_pixel import describe_frame_count

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["EncapsulatedFrames", "extract_codestream", "is_encapsulated", "is_trailing_padding"]

_ITEM: Final = b"\xfe\xff\x00\xe0"
_DELIMITER: Final = b"\xfe\xff\xdd\xe0\0\0\0\0"
_TRAILING_PADDING: Final = b"\xfc\xff\xfc\xff"
_HEADER: Final = 8
#: More would be an attack on memory.
_MAX_FRAGMENTS: Final = 2**20
_JPEG: Final = (b"\xff\xd8\xff",)
_JPEG_2000: Final = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")
_JPEG_XL: Final = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
_RLE: Final = "1.2.840.10008.1.2.5"
_MAX_SEGMENTS: Final = 15
_RLE_HEADER: Final = 64


class _Fragment(NamedTuple):
    """Offset of the item of a fragment from the first one, and the range of its bytes."""

    offset: int
    start: int
    stop: int


def is_encapsulated(data: bytes | memoryview) -> bool:
    """Whether pixel data starts with an item, as a Basic Offset Table does."""
    return data[:4] == _ITEM


class EncapsulatedFrames:
    """
    Codestreams of encapsulated pixel data, by the first rule that gives `count` frames.

    Extended Offset Table (`extended`: offsets, lengths) or Basic Offset Table, if every entry is the start of
    an item and they ascend; a fragment per frame; a single frame; a frame from each fragment on that starts a
    codestream. DecodeError if there are more frames.
    """

    def __init__(
        self,
        data: bytes | memoryview,
        count: int,
        syntax_uid: str,
        extended: tuple[Sequence[int], Sequence[int]] | None = None,
    ) -> None:
        self._data = memoryview(data)
        table, fragments = _parse_fragments(data, count, syntax_uid)
        _check_count(self._data, fragments, (table, extended[0] if extended else ()), count, syntax_uid)
        self._lengths: Sequence[int] | None = None
        groups = _group_by_offsets(fragments, extended[0], count) if extended else None
        if extended and groups is not None and len(extended[1]) >= count:
            self._lengths = extended[1]
        groups = groups or _group_by_offsets(fragments, table, count)
        self._groups = groups or _group_by_content(self._data, fragments, count, syntax_uid)

    def get_codestream(self, number: int) -> bytes:
        """Return the bytes of frame `number`, its fragments joined."""
        fragments = self._groups[number]
        joined = b"".join(self._data[f.start : f.stop] for f in fragments)
        if self._lengths is None or not 0 < self._lengths[number] <= len(joined):
            return joined
        return joined[: self._lengths[number]]


def extract_codestream(file: bytes, start: int, syntax_uid: str) -> bytes:
    """Return the codestream of the only frame of a regular file, with its pixel data at `start`."""
    at = start
    while file[at : at + 4] == _ITEM:
        at += _HEADER + int.from_bytes(file[at + 4 : at + _HEADER], "little")
    rest = at + len(_DELIMITER)
    if file[at:rest] != _DELIMITER or not is_trailing_padding(file[rest:], implicit=False):
        raise DecodeError("the items of the pixel data don't end with a delimiter")
    return EncapsulatedFrames(memoryview(file)[start:at], 1, syntax_uid).get_codestream(0)


def is_trailing_padding(rest: bytes, *, implicit: bool) -> bool:
    """Whether the rest of a file after the pixel data is empty or Data Set Trailing Padding."""
    if not rest:
        return True
    at = 4 if implicit else 8
    if rest[:at] != (_TRAILING_PADDING if implicit else _TRAILING_PADDING + b"OB\0\0"):
        return False
    return len(rest) == at + 4 + int.from_bytes(rest[at : at + 4], "little")


def _parse_fragments(
    data: bytes | memoryview, count: int, syntax_uid: str
) -> tuple[list[int], list[_Fragment]]:
    """Return the Basic Offset Table and the fragments, without copying them."""
    if not is_encapsulated(data):
        raise DecodeError(
            "the transfer syntax is a compressed one, but the pixel data has no items; the header is wrong, "
            "or the file is damaged"
        )
    fragments: list[_Fragment] = []
    first = _HEADER + _read_item_length(data, 0)
    if _is_codestream_start(memoryview(data)[_HEADER:first], syntax_uid):
        # the table, which is mandatory even if empty, is missing
        first = 0
    at = first
    while data[at : at + 4] == _ITEM:
        length = _read_item_length(data, at)
        if length:
            fragments.append(_Fragment(at - first, at + _HEADER, at + _HEADER + length))
        if len(fragments) > _MAX_FRAGMENTS:
            raise DecodeError(f"the pixel data has more than {_MAX_FRAGMENTS} fragments; it is damaged")
        at += _HEADER + length
        # lengths must be even; some files count the byte that makes them so, some don't
        at += length % 2 and data[at : at + 4] != _ITEM and data[at + 1 : at + 5] == _ITEM
    if len(fragments) < count:
        raise TruncatedError(
            f"the header says {count} frame(s), the pixel data has {len(fragments)} fragment(s); "
            "copy or export the file again"
        )
    table = data[_HEADER:first] if first else b""
    offsets = np.frombuffer(table[: len(table) // 4 * 4], "<u4")
    return offsets.tolist(), fragments


def _read_item_length(data: bytes | memoryview, at: int) -> int:
    length = int.from_bytes(data[at + 4 : at + _HEADER], "little")
    if at + _HEADER + length > len(data):
        raise TruncatedError(
            f"a fragment of {length} bytes ends {at + _HEADER + length - len(data)} bytes after the end of "
            "the pixel data; copy or export the file again"
        )
    return length


def _check_count(
    data: memoryview,
    fragments: Sequence[_Fragment],
    tables: tuple[Sequence[int], ...],
    count: int,
    syntax_uid: str,
) -> None:
    """Raise DecodeError if an offset table or the codestreams are those of more than `count` frames."""
    if len(fragments) == count:
        return
    most, where = 0, ""
    for table in tables:
        if len(table) > most and _group_by_offsets(fragments, table, len(table)) is not None:
            most, where = len(table), "offset table lists"
    # a table of one frame begins at 0 whatever follows; one of several says which fragments are a frame's,
    # and a fragment may start with bytes like those of a codestream, as after the header of SPIFF
    if most == count > 1:
        return
    if most <= count:
        most = sum(_is_codestream_start(data[f.start : f.stop], syntax_uid) for f in fragments)
        where = "pixel data holds"
    if most > count:
        raise DecodeError(
            f"the {where} {most} frames, but {describe_frame_count(count)}; correct it, or export "
            "the file again"
        )


def _group_by_offsets(
    fragments: Sequence[_Fragment], table: Sequence[int], count: int
) -> list[Sequence[_Fragment]] | None:
    """Group fragments by a table of frame offsets; None if it is inconsistent."""
    offsets = list(table[:count])
    if len(offsets) < count or any(b <= a for a, b in pairwise(offsets)):
        return None
    starts = [f.offset for f in fragments]
    firsts = [bisect_left(starts, offset) for offset in offsets]
    if any(p == len(starts) or starts[p] != o for p, o in zip(firsts, offsets, strict=True)) or firsts[0]:
        return None
    ends = [*firsts[1:], len(fragments)]
    return [fragments[a:b] for a, b in zip(firsts, ends, strict=True)]


def _group_by_content(
    data: memoryview, fragments: Sequence[_Fragment], count: int, syntax_uid: str
) -> list[Sequence[_Fragment]]:
    starts = [n for n, f in enumerate(fragments) if _is_codestream_start(data[f.start : f.stop], syntax_uid)]
    if len(fragments) == count:
        return [[fragment] for fragment in fragments]
    if count == 1:
        return [fragments]
    if len(starts) == count and starts[0] == 0:
        ends = [*starts[1:], len(fragments)]
        return [fragments[a:b] for a, b in zip(starts, ends, strict=True)]
    raise DecodeError(
        f"the header says {count} frames, the pixel data has {len(fragments)} fragments of which "
        f"{len(starts)} start a codestream, and no offset table assigns them to frames"
    )


def _is_codestream_start(fragment: memoryview, syntax_uid: str) -> bool:
    start = bytes(fragment[:_RLE_HEADER])
    if syntax_uid == _RLE:
        return _is_rle_header(start)
    if syntax_uid.startswith("1.2.840.10008.1.2.4.11"):
        return start.startswith(_JPEG_XL)
    if syntax_uid.startswith(("1.2.840.10008.1.2.4.9", "1.2.840.10008.1.2.4.20")):
        return start.startswith(_JPEG_2000)
    return syntax_uid.startswith("1.2.840.10008.1.2.4.") and start.startswith(_JPEG)


def _is_rle_header(start: bytes) -> bool:
    """Whether these are the number of RLE segments and their offsets (PS3.5 G.5)."""
    if len(start) < _RLE_HEADER:
        return False
    segments, *offsets = np.frombuffer(start, "<u4").tolist()
    if not 1 <= segments <= _MAX_SEGMENTS or offsets[0] != _RLE_HEADER:
        return False
    used, unused = offsets[:segments], offsets[segments:]
    return not any(unused) and all(a < b for a, b in pairwise(used))
