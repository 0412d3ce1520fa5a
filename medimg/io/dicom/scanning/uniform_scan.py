"""Uniform scan: finds the files of each series that differ in a few elements; all others need the parser."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from medimg.errors import MedimgError
from medimg.io.dicom.header.instance import read_instance
from medimg.io.dicom.scanning.header_groups import make_header_groups
from medimg.io.dicom.scanning.series_table import UniformFiles, build_uniform_files, is_plain
from medimg.io.files.blob import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from medimg.io.dicom.header.instance import Instance
    from medimg.io.dicom.scanning.header_groups import HeaderGroup

__all__ = ["scan_uniform_files"]

_FIRST_FILES: Final = 64
_FILES: Final = 1024
#: If less of one core is used, threads wait for the disk, the network or a core: many wait at once.
_LEAST_USE: Final = 0.5
_MANY_THREADS: Final = 16


def scan_uniform_files(
    names: Sequence[str], *, workers: int | None = None, done: Callable[[int], object] | None = None
) -> tuple[list[UniformFiles], list[int]]:
    """
    Return the regular DICOM files among `names`, by series, and the indices of the others, ascending.

    `done` is called now and then with the number of files read since.
    """
    headers = make_header_groups()
    threads = workers or os.cpu_count() or 1
    at, size = 0, _FIRST_FILES
    while at < len(names):
        some = names[at : at + size]
        began, used = time.perf_counter(), time.process_time()
        headers.add(some, threads)
        if workers is None and time.process_time() - used < _LEAST_USE * (time.perf_counter() - began):
            threads = _MANY_THREADS
        at, size = at + len(some), _FILES
        if done is not None:
            done(len(some))
    groups, rest = headers.finish()
    return _build_files(groups, rest)


def _build_files(groups: Sequence[HeaderGroup], rest: list[int]) -> tuple[list[UniformFiles], list[int]]:
    found = []
    prototypes: dict[tuple[int, bool], Instance | None] = {}
    for group in groups:
        # damaged spacing is an error only of files with a position
        for placed, rows in group.rows.split_placed():
            key = group.header_class, placed
            regular, irregular = rows.split_irregular()
            if regular and key not in prototypes:
                # of an irregular file it would have notes of its own
                prototypes[key] = _read_prototype(regular.names[0])
            prototype = prototypes.get(key)
            uniform = build_uniform_files(prototype, group.series, regular) if prototype and regular else None
            if uniform is None:
                irregular = rows.indices
            else:
                found.append(uniform)
            rest += irregular
    return found, sorted(rest)


def _read_prototype(name: str) -> Instance | None:
    """Return the header that the files of a class have in common; None if they are not single images."""
    try:
        found = read_instance(Blob(name))
    except MedimgError:
        return None
    return found if is_plain(found) else None
