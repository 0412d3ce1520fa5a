"""Stand-alone JPEG 2000 images: colors as the boxes of a JP2 file state them, decoded by OpenJPEG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg.errors import DecodeError, TruncatedError
from medimg.io.dicom.pixels.codestream import find_j2k_end, read_box, read_codestream

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Jpeg2000", "decode_jpeg_2000", "is_jpeg_2000", "parse_jpeg_2000"]

_STARTS: Final = (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n")
_END: Final = b"\xff\xd9"
_MAX_BITS: Final = 16
#: EnumCS of a color specification (ITU-T T.800 I.5.3.3); profiles are not applied, as in PNG.
_YCC: Final = 18
_ENUMERATED: Final = 1
#: Type of a channel (ITU-T T.800 I.5.3.6) that is opacity, plain or multiplied in.
_OPACITIES: Final = frozenset({1, 2})


class Jpeg2000(NamedTuple):
    """What the header of an image says; `colors`, 1 or 3, are the components before one of transparency."""

    size: tuple[int, int]  # (height, width)
    colors: int
    has_alpha: bool
    bits: int


def is_jpeg_2000(start: bytes) -> bool:
    """Whether a file begins like JPEG 2000, bare or in boxes."""
    return start.startswith(_STARTS)


def parse_jpeg_2000(start: bytes, name: str) -> Jpeg2000 | None:
    """Return the header of an image; None if it is not complete; raise DecodeError if it is unsupported."""
    found = read_codestream(start)
    if found is None:
        return None
    boxes = b"" if start.startswith(_STARTS[0]) else read_box(start, b"jp2h")
    components = found.size.components
    has_alpha = _has_opacity(read_box(boxes, b"cdef"))
    colors = components - has_alpha
    if colors not in (1, 3) or not 0 < found.precision <= _MAX_BITS:
        raise DecodeError(
            f"{name} is JPEG 2000 of {found.precision} bits with {components} components; expected 1 or 3 of "
            f"up to {_MAX_BITS} bits"
        )
    if read_box(boxes, b"pclr"):
        raise DecodeError(f"{name} is JPEG 2000 with a palette, which is not supported; convert it to PNG")
    color = read_box(boxes, b"colr")
    if color[:1] == bytes([_ENUMERATED]) and int.from_bytes(color[3:7], "big") == _YCC and colors == 3:
        raise DecodeError(f"{name} is JPEG 2000 in YCbCr, which is not supported; convert it to RGB")
    return Jpeg2000((found.size.rows, found.size.columns), colors, has_alpha, found.precision)


def _has_opacity(definition: bytes) -> bool:
    count = int.from_bytes(definition[:2], "big")
    kinds = [int.from_bytes(definition[4 + 6 * n : 6 + 6 * n], "big") for n in range(min(count, 8))]
    return sum(kind in _OPACITIES for kind in kinds) == 1


def decode_jpeg_2000(data: bytes, header: Jpeg2000, name: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return (H, W) or (H, W, 3) and the steps: few bits are scaled to 8, and colors of 9 to 15 to 16."""
    import imagecodecs

    end = find_j2k_end(data)
    if end is not None and end > len(data):
        raise TruncatedError(f"{name} lacks {end - len(data)} bytes; copy or export it again")
    if end is not None and data[end : end + 2] != _END:
        # only the end marker is missing, which the decoder insists on
        data = data[:end] + _END
    array = np.asarray(imagecodecs.jpeg2k_decode(data))
    expected = (*header.size, header.colors + header.has_alpha)
    if array.reshape(*array.shape[:2], -1).shape != expected:
        raise DecodeError(f"{name} has decoded shape {array.shape}, its header says {expected}")
    steps: tuple[str, ...] = ()
    if header.has_alpha:
        array, steps = array[..., : header.colors], ("transparency dropped",)
        array = array[..., 0] if header.colors == 1 else array
    if array.dtype.kind == "u" and header.bits < 8:
        scaled = array.astype(np.uint16) * 255 // (2**header.bits - 1)
        return scaled.astype(np.uint8), (*steps, f"{header.bits} bits scaled to 8")
    if array.dtype.kind == "u" and header.colors == 3 and 8 < header.bits < _MAX_BITS:
        # colors have no window: white is the highest value of their type
        scaled = array.astype(np.uint32) * 65535 // (2**header.bits - 1)
        return scaled.astype(np.uint16), (*steps, f"{header.bits} bits scaled to 16")
    return array, steps
