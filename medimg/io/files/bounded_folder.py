"""Folders of files, of which the least recently used are removed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["list_by_use", "remove_least_used"]


def list_by_use(folder: Path, suffix: str) -> list[tuple[float, int, Path]]:
    """Return time of last use, size and path of the files with a suffix, least recently used first."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(suffix):
                with suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    found.append((state.st_mtime, state.st_size, Path(entry.path)))
    return sorted(found)


def remove_least_used(folder: Path, suffix: str, most: float) -> int:
    """Remove files until those with a suffix have at most so many bytes, and return how many are left."""
    found = list_by_use(folder, suffix)
    total = sum(size for _, size, _ in found)
    for _, size, path in found:
        if total <= most:
            break
        # on Windows, a file that is in use can't be removed
        with suppress(OSError):
            path.unlink()
            total -= size
    return total
