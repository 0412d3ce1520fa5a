"""Frames of pixel data that is not compressed (PS3.5 8.1 and annex D), one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DecodeError, TruncatedError

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["NativeFrames", "unpack_bits"]

#: Two luminances share their color differences: four values for each two pixels.
_HALF_COLOR: Final = frozenset({"YBR_FULL_422", "YBR_PARTIAL_422"})
#: What only codestreams hold: their color transforms, and subsampling without a layout of its own.
_ONLY_COMPRESSED: Final = frozenset({"YBR_PARTIAL_420", "YBR_RCT", "YBR_ICT", "XYB"})


@dataclass(frozen=True, slots=True)
class _FrameLayout:
    """Bits of a frame, and for halved color whether rows are filled up to whole pairs of pixels."""

    bits: int
    halved: bool = False
    filled_rows: bool = False


class NativeFrames:
    """
    The frames of uncompressed pixel data.

    Frames follow each other without gaps, in single bits too (PS3.5 8.1.1), so that frames of these need
    not start at a byte.

    Parameters
    ----------
    data : bytes
        All of the pixel data; more than needed is ignored.
    form : FrameFormat
        What the header says.
    count : int
        The number of frames.
    big_endian : bool
        Whether samples are in big-endian order.
    words : bool
        Whether big-endian bytes were written two to a word, VR OW (PS3.5 A.3).

    Raises
    ------
    TruncatedError
        If there are fewer bytes than frames of that size take.
    DecodeError
        If the colors have no uncompressed form.

    Notes
    -----
    YBR_FULL_422 and YBR_PARTIAL_422 hold Y1 Y2 Cb Cr for each two pixels (PS3.3 C.7.6.3.1.2). Many files
    that say so hold three values for each pixel; the number of bytes tells, and is believed. Where the
    number of columns is odd, the standard leaves open what a pair is: if there are bytes enough for rows
    filled up to whole pairs, they are; if not, pairs run on across the ends of rows.
    """

    def __init__(
        self, data: bytes, form: FrameFormat, count: int, *, big_endian: bool = False, words: bool = False
    ) -> None:
        if form.photometric in _ONLY_COMPRESSED:
            raise DecodeError(
                f"Photometric Interpretation {form.photometric} is for compressed pixel data only, "
                "and this is not compressed; the header is wrong"
            )
        self._data = memoryview(data)
        self._form = form
        self._layout = _choose_layout(form, count, len(data))
        self._swapped = words and big_endian and form.bits_allocated <= 8
        self._dtype = np.dtype(f"{'f' if form.floating else 'u'}{form.dtype.itemsize}")
        self._stored_type = self._dtype.newbyteorder(">" if big_endian else "<")
        expected = (self._layout.bits * count + 7) // 8
        if len(data) < expected:
            raise TruncatedError(
                f"the header says {expected} bytes of pixel data in {count} frame(s), "
                f"the file holds {len(data)}; copy or export it again"
            )

    def frame(self, number: int) -> npt.NDArray[Any]:
        """Return frame `number` as it is stored: (rows, columns[, 3]), unsigned or float, not writable."""
        start = number * self._layout.bits
        if self._form.bits_allocated == 1:
            packed = self._bytes(start // 8, (start + self._layout.bits + 7) // 8)
            return np.reshape(unpack_bits(packed, self._form.count, start % 8), self._form.shape)
        flat = np.frombuffer(self._bytes(start // 8, (start + self._layout.bits) // 8), self._stored_type)
        flat = flat.astype(self._dtype, copy=False)
        if self._layout.halved:
            return _upsample_chroma(flat, self._form, filled=self._layout.filled_rows)
        if self._form.samples > 1 and self._form.planar:
            planes = flat.reshape(self._form.samples, self._form.rows, self._form.columns)
            return np.moveaxis(planes, 0, -1)
        return flat.reshape(self._form.shape)

    def _bytes(self, start: int, stop: int) -> memoryview | npt.NDArray[np.uint8]:
        if not self._swapped:
            return self._data[start:stop]
        first, last = start // 2 * 2, min((stop + 1) // 2 * 2, len(self._data) // 2 * 2)
        words = np.frombuffer(self._data[first:last], ">u2").astype("<u2").view(np.uint8)
        # without the fellow that fills its word, the last byte lies where it is
        rest = np.frombuffer(self._data[last:stop], np.uint8)
        return np.concatenate([words, rest])[start - first : stop - first]


def _choose_layout(form: FrameFormat, count: int, size: int) -> _FrameLayout:
    bits = form.count * form.bits_allocated
    if form.photometric not in _HALF_COLOR or size * 8 >= bits * count:
        return _FrameLayout(bits)
    filled = form.rows * (form.columns + form.columns % 2) * 2 * form.bits_allocated
    if form.columns % 2 == 0 or size * 8 >= filled * count:
        return _FrameLayout(filled, halved=True, filled_rows=True)
    pairs = (form.rows * form.columns + 1) // 2
    return _FrameLayout(pairs * 4 * form.bits_allocated, halved=True)


def _upsample_chroma(flat: npt.NDArray[Any], form: FrameFormat, *, filled: bool) -> npt.NDArray[Any]:
    """Give each pixel the color differences that it shares with its neighbor."""
    pairs = flat.reshape(-1, 4)
    values = np.empty((len(pairs), 2, 3), flat.dtype)
    values[..., 0] = pairs[:, :2]
    values[..., 1:] = pairs[:, None, 2:]
    if filled:
        return values.reshape(form.rows, -1, 3)[:, : form.columns]
    return values.reshape(-1, 3)[: form.rows * form.columns].reshape(form.shape)


def unpack_bits(
    packed: memoryview | bytes | npt.NDArray[np.uint8], count: int, skipped: int = 0
) -> npt.NDArray[np.uint8]:
    """
    Return single bits as uint8; the first pixel is the lowest bit of a byte (PS3.5 8.1.1).

    Parameters
    ----------
    packed : bytes-like
        Eight bits to a byte.
    count : int
        How many bits to return.
    skipped : int
        How many to leave out before.

    Returns
    -------
    numpy.ndarray
        (count,) uint8 of 0 and 1.
    """
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=skipped + count, bitorder="little")
    return bits[skipped:]
