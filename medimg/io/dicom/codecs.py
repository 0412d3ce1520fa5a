"""Compressed frames into arrays of stored values, through imagecodecs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DecodeError, TruncatedError
from medimg.io.dicom.codestream import codestream_size, has_ycc_marker

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

__all__ = ["SYNTAXES", "FrameFormat", "decode_frame"]


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What a header says about its frames."""

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (rows, columns, samples) for color."""
        plain = (self.rows, self.columns)
        return plain if self.samples == 1 else (*plain, self.samples)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the stored values."""
        size = max(1, self.bits_allocated // 8)
        return np.dtype(f"{'i' if self.signed else 'u'}{size}")

    @property
    def is_ycc(self) -> bool:
        """Whether colors are stored as luminance and two color differences."""
        return self.samples == 3 and self.photometric.startswith("YBR_")


def _rle(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    unsigned = np.dtype(f"u{form.dtype.itemsize}")
    flat = np.frombuffer(imagecodecs.dicomrle_decode(data, unsigned), dtype=unsigned)
    planes = flat.reshape(form.samples, form.rows, form.columns)
    return planes[0] if form.samples == 1 else np.moveaxis(planes, 0, -1)


def _jpeg(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    if form.samples != 3:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    coded = "YCBCR" if form.is_ycc or has_ycc_marker(data) else "RGB"
    return np.asarray(imagecodecs.jpeg8_decode(data, colorspace=coded, outcolorspace="RGB"))


def _jpeg_lossless(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    try:
        decoded = imagecodecs.jpeg8_decode(data)
    except Exception:
        # libjpeg-turbo knows fewer precisions and predictors than the smaller decoder
        decoded = imagecodecs.ljpeg_decode(data)
    return np.asarray(decoded)


def _jpeg_ls(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    decoded = np.asarray(imagecodecs.jpegls_decode(data))
    planar = decoded.ndim == 3 and decoded.shape[0] == form.samples and decoded.shape != form.shape
    return np.moveaxis(decoded, 0, -1) if planar else decoded


def _jpeg_2000(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpeg2k_decode(data))


def _jpeg_xl(data: bytes, form: FrameFormat) -> npt.NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpegxl_decode(data))


@dataclass(frozen=True, slots=True)
class Syntax:
    """
    A transfer syntax of compressed frames.

    Attributes
    ----------
    name : str
        As PS3.6 calls it, shortened.
    decode : callable
        Codestream and format to values.
    gives_rgb : frozenset of str
        Photometric interpretations that the decoder turns into RGB.
    measured : bool
        Whether :func:`codestream_size` knows its codestreams.
    """

    name: str
    decode: Callable[[bytes, FrameFormat], npt.NDArray[Any]]
    gives_rgb: frozenset[str] = frozenset()
    measured: bool = True


_JPEG_COLORS: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422"})
_J2K_COLORS: Final = frozenset({"RGB", "YBR_RCT", "YBR_ICT"})

#: By Transfer Syntax UID (PS3.5 annex A).
SYNTAXES: Final[dict[str, Syntax]] = {
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", _rle, measured=False),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline", _jpeg, _JPEG_COLORS),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended", _jpeg, _JPEG_COLORS),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless", _jpeg_lossless),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG Lossless SV1", _jpeg_lossless),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", _jpeg_ls),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-lossless", _jpeg_ls),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless", _jpeg_2000, _J2K_COLORS),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", _jpeg_2000, _J2K_COLORS),
    "1.2.840.10008.1.2.4.110": Syntax("JPEG XL Lossless", _jpeg_xl, _JPEG_COLORS, measured=False),
    "1.2.840.10008.1.2.4.111": Syntax("JPEG XL JPEG Recompression", _jpeg_xl, _JPEG_COLORS, measured=False),
    "1.2.840.10008.1.2.4.112": Syntax("JPEG XL", _jpeg_xl, _JPEG_COLORS, measured=False),
    "1.2.840.10008.1.2.4.201": Syntax("HTJ2K Lossless", _jpeg_2000, _J2K_COLORS),
    "1.2.840.10008.1.2.4.202": Syntax("HTJ2K Lossless RPCL", _jpeg_2000, _J2K_COLORS),
    "1.2.840.10008.1.2.4.203": Syntax("HTJ2K", _jpeg_2000, _J2K_COLORS),
}


def decode_frame(data: bytes, syntax_uid: str, form: FrameFormat) -> tuple[npt.NDArray[Any], bool]:
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

    Returns
    -------
    values : numpy.ndarray
        (rows, columns) or (rows, columns, samples), stored values in the integer type of the codestream.
    is_rgb : bool
        Whether colors have been converted to RGB on the way.

    Raises
    ------
    DecodeError
        If the syntax is unknown, decoding fails, or the codestream has another size than the header.
    TruncatedError
        If the codestream has no end.
    """
    syntax = SYNTAXES.get(syntax_uid)
    if syntax is None:
        known = ", ".join(s.name for s in SYNTAXES.values())
        shown = syntax_uid if syntax_uid.replace(".", "").isdigit() else "of this file"
        raise DecodeError(f"the transfer syntax {shown} has no decoder here; known are {known}")
    if syntax.measured:
        _check_codestream(data, syntax.name, form)
    try:
        values = syntax.decode(data, form)
    # codecs raise errors of many kinds on damaged data
    except Exception as error:
        raise DecodeError(
            f"{syntax.name} decoding failed ({type(error).__name__}); the pixel data is damaged or truncated"
        ) from None
    if values.shape != form.shape and values.size == np.prod(form.shape):
        values = values.reshape(form.shape)
    if values.shape != form.shape:
        raise DecodeError(f"{syntax.name} gave {values.shape} values, the header says {form.shape}")
    return values, form.samples == 3 and form.photometric in syntax.gives_rgb


def _check_codestream(data: bytes, name: str, form: FrameFormat) -> None:
    """Compare sizes before memory is allocated, and find the end, as decoders fill up what is missing."""
    size = codestream_size(data)
    expected = (form.rows, form.columns, form.samples)
    if size is None:
        raise DecodeError(f"the pixel data is no {name} codestream; it is damaged, or of another syntax")
    if tuple(size) != expected:
        raise DecodeError(
            f"the {name} codestream is {tuple(size)} (rows, columns, samples), the header says {expected}"
        )
    if data[:2] == b"\xff\xd8" and b"\xff\xd9" not in data[-64:]:
        raise TruncatedError(f"the {name} codestream has no end: it is cut short; copy or export it again")
