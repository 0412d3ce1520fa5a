"""Pixel data of a DICOM instance into stored values, whatever the encoding."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydicom.encaps import generate_frames

from medimg.errors import DecodeError, NotAnImageError, TruncatedError
from medimg.io.dicom.attributes import BIG_ENDIAN, stated_code, transfer_syntax, value, whole
from medimg.io.dicom.codecs import FrameFormat, decode_frame

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

__all__ = ["frame_format", "stored_values"]

_MOST_BYTES: Final = 2**31
_RLE: Final = "1.2.840.10008.1.2.5"
#: Implicit and explicit little endian, deflated, big endian; "" where a file has no meta information.
_NATIVE: Final = frozenset(
    {"", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", BIG_ENDIAN}
)


def frame_format(dataset: Dataset) -> FrameFormat:
    """
    Return what the Image Pixel module (PS3.3 C.7.6.3) says, checked.

    Raises
    ------
    DecodeError
        If bits or sizes contradict each other, or the image is unreasonably large.
    """
    allocated = whole(dataset, "BitsAllocated", 0)
    stored = whole(dataset, "BitsStored", allocated)
    form = FrameFormat(
        rows=whole(dataset, "Rows", 0),
        columns=whole(dataset, "Columns", 0),
        samples=whole(dataset, "SamplesPerPixel", 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=whole(dataset, "HighBit", stored - 1),
        signed=whole(dataset, "PixelRepresentation", 0) == 1,
        photometric=stated_code(dataset, "PhotometricInterpretation", "MONOCHROME2"),
        planar=whole(dataset, "PlanarConfiguration", 0) == 1,
    )
    _check(form)
    return form


def _check(form: FrameFormat) -> None:
    if form.bits_allocated not in {8, 16, 32}:
        raise DecodeError(f"Bits Allocated is {form.bits_allocated}; 8, 16 and 32 are supported")
    if not 0 < form.bits_stored <= form.bits_allocated:
        raise DecodeError(f"Bits Stored is {form.bits_stored} of {form.bits_allocated} Bits Allocated")
    if not form.bits_stored - 1 <= form.high_bit < form.bits_allocated:
        raise DecodeError(
            f"High Bit {form.high_bit} contradicts {form.bits_stored} Bits Stored "
            f"of {form.bits_allocated} Bits Allocated"
        )
    if form.samples not in {1, 3}:
        raise DecodeError(f"Samples per Pixel is {form.samples}; 1 and 3 are supported")
    size = form.rows * form.columns * form.samples * form.bits_allocated // 8
    if not 0 < size <= _MOST_BYTES:
        raise DecodeError(f"an image of {form.rows}×{form.columns}×{form.samples} is empty or too large")


def stored_values(dataset: Dataset, form: FrameFormat) -> tuple[npt.NDArray[Any], bool]:
    """
    Return the stored values of a single-frame instance.

    Parameters
    ----------
    dataset : pydicom.Dataset
        With its pixel data.
    form : FrameFormat
        What :func:`frame_format` says of it.

    Returns
    -------
    values : numpy.ndarray
        (rows, columns) or (rows, columns, 3) in the byte order of this machine; bits that don't belong to
        the value are gone, and the sign of shorter values is extended.
    is_rgb : bool
        Whether colors are RGB already (decoders of color JPEG give RGB).

    Raises
    ------
    NotAnImageError
        If there is no pixel data.
    TruncatedError
        If there is less than the header says.
    DecodeError
        If it can't be decoded.
    """
    data = value(dataset, "PixelData")
    if not isinstance(data, bytes) or not data:
        raise NotAnImageError("this DICOM object has no Pixel Data (7FE0,0010) that medimg reads")
    syntax = transfer_syntax(dataset)
    if syntax not in _NATIVE:
        values, is_rgb = decode_frame(_first_frame(data), syntax, form)
        bits_as_stored = syntax == _RLE
    else:
        values, is_rgb = _native(_byte_order(dataset, data, form, syntax), form, syntax == BIG_ENDIAN), False
        bits_as_stored = True
    shift = form.high_bit + 1 - form.bits_stored if bits_as_stored else 0
    return _significant_bits(values >> shift if shift else values, form), is_rgb


def _byte_order(dataset: Dataset, data: bytes, form: FrameFormat, syntax: str) -> bytes:
    """Return big-endian bytes of 8-bit pixels, which were written two to a word, in order (PS3.5 A.3)."""
    if syntax != BIG_ENDIAN or form.bits_allocated != 8 or dataset["PixelData"].VR != "OW":
        return data
    return np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()


def _first_frame(data: bytes) -> bytes:
    try:
        return next(generate_frames(data, number_of_frames=1))
    # damaged item headers surface as various exceptions
    except Exception as error:
        raise TruncatedError(
            f"the encapsulated pixel data holds no complete frame ({type(error).__name__})"
        ) from None


def _native(data: bytes, form: FrameFormat, big_endian: bool) -> npt.NDArray[Any]:
    if form.photometric == "YBR_FULL_422" and form.samples == 3:
        return _native_422(data, form)
    dtype = np.dtype(f"u{form.dtype.itemsize}").newbyteorder(">" if big_endian else "<")
    count = int(np.prod(form.shape))
    expected = count * dtype.itemsize
    if len(data) < expected:
        raise TruncatedError(
            f"the header says {expected} bytes of pixel data, the file holds {len(data)}; "
            "copy or export it again"
        )
    values = np.frombuffer(data, dtype, count)
    if form.samples == 1:
        shaped = values.reshape(form.shape)
    elif form.planar:
        shaped = np.moveaxis(values.reshape(form.samples, form.rows, form.columns), 0, -1)
    else:
        shaped = values.reshape(form.shape)
    foreign = big_endian != (sys.byteorder == "big") and dtype.itemsize > 1
    return shaped.astype(dtype.newbyteorder("=")) if foreign else shaped


def _native_422(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    """Luminance of two pixels, then the color differences that they share (PS3.3 C.7.6.3.1.2)."""
    expected = form.rows * form.columns * 2
    if len(data) < expected or form.columns % 2 or form.bits_allocated != 8:
        raise TruncatedError(
            f"YBR_FULL_422 of {form.rows}×{form.columns} takes {expected} bytes, the file holds {len(data)}"
        )
    pairs = np.frombuffer(data, np.uint8, expected).reshape(form.rows, form.columns // 2, 4)
    values = np.empty(form.shape, np.uint8)
    values[:, 0::2, 0], values[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
    values[..., 1:] = np.repeat(pairs[..., 2:], 2, axis=1)
    return values


def _significant_bits(values: npt.NDArray[Any], form: FrameFormat) -> npt.NDArray[Any]:
    """Drop the bits above the value, which may hold anything, and extend the sign (PS3.5 8.1.1)."""
    if values.dtype.kind == "i":
        # the codestream is signed itself: its values are final
        return values
    if form.bits_stored < 8 * values.dtype.itemsize:
        values = values & values.dtype.type(2**form.bits_stored - 1)
    if not form.signed:
        return values
    if form.bits_stored == form.bits_allocated:
        return values.astype(f"u{form.dtype.itemsize}", copy=False).view(form.dtype)
    container = values.astype(f"u{form.dtype.itemsize}", copy=False).view(form.dtype)
    unused = 8 * form.dtype.itemsize - form.bits_stored
    extended: npt.NDArray[Any] = (container << unused) >> unused
    return extended
