"""Stored values of the frames of a DICOM file, in any encoding."""

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
    SYNTAXES,
    check_syntax,
    parse_transfer_syntax,
)
from medimg.io.dicom.pixels._codecs import DecodedFrame, decode_frame
from medimg.io.dicom.pixels._encapsulation import EncapsulatedFrames, is_encapsulated
from medimg.io.dicom.pixels._native import NativeFrames, PixelBytes

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
#: Their values are whole samples, with the bits at the position of Bits Stored and High Bit.
WHOLE_SAMPLES: Final = frozenset(uid for uid, syntax in SYNTAXES.items() if not syntax.is_codestream)


class StoredFrames:
    """
    The frames of one parsed DICOM file, decoded on demand.

    Bits Stored, High Bit and Pixel Representation give the meaning of the bits of a sample (PS3.5 8.1.1);
    bits outside the value are dropped, and its sign is extended. `values` are those of the pixel data, if the
    dataset has only a placeholder for them.
    """

    # Codestreams have a precision of their own, JPEG 2000 also a sign. If these differ from the header:
    # - Codestream unsigned, header signed: values are two's complements, as encoders without signed values
    #   write them. In JPEG-LS and JPEG 2000, their sign is the highest bit of the precision, if that is less
    #   than Bits Stored.
    # - Codestream signed: its values are final. If the header says unsigned, the header is wrong: wrapped
    #   around, a value below 0 would become the highest.
    # - Codestream lossy and unsigned, like the header: values are kept even if they slightly exceed Bits
    #   Stored, as dropping bits would turn the brightest pixels black.

    def __init__(self, dataset: Dataset, values: PixelBytes | None = None) -> None:
        self._syntax = parse_transfer_syntax(dataset)
        if self._syntax not in NATIVE_SYNTAXES:
            check_syntax(self._syntax)
        keyword = _find_pixel_keyword(dataset)
        data = get_value(dataset, keyword)
        if not isinstance(data, bytes) or not data:
            raise NotAnImageError(f"the pixel data of this DICOM object ({keyword}) is empty or unreadable")
        self.format: FrameFormat = parse_frame_format(dataset)
        self.count: int = parse_frame_count(dataset)
        self.note: str = ""  # about the pixel data
        self._native: NativeFrames | None = None
        self._encapsulated: EncapsulatedFrames | None = None
        if self._syntax in NATIVE_SYNTAXES:
            self._native = self._open_native(dataset, keyword, data if values is None else values)
            self.note = self._native.note
        else:
            self._encapsulated = EncapsulatedFrames(
                data, self.count, self._syntax, _get_extended_offsets(dataset)
            )

    def _open_native(self, dataset: Dataset, keyword: str, data: bytes | PixelBytes) -> NativeFrames:
        if isinstance(data, bytes) and has_undefined_length(dataset, keyword) and is_encapsulated(data):
            raise DecodeError(
                "the transfer syntax is an uncompressed one, but the pixel data is encapsulated "
                "as compressed data is; the header is wrong"
            )
        return NativeFrames(
            data,
            self.format,
            self.count,
            big_endian=self._syntax == BIG_ENDIAN,
            words=get_vr(dataset, keyword) == "OW",
        )

    def decode(self, number: int) -> tuple[npt.NDArray[Any], bool]:
        """Return frame `number` as stored values (rows, columns[, 3]), and whether they are RGB."""
        if not 0 <= number < self.count:
            raise IndexError(f"there is no frame {number} of {self.count}")
        fmt = self.format
        if self._encapsulated is not None:
            return decode_stored(self._encapsulated.get_codestream(number), self._syntax, fmt, number)
        assert self._native is not None
        return _extract_bits(self._native.get_frame(number), fmt), fmt.photometric == "RGB"


def decode_stored(
    codestream: bytes, syntax_uid: str, fmt: FrameFormat, number: int = 0
) -> tuple[npt.NDArray[Any], bool]:
    """Decode one compressed frame to stored values, and whether they are RGB."""
    frame = decode_frame(codestream, syntax_uid, fmt, number)
    values = frame.values
    if syntax_uid not in WHOLE_SAMPLES:
        return _reconcile_with_header(frame, fmt, number), frame.is_rgb
    if values.flags.writeable and values.dtype == f"u{fmt.dtype.itemsize}" and fmt.bits_allocated > 1:
        return interpret_bits(values, fmt), frame.is_rgb
    return _extract_bits(values, fmt), frame.is_rgb


