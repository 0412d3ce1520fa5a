"""Frames of uncompressed pixel data (PS3.5 8.1 and annex D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from medimg.errors import DecodeError, TruncatedError
from medimg.io.dicom.header.image_pixel import describe_frame_count

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["NativeFrames", "PixelBytes", "check_excess", "describe_excess", "unpack_bits"]

#: Two luminances share their color differences: four values for each two pixels.
_HALF_COLOR: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
#: What only codestreams hold: their color transforms, and subsampling without a layout of its own.
_ONLY_COMPRESSED: Final = frozenset({"YBR_PARTIAL_420", "YBR_RCT", "YBR_ICT", "XYB"})
#: Bits that make the length even, and bytes that some writers add.
_PADDING_BITS: Final = 8
_MOST_PADDING: Final = 4


class PixelBytes(Protocol):
    """Bytes of pixel data, in memory or elsewhere."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> memoryview: ...


@dataclass(frozen=True, slots=True)
class _FrameLayout:
    """Bits of a frame; for subsampled chroma, whether rows are padded to whole pairs of pixels."""

    bits: int
    halved: bool = False
    filled_rows: bool = False


class NativeFrames:
    """
    Frames of uncompressed pixel data, contiguous also for single bits (PS3.5 8.1.1).

    YBR_FULL_422 and YBR_PARTIAL_422 hold Y1 Y2 Cb Cr per pair of pixels (PS3.3 C.7.6.3.1.2), but many such
    files hold three values per pixel: the number of bytes decides, also whether an odd row is padded to whole
    pairs.
    """

    def __init__(
        self,
        data: bytes | PixelBytes,
        fmt: FrameFormat,
        count: int,
        *,
        big_endian: bool = False,
        words: bool = False,
    ) -> None:
        if fmt.photometric in _ONLY_COMPRESSED:
            raise DecodeError(
                f"Photometric Interpretation {fmt.photometric} is for compressed pixel data only, "
                "and this is not compressed; the header is wrong"
            )
        self._data: PixelBytes = memoryview(data) if isinstance(data, bytes) else data
        self._fmt = fmt
        self._layout = _choose_layout(fmt, count, len(data))
        self._swapped = words and big_endian and fmt.bits_allocated <= 8
        self._dtype = np.dtype(f"{'f' if fmt.floating else 'u'}{fmt.dtype.itemsize}")
        self._stored_type = self._dtype.newbyteorder(">" if big_endian else "<")
        expected = (self._layout.bits * count + 7) // 8
        if len(data) < expected:
            raise TruncatedError(
                f"the header says {expected} bytes of pixel data in {count} frame(s), "
                f"the file holds {len(data)}; copy or export it again"
            )
        check_excess(len(data), self._layout.bits, count)
        #: A warning about the data, or "".
        self.note: str = describe_excess(len(data), self._layout.bits, count, fmt)

    def get_frame(self, number: int) -> npt.NDArray[Any]:
        """Return frame `number` as stored, (rows, columns[, 3]), unsigned or float, read-only."""
        start = number * self._layout.bits
        if self._fmt.bits_allocated == 1:
            packed = self._read_bytes(start // 8, (start + self._layout.bits + 7) // 8)
            return np.reshape(unpack_bits(packed, self._fmt.count, start % 8), self._fmt.shape)
        flat = np.frombuffer(
            self._read_bytes(start // 8, (start + self._layout.bits) // 8), self._stored_type
        )
        flat = flat.astype(self._dtype, copy=False)
        if self._layout.halved:
            return _upsample_chroma(flat, self._fmt, filled=self._layout.filled_rows)
        if self._fmt.samples > 1 and self._fmt.planar:
            planes = flat.reshape(self._fmt.samples, self._fmt.rows, self._fmt.columns)
            return np.moveaxis(planes, 0, -1)
        return flat.reshape(self._fmt.shape)

    def _read_bytes(self, start: int, stop: int) -> memoryview | npt.NDArray[np.uint8]:
        if not self._swapped:
            return self._data[start:stop]
        first, last = start // 2 * 2, min((stop + 1) // 2 * 2, len(self._data) // 2 * 2)
        words = np.frombuffer(self._data[first:last], ">u2").astype("<u2").view(np.uint8)
        # the last byte stays in place if its word is incomplete
        rest = np.frombuffer(self._data[last:stop], np.uint8)
        return np.concatenate([words, rest])[start - first : stop - first]


def check_excess(size: int, bits: int, count: int) -> None:
    """Raise DecodeError if `size` bytes hold more than `count` frames of `bits`, besides padding."""
    expected = (bits * count + 7) // 8
    if size - expected > _MOST_PADDING and size * 8 >= bits * (count + 1):
        raise DecodeError(
            f"the pixel data holds {size * 8 // bits} frames, but {describe_frame_count(count)}; "
            "correct it, or export the file again"
        )


def describe_excess(size: int, bits: int, count: int, fmt: FrameFormat) -> str:
    """Return a warning if `size` bytes hold a row or more besides `count` frames of `bits`; "" if not."""
    excess = size - (bits * count + 7) // 8
    if excess < max(_MOST_PADDING + 1, bits // (8 * fmt.rows)):
        return ""
    return (
        f"the pixel data has {excess} bytes more than {count} frame(s) of {fmt.rows}×{fmt.columns} pixels "
        "need, which are not used: Rows or Columns may be wrong"
    )


def _choose_layout(fmt: FrameFormat, count: int, size: int) -> _FrameLayout:
    bits = fmt.count * fmt.bits_allocated
    if fmt.photometric not in _HALF_COLOR:
        return _FrameLayout(bits)
    filled = fmt.rows * (fmt.columns + fmt.columns % 2) * 2 * fmt.bits_allocated
    if size * 8 >= bits * count:
        # not a multiple of frames with three values per pixel, but of several others
        is_filled = size * 8 % bits > _PADDING_BITS and size * 8 % filled <= _PADDING_BITS
        return _FrameLayout(filled, halved=True, filled_rows=True) if is_filled else _FrameLayout(bits)
    if fmt.columns % 2 == 0 or size * 8 >= filled * count:
        return _FrameLayout(filled, halved=True, filled_rows=True)
    pairs = (fmt.rows * fmt.columns + 1) // 2
    return _FrameLayout(pairs * 4 * fmt.bits_allocated, halved=True)


def _upsample_chroma(flat: npt.NDArray[Any], fmt: FrameFormat, *, filled: bool) -> npt.NDArray[Any]:
    """Give both pixels of a pair their common color differences."""
    pairs = flat.reshape(-1, 4)
    values = np.empty((len(pairs), 2, 3), flat.dtype)
    values[..., 0] = pairs[:, :2]
    values[..., 1:] = pairs[:, None, 2:]
    if filled:
        return values.reshape(fmt.rows, -1, 3)[:, : fmt.columns]
    return values.reshape(-1, 3)[: fmt.rows * fmt.columns].reshape(fmt.shape)


def unpack_bits(
    packed: memoryview | bytes | npt.NDArray[np.uint8], count: int, skipped: int = 0
) -> npt.NDArray[np.uint8]:
    """Return (count,) uint8 of 0 and 1 after `skipped` bits, lowest bit of a byte first (PS3.5 8.1.1)."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=skipped + count, bitorder="little")
    return bits[skipped:]
