"""The starts of many files in one block of memory, which is used again and again."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["OPEN_FLAGS", "FileHeads", "read_start"]

_BLOCK_BYTES: Final = 2**22
_FEWEST: Final = 16
#: Where reading a file takes longer than this, it is not in memory: the system is asked for many ahead.
_WAIT_SECONDS: Final = 3e-5
#: Where it takes longer even then, files are slow to open, as on a network: many are waited for at once.
_SLOW_SECONDS: Final = 4e-4
_AT_ONCE: Final = 16
#: Files that are open at the same time in one thread.
_AHEAD: Final = 64
# Windows would translate ends of lines; a pipe in place of a file would be waited for
OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_HAS_READV: Final = hasattr(os, "readv")
_HAS_ADVICE: Final = hasattr(os, "posix_fadvise")


def read_start(name: str, count: int) -> bytes:
    """Return the first bytes of a file; none where it can't be read."""
    file = _opened(name)
    if file < 0:
        return b""
    try:
        return os.read(file, count)
    except OSError:
        return b""
    finally:
        os.close(file)


class FileHeads:
    """
    Reads the starts of files, in as many threads as it takes to keep the disk busy.

    Parameters
    ----------
    workers : int, optional
        Threads; by default one, and 16 where files turn out to be slow to open. Files that are not in memory
        are asked for ahead, where the system can be asked.

    Attributes
    ----------
    width : int
        Bytes that are read of each file, a multiple of 8; may be changed between blocks.
    """

    def __init__(self, workers: int | None = None, width: int = 8192) -> None:
        self.width = width
        self._workers = workers
        self._memory = np.empty(0, np.uint8)
        self._pool: ThreadPoolExecutor | None = None
        self._is_ahead = False

    def __enter__(self) -> FileHeads:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    @property
    def most(self) -> int:
        """How many files a block has room for."""
        return max(_FEWEST, _BLOCK_BYTES // self.width)

    def read(self, names: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """
        Read the starts of some files.

        Parameters
        ----------
        names : sequence of str
            Up to :attr:`most` paths.

        Returns
        -------
        starts : numpy.ndarray
            (files, width) uint8, valid until the next call.
        counts : numpy.ndarray
            (files,) int64: how many bytes were read of each; 0 where it can't be.
        """
        size = len(names) * self.width
        if self._memory.size < size:
            self._memory = np.empty(max(size, _BLOCK_BYTES), np.uint8)
        memory = memoryview(self._memory.data)
        began = time.perf_counter()
        counts = self._read(names, memory)
        if self._workers is None:
            self._hurry((time.perf_counter() - began) / len(names))
        return self._memory[:size].reshape(len(names), self.width), np.asarray(counts, np.int64)

    def _hurry(self, seconds: float) -> None:
        """Choose how to read on, from how long a file took."""
        if self._is_ahead and seconds > _SLOW_SECONDS and self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_ONCE)
        if seconds > _WAIT_SECONDS:
            self._is_ahead = _HAS_READV and _HAS_ADVICE

    def _read(self, names: Sequence[str], memory: memoryview) -> list[int]:
        if self._pool is None and (self._workers or 1) > 1:
            self._pool = ThreadPoolExecutor(self._workers)
        if self._pool is None:
            return self._read_some(names, memory)
        step = max(1, min(_AHEAD, -(-len(names) // _AT_ONCE)))
        parts = [
            self._pool.submit(self._read_some, names[n : n + step], memory[n * self.width :])
            for n in range(0, len(names), step)
        ]
        return [count for part in parts for count in part.result()]

    def _read_some(self, names: Sequence[str], memory: memoryview) -> list[int]:
        width = self.width
        if self._is_ahead:
            return _request_readahead(names, memory, width)
        read = _into if _HAS_READV else _copied
        return [read(name, memory[n * width : (n + 1) * width]) for n, name in enumerate(names)]


def _opened(name: str) -> int:
    try:
        return os.open(name, OPEN_FLAGS)
    except (OSError, ValueError):
        return -1


def _filled(file: int, memory: memoryview) -> int:
    try:
        return os.readv(file, (memory,))
    except OSError:
        return 0
    finally:
        os.close(file)


def _into(name: str, memory: memoryview) -> int:
    file = _opened(name)
    return 0 if file < 0 else _filled(file, memory)


def _copied(name: str, memory: memoryview) -> int:
    start = read_start(name, len(memory))
    memory[: len(start)] = start
    return len(start)


def _request_readahead(names: Sequence[str], memory: memoryview, width: int) -> list[int]:
    """Ask the system for many files before the first is waited for."""
    counts = []
    for first in range(0, len(names), _AHEAD):
        files = [_opened(name) for name in names[first : first + _AHEAD]]
        for file in files:
            if file >= 0:
                _advise(file, width)
        for number, file in enumerate(files, first):
            counts.append(_filled(file, memory[number * width : (number + 1) * width]) if file >= 0 else 0)
    return counts


def _advise(file: int, width: int) -> None:
    # what can't be advised, such as a pipe, is merely waited for
    with suppress(OSError):
        os.posix_fadvise(file, 0, width, os.POSIX_FADV_WILLNEED)
