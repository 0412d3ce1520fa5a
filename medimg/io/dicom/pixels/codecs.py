"""Compressed frames into arrays of stored values, through imagecodecs."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DecodeError, MissingDependencyError, TruncatedError
from medimg.io.dicom.header.transfer_syntax import SYNTAXES, check_syntax
from medimg.io.dicom.pixels._codestream import find_j2k_end, has_ycc, read_codestream
from medimg.io.dicom.pixels._native import unpack_bits

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["DecodedFrame", "decode_frame"]

_JPEG_END: Final = b"\xff\xd9"
_RLE_HEADER: Final = 64
#: Values of a frame. A blank one can be compressed to nothing, and decoders take many times its size.
_MAX_VALUES: Final = 2**27
#: Bytes behind the last one that some encoders write into a segment.
_RLE_SLACK: Final = 4096


def _decode_rle(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    """One segment for each byte of a sample, the most significant first (PS3.5 annex G)."""
    import imagecodecs

    header = np.frombuffer(data[:_RLE_HEADER], "<u4").tolist()
    size = form.dtype.itemsize
    segments, plane = form.samples * size, form.rows * form.columns
    if form.bits_allocated == 1:
        plane = (plane + 7) // 8
    if len(header) < _RLE_HEADER // 4 or header[0] != segments:
        raise DecodeError(f"an RLE frame of {segments} segments was expected, {header[:1]} was found")
    ends = [*header[2 : segments + 1], len(data)]
    planes = np.empty((form.samples, plane), f"u{size}")
    # decoders take any buffer, though they are typed otherwise
    whole: Any = memoryview(data)
    for number, (start, end) in enumerate(zip(header[1 : segments + 1], ends, strict=True)):
        segment = whole[start:end]
        try:
            unpacked = imagecodecs.packbits_decode(segment, out=plane)
        except imagecodecs.PackbitsError:
            unpacked = imagecodecs.packbits_decode(segment, out=plane + _RLE_SLACK)
        if len(unpacked) < plane:
            raise TruncatedError(f"an RLE segment of {plane} bytes holds {len(unpacked)}")
        part, into = np.frombuffer(unpacked, np.uint8, plane), planes[number // size]
        if number % size == 0:
            into[:] = part
        else:
            # passes over whole values are faster than one over every second byte, and than copies
            np.left_shift(into, 8, out=into)
            np.bitwise_or(into, part, out=into)
    if form.bits_allocated == 1:
        return np.asarray(unpack_bits(planes.tobytes(), form.count))
    shaped = planes.reshape(form.samples, form.rows, form.columns)
    return shaped[0] if form.samples == 1 else np.moveaxis(shaped, 0, -1)


def _inflate_frame(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    """A native frame, deflated (PS3.5 A.4.13)."""
    expected = (form.count * form.bits_allocated + 7) // 8
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, expected)
    if len(inflated) < expected:
        raise TruncatedError(f"a deflated frame of {expected} bytes holds {len(inflated)}")
    if form.bits_allocated == 1:
        return np.asarray(unpack_bits(inflated, form.count))
    flat = np.frombuffer(inflated, f"<{'f' if form.floating else 'u'}{form.dtype.itemsize}")
    if form.planar and form.samples > 1:
        return np.moveaxis(flat.reshape(form.samples, form.rows, form.columns), 0, -1)
    return flat.reshape(form.shape)


def _decode_jpeg(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    if form.samples != 3:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    coded = "YCBCR" if has_ycc(data, declared=form.is_ycc) else "RGB"
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=coded, outcolorspace="RGB"))


def _decode_jpeg_lossless(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    if form.samples != 3:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    # lossless JPEG has no color transform: what is called RGB here may be anything
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"))


def _decode_jpeg_ls(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    decoded = np.asarray(imagecodecs.jpegls_decode(data))
    planar = decoded.ndim == 3 and decoded.shape[0] == form.samples and decoded.shape != form.shape
    return np.moveaxis(decoded, 0, -1) if planar else decoded


def _decode_jpeg_2000(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    end = find_j2k_end(data)
    if end is not None and end > len(data):
        raise TruncatedError(f"the codestream lacks {end - len(data)} bytes")
    if end is not None and data[end : end + 2] != _JPEG_END:
        # all is there but the marker of the end, which the decoder insists on
        data = data[:end] + _JPEG_END
    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _decode_jpeg_xl(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data))


#: By :attr:`TransferSyntax.codec`.
_DECODERS: Final[dict[str, Callable[[bytes, FrameFormat], npt.NDArray[Any]]]] = {
    "rle": _decode_rle,
    "deflate": _inflate_frame,
    "jpeg": _decode_jpeg,
    "jpeg-lossless": _decode_jpeg_lossless,
    "jpeg-ls": _decode_jpeg_ls,
    "jpeg-2000": _decode_jpeg_2000,
    "jpeg-xl": _decode_jpeg_xl,
}


@dataclass(frozen=True, slots=True, eq=False)
class DecodedFrame:
    """
    A decoded frame, its bits not yet interpreted.

    Attributes
    ----------
    values : numpy.ndarray
        (rows, columns) or (rows, columns, samples), in the integer type that the decoder chose.
    is_rgb : bool
        Whether colors are RGB now.
    sign_bits : int
        Bits of a value in the codestream, the highest of which is the sign of two's complements; 0 where it
        does not say that.
    is_lossy : bool
        Whether values are approximate.
    """

    values: npt.NDArray[Any]
    is_rgb: bool
    sign_bits: int
    is_lossy: bool


def decode_frame(data: bytes, syntax_uid: str, form: FrameFormat, number: int = 0) -> DecodedFrame:
    """
    Decode one compressed frame.

    Parameters
    ----------
    data : bytes
        The codestream of the frame.
    syntax_uid : str
        Transfer Syntax UID.
    form : FrameFormat
        What the header says.
    number : int
        Of the frame, from 0; for messages.

    Raises
    ------
    DecodeError
        If the syntax is unknown, decoding fails, the frame is unreasonably large, or the codestream has
        another size than the header.
    TruncatedError
        If the codestream has no end.
    MissingDependencyError
        If imagecodecs or one of its codecs is not installed.
    """
    check_syntax(syntax_uid)
    syntax = SYNTAXES[syntax_uid]
    where = f"frame {number + 1} ({syntax.name})"
    if form.count > _MAX_VALUES:
        raise DecodeError(f"{where} is {form.shape}, which is unreasonably large for a compressed one")
    precision = _check_codestream(data, where, form) if syntax.is_codestream else 0
    try:
        values = _DECODERS[syntax.codec](data, form)
    except (DecodeError, TruncatedError) as error:
        raise type(error)(f"{where}: {error}; the pixel data is damaged, copy or export it again") from None
    except ImportError:
        raise MissingDependencyError(
            f"{where} needs a codec of imagecodecs that is not installed: "
            "run pip install --upgrade --force-reinstall imagecodecs"
        ) from None
    # codecs raise errors of many kinds on damaged data
    except Exception as error:
        raise DecodeError(
            f"{where}: decoding failed ({type(error).__name__}); the pixel data is damaged or truncated"
        ) from None
    if values.shape != form.shape and values.size == form.count:
        values = values.reshape(form.shape)
    if values.shape != form.shape:
        raise DecodeError(f"{where} gave {values.shape} values, the header says {form.shape}")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    sign_bits = precision if syntax.sign_in_precision else 0
    return DecodedFrame(values, form.photometric in syntax.gives_rgb, sign_bits, syntax.lossy)


def _check_codestream(data: bytes, where: str, form: FrameFormat) -> int:
    """Compare sizes before memory is allocated, and find the end, as decoders fill up what is missing."""
    found = read_codestream(data)
    expected = (form.rows, form.columns, form.samples)
    if found is None:
        raise DecodeError(f"{where} is no codestream of that syntax; it is damaged, or of another syntax")
    if tuple(found.size) not in {expected, (*expected[:2], 0)}:
        raise DecodeError(
            f"the codestream of {where} is {tuple(found.size)} (rows, columns, samples), "
            f"the header says {expected}"
        )
    if data[:2] == b"\xff\xd8" and data.rfind(_JPEG_END, 2) < 0:
        raise TruncatedError(f"{where} has no end: it is cut short; copy or export it again")
    return found.precision
