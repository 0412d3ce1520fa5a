"""The stored values of a raster: where they lie, unpacked, in the byte order of this machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from medimg.errors import DecodeError, TruncatedError
from medimg.io.unpacking import inflating

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.raster import Raster

__all__ = ["MOST_TEXT", "stored_values"]

#: The longest file of text that is read.
MOST_TEXT: Final = 2**28
_PIECE: Final = 2**20
_SEPARATOR: Final = re.compile(rb"[\s,]")


def stored_values(raster: Raster, chosen: Sequence[int]) -> npt.NDArray[Any]:
    """
    Return the values of some slices.

    Parameters
    ----------
    raster : Raster
        With sizes that have been compared with the file.
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
    """
    if raster.encoding in ("text", "hex"):
        everything = _from_text(raster)
        return everything[:, chosen] if len(chosen) < raster.grid[0] else everything
    depth, height, width = raster.grid
    outer, inner = (1, raster.channels) if raster.interleaved else (raster.channels, 1)
    slab = height * width * inner * raster.dtype.itemsize
    values = np.empty((outer, len(chosen), height, width, inner), raster.dtype)
    memory = memoryview(values.reshape(-1).view(np.uint8).data)
    with raster.blob.stream() as packed:
        _skip(packed, raster.start, raster.name)
        file = inflating(packed, raster.blob.name) if raster.encoding == "deflated" else packed
        _skip(file, raster.skip, raster.name)
        filled = at = 0
        for number in (o * depth + d for o in range(outer) for d in chosen):
            _skip(file, (number - at) * slab, raster.name)
            _fill(file, memory[filled : filled + slab], raster.name)
            filled, at = filled + slab, number + 1
        if at == outer * depth:
            file.read(1)  # lets compressed data verify their checksum
    values = values.astype(raster.dtype.newbyteorder("="), copy=False)
    return values[0].transpose(3, 0, 1, 2) if raster.interleaved else values[..., 0]


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
        values[filled : filled + len(words)] = np.array([number(word) for word in words], raster.dtype)
        filled, at = filled + len(words), end
    return values[:filled]


def _end_of_word(text: bytes, at: int) -> int:
    """Return the first place, from `at` on, where a word ends; one of a thousand letters ends anywhere."""
    found = _SEPARATOR.search(text, at, at + 1000)
    return min(len(text), found.start() if found else at + 1000)


def _from_text(raster: Raster) -> npt.NDArray[Any]:
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
    values = values.astype(raster.dtype.newbyteorder("="), copy=False)
    if raster.interleaved:
        return values.reshape(*raster.grid, raster.channels).transpose(3, 0, 1, 2)
    return values.reshape(raster.channels, *raster.grid)