def read_native_frame(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    """Return the stored values of the only frame of little-endian data; ValueError if it is unusual."""
    frames = NativeFrames(data, fmt, 1)
    if frames.note:
        raise ValueError(frames.note)
    return _extract_bits(frames.get_frame(0), fmt)


def interpret_bits(cells: npt.NDArray[Any], fmt: FrameFormat) -> npt.NDArray[Any]:
    """Return the stored values in `cells`, unsigned integers of Bits Allocated, in the same memory."""
    shift = fmt.high_bit + 1 - fmt.bits_stored
    unused = fmt.bits_allocated - fmt.bits_stored
    if not unused:
        return cells.view(fmt.dtype)
    if fmt.signed:
        values = cells.view(fmt.dtype)
        if unused > shift:
            np.left_shift(values, unused - shift, out=values)
        np.right_shift(values, unused, out=values)
        return values
    if shift:
        np.right_shift(cells, shift, out=cells)
    np.bitwise_and(cells, cells.dtype.type(2**fmt.bits_stored - 1), out=cells)
    return cells


def _find_pixel_keyword(dataset: Dataset) -> str:
    found = [keyword for keyword in _PIXEL_KEYWORDS if has_value(dataset, keyword)]
    if not found:
        raise NotAnImageError("this DICOM object has no pixel data")
    if len(found) > 1:
        raise DecodeError(f"pixel data is present more than once ({', '.join(found)}); the file is damaged")
    return found[0]


def _get_extended_offsets(dataset: Dataset) -> tuple[list[int], list[int]] | None:
    """Return the Extended Offset Table and its lengths (PS3.3 C.7.6.3.1.8) if both are complete."""
    tables = [get_value(dataset, f"ExtendedOffsetTable{suffix}") for suffix in ("", "Lengths")]
    if not all(isinstance(table, bytes) and table for table in tables):
        return None
    offsets, lengths = (np.frombuffer(t[: len(t) // 8 * 8], "<u8").tolist() for t in tables)
    return (offsets, lengths) if len(offsets) == len(lengths) else None


def _extract_bits(values: npt.NDArray[Any], fmt: FrameFormat) -> npt.NDArray[Any]:
    """Drop the bits outside the value and extend its sign (PS3.5 8.1.1)."""
    if values.dtype.kind != "u" or fmt.bits_allocated == 1:
        return values
    shift = fmt.high_bit + 1 - fmt.bits_stored
    values = values.astype(f"u{fmt.dtype.itemsize}", copy=False)
    return _extend_sign(values >> shift if shift else values, fmt.bits_stored, fmt)


def _extend_sign(values: npt.NDArray[Any], bits: int, fmt: FrameFormat) -> npt.NDArray[Any]:
    """Interpret the lowest `bits` bits of unsigned values as the header says."""
    unused = 8 * values.dtype.itemsize - bits
    if fmt.signed:
        container = values.view(f"i{values.dtype.itemsize}")
        return (container << unused) >> unused if unused else container
    return values & values.dtype.type(2**bits - 1) if unused else values


def _reconcile_with_header(frame: DecodedFrame, fmt: FrameFormat, number: int) -> npt.NDArray[Any]:
    """Return values with precision and sign of codestream and header; see :class:`StoredFrames`."""
    values = frame.values
    if values.dtype.kind == "i":
        return values
    if values.dtype.itemsize > fmt.dtype.itemsize and int(values.max()) >> fmt.bits_allocated:
        raise DecodeError(
            f"the codestream of frame {number + 1} has values of more than the {fmt.bits_allocated} bits "
            "allocated; the header is wrong"
        )
    values = values.astype(f"u{fmt.dtype.itemsize}", copy=False)
    if frame.is_lossy and not fmt.signed:
        return values
    bits = fmt.bits_stored
    if fmt.signed and 0 < frame.sign_bits < bits:
        bits = frame.sign_bits
    return _extend_sign(values, bits, fmt)
