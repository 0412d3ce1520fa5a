"""Writing a file so that it is there whole or not at all, and hashing one."""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["atomic_path", "file_sha256", "write_text"]


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """
    Give a temporary path beside a file, and put it in the file's place once the block has ended well.

    Parameters
    ----------
    target : Path
        The file to write; its folder is made where it is missing, an old file is replaced.

    Yields
    ------
    Path
        Where to write. It is flushed to the disk, then renamed; after an error it is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the process's umask leaves; some writers make it private
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """
    Write UTF-8 text, whole or not at all.

    Parameters
    ----------
    path : path-like
        The file; its folder is made where it is missing, an old file is replaced.
    text : str
        The content.

    Returns
    -------
    pathlib.Path
        The file written.
    """
    target = Path(path)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
    return target


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
