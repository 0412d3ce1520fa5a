"""Regular files: not folders, pipes or devices, which can wait without end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

__all__ = ["OPEN_FLAGS", "explain_irregular", "is_folder_at", "is_inside", "is_regular_file", "read_start"]

# binary on Windows; without waiting for a pipe in place of a file
OPEN_FLAGS: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


def is_regular_file(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a regular file; False for names that the system refuses."""
    return stat.S_ISREG(_get_mode(path))


def is_folder_at(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a folder; False for names that the system refuses."""
    return stat.S_ISDIR(_get_mode(path))


def explain_irregular(path: str | os.PathLike[str]) -> str:
    """Return what a path leads to, if it exists and is not a regular file; "" otherwise."""
    mode = _get_mode(path)
    if not mode or stat.S_ISREG(mode):
        return ""
    return "a folder" if stat.S_ISDIR(mode) else "not a regular file"


def read_start(name: str, count: int) -> bytes:
    """Return the first bytes of a file; none if it can't be read."""
    try:
        file = os.open(name, OPEN_FLAGS)
    except (OSError, ValueError):
        return b""
    try:
        return os.read(file, count)
    except OSError:
        return b""
    finally:
        os.close(file)


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder or below, links resolved."""
    inner, outer = os.path.realpath(path), os.path.realpath(folder)
    return inner.startswith(outer.rstrip(os.sep) + os.sep)


def _get_mode(path: str | os.PathLike[str]) -> int:
    """Return the type of a file; 0 if there is none that the system lets see."""
    try:
        return Path(path).stat().st_mode
    # too long a name, or a null character
    except (OSError, ValueError):
        return 0
