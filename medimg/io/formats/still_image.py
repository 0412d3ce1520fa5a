"""PNG, JPEG, JPEG 2000, BMP, WebP and GIF images, by Pillow, or by imagecodecs if Pillow would cut bits."""

from __future__ import annotations

import io
import logging
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import numpy as np

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.upright import describe_turn, is_turned_sideways, turn_upright
from medimg.core.volume import Volume
from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.interop.pil_image import (
    COLOR_MODES,
    GRAYSCALE_MODES,
    ORIENTATION_TAG,
    keep_gray,
    move_channels,
    to_channels,
)
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.pixels.codestream import (
    Codestream,
    find_jpeg_process,
    find_jpeg_scan,
    find_jpeg_segment,
    has_ycc,
    read_codestream,
)
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats._jpeg_2000 import Jpeg2000, decode_jpeg_2000, is_jpeg_2000, parse_jpeg_2000
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from PIL.ImageFile import ImageFile

__all__ = ["find_still_format", "is_still_image", "open_image"]

#: Bytes of the values of an image.
_MAX_BYTES: Final = 2**31
#: Pixels per byte of a file that its compression allows; a header that declares more is wrong.
_MAX_EXPANSION: Final = {"PNG": 8 * 1032, "JPEG": 2**12, "GIF": 2**12, "BMP": 2**13, "WebP": 2**16,
                         "JPEG 2000": 2**20}  # fmt: skip
#: Bytes of a text in a PNG, and of all its texts, that Pillow accepts.
_MAX_TEXT: Final = 2**20
_MAX_TEXTS: Final = 2**26
_PNG_TEXTS: Final = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_TAGS: Final = _PNG_TEXTS | {b"eXIf"}
#: Bytes of a file that need not be counted.
_FEW_BYTES: Final = 2**8
#: Color types of PNG whose 16 bits Pillow reduces to 8: RGB, grayscale with alpha, RGB with alpha.
_PNG_GRAY_AND_ALPHA: Final = 4
_PNG_REDUCED: Final = frozenset({2, _PNG_GRAY_AND_ALPHA, 6})
#: Start of frame (ITU-T T.81 B.1.1.3) of JPEG processes that Pillow decodes: baseline, extended, progressive,
#: the latter two also with arithmetic coding.
_PILLOW_PROCESSES: Final = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_LOSSLESS_PROCESS: Final = 0xC3
_JPEG_LS_PROCESS: Final = 0xF7
_JPEG_END: Final = b"\xff\xd9"
#: Bytes at the start of a file that are read first, and of a JPEG at most to find its frame header.
_FIRST_BYTES: Final = 2**12
_MAX_JPEG_START: Final = 2**24
#: Sizes of the header of a BMP image, by version.
_BMP_HEADERS: Final = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def _is_not_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


# its debug log contains values of EXIF tags: descriptions, artists, dates
logging.getLogger("PIL.TiffImagePlugin").addFilter(_is_not_debug)


