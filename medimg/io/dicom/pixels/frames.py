"""The frames of a DICOM file into stored values, one by one, whatever the encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DecodeError, NotAnImageError
from medimg.io.dicom.header.attributes import (
    get_value,
    get_vr,
    has_undefined_length,
    has_value,
)
from medimg.io.dicom.header.image_pixel import FrameFormat, parse_frame_count, parse_frame_format
from medimg.io.dicom.header.transfer_syntax import (
    BIG_ENDIAN,
    NATIVE_SYNTAXES,
    check_syntax,
    parse_transfer_syntax,
)
from medimg.io.dicom.pixels._encapsulation import EncapsulatedFrames, is_encapsulated
from medimg.io.dicom.pixels._native import NativeFrames
from medimg.io.dicom.pixels.codecs import DecodedFrame, decode_frame

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

__all__ = [
    "WHOLE_SAMPLES",
    "StoredFrames",
    "decode_stored",
    "interpret_bits",
    "read_native_frame",
]

_PIXEL_KEYWORDS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
#: Their values are whole samples, so that the place of the bits in these is as Bits Stored and High Bit say.
WHOLE_SAMPLES: Final = frozenset({"1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"})


class StoredFrames:
    """
    The frames of one DICOM file, decoded on demand, one by one.

    Parameters
    ----------
    dataset : pydicom.Dataset
        As pydicom read it, with pixels.

    Attributes
    ----------
    form : FrameFormat
        What the header says of each frame.
    count : int
        The number of frames.

    Raises
    ------
    NotAnImageError
        If there is no pixel data.
    TruncatedError
        If there is less than the header says.
    DecodeError
        If the header contradicts itself or the pixel data, or the transfer syntax can't be decoded.

    Notes
    -----
    Bits Stored, High Bit and Pixel Representation say what the bits of a sample mean (PS3.5 8.1.1); those
    that belong to no value, which may hold overlays or anything, are dropped, and the sign of shorter values
    is extended. A codestream has a precision of its own, and JPEG 2000 a sign. Where these differ from the
    header:

    - The codestream is unsigned and the header signed: values are two's complements, as encoders without
      signed values write them. For JPEG-LS and JPEG 2000 their sign is the highest bit of the precision, if
      that is less than Bits Stored.
    - The codestream is signed: its values are final. If the header says unsigned, the header is wrong: a
      value below 0 can't be an unsigned one, and wrapped around it would become the brightest.
    - The codestream is lossy and unsigned, as the header: values are kept even where they overshoot
      Bits Stored by a little, as dropping bits would turn the brightest pixels black.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._syntax = parse_transfer_syntax(dataset)
        if self._syntax not in NATIVE_SYNTAXES:
            check_syntax(self._syntax)
        keyword = _find_pixel_keyword(dataset)
        data = get_value(dataset, keyword)
        if not isinstance(data, bytes) or not data:
            raise NotAnImageError(f"the pixel data of this DICOM object ({keyword}) is empty or unreadable")
        self.form: FrameFormat = parse_frame_format(dataset)
        self.count: int = parse_frame_count(dataset)
        self._native: NativeFrames | None = None
        self._encapsulated: EncapsulatedFrames | None = None
        if self._syntax in NATIVE_SYNTAXES:
            self._native = self._native_frames(dataset, keyword, data)
        else:
            self._encapsulated = EncapsulatedFrames(
                data, self.count, self._syntax, _get_extended_offsets(dataset)
            )

    def _native_frames(self, dataset: Dataset, keyword: str, data: bytes) -> NativeFrames:
        if has_undefined_length(dataset, keyword) and is_encapsulated(data):
            raise DecodeError(
                "the transfer syntax is an uncompressed one, but the pixel data is encapsulated "
                "as compressed data is; the header is wrong"
            )
        return NativeFrames(
            data,
            self.form,
            self.count,
            big_endian=self._syntax == BIG_ENDIAN,
            words=get_vr(dataset, keyword) == "OW",
        )

    def stored(self, number: int) -> tuple[npt.NDArray[Any], bool]:
        """
        Decode one frame; no other one is touched.

        Parameters
        ----------
        number : int
            From 0.

        Returns
        -------
        values : numpy.ndarray
            (rows, columns) or (rows, columns, 3) in the byte order of this machine, maybe not writable.
        is_rgb : bool
            Whether colors are RGB, as decoders of color codestreams give them.

        Raises
        ------
        IndexError
            If there is no such frame.
        TruncatedError, DecodeError
            If it is damaged.
        MissingDependencyError
            If a codec is not installed.
        """
        if not 0 <= number < self.count:
            raise IndexError(f"there is no frame {number} of {self.count}")
        form = self.form
        if self._encapsulated is not None:
            return decode_stored(self._encapsulated.codestream(number), self._syntax, form, number)
        assert self._native is not None
        return _extract_bits(self._native.frame(number), form), form.photometric == "RGB"


