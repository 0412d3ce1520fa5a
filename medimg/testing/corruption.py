"""Corrupted copies of files, by seed: truncated, overwritten, with wrong lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["damaged"]

#: Unusual numbers, as little-endian bytes.
_UNUSUAL: Final = (
    b"\x00\x00", b"\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x00\x80",
    b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\\", b"-1", b"1e308", b"nan",
)  # fmt: skip


def damaged(data: bytes, *, count: int, seed: int = 0, header: int = 4096) -> Iterator[bytes]:
    """
    Yield corrupted copies of a file.

    A sixth of them is truncated. In the others one to eight positions are overwritten: single bytes, bits, or
    numbers such as −1, NaN and the largest one. Three in four positions are in the header, where damage does
    more than change a value.

    Parameters
    ----------
    data : bytes
        Content of a valid file.
    count : int
        Number of copies.
    seed : int
        Seed; equal seeds give equal copies.
    header : int
        Number of bytes that count as the header.

    Yields
    ------
    bytes

    Examples
    --------
    >>> [len(d) for d in damaged(b"0123456789", count=7)]
    [8, 10, 10, 10, 10, 10, 0]
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % 6 == 0:
            yield data[: int(rng.integers(0, max(1, len(data))))]
            continue
        copy = bytearray(data)
        for _ in range(int(rng.integers(1, 9))):
            _overwrite(copy, rng, min(len(copy), header) if rng.random() < 0.75 else len(copy))
        yield bytes(copy)


def _overwrite(copy: bytearray, rng: np.random.Generator, end: int) -> None:
    start = int(rng.integers(0, max(1, end)))
    choice = rng.integers(0, 3)
    if choice == 0:
        copy[start : start + 1] = bytes([int(rng.integers(256))])
    elif choice == 1 and start < len(copy):
        copy[start] ^= 1 << int(rng.integers(8))
    else:
        unusual = _UNUSUAL[int(rng.integers(len(_UNUSUAL)))]
        part = unusual[: len(copy) - start]
        copy[start : start + len(part)] = part
