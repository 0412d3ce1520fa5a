"""Atomic writing of files, and their hash."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic_path", "hash_file", "remove_leftovers", "temporary_folder", "to_os_error"]

#: Temporary folders, hidden from scans: whatever a writer that is killed leaves is inside.
_PREFIX: Final = ".medimg-"
_SUFFIX: Final = ".tmp"
#: How Rust names an error of the system.
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
#: Age of a leftover whose writer can't be asked for, as the file system has no locks.
_STALE_SECONDS: Final = 24 * 3600


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """
    Yield a temporary path, and replace the file by it when the block ends without error.

    The path is in a temporary folder beside the file; leftovers of writers that were killed are removed.
    """
    if "\0" in str(target):
        raise OSError(errno.EINVAL, "the name has a null character")
    _make_parent(target)
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(target))
    remove_leftovers(target.parent)
    with _locked_folder(target.parent, target) as folder:
        temporary = folder / target.name
        temporary.touch()
        mode = temporary.stat().st_mode  # what the process's umask leaves; some writers make it private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(target.parent)) from None


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """
    Yield a new folder for temporary files that no other user can open, and remove it with its content.

    Those that killed processes left are removed, too.
    """
    parent = Path(tempfile.gettempdir())
    remove_leftovers(parent)
    with _locked_folder(parent, parent, mode=0o700) as folder:
        yield folder


@contextmanager
def _locked_folder(parent: Path, known_as: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Yield a new folder, locked while it is in use, and remove it; errors name what the user knows."""
    try:
        folder, lock = _make_locked_folder(parent, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(known_as)) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _make_locked_folder(parent: Path, mode: int) -> tuple[Path, int | None]:
    """Return a new folder, and a descriptor that locks it; None if there are no locks."""
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        folder.mkdir(mode)
        if sys.platform == "win32":
            return folder, None
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another process took it for a leftover before it was locked
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of writers that were killed."""
    try:
        with os.scandir(folder) as entries:
            found = [e.path for e in entries if e.name.startswith(_PREFIX) and e.name.endswith(_SUFFIX)]
    except OSError:
        return
    for path in found:
        # another process may be faster
        with suppress(OSError):
            _remove_if_abandoned(Path(path))


def _remove_if_abandoned(folder: Path) -> None:
    is_old = time.time() - folder.stat().st_mtime > _STALE_SECONDS
    if sys.platform == "win32":
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    except OSError:
        if is_old:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def to_os_error(error: Exception, path: Path) -> OSError:
    """Return the error of the system that a library states only in its text, with its own path."""
    stated = _OS_ERROR.search(str(error))
    number = int(stated.group(1)) if stated else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