def decode_stored(
    codestream: bytes, syntax_uid: str, form: FrameFormat, number: int = 0
) -> tuple[npt.NDArray[Any], bool]:
    """Decode one compressed frame, as :meth:`StoredFrames.stored` does."""
    frame = decode_frame(codestream, syntax_uid, form, number)
    values = frame.values
    if syntax_uid not in WHOLE_SAMPLES:
        return _reconcile_with_header(frame, form, number), frame.is_rgb
    if values.flags.writeable and values.dtype == f"u{form.dtype.itemsize}" and form.bits_allocated > 1:
        return interpret_bits(values, form), frame.is_rgb
    return _extract_bits(values, form), frame.is_rgb


def read_native_frame(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    """Return the only frame of native pixel data, little endian, as :meth:`StoredFrames.stored` does."""
    return _extract_bits(NativeFrames(data, form, 1).frame(0), form)


def interpret_bits(cells: npt.NDArray[Any], form: FrameFormat) -> npt.NDArray[Any]:
    """
    Return the stored values in cells of native pixel data, in the same memory, as `StoredFrames` gives them.

    Parameters
    ----------
    cells : numpy.ndarray
        Unsigned integers of Bits Allocated, in the byte order of this machine; overwritten.
    form : FrameFormat
        Of the file; not of single bits.
    """
    shift = form.high_bit + 1 - form.bits_stored
    unused = form.bits_allocated - form.bits_stored
    if not unused:
        return cells.view(form.dtype)
    if form.signed:
        values = cells.view(form.dtype)
        if unused > shift:
            np.left_shift(values, unused - shift, out=values)
        np.right_shift(values, unused, out=values)
        return values
    if shift:
        np.right_shift(cells, shift, out=cells)
    np.bitwise_and(cells, cells.dtype.type(2**form.bits_stored - 1), out=cells)
    return cells


def _find_pixel_keyword(dataset: Dataset) -> str:
    found = [keyword for keyword in _PIXEL_KEYWORDS if has_value(dataset, keyword)]
    if not found:
        raise NotAnImageError("this DICOM object has no pixel data")
    if len(found) > 1:
        raise DecodeError(f"pixel data is there more than once ({', '.join(found)}); the file is damaged")
    return found[0]


def _get_extended_offsets(dataset: Dataset) -> tuple[list[int], list[int]] | None:
    """Return the Extended Offset Table and its lengths (PS3.3 C.7.6.3.1.8), where both are whole."""
    tables = [get_value(dataset, f"ExtendedOffsetTable{suffix}") for suffix in ("", "Lengths")]
    if not all(isinstance(table, bytes) and table for table in tables):
        return None
    offsets, lengths = (np.frombuffer(t[: len(t) // 8 * 8], "<u8").tolist() for t in tables)
    return (offsets, lengths) if len(offsets) == len(lengths) else None


def _extract_bits(values: npt.NDArray[Any], form: FrameFormat) -> npt.NDArray[Any]:
    """Drop the bits around the value, which may hold anything, and extend the sign (PS3.5 8.1.1)."""
    if values.dtype.kind != "u" or form.bits_allocated == 1:
        return values
    shift = form.high_bit + 1 - form.bits_stored
    values = values.astype(f"u{form.dtype.itemsize}", copy=False)
    return _extend_sign(values >> shift if shift else values, form.bits_stored, form)


def _extend_sign(values: npt.NDArray[Any], bits: int, form: FrameFormat) -> npt.NDArray[Any]:
    """Interpret the lowest bits of unsigned values as the header says."""
    unused = 8 * values.dtype.itemsize - bits
    if form.signed:
        container = values.view(f"i{values.dtype.itemsize}")
        return (container << unused) >> unused if unused else container
    return values & values.dtype.type(2**bits - 1) if unused else values


def _reconcile_with_header(frame: DecodedFrame, form: FrameFormat, number: int) -> npt.NDArray[Any]:
    """Bring precision and sign of a codestream together with the header; see :class:`StoredFrames`."""
    values = frame.values
    if values.dtype.kind == "i":
        return values
    if values.dtype.itemsize > form.dtype.itemsize and int(values.max()) >> form.bits_allocated:
        raise DecodeError(
            f"the codestream of frame {number + 1} has values of more than {form.bits_allocated} bits, which "
            "the header says are allocated; it is wrong"
        )
    values = values.astype(f"u{form.dtype.itemsize}", copy=False)
    if frame.is_lossy and not form.signed:
        return values
    bits = form.bits_stored
    if form.signed and 0 < frame.sign_bits < bits:
        bits = frame.sign_bits
    return _extend_sign(values, bits, form)
