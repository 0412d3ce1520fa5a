"""Damaged copies of files, by a seed: cut, overwritten, with lengths that lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["damaged"]

#: Numbers that headers hardly expect, as little endian bytes.
_NASTY: Final = (
    b"\x00\x00", b"\xff\xff", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\xff\xff\xff\x7f", b"\x00\x80",
    b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff", b"\\", b"-1", b"1e308", b"nan",
)  # fmt: skip


def damaged(data: bytes, *, count: int, seed: int = 0, header: int = 4096) -> Iterator[bytes]:
    """
    Yield damaged copies of a file.

    A sixth of them is cut short. Of the others one to eight places are overwritten: single bytes, bits, or
    numbers such as −1, NaN and the largest one. Three in four places lie in the header, where damage does
    more than change a value.

    Parameters
    ----------
    data : bytes
        A sound file.
    count : int
        How many copies.
    seed : int
        Equal seeds give equal copies.
    header : int
        How many bytes count as the header.

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
            _hurt(copy, rng, min(len(copy), header) if rng.random() < 0.75 else len(copy))
        yield bytes(copy)


def _hurt(copy: bytearray, rng: np.random.Generator, end: int) -> None:
    place = int(rng.integers(0, max(1, end)))
    kind = rng.integers(0, 3)
    if kind == 0:
        copy[place : place + 1] = bytes([int(rng.integers(256))])
    elif kind == 1 and place < len(copy):
        copy[place] ^= 1 << int(rng.integers(8))
    else:
        nasty = _NASTY[int(rng.integers(len(_NASTY)))]
        fits = nasty[: len(copy) - place]
        copy[place : place + len(fits)] = fits
