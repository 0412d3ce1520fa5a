"""PNG and JPEG images, through Pillow."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.volume import Volume
from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.files.blob import Blob, as_blob
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from PIL import Image

__all__ = ["is_png_or_jpeg", "open_image"]

_MAX_PIXELS: Final = 2**27
_ORIENTATION_TAG: Final = 0x0112
# Image.Transpose: TRANSPOSE, TRANSVERSE, ROTATE_90 and ROTATE_270 exchange rows and columns
_SIDEWAYS: Final = frozenset({2, 4, 5, 6})
_GRAYSCALE_MODES: Final = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "F"})


def _is_not_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


# its debug log contains values of EXIF tags: descriptions, artists, dates
logging.getLogger("PIL.TiffImagePlugin").addFilter(_is_not_debug)


def is_png_or_jpeg(start: bytes) -> bool:
    """Whether a file begins like PNG or JPEG."""
    return start[:8] == b"\x89PNG\r\n\x1a\n" or start[:3] == b"\xff\xd8\xff"


def open_image(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of a PNG or JPEG file, from its header.

    A color image with three equal channels becomes a grayscale one when it is read. Raises NotAnImageError
    for other files, and ReadError if it can't be opened.
    """
    blob = as_blob(source)
    with _decode_image(blob) as image:
        width, height = image.size
        if _find_orientation(image, blob.name) in _SIDEWAYS:
            width, height = height, width
        channels = 1 if image.mode in _GRAYSCALE_MODES else 3
        format_ = str(image.format)
    return Series(
        uid=blob.name,
        modality="",
        description="",
        shape=(channels, 1, height, width),
        affine=geometry.image_affine(),
        space="image",
        files=(blob.name,),
        format=format_,
        reader=partial(_read_volume, blob),
    )


@contextmanager
def _decode_image(blob: Blob) -> Iterator[Image.Image]:
    """Yield the image, whose pixels are read from the file while it is used."""
    with blob.open() as file:
        image = _decode_header(file, blob.name)
        if image.width * image.height > _MAX_PIXELS:
            raise DecodeError(
                f"{blob.name} declares {image.width}×{image.height} pixels, which is unreasonably large"
            )
        yield image


def _decode_header(file: BinaryIO, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet_pydicom():
            return Image.open(file, formats=("PNG", "JPEG"))
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise NotAnImageError(f"{name} is neither PNG nor JPEG") from None
    # Pillow raises exceptions of many types on damaged headers
    except Exception as error:
        raise ReadError(f"{name} is damaged ({type(error).__name__})") from None


def _find_orientation(image: Image.Image, path: str) -> Image.Transpose | None:
    """Return the transposition that makes an image upright, by its EXIF tag."""
    from PIL import Image

    transpositions = (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )
    try:
        with quiet_pydicom():
            orientation = image.getexif().get(_ORIENTATION_TAG)
    except ReadError:
        raise
    except (OSError, EOFError) as error:
        # a PNG is read to its end for its EXIF tags
        raise TruncatedError(f"{path} is truncated or damaged ({type(error).__name__})") from None
    # damaged EXIF tags raise errors of many types, and do not affect the pixels
    except Exception:
        return None
    if not isinstance(orientation, int) or not 2 <= orientation <= len(transpositions) + 1:
        return None
    return transpositions[orientation - 2]


def _read_volume(blob: Blob, slices: Sequence[int] | None, policies: Policies) -> Volume:
    path = blob.name
    if slices is not None and list(slices) != [0]:
        raise ReadError(f"{path} is a single image with slice 0; slices {list(slices)} were requested")
    with _decode_image(blob) as image:
        format_ = str(image.format)
        transposition = _find_orientation(image, path)
        try:
            with quiet_pydicom():
                array = _to_channels(image if transposition is None else image.transpose(transposition))
        except ReadError:
            raise
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise TruncatedError(f"{path} is truncated or damaged ({type(error).__name__})") from None
        # codecs raise errors of many types on damaged data
        except Exception as error:
            raise DecodeError(f"{path} is damaged ({type(error).__name__})") from None
    steps = [] if transposition is None else ["turned upright by its EXIF tag"]
    if array.shape[0] == 3 and (array == array[:1]).all():
        array, steps = array[:1], [*steps, "gray in three equal channels: one kept"]
    return Volume(
        array=array[:, None],
        affine=geometry.image_affine(),
        photometric="RGB" if array.shape[0] == 3 else "MONOCHROME2",
        space="image",
        display_range=(0.0, 255.0) if array.dtype == np.uint8 else None,
        report=ReadReport(format=format_, files=(path,), transforms=tuple(steps)),
    )


def _to_channels(image: Image.Image) -> npt.NDArray[Any]:
    """Return (C, H, W): grayscale in its own depth, everything else as 8-bit RGB; transparency is dropped."""
    if image.mode in {"LA", "1"}:
        image = image.convert("L")
    elif image.mode not in _GRAYSCALE_MODES:
        image = image.convert("RGB")
    array = np.asarray(image)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))