def find_still_format(start: bytes) -> str:
    """Return the format that a file begins like, such as "PNG"; "" for others."""
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if start[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if start[:4] == b"RIFF" and start[8:15] == b"WEBPVP8":
        return "WebP"
    if is_jpeg_2000(start):
        return "JPEG 2000"
    is_bmp = start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in _BMP_HEADERS
    return "BMP" if is_bmp and start[6:10] == bytes(4) else ""


def is_still_image(start: bytes) -> bool:
    """Whether a file begins like PNG, JPEG, JPEG 2000, GIF, WebP or BMP."""
    return find_still_format(start) != ""


@dataclass(frozen=True, slots=True)
class _Header:
    """What the header of an image says; `deep`: bits of each value if Pillow would cut or refuse them."""

    format: str
    size: tuple[int, int]  # (height, width) as stored
    channels: int  # 1 or 3
    orientation: int  # of EXIF: 1 is upright
    deep: int = 0
    scaled: int = 0  # bits of grayscale values that are scaled to 8; 0 if they are not
    jpeg_2000: Jpeg2000 | None = None


def open_image(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of a PNG, JPEG, JPEG 2000, BMP, WebP or GIF file, from its header.

    A color image with three equal channels becomes a grayscale one when it is read. Raises NotAnImageError
    for other files, and ReadError if it can't be opened, is an animation or has an unsupported type.
    """
    blob = as_blob(source)
    with _open_still(blob) as (header, _):
        pass
    height, width = header.size[::-1] if is_turned_sideways(header.orientation) else header.size
    return Series(
        uid=blob.name,
        modality="",
        description="",
        shape=(header.channels, 1, height, width),
        affine=geometry.image_affine(),
        space="image",
        files=(blob.name,),
        format=header.format,
        reader=partial(_read_volume, blob),
    )


@contextmanager
def _open_still(blob: Blob) -> Iterator[tuple[_Header, ImageFile | None]]:
    """Yield the header of an image, and the image unless Pillow can't decode it without a loss."""
    with blob.open() as file:
        start = file.read(_FIRST_BYTES)
        format_ = find_still_format(start)
        if not format_:
            raise NotAnImageError(f"{blob.name} is none of PNG, JPEG, JPEG 2000, BMP, WebP and GIF")
        if format_ == "WebP":
            # its decoder allocates all pixels when it is opened
            _check_size(_Header(format_, _parse_webp_size(start, blob.name), channels=3, orientation=1), blob)
        deep = _read_deep_jpeg(file, start, blob.name) if format_ == "JPEG" else None
        if format_ == "JPEG 2000":
            deep = _read_jpeg_2000(file, start, blob.name)
        if deep is not None:
            _check_size(deep, blob)
            yield deep, None
            return
        chunks = _list_png_chunks(file) if format_ == "PNG" else []
        image = _open_pillow(file, format_, chunks, blob.name)
        is_deep = format_ == "PNG" and start[24] == 16 and start[25] in _PNG_REDUCED
        is_gray = image.mode in GRAYSCALE_MODES or (is_deep and start[25] == _PNG_GRAY_AND_ALPHA)
        header = _Header(
            format=format_,
            size=image.size[::-1],
            channels=1 if is_gray else 3,
            orientation=1,
            deep=16 if is_deep else 0,
            scaled=start[24] if format_ == "PNG" and start[24] < 8 and start[25] == 0 else 0,
        )
        _check_size(header, blob)
        # a PNG is decoded for its tags
        if not chunks or chunks[-1].kind != b"IEND" or any(c.kind in _PNG_TAGS for c in chunks):
            header = replace(header, orientation=_find_orientation(image, blob.name))
        yield header, None if is_deep else image


def _parse_webp_size(start: bytes, name: str) -> tuple[int, int]:
    """Return (height, width) of a WebP image: extended, lossless or lossy (RFC 9649)."""
    kind, height, width = start[12:16], 0, 0
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif start[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(start[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if not (width and height):
        raise ReadError(f"{name} is a damaged WebP file")
    return height, width


def _check_size(header: _Header, blob: Blob) -> None:
    """Compare the declared size with what is supported and with the file, before anything is allocated."""
    height, width = header.size
    shown = f"{blob.name} declares {width}×{height} pixels"
    size = height * width * header.channels * (2 if header.deep else 1)
    if size > _MAX_BYTES:
        raise DecodeError(
            f"{shown}, which is unreasonably large: at most {_MAX_BYTES >> 30} GB of values are supported; "
            "cut it into parts"
        )
    expansion = _MAX_EXPANSION[header.format]
    if height * width > expansion * _FEW_BYTES and height * width > expansion * blob.bound():
        raise TruncatedError(f"{shown}, too many for its {blob.bound()} bytes; copy or export it again")


def _open_pillow(file: BinaryIO, format_: str, chunks: Sequence[_Chunk], name: str) -> ImageFile:
    """Return the image, whose pixels are read from the file while it is used."""
    image = _decode_header(_skip_long_texts(file, chunks), format_, name)
    if image.mode not in GRAYSCALE_MODES | COLOR_MODES:
        raise DecodeError(f"{name} has the color mode {image.mode}, which is not supported; save it as RGB")
    if _is_animated(image):
        raise DecodeError(
            f"{name} is an animation of several frames, which is not supported; save each as an image"
        )
    return image


class _Chunk(NamedTuple):
    """A chunk of a PNG: its type, its range in the file, and the size of its text, decompressed."""

    kind: bytes
    start: int
    stop: int
    text: int


def _list_png_chunks(file: BinaryIO) -> list[_Chunk]:
    """Return the chunks up to the end of the image, or of the file."""
    found: list[_Chunk] = []
    at, texts = file.seek(8), 0
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        is_measured = kind in _PNG_TEXTS and texts <= _MAX_TEXTS
        text = _measure_text(kind, file.read(min(length, _MAX_TEXT))) if is_measured else 0
        texts += text
        found.append(_Chunk(kind, at, at + 12 + length, text))
        if kind == b"IEND":
            break
        at = file.seek(at + 12 + length)
    return found


def _skip_long_texts(file: BinaryIO, chunks: Sequence[_Chunk]) -> BinaryIO:
    """Return a PNG file without texts if they are longer than Pillow accepts, else the file itself."""
    file.seek(0)
    texts = [chunk.text for chunk in chunks]
    if max(texts, default=0) <= _MAX_TEXT and sum(texts) <= _MAX_TEXTS:
        return file
    parts = [file.read(8)]
    for chunk in chunks:
        if chunk.kind not in _PNG_TEXTS:
            file.seek(chunk.start)
            parts.append(file.read(chunk.stop - chunk.start))
    return io.BytesIO(b"".join(parts))


def _measure_text(kind: bytes, data: bytes) -> int:
    """Return the size of a text chunk, decompressed up to a little more than Pillow accepts."""
    _, _, rest = data.partition(b"\0")
    if kind == b"iTXt":
        is_packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        is_packed, rest = kind == b"zTXt", rest[1:] if kind == b"zTXt" else rest
    if not is_packed:
        return len(rest)
    try:
        return len(zlib.decompressobj().decompress(rest, _MAX_TEXT + 1))
    except zlib.error:
        return 0


def _decode_header(file: BinaryIO, format_: str, name: str) -> ImageFile:
    from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    # opened without Image.open, which refuses sound images of many pixels
    open_: dict[str, Any] = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
    }
    try:
        with quiet_pydicom():
            image: ImageFile = open_[format_](file, "")
            return image
    except ReadError:
        raise
    except Image.DecompressionBombError:
        raise DecodeError(
            f"{name} has more pixels than the decoder of {format_} accepts; save it as PNG"
        ) from None
    # Pillow raises exceptions of many types on damaged headers
    except Exception as error:
        raise ReadError(f"{name} is a damaged {format_} file ({type(error).__name__})") from None


def _is_animated(image: ImageFile) -> bool:
    try:
        with quiet_pydicom():
            return bool(getattr(image, "is_animated", False))
    # a second frame that is damaged; the first one may be, too
    except Exception:
        return False


def _find_orientation(image: ImageFile, path: str) -> int:
    """Return the EXIF orientation, 1 if there is none or it is unreadable."""
    try:
        with quiet_pydicom():
            orientation = image.getexif().get(ORIENTATION_TAG)
    except ReadError:
        raise
    except (OSError, EOFError) as error:
        # a PNG is read to its end for its EXIF tags
        raise TruncatedError(f"{path} is truncated or damaged ({type(error).__name__})") from None
    # damaged EXIF tags raise errors of many types, and do not affect the pixels
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _read_deep_jpeg(file: BinaryIO, start: bytes, name: str) -> _Header | None:
    """Return the header of a JPEG that Pillow can't decode: 12 bits, lossless, JPEG-LS; None for others."""
    found = read_codestream(start)
    while found is None and len(start) < _MAX_JPEG_START and (more := file.read(15 * len(start))):
        start += more
        found = read_codestream(start)
    if found is None:
        return None
    process, bits = find_jpeg_process(start), found.precision
    is_deep = bits > 8 and process in (0xC1, 0xC2)
    if process not in (_LOSSLESS_PROCESS, _JPEG_LS_PROCESS) and not is_deep:
        if process in _PILLOW_PROCESSES and bits == 8:
            return None
        raise DecodeError(
            f"{name} is JPEG of the process SOF{process - 0xC0} with {bits} bits, which has no decoder; "
            "convert it to lossless JPEG or PNG"
        )
    if found.size.components not in (1, 3):
        raise DecodeError(
            f"{name} is JPEG of {bits} bits with {found.size.components} components; expected 1 or 3"
        )
    return _Header(
        format="JPEG",
        size=(found.size.rows, found.size.columns),
        channels=found.size.components,
        orientation=_parse_exif(find_jpeg_segment(start, 0xE1, b"Exif\0\0")),
        deep=bits,
    )


def _read_jpeg_2000(file: BinaryIO, start: bytes, name: str) -> _Header:
    """Return the header of a JPEG 2000 image, which profiles of colors can precede."""
    found = parse_jpeg_2000(start, name)
    while found is None and len(start) < _MAX_JPEG_START and (more := file.read(15 * len(start))):
        start += more
        found = parse_jpeg_2000(start, name)
    if found is None:
        raise ReadError(f"{name} is a damaged or truncated JPEG 2000 file")
    return _Header("JPEG 2000", found.size, found.colors, 1, deep=found.bits, jpeg_2000=found)


def _parse_exif(data: bytes) -> int:
    from PIL import Image

    exif = Image.Exif()
    try:
        with quiet_pydicom():
            exif.load(data)
            orientation = exif.get(ORIENTATION_TAG)
    # damaged EXIF tags raise errors of many types, and do not affect the pixels
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _read_volume(blob: Blob, slices: Sequence[int] | None, policies: Policies) -> Volume:
    path = blob.name
    if slices is not None and list(slices) != [0]:
        raise ReadError(f"{path} is a single image with slice 0; slices {list(slices)} were requested")
    with _open_still(blob) as (header, image):
        array, steps = _decode(blob, header, image)
    if array.shape[1:] != header.size:
        raise DecodeError(f"{path} has decoded size {array.shape[1:]}, its header says {header.size}")
    array = turn_upright(array, header.orientation)
    if header.scaled:
        steps = (*steps, f"{header.scaled} bits scaled to 8")
    steps = (*steps, *describe_turn(header.orientation, "EXIF"))
    array, steps = keep_gray(array, steps)
    return Volume(
        array=array[:, None],
        affine=geometry.image_affine(),
        photometric="RGB" if array.shape[0] == 3 else "MONOCHROME2",
        space="image",
        display_range=(0.0, 255.0) if array.dtype == np.uint8 else None,
        report=ReadReport(format=header.format, files=(path,), transforms=steps),
    )


def _decode(blob: Blob, header: _Header, image: ImageFile | None) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return (C, H, W) as stored, and the steps of the report."""
    try:
        with quiet_pydicom():
            if image is not None:
                return to_channels(image)
            with blob.stream() as file:
                data = file.read()
            if header.jpeg_2000 is not None:
                array, steps = decode_jpeg_2000(data, header.jpeg_2000, blob.name)
                return move_channels(array), steps
            return _decode_png(data) if header.format == "PNG" else _decode_deep_jpeg(data, blob.name)
    except (ReadError, MemoryError):
        raise
    except (OSError, EOFError, SyntaxError, ValueError) as error:
        raise TruncatedError(f"{blob.name} is truncated or damaged ({type(error).__name__})") from None
    # codecs raise errors of many types on damaged data
    except Exception as error:
        raise DecodeError(f"{blob.name} is damaged ({type(error).__name__})") from None


def _decode_png(data: bytes) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Decode a PNG of 16 bits; its color type is RGB, or grayscale or RGB with alpha."""
    import imagecodecs

    array = np.asarray(imagecodecs.png_decode(data))
    colors = 1 if array.shape[-1] == 2 else 3
    steps = ("transparency dropped",) if array.shape[-1] > colors else ()
    return move_channels(array[..., :colors]), steps


def _decode_deep_jpeg(data: bytes, name: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    import imagecodecs

    found: Codestream | None = read_codestream(data)
    process = find_jpeg_process(data)
    if found is None or data.rfind(_JPEG_END, find_jpeg_scan(data)) < 0:
        raise TruncatedError(f"{name} has no end marker: it is truncated; copy or export it again")
    if process == _JPEG_LS_PROCESS:
        array = np.asarray(imagecodecs.jpegls_decode(data))
        if array.ndim == 3 and array.shape[0] == 3 != array.shape[-1]:
            array = np.moveaxis(array, 0, -1)
    elif found.size.components == 1:
        array = np.asarray(imagecodecs.jpeg8_decode(data))
    else:
        is_ycc = process != _LOSSLESS_PROCESS and has_ycc(data, declared=True)
        coded = "YCBCR" if is_ycc else "RGB"
        array = np.asarray(imagecodecs.jpeg8_decode(data, colorspace=coded, outcolorspace="RGB"))
    bits = found.precision
    if array.ndim == 2 or not 8 < bits < 16:
        return move_channels(array), ()
    # colors have no window: white is the highest value of their type
    wide = array.astype(np.uint32) * 65535
    return move_channels((wide // (2**bits - 1)).astype(np.uint16)), (f"{bits} bits scaled to 16",)
