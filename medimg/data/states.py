"""Whether the files of a series are still as they were: by what the system says, without opening them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from medimg.io.series import Series

__all__ = ["States", "states_of"]

#: Of each file: number, size in bytes, times of modification and of change in nanoseconds.
States: TypeAlias = tuple[tuple[int, int, int, int], ...]


def states_of(series: Series) -> States | None:
    """
    Return the states of the files of a series; None where one is not on a disk, or gone.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> states_of(SimpleNamespace(files=("nowhere.dcm",))) is None
    True
    """
    known: dict[str, os.stat_result | None] = {}
    found = []
    for name in series.files:
        state = _state(name)
        if state is None:
            archive = str(Path(name).parent)
            if archive not in known:
                known[archive] = next(filter(None, map(_state, _above(name))), None)
            state = known[archive]
        if state is None:
            return None
        found.append((state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


def _above(name: str) -> list[str]:
    """Return the folders that a name lies in: one may be the archive that it is a member of."""
    return [str(parent) for parent in Path(name).parents]


def _state(name: str) -> os.stat_result | None:
    try:
        state = os.stat(name)  # noqa: PTH116  # a Path for each of many files takes longer than this
    except (OSError, ValueError):
        return None
    return state if stat.S_ISREG(state.st_mode) else None
