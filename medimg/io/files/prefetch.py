"""Reads the first bytes of many files into one reused buffer, with read-ahead."""

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
_MIN_FILES: Final = 16
#: If reading a file takes longer than this, it is not in the page cache: files are requested ahead.
_WAIT_SECONDS: Final = 3e-5
#: If it takes longer even then, files are slow to open, as on a network: threads wait for many at once.
_SLOW_SECONDS: Final = 4e-4
_THREADS: Final = 16
#: Files open at the same time in one thread.
_FILES_AHEAD: Final = 64
# binary on Windows; without waiting for a pipe in place of a file
OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_HAS_READV: Final = hasattr(os, "readv")
_HAS_ADVICE: Final = hasattr(os, "posix_fadvise")


def read_start(name: str, count: int) -> bytes:
    """Return the first bytes of a file; none if it can't be read."""
    file = _open(name)
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
    Reads the first bytes of files, with as many threads as keep the disk busy.

    Without `workers` it uses one thread, and 16 if files turn out to be slow to open; files that are not in
    the page cache are requested ahead. `width` is the number of bytes per file, a multiple of 8, and may be
    changed between blocks.
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
    def max_files(self) -> int:
        """Maximum number of files in a block."""
        return max(_MIN_FILES, _BLOCK_BYTES // self.width)

    def read(self, names: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """
        Return the first bytes of up to `max_files` files, and the number read of each, 0 after an error.

        The bytes, (files, width) uint8, are valid until the next call; the counts are (files,) int64.
        """
        size = len(names) * self.width
        if self._memory.size < size:
            self._memory = np.empty(max(size, _BLOCK_BYTES), np.uint8)
        memory = memoryview(self._memory.data)
        began = time.perf_counter()
        counts = self._read(names, memory)
        if self._workers is None:
            self._adapt((time.perf_counter() - began) / len(names))
        return self._memory[:size].reshape(len(names), self.width), np.asarray(counts, np.int64)

    def _adapt(self, seconds: float) -> None:
        """Choose how to read the next block, by the seconds per file."""
        if self._is_ahead and seconds > _SLOW_SECONDS and self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS)
        if seconds > _WAIT_SECONDS:
            self._is_ahead = _HAS_READV and _HAS_ADVICE

    def _read(self, names: Sequence[str], memory: memoryview) -> list[int]:
        if self._pool is None and (self._workers or 1) > 1:
            self._pool = ThreadPoolExecutor(self._workers)
        if self._pool is None:
            return self._read_part(names, memory)
        step = max(1, min(_FILES_AHEAD, -(-len(names) // _THREADS)))
        parts = [
            self._pool.submit(self._read_part, names[n : n + step], memory[n * self.width :])
            for n in range(0, len(names), step)
        ]
        return [count for part in parts for count in part.result()]

    def _read_part(self, names: Sequence[str], memory: memoryview) -> list[int]:
        width = self.width
        if self._is_ahead:
            return _request_readahead(names, memory, width)
        read = _read_into if _HAS_READV else _copy_into
        return [read(name, memory[n * width : (n + 1) * width]) for n, name in enumerate(names)]


def _open(name: str) -> int:
    try:
        return os.open(name, OPEN_FLAGS)
    except (OSError, ValueError):
        return -1


def _fill(file: int, memory: memoryview) -> int:
    try:
        return os.readv(file, (memory,))
    except OSError:
        return 0
    finally:
        os.close(file)


def _read_into(name: str, memory: memoryview) -> int:
    file = _open(name)
    return 0 if file < 0 else _fill(file, memory)


def _copy_into(name: str, memory: memoryview) -> int:
    start = read_start(name, len(memory))
    memory[: len(start)] = start
    return len(start)


def _request_readahead(names: Sequence[str], memory: memoryview, width: int) -> list[int]:
    """Request many files from the system before waiting for the first."""
    counts = []
    for first in range(0, len(names), _FILES_AHEAD):
        files = [_open(name) for name in names[first : first + _FILES_AHEAD]]
        for file in files:
            if file >= 0:
                _request(file, width)
        for number, file in enumerate(files, first):
            counts.append(_fill(file, memory[number * width : (number + 1) * width]) if file >= 0 else 0)
    return counts


def _request(file: int, width: int) -> None:
    # pipes and the like have no read-ahead
    with suppress(OSError):
        os.posix_fadvise(file, 0, width, os.POSIX_FADV_WILLNEED)
