"""Headers of many files: regular DICOM files in blocks, all others one by one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from medimg.core.progress import Progress, progress_bar
from medimg.io.detect import inspect_file
from medimg.io.dicom.scanning.uniform_scan import scan_uniform_files
from medimg.io.files.blob import as_blob

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medimg.core.progress import ProgressBar
    from medimg.io.detect import Scanned
    from medimg.io.dicom.scanning.series_table import UniformFiles
    from medimg.io.files.blob import Blob

__all__ = ["HeaderScan", "scan_headers"]

#: Fewer files are parsed one by one.
_FEWEST: Final = 2


class HeaderScan(NamedTuple):
    """
    Headers of files, by the numbers of the files as given.

    `uniform` holds regular DICOM files, by series; `others` the number and the content of each other file,
    None for a DICOMDIR.
    """

    uniform: list[UniformFiles]
    others: list[tuple[int, Scanned | None]]


def scan_headers(
    files: Sequence[Blob | str],
    chosen: Sequence[int],
    *,
    workers: int | None = None,
    progress: Progress = "auto",
) -> HeaderScan:
    """Read the headers of the files with the numbers `chosen`; see :func:`medimg.scan` for the options."""
    with progress_bar(desc="scanning", unit="file", progress=progress, total=len(chosen)) as bar:
        uniform, rest = _scan_in_blocks(files, chosen, workers, bar)
        return HeaderScan(uniform, list(_inspect_each(files, rest, workers or 1, bar)))


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


def _inspect_each(
    files: Sequence[Blob | str], chosen: Sequence[int], workers: int, bar: ProgressBar[Any]
) -> Iterator[tuple[int, Scanned | None]]:
    blobs = (as_blob(files[n]) for n in chosen)
    with ThreadPoolExecutor(workers) as pool:
        found = map(inspect_file, blobs) if workers == 1 else pool.map(inspect_file, blobs)
        for number, result in zip(chosen, found, strict=True):
            bar.update()
            yield number, result
