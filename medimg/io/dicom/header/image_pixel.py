"""The Image Pixel module of a header (PS3.3 C.7.6.3), checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_code,
    get_identifier,
    has_value,
    parse_code,
    parse_enumerated,
    parse_integer,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "FORMAT_TAGS",
    "FrameFormat",
    "describe_frame_count",
    "is_signed",
    "parse_frame_count",
    "parse_frame_format",
    "parse_photometric",
]

#: Tags of the Image Pixel module that a header-only read must include, except the pixels.
FORMAT_TAGS: Final[list[str | int]] = [
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "HighBit",
    "Modality",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "PlanarConfiguration",
    "Rows",
    "SOPClassUID",
    "SamplesPerPixel",
]

_MAX_BYTES: Final = 2**31
_MAX_FRAMES: Final = 2**31 - 1
#: Bits of a sample of Float Pixel Data (7FE0,0008) and Double Float Pixel Data (7FE0,0009).
_FLOAT_BITS: Final = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
#: Segmentation Storage and Label Map Segmentation Storage.
_SEGMENTATIONS: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
_GRAY: Final = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOR: Final = frozenset(
    {
        "RGB",
        "YBR_FULL",
        "YBR_FULL_422",
        "YBR_PARTIAL_422",
        "YBR_PARTIAL_420",
        "YBR_RCT",
        "YBR_ICT",
        "XYB",
    }
)
_RETIRED: Final = frozenset({"ARGB", "CMYK", "HSV"})


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """Format of the stored frames of a file, as its header describes it."""

    rows: int
    columns: int
    samples: int  # 1 or 3
    bits_allocated: int  # 1, 8, 16 or 32; 32 or 64 for floats
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    planar: bool  # Planar Configuration 1: one plane per color
    floating: bool = False  # floating-point samples

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (rows, columns, samples) for color."""
        plain = (self.rows, self.columns)
        return plain if self.samples == 1 else (*plain, self.samples)

    @property
    def count(self) -> int:
        """Number of values in a frame."""
        return self.rows * self.columns * self.samples

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values; uint8 for single bits."""
        size = max(1, self.bits_allocated // 8)
        kind = "f" if self.floating else "i" if self.signed else "u"
        return np.dtype(f"{kind}{size}")

    @property
    def is_ycc(self) -> bool:
        """Whether colors are stored as luminance and two color differences."""
        return self.samples == 3 and self.photometric.startswith("YBR_")


def parse_frame_format(dataset: Dataset) -> FrameFormat:
    """Return the format of the frames; raise DecodeError if it is contradictory or not supported."""
    floating = next((bits for name, bits in _FLOAT_BITS.items() if has_value(dataset, name)), 0)
    allocated = parse_integer(dataset, "BitsAllocated", floating)
    stored = allocated if floating else parse_integer(dataset, "BitsStored", allocated)
    fmt = FrameFormat(
        rows=parse_integer(dataset, "Rows", 0),
        columns=parse_integer(dataset, "Columns", 0),
        samples=parse_integer(dataset, "SamplesPerPixel", 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if floating else parse_integer(dataset, "HighBit", stored - 1),
        signed=not floating and is_signed(dataset),
        photometric=parse_photometric(dataset),
        planar=parse_enumerated(dataset, "PlanarConfiguration", (0, 1), 0) == 1,
        floating=bool(floating),
    )
    if floating and allocated != floating:
        raise DecodeError(f"Bits Allocated is {allocated}, but this type of float pixel data has {floating}")
    _check_bits(fmt)
    _check_colors(fmt)
    size = fmt.count * fmt.dtype.itemsize
    if min(fmt.rows, fmt.columns) <= 0 or size > _MAX_BYTES:
        raise DecodeError(f"a frame of {fmt.rows}×{fmt.columns}×{fmt.samples} is empty or too large")
    return fmt


def parse_photometric(dataset: Dataset) -> str:
    """
    Return Photometric Interpretation, MONOCHROME2 if it is absent or a label map has a palette.

    The pixel values of a segmentation are segment numbers (PS3.3 C.8.20.2); its palette is for display.
    """
    found = parse_code(dataset, "PhotometricInterpretation", "MONOCHROME2")
    if found != "PALETTE COLOR":
        return found
    is_label_map = (
        get_identifier(dataset, "SOPClassUID") in _SEGMENTATIONS or get_code(dataset, "Modality") == "SEG"
    )
    return "MONOCHROME2" if is_label_map else found


def is_signed(dataset: Dataset) -> bool:
    """Whether pixels are signed, by Pixel Representation; raise DecodeError if it is neither 0 nor 1."""
    return parse_enumerated(dataset, "PixelRepresentation", (0, 1), 0) == 1


def parse_frame_count(dataset: Dataset) -> int:
    """Return Number of Frames, 1 if it is absent, empty or 0; raise DecodeError if it is implausible."""
    count = parse_integer(dataset, "NumberOfFrames", 1) or 1
    if not 0 < count <= _MAX_FRAMES:
        raise DecodeError(f"Number of Frames is {count}; the file is damaged")
    return count


def describe_frame_count(count: int) -> str:
    """Return what the header says of Number of Frames, for messages: 1 may be no more than its absence."""
    return f"Number of Frames is {count}" + (" or missing" if count == 1 else "")


def _check_bits(fmt: FrameFormat) -> None:
    if fmt.bits_allocated == 64 and not fmt.floating:
        raise DecodeError("Bits Allocated is 64: integers of 64 bits are not supported; 1, 8, 16 and 32 are")
    if fmt.bits_allocated not in {1, 8, 16, 32} and not fmt.floating:
        raise DecodeError(f"Bits Allocated is {fmt.bits_allocated}; 1, 8, 16 and 32 are supported")
    if not 0 < fmt.bits_stored <= fmt.bits_allocated:
        raise DecodeError(f"Bits Stored is {fmt.bits_stored} of {fmt.bits_allocated} Bits Allocated")
    if not fmt.bits_stored - 1 <= fmt.high_bit < fmt.bits_allocated:
        raise DecodeError(
            f"High Bit {fmt.high_bit} contradicts {fmt.bits_stored} Bits Stored "
            f"of {fmt.bits_allocated} Bits Allocated"
        )
    if fmt.bits_allocated == 1 and (fmt.signed or fmt.samples != 1):
        raise DecodeError("pixels of 1 bit must be unsigned, with one sample per pixel")


def _check_colors(fmt: FrameFormat) -> None:
    photometric = fmt.photometric
    if photometric in _RETIRED or fmt.samples == 4:
        raise DecodeError(
            f"Photometric Interpretation {photometric} with {fmt.samples} samples per pixel: ARGB, CMYK and "
            "HSV are retired and not supported; convert the file to RGB"
        )
    if fmt.samples not in {1, 3}:
        raise DecodeError(f"Samples per Pixel is {fmt.samples}; 1 and 3 are supported")
    if photometric not in _GRAY | _COLOR:
        raise DecodeError(f"Photometric Interpretation {photometric!r} is not supported")
    if (photometric in _COLOR) != (fmt.samples == 3):
        raise DecodeError(
            f"Photometric Interpretation {photometric} contradicts {fmt.samples} sample(s) per pixel"
        )
    if fmt.floating and (fmt.samples != 1 or photometric == "PALETTE COLOR"):
        raise DecodeError("float pixel data must be grayscale, with one sample per pixel")
