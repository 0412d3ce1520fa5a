"""Values of a raster: read from the file, decompressed, in native byte order."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from medimg.core.rescale import choose_rescaled_dtype, rescale_into
from medimg.errors import DecodeError, ReadError, TruncatedError
from medimg.io.files.decompress import open_bunzipped, open_inflated
from medimg.io.files.listed_file import limit_read_ahead

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy.typing as npt

    from medimg.io.formats.raster import Raster

__all__ = ["MAX_TEXT", "StoredValues"]

#: Maximum size of a text file.
MAX_TEXT: Final = 2**28
#: Bytes processed at once: checked, swapped or rescaled while in the cache.
_PIECE_BYTES: Final = 2**20
#: Bytes that may be allocated beside the result.
_SPARE: Final = 2**24
#: Bytes after the values that are decompressed to reach the checksum; damage can lengthen the data.
_MAX_TRAILING: Final = 2**28
_MAX_FLOAT32: Final = 3e38
#: Finds an exponent of three digits: if a number is infinite, it is one that overflowed.
_OVERFLOW: Final = re.compile(rb"[eE]\+?[0-9]{3}")
_SEPARATOR: Final = re.compile(rb"[\s,]")


class StoredValues:
    """
    Values of a raster, read slice by slice; a context manager.

    It keeps its position: slices requested in ascending order, in one call or several, decompress a file
    once; of an uncompressed one only the bytes of those slices are read.
    """

    def __init__(self, raster: Raster) -> None:
        self._raster = raster
        self._dtype = raster.dtype.newbyteorder("=")
        self._file: BinaryIO | None = None
        self._at = 0
        self._text: npt.NDArray[Any] | None = None

    def __enter__(self) -> StoredValues:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def read_stored(self, chosen: Sequence[int]) -> npt.NDArray[Any]:
        """Return stored values (C, slices, H, W) of ascending slices, in native byte order."""
        return self._reshape(self._read_flat(chosen)[0], chosen)

    def read_rescaled(self, chosen: Sequence[int]) -> npt.NDArray[Any]:
        """
        Return rescaled values (C, slices, H, W) of ascending slices, with little memory beside the result.

        Floating-point values keep their type; integers become int16, int32, float32 or, if that can't hold
        them, float64 (:func:`medimg.core.rescale.rescaled_dtype`).
        """
        dtype = self._find_dtype()
        if dtype is None:
            flat, value_range = self._read_flat(chosen, find_range=True)
            dtype = choose_rescaled_dtype(value_range, self._raster.slope, self._raster.intercept)
            if dtype.itemsize == flat.itemsize:
                return self._reshape(self._rescale(flat, flat.view(dtype)), chosen)
            if flat.nbytes <= _SPARE:
                return self._reshape(self._rescale(flat, np.empty(flat.size, dtype)), chosen)
            del flat  # read again, as two arrays would take too much memory
        return self._reshape(self._read_converted(chosen, dtype), chosen)

    def _find_dtype(self) -> np.dtype[Any] | None:
        """Return the type of the result; None if it depends on the values."""
        raster, dtype = self._raster, self._dtype
        if dtype.kind == "f":
            return dtype
        largest = 2.0 ** (8 * dtype.itemsize) * abs(raster.slope) + abs(raster.intercept)
        if dtype.itemsize == 8 or largest >= _MAX_FLOAT32:
            return np.dtype(np.float64)
        limits = np.iinfo(dtype)
        bound = choose_rescaled_dtype((int(limits.min), int(limits.max)), raster.slope, raster.intercept)
        whole = raster.slope.is_integer() and raster.intercept.is_integer()
        return None if whole and bound != np.int16 else bound

    def _rescale(self, stored: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        slope, intercept = self._raster.slope, self._raster.intercept
        try:
            with np.errstate(over="raise", invalid="ignore"):
                rescale_into(stored, slope, intercept, values)
        except FloatingPointError:
            raise DecodeError(
                f"{self._raster.name}: values rescaled by slope {slope:g} and intercept {intercept:g} are "
                f"beyond those of {values.dtype}; the file is damaged"
            ) from None
        return values

    def _reshape(self, flat: npt.NDArray[Any], chosen: Sequence[int]) -> npt.NDArray[Any]:
        _, height, width = self._raster.grid
        if self._raster.interleaved:
            return flat.reshape(len(chosen), height, width, -1).transpose(3, 0, 1, 2)
        return flat.reshape(-1, len(chosen), height, width)

    def _read_flat(
        self, chosen: Sequence[int], *, find_range: bool = False
    ) -> tuple[npt.NDArray[Any], tuple[int, int]]:
        """Return the values in file order, and their minimum and maximum if requested."""
        pieces = self._list_pieces(chosen)
        flat = np.empty(sum(length for _, length, _ in pieces) // self._dtype.itemsize, self._dtype)
        least, greatest, filled = [], [], 0
        for position, length, end in pieces:
            piece = flat[filled : filled + length // self._dtype.itemsize]
            self._load(position, piece, end)
            if find_range:
                least.append(int(piece.min()))
                greatest.append(int(piece.max()))
            filled += piece.size
        self._verify_checksum()
        return flat, (min(least), max(greatest)) if find_range else (0, 0)

    def _read_converted(self, chosen: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return rescaled values in file order, read in pieces."""
        pieces = self._list_pieces(chosen)
        values = np.empty(sum(length for _, length, _ in pieces) // self._dtype.itemsize, dtype)
        buffer = np.empty(max(length for _, length, _ in pieces) // self._dtype.itemsize, self._dtype)
        filled = 0
        for position, length, end in pieces:
            piece = buffer[: length // self._dtype.itemsize]
            self._load(position, piece, end)
            self._rescale(piece, values[filled : filled + piece.size])
            filled += piece.size
        self._verify_checksum()
        return values

    def _list_pieces(self, chosen: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return positions and lengths of the slices in bytes, ascending, and where their neighbors end."""
        depth, height, width = self._raster.grid
        outer, inner = (1, self._raster.channels) if self._raster.interleaved else (self._raster.channels, 1)
        slab = height * width * inner * self._dtype.itemsize
        runs: list[list[int]] = []
        for number in (o * depth + d for o in range(outer) for d in chosen):
            if runs and runs[-1][1] == number * slab:
                runs[-1][1] += slab
            else:
                runs.append([number * slab, (number + 1) * slab])
        return [
            (start, min(_PIECE_BYTES, end - start), end)
            for first, end in runs
            for start in range(first, end, _PIECE_BYTES)
        ]

    def _load(self, position: int, piece: npt.NDArray[Any], end: int) -> None:
        """Fill an array with the values from a byte position on, of those that are read up to `end`."""
        if self._raster.encoding in ("text", "hex"):
            if self._text is None:
                self._text = _read_text(self._raster)
            start = position // self._dtype.itemsize
            piece[:] = self._text[start : start + piece.size]
            return
        try:
            file = self._file
            if file is None or position < self._at:
                file = self._open()
            _skip(file, position - self._at, self._raster.name)
            limit_read_ahead(file, self._raster.start + self._raster.skip + end)
            _fill(file, memoryview(piece.view(np.uint8).data), self._raster.name)
        except ReadError:
            raise
        except OSError as error:
            raise ReadError(f"{self._raster.blob.name} can't be read: {error.strerror}") from None
        self._at = position + piece.nbytes
        if self._raster.dtype != self._dtype:
            piece.byteswap(inplace=True)

    def _open(self) -> BinaryIO:
        raster = self._raster
        self._close()
        self._file = file = raster.blob.stream()
        _skip(file, raster.start, raster.name)
        if raster.encoding == "deflated":
            self._file = file = open_inflated(file, raster.blob.name)
        elif raster.encoding == "bzip2":
            self._file = file = open_bunzipped(file, raster.blob.name)
        _skip(file, raster.skip, raster.name)
        self._at = 0
        return file

    def _verify_checksum(self) -> None:
        """Let compressed data verify their checksum if all values have been read."""
        if self._file is None or self._at < self._raster.nbytes:
            return
        packed = not self._file.seekable()
        left = _MAX_TRAILING
        while packed and left > 0 and (behind := self._file.read(_PIECE_BYTES)):
            left -= len(behind)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _fill(file: BinaryIO, memory: memoryview, name: str) -> None:
    filled = 0
    while filled < len(memory):
        count = file.readinto(memory[filled:])  # type: ignore[attr-defined]  # BytesIO and buffered files have it
        if not count:
            raise TruncatedError(f"{name} ends before its values do; copy or export it again")
        filled += count


def _skip(file: BinaryIO, count: int, name: str) -> None:
    if file.seekable():
        file.seek(count, 1)
        return
    while count > 0:
        dropped = len(file.read(min(count, 2**20)))
        if not dropped:
            raise TruncatedError(f"{name} ends before its values do; copy or export it again")
        count -= dropped


def _parse_numbers(text: bytes, raster: Raster) -> npt.NDArray[Any]:
    """Return the numbers of a text, parsed in pieces, as words take much memory."""
    number = float if raster.dtype.kind == "f" else int
    values = np.empty(raster.count, raster.dtype)
    filled = at = 0
    while at < len(text) and filled < raster.count:
        end = _find_word_end(text, at + _PIECE_BYTES)
        words = text[at:end].replace(b",", b" ").split()[: raster.count - filled]
        # numbers in Python only
        if any(b"_" in word for word in words):
            raise ValueError
        found = [number(word) for word in words]
        # NumPy before 2 wraps values out of range
        if found and raster.dtype.kind in "iu":
            limits = np.iinfo(raster.dtype)
            if min(found) < limits.min or max(found) > limits.max:
                raise OverflowError
        with np.errstate(over="raise"):
            values[filled : filled + len(words)] = np.array(found, raster.dtype)
        if raster.dtype.kind == "f" and any(map(math.isinf, found)) and _OVERFLOW.search(b" ".join(words)):
            raise OverflowError
        filled, at = filled + len(words), end
    return values[:filled]


def _find_word_end(text: bytes, at: int) -> int:
    """Return the first position from `at` on where a word ends, at most a thousand letters away."""
    found = _SEPARATOR.search(text, at, at + 1000)
    return min(len(text), found.start() if found else at + 1000)


def _read_text(raster: Raster) -> npt.NDArray[Any]:
    """Return all values in file order, in native byte order."""
    with raster.blob.stream() as file:
        _skip(file, raster.start, raster.name)
        _skip(file, raster.skip, raster.name)
        text = file.read(MAX_TEXT)
    try:
        if raster.encoding == "hex":
            values = np.frombuffer(bytes.fromhex(text.decode("ascii")), raster.dtype, raster.count)
        else:
            values = _parse_numbers(text, raster)
    except (ValueError, OverflowError, FloatingPointError):
        raise DecodeError(f"{raster.name}: its values are not numbers of type {raster.dtype}") from None
    if values.size < raster.count:
        raise TruncatedError(
            f"{raster.name} has {values.size} values, but its header declares {raster.count}"
        )
    return values.astype(raster.dtype.newbyteorder("="), copy=False)
