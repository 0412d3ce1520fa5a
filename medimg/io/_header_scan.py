"""Headers of many files: regular DICOM files in blocks, all others one by one."""

from __future__ import annotations

import os
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from medimg.core.parallel import ordered_map
from medimg.core.progress import Progress, progress_bar
from medimg.errors import ExecutorError, ReadError
from medimg.executors.executor_map import executor_map
from medimg.io.detect import Unreadable, inspect_file
from medimg.io.dicom.scanning.uniform_scan import scan_uniform_files
from medimg.io.files.blob import as_blob
from medimg.io.sources import REMOTE_WORKERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from medimg.core.progress import ProgressBar
    from medimg.io.detect import Scanned
    from medimg.io.dicom.scanning.series_table import UniformFiles
    from medimg.io.files.blob import Blob

__all__ = ["HeaderScan", "ReadHeaders", "scan_headers"]

#: Fewer files are parsed one by one.
_FEWEST: Final = 2
#: Files that a worker of an executor reads at once, about.
_AT_ONCE: Final = 2000
_MOST_AT_ONCE: Final = 8000
#: Blocks begun for each worker.
_AHEAD: Final = 2


class HeaderScan(NamedTuple):
    """
    Headers of files, by the numbers of the files as given.

    `uniform` holds regular DICOM files, by series; `others` the number and the content of each other file,
    None for a DICOMDIR.
    """

    uniform: list[UniformFiles]
    others: list[tuple[int, Scanned | None]]


class ReadHeaders(Protocol):
    """Function that reads the headers of chosen files, with its options set."""

    def __call__(self, files: Sequence[Blob | str], chosen: Sequence[int], /) -> HeaderScan:
        """Return the headers of the files with the numbers `chosen`."""


def scan_headers(
    files: Sequence[Blob | str],
    chosen: Sequence[int],
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress = "auto",
) -> HeaderScan:
    """Read the headers of the files with the numbers `chosen`; see :func:`medimg.scan` for the options."""
    if executor is not None:
        return _scan_by_executor(files, chosen, executor, workers, progress)
    with progress_bar(desc="scanning", unit="file", progress=progress, total=len(chosen)) as bar:
        uniform, rest = _scan_in_blocks(files, chosen, workers, bar)
        return HeaderScan(uniform, list(_inspect_each(files, rest, workers, bar)))


def _scan_in_blocks(
    files: Sequence[Blob | str], chosen: Sequence[int], workers: int | None, bar: ProgressBar[Any]
) -> tuple[list[UniformFiles], list[int]]:
    """Return the regular DICOM files, and the numbers of the others."""
    numbers = [n for n in chosen if isinstance(files[n], str) or as_blob(files[n]).path is not None]
    names = [file if isinstance(file, str) else file.name for file in map(files.__getitem__, numbers)]
    if len(names) < _FEWEST:
        return [], list(chosen)
    uniform, rest = scan_uniform_files(names, workers=workers, done=bar.update)
    bar.update(-len(rest))
    for some in uniform:
        some.indices[:] = [numbers[n] for n in some.indices]
    if len(numbers) == len(chosen):
        return uniform, [numbers[n] for n in rest]
    taken = {n for some in uniform for n in some.indices}
    return uniform, [n for n in chosen if n not in taken]


def _scan_by_executor(
    files: Sequence[Blob | str],
    chosen: Sequence[int],
    executor: Executor,
    workers: int | None,
    progress: Progress,
) -> HeaderScan:
    """Read headers by an executor, in blocks; those of a block that takes its workers down one by one."""
    found = HeaderScan([], [])
    with progress_bar(desc="scanning", unit="file", progress=progress, total=len(chosen)) as bar:
        blocks = list(_split_by_folder(files, chosen))
        tasks = ([files[n] for n in block] for block in blocks)
        results = executor_map(executor, _scan_block, tasks, lost=_lose_block, workers=workers, ahead=_AHEAD)
        lost: list[int] = []
        for block, scanned in zip(blocks, results, strict=True):
            bar.update(len(block))
            if scanned is None:
                lost += block
            else:
                _add_block(found, block, scanned)
        alone = ([files[n]] for n in lost)
        single = executor_map(executor, _scan_block, alone, lost=_lose_file, workers=workers)
        for number, scanned in zip(lost, single, strict=True):
            assert scanned is not None  # as _lose_file makes one
            _add_block(found, [number], scanned)
    return HeaderScan(found.uniform, sorted(found.others, key=itemgetter(0)))


def _split_by_folder(files: Sequence[Blob | str], chosen: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of files in blocks, whole folders if they are not too large."""
    block: list[int] = []
    for _, folder in groupby(chosen, key=lambda n: _folder_of(files[n])):
        numbers = list(folder)
        for start in range(0, len(numbers), _MOST_AT_ONCE):
            part = numbers[start : start + _MOST_AT_ONCE]
            if block and len(block) + len(part) > _MOST_AT_ONCE:
                yield block
                block = []
            block += part
            if len(block) >= _AT_ONCE:
                yield block
                block = []
    if block:
        yield block


def _folder_of(file: Blob | str) -> str:
    return (file if isinstance(file, str) else file.name).rpartition(os.sep)[0]


def _scan_block(files: Sequence[Blob | str]) -> HeaderScan | None:
    return scan_headers(files, range(len(files)), progress=False)


def _add_block(found: HeaderScan, numbers: Sequence[int], scanned: HeaderScan) -> None:
    """Add what a worker found; ExecutorError if it does not see a file that is there."""
    for _, one in scanned.others:
        if not isinstance(one, Unreadable) or not isinstance(one.error, FileNotFoundError):
            continue
        if Path(one.name).exists():
            raise ExecutorError(
                f"a worker does not see {one.name}; pass an absolute path, to a disk that all workers have"
            )
    for some in scanned.uniform:
        some.indices[:] = [numbers[n] for n in some.indices]
    found.uniform.extend(scanned.uniform)
    found.others.extend((numbers[n], one) for n, one in scanned.others)


def _lose_block(files: Sequence[Blob | str], error: ExecutorError) -> None:
    """Mark a block whose files are read again, one by one."""


def _lose_file(files: Sequence[Blob | str], error: ExecutorError) -> HeaderScan:
    name = as_blob(files[0]).name
    return HeaderScan([], [(0, Unreadable(name, ReadError(f"{name}: {error}")))])


def _inspect_each(
    files: Sequence[Blob | str], chosen: Sequence[int], workers: int | None, bar: ProgressBar[Any]
) -> Iterator[tuple[int, Scanned | None]]:
    blobs = [as_blob(files[n]) for n in chosen]
    if workers is None:
        workers = REMOTE_WORKERS if any(blob.listed_file for blob in blobs) else 1
    found = ordered_map(inspect_file, blobs, workers)
    for number, blob, result in zip(chosen, blobs, found, strict=True):
        # without its server or the network, no other file is found either
        lost = result.error if blob.listed_file and isinstance(result, Unreadable) else None
        if isinstance(lost, ConnectionError | TimeoutError):
            raise lost
        bar.update()
        yield number, result
