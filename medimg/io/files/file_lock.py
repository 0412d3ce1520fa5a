"""Locks between processes."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["file_lock"]


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """
    Let one thread of one process at a time be in the block; all are, where the system has no locks.

    The file at `path` is there meanwhile; that of a process that was killed locks nothing.
    """
    if sys.platform == "win32":
        yield
        return
    lock = _take(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        # a process that was forked meanwhile has the descriptor, too
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _take(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        # whoever had the lock has removed the file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)
