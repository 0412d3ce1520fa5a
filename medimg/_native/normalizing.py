"""Calls of the compiled normalization of stored intensities."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["STORED_DTYPES", "normalize"]

#: Types of stored intensities, by their numbers in normalizing.cpp.
STORED_DTYPES: Final = {np.dtype(t): n for n, t in enumerate(("u1", "f2", "f4"))}


def normalize(
    library: ctypes.CDLL,
    images: Sequence[npt.NDArray[Any]],
    scales: Sequence[tuple[float, float]],
    out: npt.NDArray[np.float32],
    threads: int,
) -> None:
    """
    Write intensity × factor + offset of images (1 or C, *size) into `out` (N, C, *size).

    Images are contiguous, of one type and size; those of uint8 are divided by 255 before. `scales` are the
    factor and the offset of each channel. ValueError for images of another shape, which C++ does not notice.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1 or shapes - {(1, *out.shape[2:]), out.shape[1:]} or len(images) != len(out):
        raise ValueError(f"{len(images)} images of {sorted(shapes)} do not fit an output of {out.shape}")
    _declare(library)
    numbers = np.array(scales, np.float32).T.copy()
    status = library.medimg_normalize(
        (ctypes.c_void_p * len(images))(*(image.ctypes.data for image in images)),
        len(images),
        STORED_DTYPES[images[0].dtype],
        images[0].shape[0],
        len(scales),
        out[0, 0].size,
        numbers[0].ctypes.data,
        numbers[1].ctypes.data,
        out.ctypes.data,
        threads,
    )
    if status:
        raise MemoryError


@cache
def _declare(library: ctypes.CDLL) -> None:
    """State the types of the function of a library, once."""
    number, size, pointer = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
    function = library.medimg_normalize
    function.restype = number
    function.argtypes = [pointer, size, number, size, size, size, pointer, pointer, pointer, number]
