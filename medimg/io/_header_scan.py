"""Headers of many files: regular DICOM files in blocks, all others one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from medimg.core.parallel import ordered_map
from medimg.core.progress import Progress, progress_bar
from medimg.io.detect import Unreadable, inspect_file
from medimg.io.dicom.scanning.uniform_scan import scan_uniform_files
from medimg.io.files.blob import as_blob
from medimg.io.sources import REMOTE_WORKERS

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
