"""Cache of downloaded files: a folder of one user, bounded in bytes."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from medimg.core.content_hash import content_hash
from medimg.core.logger import get_logger
from medimg.errors import ReadError
from medimg.io.files.atomic import atomic_path
from medimg.io.files.bounded_folder import list_by_use, remove_least_used
from medimg.io.files.private_folder import make_private_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["FileCache"]

_DIGEST: Final = hashlib.sha256().digest_size
_SUFFIX: Final = ".part10"
#: Share of the bound that is left after the oldest files are removed.
_KEPT: Final = 0.9


class FileCache:
    """Files by digests of what identifies them, in a private folder; the least recently used go first."""

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._lock = threading.Lock()
        self._total: int | None = None
        make_private_folder(folder, "cache folder", error=ReadError)

    def __getstate__(self) -> tuple[Path, int]:
        return self._folder, self._most

    def __setstate__(self, state: tuple[Path, int]) -> None:
        self._folder, self._most = state
        self._lock = threading.Lock()
        self._total = None

    def holds(self, key: Sequence[str]) -> bool:
        """Whether a file is there, damaged or not."""
        return self._find_path(key).is_file()

    def load(self, key: Sequence[str]) -> bytes | None:
        """Return a file; None if it is not there or damaged."""
        path = self._find_path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        digest, found = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(found).digest() != digest:
            get_logger().warning("%s of the cache is damaged; it is read again from the server", path.name)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return found

    def store(self, key: Sequence[str], data: bytes | memoryview) -> None:
        """Keep a file, unless it is larger than a tenth of the cache or can't be written."""
        size = len(data) + _DIGEST
        if size > self._most // 10:
            return
        try:
            target = self._find_path(key)
            with atomic_path(target) as path, path.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            target.chmod(0o600)
        except OSError as error:
            get_logger().warning("the cache of the server can't be written: %s", error.strerror)
            return
        with self._lock:
            if self._total is None:
                self._total = sum(size for _, size, _ in list_by_use(self._folder, _SUFFIX))
            else:
                self._total += size
            if self._total > self._most:
                self._total = remove_least_used(self._folder, _SUFFIX, self._most * _KEPT)

    def _find_path(self, key: Sequence[str]) -> Path:
        return self._folder / (content_hash(list(key)) + _SUFFIX)
