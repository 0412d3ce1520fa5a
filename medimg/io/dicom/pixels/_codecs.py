"""Decoding of compressed frames by imagecodecs."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._native.decoding import decode_rle
from medimg._native.library import load_library
from medimg.errors import DecodeError, MissingDependencyError, TruncatedError
from medimg.io.dicom.header.transfer_syntax import SYNTAXES, check_syntax
from medimg.io.dicom.pixels._native import NativeFrames, unpack_bits
from medimg.io.dicom.pixels.codestream import find_j2k_end, find_jpeg_scan, has_ycc, read_codestream
from medimg.io.files.decompress import find_window_bits

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from medimg.io.dicom.header.image_pixel import FrameFormat

__all__ = ["DecodedFrame", "decode_frame"]

_JPEG_END: Final = b"\xff\xd9"
_RLE_HEADER: Final = 64
#: Values of a frame. A blank one can be compressed to nothing, and decoders take many times its size.
_MAX_VALUES: Final = 2**27
#: Bytes after the last one that some encoders write into a segment.
_RLE_SLACK: Final = 4096
_RLE_NO_OPERATION: Final = 128
_RLE_NO_OPERATIONS: Final = re.compile(rb"\x80*")


def _decode_rle(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    """Decode one segment per byte of a sample, the most significant first (PS3.5 annex G)."""
    size = fmt.dtype.itemsize
    segments, plane = fmt.samples * size, fmt.rows * fmt.columns
    if fmt.bits_allocated == 1:
        plane = (plane + 7) // 8
    header = np.frombuffer(data[:_RLE_HEADER], "<u4").tolist()
    if len(header) < _RLE_HEADER // 4 or header[0] != segments:
        raise DecodeError(f"an RLE frame of {segments} segments was expected, {header[:1]} was found")
    if segments >= len(header):
        raise DecodeError(f"an RLE frame has up to 15 segments, {segments} would be needed")
    library = load_library()
    if library is not None:
        planes, held = decode_rle(library, data, (fmt.samples, plane), size)
        if held < plane:
            raise _make_short_segment_error(plane, held)
    else:
        planes = _unpack_planes(data, header, (fmt.samples, plane), size)
    if fmt.bits_allocated == 1:
        return np.asarray(unpack_bits(planes.tobytes(), fmt.count))
    shaped = planes.reshape(fmt.samples, fmt.rows, fmt.columns)
    return shaped[0] if fmt.samples == 1 else np.moveaxis(shaped, 0, -1)


def _make_short_segment_error(size: int, held: int) -> TruncatedError:
    return TruncatedError(f"an RLE segment of {size} bytes holds {held}")


def _unpack_planes(data: bytes, header: list[int], shape: tuple[int, int], size: int) -> npt.NDArray[Any]:
    """Return the planes (samples, values) of unsigned integers of `size` bytes, by imagecodecs."""
    segments, plane = shape[0] * size, shape[1]
    ends = [*header[2 : segments + 1], len(data)]
    planes = np.empty(shape, f"u{size}")
    # decoders accept any buffer, though they are typed otherwise
    whole: Any = memoryview(data)
    for number, (start, end) in enumerate(zip(header[1 : segments + 1], ends, strict=True)):
        unpacked = _unpack_segment(whole[start:end], plane)
        part, into = np.frombuffer(unpacked, np.uint8, plane), planes[number // size]
        if number % size == 0:
            into[:] = part
        else:
            # passes over whole values are faster than one over every second byte, and than copies
            np.left_shift(into, 8, out=into)
            np.bitwise_or(into, part, out=into)
    return planes


def _unpack_segment(segment: Any, size: int) -> bytes:
    """Unpack the first `size` bytes of an RLE segment; whatever follows them is not decoded (PS3.5 G.3.2)."""
    import imagecodecs

    # the decoder insists on whole runs up to the end; most segments that are not have one byte of padding
    for some, most in ((segment, size), (segment, size + _RLE_SLACK), (segment[:-1], size + _RLE_SLACK)):
        try:
            unpacked = imagecodecs.packbits_decode(some, out=most)
        except imagecodecs.PackbitsError:
            continue
        if len(unpacked) >= size:
            return bytes(unpacked[:size])
    end, count = _find_last_run(bytes(segment), size)
    if count < size:
        raise _make_short_segment_error(size, count)
    return bytes(imagecodecs.packbits_decode(segment[:end], out=count)[:size])


def _find_last_run(segment: bytes, size: int) -> tuple[int, int]:
    """Return the end of the run that completes `size` bytes, or of the last one, and the bytes so far."""
    at = count = 0
    while count < size:
        at = _RLE_NO_OPERATIONS.match(segment, at).end()  # type: ignore[union-attr]  # it matches anything
        if at >= len(segment):
            break
        code = segment[at]
        is_literal = code < _RLE_NO_OPERATION
        end = at + 2 + (code if is_literal else 0)
        if end > len(segment):
            break
        at, count = end, count + (code + 1 if is_literal else 257 - code)
    return at, count


def _read_native(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    """Return the frame of a fragment, stored as in native pixel data (PS3.5 A.4.11)."""
    try:
        return NativeFrames(data, fmt, 1).get_frame(0)
    except TruncatedError:
        raise TruncatedError(f"{len(data)} bytes are too few for values of the shape {fmt.shape}") from None


def _inflate_frame(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    """Inflate a native frame (PS3.5 A.4.13)."""
    expected = (fmt.count * fmt.bits_allocated + 7) // 8
    return _read_native(zlib.decompressobj(find_window_bits(data)).decompress(data, expected), fmt)


def _decode_jpeg(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    if fmt.samples != 3:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    coded = "YCBCR" if has_ycc(data, declared=fmt.is_ycc) else "RGB"
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=coded, outcolorspace="RGB"))


def _decode_jpeg_lossless(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    if fmt.samples != 3:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    # lossless JPEG has no color transform: "RGB" means any colors
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace="RGB", outcolorspace="RGB"))


def _decode_jpeg_ls(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    decoded = np.asarray(imagecodecs.jpegls_decode(data))
    planar = decoded.ndim == 3 and decoded.shape[0] == fmt.samples and decoded.shape != fmt.shape
    return np.moveaxis(decoded, 0, -1) if planar else decoded


def _decode_jpeg_2000(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    end = find_j2k_end(data)
    if end is not None and end > len(data):
        raise TruncatedError(f"the codestream lacks {end - len(data)} bytes")
    if end is not None and data[end : end + 2] != _JPEG_END:
        # only the end marker is missing, which the decoder insists on
        data = data[:end] + _JPEG_END
    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _decode_jpeg_xl(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data))


#: By :attr:`TransferSyntax.codec`.
_DECODERS: Final[dict[str, Callable[[bytes, FrameFormat], npt.NDArray[Any]]]] = {
    "native": _read_native,
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
    """Values (rows, columns[, samples]) of a frame as the decoder returns them."""

    values: npt.NDArray[Any]
    is_rgb: bool
    sign_bits: int  # bits of a signed value in the codestream; 0 if unknown
    is_lossy: bool  # values are approximate


def decode_frame(data: bytes, syntax_uid: str, fmt: FrameFormat, number: int = 0) -> DecodedFrame:
    """
    Decode the codestream of one frame; `number`, from 0, is for messages.

    DecodeError: unknown syntax, damaged data, or another size than in the header; TruncatedError: no end
    marker; MissingDependencyError: imagecodecs or one of its codecs is not installed.
    """
    check_syntax(syntax_uid)
    syntax = SYNTAXES[syntax_uid]
    where = f"frame {number + 1} ({syntax.name})"
    if fmt.count > _MAX_VALUES:
        raise DecodeError(f"{where} is {fmt.shape}, which is unreasonably large for a compressed frame")
    precision = _check_codestream(data, where, fmt) if syntax.is_codestream else 0
    try:
        values = _DECODERS[syntax.codec](data, fmt)
    except (DecodeError, TruncatedError) as error:
        raise type(error)(f"{where}: {error}; the pixel data is damaged, copy or export it again") from None
    except ImportError:
        raise MissingDependencyError(
            f"{where} needs a codec of imagecodecs that is not installed: "
            "run pip install --upgrade --force-reinstall imagecodecs"
        ) from None
    # codecs raise various errors on damaged data
    except Exception as error:
        raise DecodeError(
            f"{where}: decoding failed ({type(error).__name__}); the pixel data is damaged, truncated, or "
            "of a kind that the decoder does not support"
        ) from None
    if values.shape != fmt.shape and values.size == fmt.count:
        values = values.reshape(fmt.shape)
    if values.shape != fmt.shape:
        raise DecodeError(f"{where} has decoded shape {values.shape}, the header says {fmt.shape}")
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    sign_bits = precision if syntax.sign_in_precision else 0
    return DecodedFrame(values, fmt.photometric in syntax.gives_rgb, sign_bits, syntax.lossy)


def _check_codestream(data: bytes, where: str, fmt: FrameFormat) -> int:
    """Check size and end of a codestream, which decoders allocate and fill; return its precision."""
    found = read_codestream(data)
    expected = (fmt.rows, fmt.columns, fmt.samples)
    if found is None:
        raise DecodeError(
            f"{where} is not a codestream of its transfer syntax; it is damaged, or of another syntax"
        )
    if tuple(found.size) not in {expected, (*expected[:2], 0)}:
        raise DecodeError(
            f"the codestream of {where} is {tuple(found.size)} (rows, columns, samples), "
            f"the header says {expected}"
        )
    # a segment before the scan, such as a thumbnail, may have an end marker of its own
    if data[:2] == b"\xff\xd8" and data.rfind(_JPEG_END, find_jpeg_scan(data)) < 0:
        raise TruncatedError(f"{where} has no end marker: it is truncated; copy or export it again")
    return found.precision
