"""PNG and JPEG pictures, as X-ray data sets come, through Pillow."""

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

__all__ = ["image_series", "looks_like_image"]

_MOST_PIXELS: Final = 2**27
_ORIENTATION_TAG: Final = 0x0112
# Image.Transpose: TRANSPOSE, TRANSVERSE, ROTATE_90 and ROTATE_270 exchange rows and columns
_SIDEWAYS: Final = frozenset({2, 4, 5, 6})
_GRAY: Final = frozenset({"1", "L", "I", "I;16", "I;16B", "I;16L", "F"})


def _says_no_values(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG


# what it logs while it looks for bugs are the values of EXIF tags: descriptions, artists, dates
logging.getLogger("PIL.TiffImagePlugin").addFilter(_says_no_values)


def looks_like_image(start: bytes) -> bool:
    """Whether a file begins like PNG or JPEG."""
    return start[:8] == b"\x89PNG\r\n\x1a\n" or start[:3] == b"\xff\xd8\xff"


def image_series(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Read the size of a picture.

    A color picture counts as gray, with one channel, once it is read and its colors turn out to be equal.

    Raises
    ------
    NotAnImageError
        If it is neither PNG nor JPEG.
    ReadError
        If it can't be opened.
    """
    blob = as_blob(source)
    with _opened(blob) as image:
        width, height = image.size
        if _turn(image, blob.name) in _SIDEWAYS:
            width, height = height, width
        channels = 1 if image.mode in _GRAY else 3
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
        reader=partial(_read, blob),
    )


@contextmanager
def _opened(blob: Blob) -> Iterator[Image.Image]:
    """Give the picture, whose pixels are read from the file while it is used."""
    with blob.open() as file:
        image = _image(file, blob.name)
        if image.width * image.height > _MOST_PIXELS:
            raise DecodeError(
                f"{blob.name} declares {image.width}×{image.height} pixels, which is unreasonably large"
            )
        yield image


def _image(file: BinaryIO, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with quiet_pydicom():
            return Image.open(file, formats=("PNG", "JPEG"))
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise NotAnImageError(f"{name} is neither PNG nor JPEG") from None
    # Pillow raises many kinds of exception on damaged headers
    except Exception as error:
        raise ReadError(f"{name} is damaged ({type(error).__name__})") from None


def _turn(image: Image.Image, path: str) -> Image.Transpose | None:
    """Return how a picture has to be turned to stand upright, by its EXIF tag."""
    from PIL import Image

    turns = (
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
    # damaged EXIF tags raise errors of many kinds, and say nothing about the pixels
    except Exception:
        return None
    if not isinstance(orientation, int) or not 2 <= orientation <= len(turns) + 1:
        return None
    return turns[orientation - 2]


def _read(blob: Blob, slices: Sequence[int] | None, policies: Policies) -> Volume:
    path = blob.name
    if slices is not None and list(slices) != [0]:
        raise ReadError(
            f"{path} is a single picture; slice 0 is all it has, and {list(slices)} were asked for"
        )
    with _opened(blob) as image:
        format_ = str(image.format)
        turn = _turn(image, path)
        try:
            with quiet_pydicom():
                array = _pixels(image if turn is None else image.transpose(turn))
        except ReadError:
            raise
        except (OSError, EOFError, SyntaxError, ValueError) as error:
            raise TruncatedError(f"{path} is truncated or damaged ({type(error).__name__})") from None
        # codecs raise errors of many kinds on damaged data
        except Exception as error:
            raise DecodeError(f"{path} is damaged ({type(error).__name__})") from None
    steps = [] if turn is None else ["turned upright by its EXIF tag"]
    if array.shape[0] == 3 and (array == array[:1]).all():
        array, steps = array[:1], [*steps, "gray in three equal channels: one kept"]
    return Volume(
        array=array[:, None],
        affine=geometry.image_affine(),
        photometric="RGB" if array.shape[0] == 3 else "MONOCHROME2",
        space="image",
        report=ReadReport(format=format_, files=(path,), transforms=tuple(steps)),
    )


def _pixels(image: Image.Image) -> npt.NDArray[Any]:
    """(C, H, W): gray in its own depth, everything else as 8-bit RGB; transparency is dropped."""
    if image.mode in {"LA", "1"}:
        image = image.convert("L")
    elif image.mode not in _GRAY:
        image = image.convert("RGB")
    array = np.asarray(image)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))
