"""The stored values of a raster: where they lie, unpacked, in the byte order of this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from medimg.core.rescale import choose_rescaled_dtype, rescale_into
from medimg.errors import DecodeError, ReadError, TruncatedError
from medimg.io.files.decompress import open_inflated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy.typing as npt

    from medimg.io.formats.raster import Raster

__all__ = ["MOST_TEXT", "StoredValues"]

#: The longest file of text that is read.
MOST_TEXT: Final = 2**28
#: Bytes at a time: they are looked at, swapped or rescaled while they are in the cache.
_PIECE: Final = 2**20
#: Bytes that may be held beside the result.
_SPARE: Final = 2**24
#: Bytes behind the values that are unpacked to reach the checksum; damage can make the data longer.
_MOST_BEHIND: Final = 2**28
_MOST_FLOAT32: Final = 3e38
_SEPARATOR: Final = re.compile(rb"[\s,]")


class StoredValues:
    """
    The values of a raster, read from its file slice by slice.

    A context manager. It keeps its place: slices that are asked for in ascending order, in one call or many,
    unpack a compressed file once; only the bytes of those slices are read of one that is not compressed.

    Parameters
    ----------
    raster : Raster
        With sizes that have been compared with the file.
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

    def stored(self, chosen: Sequence[int]) -> npt.NDArray[Any]:
        """
        Return the values of some slices as they are stored.

        Parameters
        ----------
        chosen : sequence of int
            Ascending indices along D; only these are kept in memory.

        Returns
        -------
        numpy.ndarray
            (C, len(chosen), H, W) in the byte order of this machine.

        Raises
        ------
        TruncatedError
            If the file ends too early.
        DecodeError
            If its compression is damaged, or text is no number.
        ReadError
            If it can't be read.
        """
        return self._shaped(self._flat(chosen)[0], chosen)

    def rescaled(self, chosen: Sequence[int]) -> npt.NDArray[Any]:
        """
        Return the values of some slices, rescaled by slope and intercept.

        Little is held in memory beside the result.

        Parameters
        ----------
        chosen : sequence of int
            Ascending indices along D.

        Returns
        -------
        numpy.ndarray
            (C, len(chosen), H, W): floating-point values keep their type; integers become int16, int32 or
            float32 (:func:`medimg.core.rescale.choose_rescaled_dtype`), or float64 where float32 can't hold
            them.

        Raises
        ------
        TruncatedError, DecodeError, ReadError
            As :meth:`stored`.
        """
        dtype = self._type_rescaled()
        if dtype is None:
            flat, ends = self._flat(chosen, find_ends=True)
            dtype = choose_rescaled_dtype(ends, self._raster.slope, self._raster.intercept)
            if dtype.itemsize == flat.itemsize:
                return self._shaped(self._rescale(flat, flat.view(dtype)), chosen)
            if flat.nbytes <= _SPARE:
                return self._shaped(self._rescale(flat, np.empty(flat.size, dtype)), chosen)
            del flat  # and read again: two arrays at once take more memory than promised
        return self._shaped(self._converted(chosen, dtype), chosen)

    def _type_rescaled(self) -> np.dtype[Any] | None:
        """Return the type of the result; None if it depends on the values."""
        raster, dtype = self._raster, self._dtype
        if dtype.kind == "f":
            return dtype
        largest = 2.0 ** (8 * dtype.itemsize) * abs(raster.slope) + abs(raster.intercept)
        if dtype.itemsize == 8 or largest >= _MOST_FLOAT32:
            return np.dtype(np.float64)
        limits = np.iinfo(dtype)
        bound = choose_rescaled_dtype((int(limits.min), int(limits.max)), raster.slope, raster.intercept)
        whole = raster.slope.is_integer() and raster.intercept.is_integer()
        return None if whole and bound != np.int16 else bound

    def _rescale(self, stored: npt.NDArray[Any], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            rescale_into(stored, self._raster.slope, self._raster.intercept, values)
        return values

    def _shaped(self, flat: npt.NDArray[Any], chosen: Sequence[int]) -> npt.NDArray[Any]:
        _, height, width = self._raster.grid
        if self._raster.interleaved:
            return flat.reshape(len(chosen), height, width, -1).transpose(3, 0, 1, 2)
        return flat.reshape(-1, len(chosen), height, width)

    def _flat(
        self, chosen: Sequence[int], *, find_ends: bool = False
    ) -> tuple[npt.NDArray[Any], tuple[int, int]]:
        """Return the values in the order of the file, and if asked for the least and the greatest."""
        pieces = self._pieces(chosen)
        flat = np.empty(sum(length for _, length in pieces) // self._dtype.itemsize, self._dtype)
        least, greatest, filled = [], [], 0
        for position, length in pieces:
            piece = flat[filled : filled + length // self._dtype.itemsize]
            self._load(position, piece)
            if find_ends:
                least.append(int(piece.min()))
                greatest.append(int(piece.max()))
            filled += piece.size
        self._verify()
        return flat, (min(least), max(greatest)) if find_ends else (0, 0)

    def _converted(self, chosen: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return rescaled values in the order of the file, read piece by piece."""
        pieces = self._pieces(chosen)
        values = np.empty(sum(length for _, length in pieces) // self._dtype.itemsize, dtype)
        buffer = np.empty(max(length for _, length in pieces) // self._dtype.itemsize, self._dtype)
        filled = 0
        for position, length in pieces:
            piece = buffer[: length // self._dtype.itemsize]
            self._load(position, piece)
            self._rescale(piece, values[filled : filled + piece.size])
            filled += piece.size
        self._verify()
        return values

    def _pieces(self, chosen: Sequence[int]) -> list[tuple[int, int]]:
        """Return where in the values the slices are: positions and lengths in bytes, ascending."""
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
            (start, min(_PIECE, end - start)) for first, end in runs for start in range(first, end, _PIECE)
        ]

    def _load(self, position: int, piece: npt.NDArray[Any]) -> None:
        """Fill an array with the values from a byte on."""
        if self._raster.encoding in ("text", "hex"):
            if self._text is None:
                self._text = _from_text(self._raster)
            start = position // self._dtype.itemsize
            piece[:] = self._text[start : start + piece.size]
            return
        try:
            file = self._file
            if file is None or position < self._at:
                file = self._open()
            _skip(file, position - self._at, self._raster.name)
            _fill(file, memoryview(piece.view(np.uint8).data), self._raster.name)
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
        _skip(file, raster.skip, raster.name)
        self._at = 0
        return file

    def _verify(self) -> None:
        """Let compressed data verify their checksum, where all values have been read."""
        if self._file is None or self._at < self._raster.nbytes:
            return
        packed = not self._file.seekable()
        left = _MOST_BEHIND
        while packed and left > 0 and (behind := self._file.read(_PIECE)):
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


def _numbers(text: bytes, raster: Raster) -> npt.NDArray[Any]:
    """Return the numbers of a text, which is taken apart piece by piece, as words take much memory."""
    number = float if raster.dtype.kind == "f" else int
    values = np.empty(raster.count, raster.dtype)
    filled = at = 0
    while at < len(text) and filled < raster.count:
        end = _end_of_word(text, at + _PIECE)
        words = text[at:end].replace(b",", b" ").split()[: raster.count - filled]
        found = [number(word) for word in words]
        # NumPy before 2 wraps what the type can't hold
        if found and raster.dtype.kind in "iu":
            limits = np.iinfo(raster.dtype)
            if min(found) < limits.min or max(found) > limits.max:
                raise OverflowError
        values[filled : filled + len(words)] = np.array(found, raster.dtype)
        filled, at = filled + len(words), end
    return values[:filled]


def _end_of_word(text: bytes, at: int) -> int:
    """Return the first place, from `at` on, where a word ends; one of a thousand letters ends anywhere."""
    found = _SEPARATOR.search(text, at, at + 1000)
    return min(len(text), found.start() if found else at + 1000)


def _from_text(raster: Raster) -> npt.NDArray[Any]:
    """Return all values in the order of the file, and in the byte order of this machine."""
    with raster.blob.stream() as file:
        _skip(file, raster.start, raster.name)
        _skip(file, raster.skip, raster.name)
        text = file.read(MOST_TEXT)
    try:
        if raster.encoding == "hex":
            values = np.frombuffer(bytes.fromhex(text.decode("ascii")), raster.dtype, raster.count)
        else:
            values = _numbers(text, raster)
    except (ValueError, OverflowError):
        raise DecodeError(f"{raster.name}: its values are no numbers of the type {raster.dtype}") from None
    if values.size < raster.count:
        raise TruncatedError(f"{raster.name} holds {values.size} values, its header promises {raster.count}")
    return values.astype(raster.dtype.newbyteorder("="), copy=False)
