"""Values of a volume in a file: little-endian, slice after slice, compressed or not."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from isal import igzip, isal_zlib

from medimg.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from medimg.core.volume import Volume

__all__ = ["check_values", "iter_values", "open_gzip", "write_zlib"]

#: Values of arrays by NumPy's kind, for messages.
_KINDS: Final = {"b": "truth values", "c": "complex numbers"}


def check_values(volume: Volume, format_name: str) -> None:
    """Raise ConversionError for values that no raw-array format holds."""
    dtype = volume.array.dtype
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype == np.float16:
        advice = "np.uint8" if dtype.kind == "b" else "np.float32"
        found = _KINDS.get(dtype.kind, f"values of type {dtype}")
        raise ConversionError(
            f"{format_name} does not hold {found}; expected integers, or floating-point numbers of 32 or 64 "
            f"bits: volume.with_array(volume.array.astype({advice}))"
        )
    if volume.is_color and (dtype != np.uint8 or len(volume) != 3):
        raise ConversionError(
            f"{format_name} holds colors of three times 8 bits; found {len(volume)} channels of {dtype}: "
            "reduce them to np.uint8 first"
        )


def iter_values(volume: Volume) -> Iterator[memoryview]:
    """Yield the bytes of the values, columns fastest, channels slowest; colors are interleaved."""
    planes: Iterator[npt.NDArray[Any]] = (
        (np.moveaxis(volume.array[:, d], 0, -1) for d in range(volume.shape[1]))
        if volume.is_color
        else (plane for channel in volume.array for plane in channel)
    )
    little = volume.array.dtype.newbyteorder("<")
    return (np.ascontiguousarray(plane, little).data.cast("B") for plane in planes)


@contextmanager
def open_gzip(path: Path, *, append: bool = False) -> Iterator[BinaryIO]:
    """Open a file for content compressed by gzip, without name and time, so that files are reproducible."""
    make: Any = igzip.IGzipFile  # its stub has no types
    with (
        path.open("ab" if append else "wb") as file,
        make(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        yield packed


def write_zlib(values: Iterator[memoryview], file: BinaryIO) -> int:
    """Write bytes in zlib format, and return the number of compressed bytes."""
    packer = isal_zlib.compressobj()
    count = sum(file.write(packer.compress(piece)) for piece in values)
    return count + file.write(packer.flush())
